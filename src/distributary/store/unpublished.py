"""What an operator sees of messages that never can be published, as dead letters."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from bson import Timestamp
from pymongo.database import Database

from distributary.change import LENIENT, Position
from distributary.chunks import chunks
from distributary.state import Letter, LetterKind
from distributary.store.letters import StoredLetter, Unsent
from distributary.store.outbox import OUTBOX, ids_of
from distributary.store.refusals import IS_REFUSED

#: Values in one `$in`.
_CHUNK = 1000


def unpublished_letters(
    state: Database[Any], where: Mapping[str, Any], limit: int, *, whole: bool = False
) -> list[StoredLetter]:
    """Give refused messages of all workers that match a query on letters, the newest first; 0 means all of them.

    Without the data of triggers' events, unless they are wanted `whole`.
    """
    shown = None if whole else {"data": 0}
    found = state.get_collection(OUTBOX, LENIENT).find(_query(where), shown).sort("at", -1).limit(limit)
    return [_letter(each) for each in found]


def count_unpublished(state: Database[Any], where: Mapping[str, Any]) -> int:
    """Count the refused messages of all workers that match a query on letters."""
    return state.get_collection(OUTBOX, LENIENT).count_documents(_query(where))


def discard_unpublished(state: Database[Any], worker: str, ids: Sequence[str]) -> int:
    """Remove refused messages of a worker by their short ids, and give how many there were; durable on return."""
    collection = state.get_collection(OUTBOX, LENIENT)
    return sum(
        collection.delete_many({"worker": worker, "id": {"$in": some}, **IS_REFUSED}).deleted_count
        for some in chunks(ids, _CHUNK)
    )


def oldest_waiting(state: Database[Any], worker: str) -> Any:
    """Give the id of the message of a worker that is sent next; None when nothing waits."""
    return _end_of_queue(state, worker, 1)


def newest_waiting(state: Database[Any], worker: str) -> Any:
    """Give the id of the message of a worker that is sent last; None when nothing waits."""
    return _end_of_queue(state, worker, -1)


def _end_of_queue(state: Database[Any], worker: str, direction: int) -> Any:
    mine = {"_id": ids_of(worker), "refused": None}
    found = state.get_collection(OUTBOX, LENIENT).find_one(mine, {"_id": 1}, sort=[("_id", direction)])
    return found and found["_id"]


def _query(where: Mapping[str, Any]) -> dict[str, Any]:
    """Give a query on letters as one on the outbox; the sparse index on `id` has exactly what was refused."""
    names = {"transform": "of"}
    return {"id": {"$exists": True}} | {names.get(name, name): value for name, value in where.items()}


def _letter(entry: Mapping[str, Any]) -> StoredLetter:
    is_event = "key" not in entry
    at: Timestamp = entry["at"]
    letter = Letter(
        transform=entry["of"],
        key={"position": entry["position"]} if is_event else entry["key"]["of"],
        source="",
        kind=LetterKind.UNPUBLISHED,
        reason=entry["refused"],
        traceback="",
        position=Position(entry["position"], at),
        fingerprint="",
    )
    message = Unsent(entry["topic"], entry["ordering_key"], is_event, entry.get("data", ""))
    when: datetime = at.as_datetime()
    return StoredLetter(entry["id"], entry["worker"], letter, 1, when, when, message)
