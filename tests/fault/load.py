"""A mixed load on raw collections, the same for the same seed, and what watches what is derived from it."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from random import Random
from threading import Event, Thread
from typing import Any, NamedTuple

from pymongo.client_session import ClientSession
from pymongo.errors import OperationFailure

from distributary.change import identity
from distributary.source.documents import GONE_SNAPSHOT
from distributary.store.checkpoints import Checkpoints
from distributary.store.pending import PENDING
from tests.conftest import Databases
from tests.harness import Harness, grouped, groups

#: Every raw document has a `revision`, copied to all of its records: a later state has a higher one. An order
#: also has a `life`, which is higher when it is inserted again. Rollups are over records and over shared ones.
MODULE = """
    from distributary import DerivedCollection, Rollup, transform, trigger

    by_customer = DerivedCollection("orders_by_customer", indexes=[["customer", "revision"]])
    lines = DerivedCollection("order_lines", indexes=["sku"])
    by_code = DerivedCollection("orders_by_code")
    members = DerivedCollection("members")
    links = DerivedCollection("links_of_groups")
    customer = DerivedCollection("customer")
    audit = DerivedCollection("audit")

    newest = {"count": {"$sum": 1}, "newest": {"$max": "$revision"}}
    rollups = [
        Rollup("customer_orders", over=by_customer, by="customer", compute=newest),
        Rollup("sku_lives", over=lines, by=["sku", "life"], compute=newest, match={"life": {"$lt": 4}}),
        Rollup("coded_lives", over=customer, by="coded.life", compute={
            "count": {"$sum": 1}, "newest": {"$max": "$coded.revision"}}),
    ]

    @trigger("orders")
    def trail(change):
        yield audit.record(change.position, {"of": change.key, "operation": change.operation})

    @transform("orders")
    def orders(order):
        if "poison" in order:
            raise ValueError("poison")
        fields = {"order": order["_id"], "revision": order["revision"], "life": order["life"]}
        yield by_customer.record(order["_id"], {"customer": order["customer"], **fields})
        for number, sku in enumerate(order["skus"], start=1):
            yield lines.record({"order": order["_id"], "line": number}, {"sku": sku, **fields})
        yield customer.item(order["customer"], "orders", order["_id"], fields)
        if "code" in order:
            yield by_code.record(order["code"], fields)
            yield customer.section(order["code"], "coded", fields)

    @transform("members")
    def group_members(member):
        yield members.record(member["_id"], {"group": member["group"], "revision": member["revision"]})
        fields = {"member": member["_id"], "group": member["group"], "revision": member["revision"]}
        yield customer.item(member["group"], "members", member["_id"], fields)

    @transform("links")
    def group_links(link):
        yield links.record(link["_id"], {"group": link["group"], "revision": link["revision"]})
"""

#: Settings under which small loads make many commits and job slices, and a lease is soon free.
SETTINGS = {
    "worker.batch_changes": "20",
    "worker.scan_documents": "50",
    "worker.lease_seconds": "0.4",
    "worker.idle_save_seconds": "0.1",
    "dead_letters.max_in_window": "0",
}

ORDERS, LEAVING, CODES, GROUPS, MEMBERS = 120, 10, 8, 4, 3

#: Milliseconds between two operations of a live load, and between two looks of a watch.
PAUSE, LOOK = 4, 40

Document = dict[str, Any]


class Load:
    """Inserts, updates, replaces, deletes, inserts again, moves keys, contests them, poisons, in transactions."""

    def __init__(self, databases: Databases, seed: int) -> None:
        self._client = databases.client
        self._orders = databases.raw.orders
        self._sources = {"members": databases.raw.members, "links": databases.raw.links}
        self._random = Random(seed)
        self._revisions = count(1)
        self._alive: dict[int, Document] = {}
        self._lives = Counter[int]()
        self._kinds = {
            "insert": 4,
            "update": 6,
            "replace": 2,
            "delete": 2,
            "again": 2,
            "move": 3,
            "swap": 1,
            "poison": 1,
            "heal": 1,
            "many": 1,
            "group": 4,
        }
        for source, documents in self._members(0).items():
            self._sources[source].insert_many(documents)
        for _ in range(ORDERS // 2):
            self._insert()

    def burst(self, operations: int) -> None:
        """Do so many operations, the kinds in proportion."""
        for _ in range(operations):
            (kind,) = self._random.choices(list(self._kinds), list(self._kinds.values()))
            getattr(self, f"_{kind}")()

    def part(self, operations: int) -> None:
        """Change some documents, do so many other operations, and delete those documents."""
        leaving = self._random.sample(sorted(self._alive), min(LEAVING, len(self._alive)))
        for key in leaving:
            self._set(key, {"skus": self._skus()})
        self.burst(operations)
        for key in leaving:
            self._alive.pop(key, None)
            self._orders.delete_one({"_id": key})

    def settle(self) -> None:
        """End every contest and heal every poisoned document, so that all of them can be derived."""
        for key in list(self._alive):
            self._set(key, {"code": f"own {key}"}, {"poison": ""})

    @contextmanager
    def live(self) -> Iterator[None]:
        """Go on with operations beside what is done inside."""
        stop, failed = Event(), list[BaseException]()

        def work() -> None:
            while not stop.wait(PAUSE / 1000):
                self.burst(1)

        thread = Thread(target=_recorded, args=(work, failed), name="load")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        if failed:
            raise failed[0]

    # --- operations -----------------------------------------------------------------------------------------

    def _insert(self) -> None:
        free = [key for key in range(ORDERS) if key not in self._alive]
        if free:
            key = self._random.choice(free)
            self._lives[key] += 1
            self._alive[key] = document = self._order(key)
            self._orders.insert_one(document)

    def _update(self) -> None:
        for key in self._any():
            self._set(key, {"skus": self._skus(), "customer": self._random.randrange(9)})

    def _move(self) -> None:
        for key in self._any():
            self._set(key, {"code": f"code {self._random.randrange(CODES)}"})

    def _replace(self) -> None:
        for key in self._any():
            self._alive[key] = document = self._order(key)
            self._orders.replace_one({"_id": key}, document)

    def _delete(self) -> None:
        for key in self._any():
            del self._alive[key]
            self._orders.delete_one({"_id": key})

    def _again(self) -> None:
        """Delete and insert again, with or without a transaction around it."""
        for key in self._any():
            self._lives[key] += 1
            self._alive[key] = document = self._order(key)
            with self._maybe_together() as session:
                self._orders.delete_one({"_id": key}, session=session)
                self._orders.insert_one(document, session=session)

    def _swap(self) -> None:
        """Let two documents exchange the keys that they yield."""
        coded = [key for key, document in self._alive.items() if "code" in document]
        if len(coded) < 2:
            return
        first, second = self._random.sample(coded, 2)
        codes = self._alive[second]["code"], self._alive[first]["code"]
        with self._together() as session:
            for key, code in zip((first, second), codes, strict=True):
                self._set(key, {"code": code}, session=session)

    def _poison(self) -> None:
        for key in self._any():
            self._set(key, {"poison": True})

    def _heal(self) -> None:
        for key in [key for key, document in self._alive.items() if "poison" in document][:3]:
            self._set(key, {}, {"poison": ""})

    def _many(self) -> None:
        customer = self._random.randrange(9)
        self._orders.update_many(
            {"customer": customer}, {"$set": {"skus": self._skus(), "revision": next(self._revisions)}}
        )

    def _group(self) -> None:
        """Change all members and links of one group in one transaction, some by update and some by replace."""
        group = self._random.randrange(GROUPS)
        revision = {"revision": next(self._revisions)}
        with self._together() as session:
            for source, documents in self._members(revision["revision"]).items():
                for document in [each for each in documents if each["group"] == group]:
                    only = {"_id": document["_id"]}
                    if self._random.random() < 0.5:
                        self._sources[source].update_one(only, {"$set": revision}, session=session)
                    else:
                        self._sources[source].replace_one(only, document, session=session)

    # --- parts of them --------------------------------------------------------------------------------------

    def _any(self) -> list[int]:
        return [self._random.choice(sorted(self._alive))] if self._alive else []

    def _set(
        self, key: int, fields: Document, gone: Mapping[str, str] | None = None, *, session: Any = None
    ) -> None:
        fields = {**fields, "revision": next(self._revisions)}
        kept = {name: value for name, value in self._alive[key].items() if name not in (gone or {})}
        self._alive[key] = kept | fields
        update: Document = {"$set": fields} | ({"$unset": dict(gone)} if gone else {})
        self._orders.update_one({"_id": key}, update, session=session)

    def _order(self, key: int) -> Document:
        coded = {"code": f"code {self._random.randrange(CODES)}"} if self._random.random() < 0.2 else {}
        return {
            "_id": key,
            "life": self._lives[key],
            "revision": next(self._revisions),
            "customer": self._random.randrange(9),
            "skus": self._skus(),
            **coded,
        }

    def _skus(self) -> list[str]:
        return [f"sku {self._random.randrange(20)}" for _ in range(self._random.randrange(5))]

    def _members(self, revision: int) -> dict[str, list[Document]]:
        return {
            source: [
                {"_id": f"{source} {group} {number}", "group": group, "revision": revision}
                for group in range(GROUPS)
                for number in range(MEMBERS)
            ]
            for source in self._sources
        }

    @contextmanager
    def _together(self) -> Iterator[ClientSession]:
        with self._client.start_session() as session, session.start_transaction():
            yield session

    @contextmanager
    def _maybe_together(self) -> Iterator[ClientSession | None]:
        if self._random.random() < 0.5:
            yield None
        else:
            with self._together() as session:
                yield session


class Trail:
    """What the audit trail has to hold: every change of an order since the worker was here, in order."""

    def __init__(self, harness: Harness) -> None:
        checkpoint = Checkpoints(harness.databases.state).load("default")
        assert checkpoint is not None
        assert checkpoint.triggers is not None
        self._databases = harness.databases
        self._since = checkpoint.triggers.position

    def assert_complete(self) -> None:
        """Fail unless each change has one record, written in the order of the changes, and nothing else has."""
        changes, token = self._changes(), self._since.token
        found = self._databases.derived.audit.find({"_id": {"$gt": token}}).sort("$natural", 1)
        assert [(each["_id"], each["of"], each["operation"]) for each in found] == changes

    def _changes(self) -> list[tuple[str, Any, str]]:
        """Read the changes up to now from the source's history."""
        end = self._databases.raw.orders.insert_one({"_id": "end of trail"}).inserted_id
        self._databases.raw.orders.delete_one({"_id": end})
        changes: list[tuple[str, Any, str]] = []
        with self._databases.raw.orders.watch(start_at_operation_time=self._since.time) as stream:
            for each in stream:
                key = each["documentKey"]["_id"]
                if key == end:
                    return changes
                if each["_id"]["_data"] > self._since.token:
                    changes.append((each["_id"]["_data"], key, each["operationType"]))
        raise AssertionError("the history ended")


class _Seen(NamedTuple):
    """What was last seen of a source; `left` when it was not there any more."""

    revision: int = 0
    life: int = 0
    left: bool = False


class Watch:
    """Looks at all derived collections at one moment after the other, and notes what may never be seen.

    Without `torn` a document may be shown in two states, by two collections. Without `computed`, groups of rollups may
    differ from the records that are stored, though they are not pending.
    """

    def __init__(self, harness: Harness) -> None:
        self._client = harness.databases.client
        self._derived = harness.databases.derived
        registry = harness.registry
        self._state = harness.databases.state
        self._collections = sorted(registry.collections.keys() - registry.audited)
        self._rollups = registry.rollups
        self._seen: dict[Any, _Seen] = {}
        self.faults: list[str] = []
        self.looks = 0
        self.torn = self.computed = True

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look again and again beside what is done inside; fails when something was noted."""
        stop, failed = Event(), list[BaseException]()

        def work() -> None:
            while not stop.wait(LOOK / 1000):
                self.look()

        thread = Thread(target=_recorded, args=(work, failed), name="watch")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        self.look()
        assert not self.faults, "\n".join(self.faults[:20])
        if failed:
            raise failed[0]
        assert self.looks

    def look(self) -> None:
        """Read everything as of one moment and hold it against what was seen before."""
        try:
            with self._client.start_session(snapshot=True) as session:
                records = self._records(session)
                differing = list(self._differing(session)) if self.computed else []
        except OperationFailure as error:
            if error.code not in GONE_SNAPSHOT:
                raise
            return
        self.looks += 1
        if self.torn:
            self._torn(records)
        self._backwards(records)
        self.faults += differing

    def _records(self, session: ClientSession) -> dict[tuple[str, Any], Document]:
        return {
            (name, repr(record["_id"])): record
            for name in self._collections
            for each in self._derived[name].find({}, session=session)
            for record in _records(each)
        }

    def _differing(self, session: ClientSession) -> Iterator[str]:
        """Tell of groups that are not what the records come to at this moment, and are not pending."""
        pending = {
            (each["_id"]["rollup"], identity(each["_id"]["group"]))
            for each in self._state[PENDING].find({}, session=session)
        }
        for name, rollup in self._rollups.items():
            stored, wanted = groups(self._derived, name, session), grouped(self._derived, rollup, session)
            for group in stored.keys() | wanted.keys():
                if stored.get(group) != wanted.get(group) and (name, group) not in pending:
                    yield f"not computed: {name}[{group}] is {stored.get(group)!r}, not {wanted.get(group)!r}"

    def _torn(self, records: Mapping[tuple[str, Any], Document]) -> None:
        """Note sources of one transaction, and records of one source, that show several revisions."""
        shown: dict[Any, set[int]] = {}
        for record in records.values():
            unit = ("group", record["group"]) if "group" in record else ("order", record["order"])
            shown.setdefault(unit, set()).add(record["revision"])
        for unit, revisions in shown.items():
            if len(revisions) > 1:
                who = [
                    (key, each["revision"])
                    for key, each in records.items()
                    if unit[1] in (each.get("group"), each.get("order"))
                ]
                self.faults.append(f"torn: {unit} shows revisions {sorted(revisions)} {who}")

    def _backwards(self, records: Mapping[tuple[str, Any], Document]) -> None:
        """Note sources that show an older revision than before, or are back in the life in which they left."""
        shown = {_owner(record): (record["revision"], record.get("life", 0)) for record in records.values()}
        for owner, (revision, life) in shown.items():
            before = self._seen.get(owner, _Seen())
            if revision < before.revision or (before.left and life <= before.life):
                self.faults.append(
                    f"backwards: {owner} shows revision {revision} of life {life} after {before}"
                )
            self._seen[owner] = _Seen(revision, life)
        for owner in self._seen.keys() - shown.keys():
            self._seen[owner] = self._seen[owner]._replace(left=True)


def _records(document: Document) -> Iterator[Document]:
    """Give a record, or the sections and items of a shared one as if each was a record."""
    if not document["_src"].get("shared"):
        yield document
        return
    for name in document.keys() - {"_id", "_src"}:
        for part in document[name] if isinstance(document[name], list) else [document[name]]:
            key = (document["_id"], name, part.get("_id"))
            owner = ("orders", part["order"]) if "order" in part else ("members", part["member"])
            yield {**part, "_id": key, "_src": dict(zip(("by", "key"), owner, strict=True))}


def _owner(record: Document) -> Any:
    return record["_src"]["by"], repr(record["_src"]["key"])


def _recorded(work: Any, failed: list[BaseException]) -> None:
    try:
        work()
    except BaseException as error:  # noqa: BLE001 - raised again by the test
        failed.append(error)
