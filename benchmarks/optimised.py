"""What an expert writes by hand for speed, with pymongo alone and without distributary's guarantees.

Raw `getMore` batches read ahead by a thread, changes collapsed per order, one query per batch for the
updated orders, inserts without an upsert for new ones, two writer threads with `w: 1`, a majority
checkpoint after each batch, and no cyclic garbage collection.

It does without: transactions (readers see half a batch), a fence, dead letters, and a re-check of what a
crash left half-written.
"""

import gc
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import Queue
from threading import Thread
from typing import Any

from bson import ObjectId
from pymongo.write_concern import WriteConcern

from benchmarks.contender import Task, run
from benchmarks.stream import tail_in_batches
from benchmarks.workload import DERIVED, OWNERS, RAW, SOURCE, Document, fan_out

READ = 10_000  # changes per getMore
AHEAD = 2  # batches read ahead
WRITERS = 2
DUPLICATE_KEY = 11000

ByCollection = dict[str, list[Document]]


@dataclass
class Batch:
    """What a batch of changes comes to: documents of new orders, those of old ones, and the latters' keys."""

    token: Document
    new: ByCollection = field(default_factory=lambda: defaultdict(list))
    known: ByCollection = field(default_factory=lambda: defaultdict(list))
    old: list[ObjectId] = field(default_factory=list)


def tail(task: Task) -> None:
    """Derive one batch while the one before it is written."""
    gc.freeze()
    gc.disable()
    ahead: Queue[tuple[list[Document], Document]] = Queue(AHEAD)
    Thread(target=_read, args=(task, ahead.put), daemon=True).start()
    with ThreadPoolExecutor(WRITERS) as writers:
        writing: list[Future[None]] = []
        seen = 0
        before: Batch | None = None
        while seen < task.changes:
            changes, token = ahead.get()
            seen += len(changes)
            batch = _derive(task, changes, token)
            _finish(task, before, writing)
            writing = [writers.submit(_write, task, batch, name) for name in OWNERS]
            before = batch
        _finish(task, before, writing)


def _read(task: Task, put: Callable[[tuple[list[Document], Document]], None]) -> None:
    for changes, token in tail_in_batches(task.client, RAW, [], READ, start_after=task.token):
        if changes:
            put((changes, token))


def _derive(task: Task, changes: list[Document], token: Document) -> Batch:
    new: set[ObjectId] = set()
    latest: dict[ObjectId, Document] = {}
    for change in changes:
        key = change["documentKey"]["_id"]
        if change["operationType"] == "insert":
            new.add(key)
        latest[key] = change
    orders = _orders(task, latest)
    batch = Batch(token, old=[key for key in latest if key not in new])
    for key, order in orders.items():
        target = batch.new if key in new else batch.known
        for collection, document in fan_out(order):
            target[collection].append(document)
    return batch


def _orders(task: Task, latest: dict[ObjectId, Document]) -> dict[ObjectId, Document]:
    """Give the orders that exist: inserted ones from their change, updated ones from one query."""
    carried = {key: change["fullDocument"] for key, change in latest.items() if "fullDocument" in change}
    updated = [key for key, change in latest.items() if change["operationType"] == "update"]
    if updated:
        found = task.client[RAW][SOURCE].find({"_id": {"$in": updated}}, batch_size=len(updated))
        carried.update((order["_id"], order) for order in found)
    return carried


def _write(task: Task, batch: Batch, name: str) -> None:
    _delete(task, name, _stale(task, batch, name))
    _upsert(task, name, batch.known[name])
    _insert(task, name, batch.new[name])


def _stale(task: Task, batch: Batch, name: str) -> list[Any]:
    if not batch.old:
        return []
    kept = {_hashable(document["_id"]) for document in batch.known[name]}
    if OWNERS[name] == "_id":
        return [key for key in batch.old if key not in kept]
    query = {OWNERS[name]: {"$in": batch.old}}
    stored = task.client[DERIVED][name].find(query, {"_id": 1}, batch_size=READ * 5)
    return [document["_id"] for document in stored if _hashable(document["_id"]) not in kept]


def _hashable(key: Any) -> Any:
    return tuple(key.values()) if isinstance(key, dict) else key


def _delete(task: Task, name: str, keys: list[Any]) -> None:
    if keys:
        _command(task, "delete", name, deletes=[{"q": {"_id": {"$in": keys}}, "limit": 0}])


def _upsert(task: Task, name: str, documents: list[Document]) -> None:
    if documents:
        updates = [{"q": {"_id": document["_id"]}, "u": document, "upsert": True} for document in documents]
        _command(task, "update", name, updates=updates, ordered=False)


def _insert(task: Task, name: str, documents: list[Document]) -> None:
    if not documents:
        return
    reply = _command(task, "insert", name, documents=documents, ordered=False)
    faults = reply.get("writeErrors", [])
    if any(fault["code"] != DUPLICATE_KEY for fault in faults):
        raise RuntimeError(f"{name}: {faults[:3]}")
    _upsert(task, name, [documents[fault["index"]] for fault in faults])


def _command(task: Task, verb: str, name: str, **arguments: Any) -> Document:
    return task.client[DERIVED].command(verb, name, writeConcern={"w": 1}, **arguments)


def _finish(task: Task, batch: Batch | None, writing: list[Future[None]]) -> None:
    for write in writing:
        write.result()
    if batch:
        checkpoints = task.client["bench"].get_collection(
            "checkpoints", write_concern=WriteConcern("majority")
        )
        checkpoints.replace_one({"_id": "optimised"}, {"token": batch.token}, upsert=True)


if __name__ == "__main__":
    run(tail)
