"""The ports in memory: a source that is written to, and what survives a restart, with its transactions.

What they promise is what `tests/contract` asks of them and of the real thing alike.
"""

# ruff: noqa: ARG002 - a fake does without some of what its port is given

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import chain
from threading import Event
from types import MappingProxyType
from typing import Any, NamedTuple, cast
from uuid import UUID, uuid4

from bson import ObjectId, Timestamp, decode, encode
from pymongo.client_session import ClientSession

from distributary.change import (
    CODEC,
    Change,
    CollectionChange,
    Identity,
    Operation,
    Position,
    Version,
    identity,
)
from distributary.derive.plan import Desired, Owner, Plan, Stored, reconcile, stored
from distributary.derive.records import Place
from distributary.derive.shadows import shadowed, written
from distributary.derive.trigger import Event as Published
from distributary.derive.trigger import Seen
from distributary.errors import CheckpointMoved, LeaseLost, PositionLost
from distributary.events.envelope import Message
from distributary.parts import is_parts, parts_of, shared_of
from distributary.ports.events import Commit, Held, Put, Sent, UntoldChunk, Waiting
from distributary.ports.records import Behind, RecordState, Shown
from distributary.ports.rollups import Drained, Group, Marked
from distributary.ports.sink import (
    Contrast,
    Finish,
    FinishCopy,
    FinishMarking,
    FinishShowing,
    Others,
    Outcome,
)
from distributary.ports.source import Batch, Snapshot, Start
from distributary.ports.stores import ParkedChange
from distributary.state import (
    Checkpoint,
    Job,
    JobKind,
    Letter,
    LetterKey,
    LetterKind,
    ParkedLetter,
    SlowTransform,
)
from distributary.testing.order import in_order

Document = dict[str, Any]


class Entry(NamedTuple):
    """One operation in the source's history."""

    time: Timestamp
    change: Change | CollectionChange


#: Lie before and behind all that `in_order` gives.
LOWEST, HIGHEST = (-1, 0), (99, 0)


class Raw:
    """A source database; each write is one tick of its cluster time. Reads documents as the port says."""

    def __init__(self) -> None:
        self.history: list[Entry] = []
        self._states: list[dict[str, dict[Identity, Document]]] = [{}]
        self.forgotten = 0

    # --- writing --------------------------------------------------------------------------------------------

    @property
    def now(self) -> Timestamp:
        """The time of the newest operation."""
        return self._time(len(self.history))

    def insert(self, collection: str, document: Document) -> None:
        """Insert a document."""
        self._write(collection, document["_id"], Operation.INSERT, document, carried=True)

    def replace(self, collection: str, document: Document) -> None:
        """Replace a document; the change carries it."""
        self._write(collection, document["_id"], Operation.REPLACE, document, carried=True)

    def update(self, collection: str, key: Any, **fields: Any) -> None:
        """Update a document; the change does not carry it."""
        document = self._states[-1][collection][identity(key)] | fields
        self._write(collection, key, Operation.UPDATE, document, carried=False)

    def delete(self, collection: str, key: Any) -> None:
        """Delete a document."""
        self._write(collection, key, Operation.DELETE, None, carried=True)

    def drop(self, collection: str) -> None:
        """Drop a collection."""
        state = deepcopy(self._states[-1])
        state.pop(collection, None)
        self._record(state, lambda time: CollectionChange(collection, time, gone=True))

    def _write(
        self, collection: str, key: Any, operation: Operation, document: Document | None, *, carried: bool
    ) -> None:
        state = deepcopy(self._states[-1])
        documents = state.setdefault(collection, {})
        documents.pop(identity(key), None)
        if document is not None:
            documents[identity(key)] = deepcopy(document)
        shown = deepcopy(document) if carried else None
        token = self._token(len(self.history) + 1)
        self._record(state, lambda time: Change(collection, key, time, operation, shown, token))

    def _record(
        self,
        state: dict[str, dict[Identity, Document]],
        change: Callable[[Timestamp], Change | CollectionChange],
    ) -> None:
        time = self._time(len(self.history) + 1)
        self._states.append(state)
        self.history.append(Entry(time, change(time)))

    # --- reading --------------------------------------------------------------------------------------------

    def fetch(
        self,
        collection: str,
        keys: Sequence[Any],
        at: Timestamp | None = None,
        only: Mapping[str, Any] | None = None,
    ) -> Snapshot:
        """Read documents by key, as of `at` or the newest time; `only` names fields and their values."""
        wanted = {identity(key) for key in keys}
        matching = (only or {}).items()
        return self._snapshot(
            collection,
            at,
            lambda document: identity(document["_id"]) in wanted and matching <= document.items(),
        )

    def scan(
        self,
        collection: str,
        after: tuple[Any, ...],
        limit: int,
        skip: int = 0,
        at: Timestamp | None = None,
        until: tuple[Any, ...] = (),
    ) -> Snapshot:
        """Read the next documents in key order."""
        low, high = in_order(after[0]) if after else LOWEST, in_order(until[0]) if until else HIGHEST
        found = self._snapshot(collection, at, lambda document: low < in_order(document["_id"]) < high)
        documents = sorted(found.documents, key=lambda document: in_order(document["_id"]))
        return Snapshot(found.time, documents[skip : skip + limit])

    def keys(
        self, collection: str, after: tuple[Any, ...], limit: int, skip: int = 0, until: tuple[Any, ...] = ()
    ) -> Snapshot:
        """Read the next keys in their order."""
        found = self.scan(collection, after, limit, skip, until=until)
        return Snapshot(found.time, [{"_id": document["_id"]} for document in found.documents])

    def last(self, collection: str) -> tuple[Any, ...]:
        """Give the last key in its order."""
        keys = sorted((document["_id"] for document in self.documents(collection)), key=in_order)
        return tuple(keys[-1:])

    def existing(self, collection: str, keys: Sequence[Any]) -> Snapshot:
        """Read which of these keys exist."""
        found = self.fetch(collection, keys)
        return Snapshot(found.time, [{"_id": document["_id"]} for document in found.documents])

    def exists(self, collection: str) -> bool:
        """Whether there is such a collection now."""
        return collection in self._states[-1]

    def count(self, collection: str) -> int:
        """Give the number of documents."""
        return len(self._states[-1].get(collection, {}))

    def not_before(self, time: Timestamp) -> None:
        """Do nothing: what is read is never older than what was written."""
        assert time <= self.now

    def documents(self, collection: str) -> list[Document]:
        """Give all documents of a collection now."""
        return deepcopy(list(self._states[-1].get(collection, {}).values()))

    def _snapshot(
        self, collection: str, at: Timestamp | None, wanted: Callable[[Document], bool]
    ) -> Snapshot:
        time = self.now if at is None else at
        documents = self._states[time.inc].get(collection, {}).values()
        return Snapshot(time, [deepcopy(each) for each in documents if wanted(each)])

    def _time(self, index: int) -> Timestamp:
        return Timestamp(1, index)

    def _token(self, index: int) -> str:
        return f"82{1:08X}{index:08X}00"

    # --- tailing --------------------------------------------------------------------------------------------

    def source(self, collections: Collection[str], batch_changes: int = 1000) -> "Tailed":
        """Give a stream of the changes of some collections."""
        return Tailed(self, frozenset(collections), batch_changes)

    def position(self, index: int) -> Position:
        """Give the position behind so many operations."""
        return Position(self._token(index), self._time(index))


class Tailed:
    """A stream of changes of a `Raw`."""

    def __init__(self, raw: Raw, collections: frozenset[str], batch_changes: int) -> None:
        self._raw = raw
        self._collections = collections
        self._batch_changes = batch_changes
        self._next = 0
        self.ended = False
        self.closed = False

    def open(self, start: Start) -> Position:
        """Open behind a token, at a time, or at the present."""
        if start.token is not None:
            self._next = Position.of_token(start.token).time.inc
        elif start.time is not None:
            self._next = max(start.time.inc - 1, 0)
        else:
            self._next = len(self._raw.history)
        if self._next < self._raw.forgotten:
            raise PositionLost("The history does not reach back to this position.")
        return self._raw.position(self._next)

    def read(self, wait_ms: int) -> list[Batch]:
        """Give the next changes; a change of a whole collection ends a batch."""
        if self._next == len(self._raw.history):
            Event().wait(min(wait_ms, 1) / 1000)
        batches: list[Batch] = []
        changes: list[Change] = []
        while self._next < len(self._raw.history) and len(changes) < self._batch_changes:
            change = self._raw.history[self._next].change
            self._next += 1
            if change.collection not in self._collections:
                continue
            if isinstance(change, CollectionChange):
                batches.append(Batch(changes, self._raw.position(self._next), 1, (change,)))
                changes = []
            else:
                changes.append(change)
        return [*batches, Batch(changes, self._raw.position(self._next), len(changes))]

    def close(self) -> None:
        """Note that the stream was closed."""
        self.closed = True


@dataclass
class _Rows:
    """What lies in the derived deployment."""

    records: dict[Place, Document] = field(default_factory=dict)
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    fences: dict[str, int] = field(default_factory=dict)
    letters: dict[tuple[str, Owner], Letter] = field(default_factory=dict)
    jobs: dict[Any, tuple[str, Job]] = field(default_factory=dict)
    events: dict[tuple[str, int, int], Waiting] = field(default_factory=dict)
    refused: dict[tuple[str, int, int], tuple[str, Waiting]] = field(default_factory=dict)
    again: dict[tuple[str, int, int], bool] = field(default_factory=dict)
    untold: dict[int, tuple[str, str, Sequence[Any]]] = field(default_factory=dict)


class Deployment:
    """The derived deployment: records and state; its transactions are all or nothing, one at a time."""

    def __init__(self) -> None:
        self.rows = _Rows()
        self.ids: dict[str, UUID] = {}

    @contextmanager
    def transaction(self) -> Iterator[ClientSession]:
        """Undo what is written inside when it ends with an exception."""
        before = _Rows(*(dict(getattr(self.rows, name)) for name in _Rows.__dataclass_fields__))
        try:
            yield cast("ClientSession", self)
        except BaseException:
            self.rows = before
            raise

    def documents(self) -> dict[Place, Document]:
        """Give the derived documents, whoever put them there."""
        return deepcopy(self.rows.records)

    def records(self) -> list[Stored]:
        """Give the derived documents as the plan sees them."""
        return [
            stored(name, document, encode(document, codec_options=CODEC))
            for (name, _), document in self.rows.records.items()
        ]

    def place(self, collection: str, document: Document) -> None:
        """Put a derived document there, over the one with an equal key."""
        self.rows.records[collection, identity(document["_id"])] = document


@dataclass(frozen=True)
class FakeSink:
    """Writes plans into a `Deployment`, with MongoDB's key equality; it knows of no rollups."""

    deployment: Deployment

    def write(
        self,
        desired: Sequence[Desired],
        collections: Mapping[str, Collection[str]],
        finish: Finish,
        foreign: Sequence[tuple[str, Any]] = (),
        unplugged: Collection[str] = (),
        shadows: Mapping[str, str] = MappingProxyType({}),
        *,
        alone: bool = False,
        defer: bool = False,
        states: bool = False,
    ) -> Outcome:
        """Reconcile with all that is stored, in one transaction."""
        with self.deployment.transaction() as session:
            removed = self._remove_foreign(foreign)
            outcome = Outcome()
            if not alone:
                outcome = self._planned(desired, collections, unplugged)
            outcome.released += removed
            outcome.removed.update(collection for collection, _ in outcome.released)
            if shadows:
                contested = {each.desired.owner for each in outcome.contests}
                items = shadowed([item for item in desired if item.owner not in contested], shadows)
                beside = self._planned(items, written(collections, shadows), unplugged, shadows)
                beside.removed.update(collection for collection, _ in beside.released)
                lives = {shadow: name for name, shadow in shadows.items()}
                contests = [
                    each._replace(place=(lives[each.place[0]], each.place[1])) for each in beside.contests
                ]
                outcome += Outcome(beside.inserted, beside.replaced, beside.removed, contests=contests)
            finish(session, outcome)
        return outcome

    def _planned(
        self,
        desired: Sequence[Desired],
        collections: Mapping[str, Collection[str]],
        unplugged: Collection[str],
        shadows: Mapping[str, str] = MappingProxyType({}),
    ) -> Outcome:
        plan = reconcile(desired, self._known(collections), unplugged)
        self._apply(plan)
        outcome = Outcome(contests=plan.contests, unchanged=plan.unchanged, overtaken=plan.overtaken)
        outcome.inserted.update({name: len(writes) for name, writes in plan.inserts.items()})
        outcome.replaced.update({name: len(writes) for name, writes in plan.replaces.items()})
        outcome.released += [(name, key) for name, keys in plan.deletes.items() for key in keys]
        touched = {name for some in (plan.inserts, plan.replaces, plan.deletes) for name in some}
        lives = {shadow: name for name, shadow in shadows.items()}
        for parts in touched:
            live = lives.get(parts, parts)
            if is_parts(live):
                self._assemble(parts, shadows.get(shared_of(live), shared_of(live)))
        return outcome

    def swept(self, collection: str, transform: str, after: tuple[Any, ...], limit: int) -> list[Any]:
        """Give source keys in key order."""
        found = [
            document["_src"]["key"]
            for (name, _), document in self.deployment.rows.records.items()
            if name == collection and document["_src"]["by"] == transform
        ]
        low = in_order(after[0]) if after else LOWEST
        return sorted((key for key in found if in_order(key) > low), key=in_order)[:limit]

    def carry(
        self,
        transform: str,
        keys: Callable[[ClientSession], Sequence[Any]],
        shadows: Mapping[str, str],
        finish: Finish,
        *,
        missing: bool = False,
    ) -> None:
        """Replace what owners have in shadows, as far as it is theirs."""
        with self.deployment.transaction() as session:
            records, stored = self.deployment.rows.records, self.deployment.records()
            wanted = {Owner(transform, identity(key)) for key in keys(session)}
            beside = [each for each in stored if each.collection in shadows.values()]
            wanted -= {each.owner for each in beside if missing}
            for each in beside:
                if each.owner in wanted:
                    del records[each.place]
            for each in stored:
                if each.collection in shadows and each.owner in wanted:
                    records.setdefault((shadows[each.collection], each.place[1]), records[each.place])
            for collection, shadow in shadows.items():
                if is_parts(collection):
                    self._assemble(shadow, shadows[shared_of(collection)])
            finish(session, Outcome())

    def suspend(self, rollups: Collection[str]) -> None:
        """Do nothing: there are no rollups."""

    def share(self, collections: Iterable[str]) -> None:
        """Nothing has to be there before parts are written."""

    def assemble(self, collection: str, after: tuple[Any, ...], limit: int, finish: Finish) -> Behind:
        """Put all shared records together."""
        with self.deployment.transaction() as session:
            self._assemble(parts_of(collection), collection)
            finish(session, Outcome())
        return ()

    def show(
        self,
        collection: str,
        after: tuple[Any, ...],
        limit: int,
        finish: FinishShowing,
        keys: Sequence[Any] = (),
    ) -> Shown:
        """Tell of all records, or of those with some keys."""
        with self.deployment.transaction() as session:
            records = self.deployment.rows.records
            found = {identity(key): key for key in keys} or {
                key: document["_id"] for (name, key), document in records.items() if name == collection
            }
            states = [
                RecordState(
                    collection,
                    key,
                    encode(records[place]) if (place := (collection, at)) in records else None,
                )
                for at, key in found.items()
            ]
            finish(session, Shown(states, ()))
        return Shown(states, ())

    def _assemble(self, parts: str, shared: str) -> None:
        """Put all shared records of a collection together from their parts."""
        records = self.deployment.rows.records
        for place in [each for each in records if each[0] == shared]:
            del records[place]
        mine = [each for place, each in records.items() if place[0] == parts]
        for each in sorted(mine, key=lambda each: in_order(each["_id"].get("i"))):
            key, name = each["_id"]["k"], each["_id"]["s"]
            whole = records.setdefault((shared, identity(key)), {"_id": key, "_src": {"shared": True}})
            if "i" in each["_id"]:
                whole.setdefault(name, []).append(each["f"])
            else:
                whole[name] = each["f"]

    def copy(
        self,
        name: str,
        onto: str,
        after: tuple[Any, ...],
        limit: int,
        finish: FinishCopy,
        shared: str | None = None,
    ) -> Behind:
        """Copy the next records."""
        with self.deployment.transaction() as session:
            low = in_order(after[0]) if after else LOWEST
            mine = [each for place, each in self.deployment.rows.records.items() if place[0] == name]
            records = sorted((each for each in mine if in_order(each["_id"]) > low), key=_in_order)[:limit]
            for each in records:
                self.deployment.rows.records.setdefault((onto, identity(each["_id"])), each)
            if shared is not None:
                self._assemble(onto, shared)
            behind = (records[-1]["_id"],) if len(records) == limit else ()
            finish(session, behind)
        return behind

    def settle(self, drained: Sequence[Drained], version: Version, finish: Finish) -> Outcome:
        """Finish: no group is ever pending here."""
        assert not drained
        with self.deployment.transaction() as session:
            finish(session, Outcome())
        return Outcome()

    def mark(self, groups: Sequence[Group], finish: Finish) -> None:
        """Finish: there is no rollup that groups could be of."""
        assert not groups
        with self.deployment.transaction() as session:
            finish(session, Outcome())

    def mark_next(
        self, rollup: str, after: Behind, limit: int, finish: FinishMarking, *, stored: bool
    ) -> Marked:
        """Refuse: there is no such rollup."""
        raise KeyError(rollup)

    def _known(self, collections: Mapping[str, Collection[str]]) -> list[Stored]:
        """Give what is stored, without what its owner is said to have no records in."""
        return [
            each
            for each in self.deployment.records()
            if each.owner is None
            or each.collection in collections.get(each.owner.transform, [each.collection])
        ]

    def _remove_foreign(self, foreign: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
        records = self.deployment.rows.records
        places = {(collection, identity(key)): (collection, key) for collection, key in foreign}
        removed = [place for place in places if place in records and "_src" not in records[place]]
        for place in removed:
            del records[place]
        return [places[place] for place in removed]

    def _apply(self, plan: Plan) -> None:
        for collection, keys in plan.deletes.items():
            for key in keys:
                del self.deployment.rows.records[collection, identity(key)]
        for record, _ in chain(*plan.replaces.values(), *plan.inserts.values()):
            self.deployment.place(record.collection, decode(record.document, CODEC))


def _in_order(document: Document) -> tuple[int, Any]:
    return in_order(document["_id"])


@dataclass(frozen=True)
class FakeShelf:
    """Whole collections of a `Deployment`; a collection is there from when it is made until it is dropped."""

    deployment: Deployment

    def ids(self) -> dict[str, UUID]:
        """Give all collections with their ids."""
        names = {place[0] for place in self._records} | self.deployment.ids.keys()
        return {name: self.deployment.ids.setdefault(name, uuid4()) for name in sorted(names)}

    def make(self, name: str, like: str) -> UUID:
        """Create an empty collection."""
        return self.deployment.ids.setdefault(name, uuid4())

    def put(self, name: str, known: UUID, onto: str, over: UUID | None) -> None:
        """Let a collection take another one's place."""
        there = self.ids()
        if there.get(name) != known or there.get(onto) != over:
            raise CheckpointMoved("moved", "")
        kept = {place: each for place, each in self._records.items() if place[0] not in {name, onto}}
        moved = {(onto, place[1]): each for place, each in self._records.items() if place[0] == name}
        self._records.clear()
        self._records.update(kept | moved)
        self.deployment.ids[onto] = self.deployment.ids.pop(name)

    def drop(self, name: str, known: UUID) -> None:
        """Drop a collection."""
        if self.ids().get(name) == known:
            del self.deployment.ids[name]
            for place in [place for place in self._records if place[0] == name]:
                del self._records[place]

    def compare(
        self,
        old: str,
        new: str,
        after: tuple[Any, ...],
        limit: int,
        found: Contrast,
        others: Others | None = None,
    ) -> Behind:
        """Compare all that is left, at once."""
        before, now = ({each["_id"]: each for each in self._next(name, after)} for name in (old, new))
        for key, each in now.items():
            names = [name for name in each if name != "_src" and before.get(key, {}).get(name) != each[name]]
            if key not in before:
                found.note("added", key)
            elif names:
                found.note("changed", key, names)
            else:
                found.equal += 1
        for key in before.keys() - now.keys():
            found.note("removed", key)
        if others is not None:
            others.differing.extend(
                key for key in before | now if _fields(before.get(key)) != _fields(now.get(key))
            )
            kept = [key for key in now if _fields(before.get(key)) == _fields(now[key])]
            others.moved.extend(key for key in kept if _owner(before[key]) != _owner(now[key]))
        return ()

    @property
    def _records(self) -> dict[Place, Document]:
        return self.deployment.rows.records

    def _next(self, name: str, after: tuple[Any, ...]) -> list[Document]:
        low = in_order(after[0]) if after else LOWEST
        mine = [each for place, each in self._records.items() if place[0] == name]
        return sorted((each for each in mine if in_order(each["_id"]) > low), key=_in_order)


def _fields(document: Document | None) -> Document | None:
    return document and {name: value for name, value in document.items() if name != "_src"}


def _owner(document: Document) -> Any:
    return document["_src"].get("by"), identity(document["_src"].get("key"))


@dataclass(frozen=True)
class FakeCheckpoints:
    """Checkpoints in a `Deployment`."""

    deployment: Deployment

    def load(self, worker: str) -> Checkpoint | None:
        """Give a worker's checkpoint."""
        return self.deployment.rows.checkpoints.get(worker)

    def raise_fence(self, worker: str) -> int:
        """Raise the fence and give it."""
        fences = self.deployment.rows.fences
        fences[worker] = fences.get(worker, 0) + 1
        return fences[worker]

    def save(self, checkpoint: Checkpoint, fence: int, session: ClientSession | None = None) -> Checkpoint:
        """Write the checkpoint over the revision that it knows."""
        rows, name = self.deployment.rows, checkpoint.worker
        if rows.fences.get(name) != fence:
            raise LeaseLost("Another process took over.")
        known = rows.checkpoints.get(name)
        if (known.revision if known else 0) != checkpoint.revision:
            raise CheckpointMoved("The checkpoint moved on.")
        rows.checkpoints[name] = replace(checkpoint, revision=checkpoint.revision + 1)
        return rows.checkpoints[name]

    def claimed(self, worker: str) -> dict[str, str]:
        """Give the derived collections that other workers write."""
        return {
            collection: each.worker
            for each in self.deployment.rows.checkpoints.values()
            for built in each.transforms.values()
            for collection in built.collections
            if each.worker != worker and not built.unplugged
        }


def _parked_change(letter: Letter) -> ParkedChange:
    key, position = letter.document_key, letter.position
    content = encode(letter.change or {}, codec_options=CODEC)
    seen = Seen(letter.transform, letter.source, key, position.time, position.token, content)
    return ParkedChange(seen, letter.kind, letter.due)


@dataclass(frozen=True)
class FakeLetters:
    """Dead letters in a `Deployment`."""

    deployment: Deployment
    worker: str

    def parked(self) -> list[ParkedLetter]:
        """Give what is parked."""
        return [
            ParkedLetter(LetterKey(each.transform, each.key), each.kind) for each in self._mine().values()
        ]

    def due(self, transforms: Sequence[str], limit: int) -> list[LetterKey]:
        """Give keys that are worth trying again."""
        found = [each for each in self._mine().values() if each.due and each.transform in transforms]
        return [LetterKey(each.transform, each.key) for each in found[:limit]]

    def still_parked(self, keys: Sequence[LetterKey], session: ClientSession) -> list[LetterKey]:
        """Give those of these keys that are parked."""
        found = [self._mine().get(self._id(*key)) for key in keys]
        return [LetterKey(each.transform, each.key) for each in found if each]

    def changes(self, trigger: str, key: Any) -> list[ParkedChange]:
        """Give the changes of one document that are parked for a trigger, in the source's order, without contents."""
        return [each for each in self._changes(trigger) if identity(each.seen.key) == identity(key)]

    def tokens(self, trigger: str, keys: Sequence[Any] | None = None) -> dict[Identity, set[str]]:
        """Give the positions of the changes that are parked for a trigger, by document."""
        found: dict[Identity, set[str]] = {}
        for each in self._changes(trigger):
            found.setdefault(identity(each.seen.key), set()).add(each.seen.token)
        wanted = found.keys() if keys is None else set(map(identity, keys))
        return {document: tokens for document, tokens in found.items() if document in wanted}

    def ready(self, trigger: str) -> list[Any]:
        """Give the keys of documents of which the first parked change may be tried again."""
        first: dict[Identity, ParkedChange] = {}
        for each in self._changes(trigger):
            first.setdefault(identity(each.seen.key), each)
        return [each.seen.key for each in first.values() if each.due or each.kind is LetterKind.WAITING]

    def _changes(self, trigger: str) -> list[ParkedChange]:
        found = [_parked_change(each) for each in self._mine().values() if each.change is not None]
        mine = [each for each in found if each.seen.trigger == trigger]
        bare = [each._replace(seen=each.seen._replace(content=b"")) for each in mine]
        return sorted(bare, key=lambda each: each.seen.token)

    def change(self, key: LetterKey) -> ParkedChange | None:
        """Give one parked change with its content."""
        letter = self._mine().get(self._id(*key))
        return _parked_change(letter) if letter and letter.change is not None else None

    def make_due(self, keys: Sequence[LetterKey], session: ClientSession) -> None:
        """Mark letters as worth trying again."""
        for key in keys:
            self._mark(self._id(*key))

    def put(self, letters: Sequence[Letter], session: ClientSession) -> None:
        """Park documents."""
        for letter in letters:
            self.deployment.rows.letters[self._id(letter.transform, letter.key)] = letter

    def resolve(self, keys: Collection[LetterKey], session: ClientSession) -> None:
        """Remove the letters of documents that were derived."""
        for key in keys:
            self.deployment.rows.letters.pop(self._id(*key), None)

    def release(self, places: Sequence[tuple[str, Any]], session: ClientSession) -> int:
        """Mark those that wait for one of these places as due."""
        free = {(collection, identity(key)) for collection, key in places}
        waiting = [
            key
            for key, each in self._mine().items()
            if each.waits_for and (each.waits_for[0], identity(each.waits_for[1])) in free
        ]
        for key in waiting:
            self._mark(key)
        return len(waiting)

    def _id(self, transform: str, key: Any) -> tuple[str, Owner]:
        return self.worker, Owner(transform, identity(key))

    def _mine(self) -> dict[tuple[str, Owner], Letter]:
        return {key: each for key, each in self.deployment.rows.letters.items() if key[0] == self.worker}

    def _mark(self, key: tuple[str, Owner]) -> None:
        letters = self.deployment.rows.letters
        if key in letters:
            letters[key] = replace(letters[key], due=True)


@dataclass(frozen=True)
class FakeOutbox:
    """Messages in a `Deployment`, with the keys of records as their data and numbers as their ids.

    What was refused is called by its id as text. `again` says of what is sent again whether `next` has given it.
    """

    deployment: Deployment
    worker: str

    def put(
        self,
        events: Sequence[Published],
        states: Sequence[RecordState],
        commit: Commit,
        session: ClientSession,
    ) -> Put:
        """Add events and those of records."""
        told = [
            *(
                (each.trigger, Message(each.topic, each.data, each.attributes, each.ordering_key or ""))
                for each in events
            ),
            *(
                (
                    each.collection,
                    Message("topic", each.document or b"", {"recordkey": str(each.key)}, str(each.key)),
                )
                for each in states
            ),
        ]
        for number, (of, message) in enumerate(told):
            self._resolve(of, message)
            key = (self.worker, commit.revision, number)
            self.deployment.rows.events[key] = Waiting(key, of, message, len(message.data))
        return Put(Held(len(told), sum(len(message.data) for _, message in told)))

    def topics(self) -> list[str]:
        """Give the topics that messages wait for."""
        return sorted({each.message.topic for each in self._mine()})

    def _mine(self) -> list[Waiting]:
        return [each for key, each in sorted(self.deployment.rows.events.items()) if key[0] == self.worker]

    def next(self, topic: str, limit: int, size: int) -> list[Waiting]:
        """Give the oldest messages."""
        mine = [each for each in self._mine() if each.message.topic == topic]
        some: list[Waiting] = []
        for each in mine[:limit]:
            size -= each.size
            if size < 0 and some:
                break
            some.append(each)
        again = self.deployment.rows.again
        again.update({each.id: True for each in some if each.id in again})
        return some

    def remove(self, topic: str, first: Any, last: Any, left: Collection[Any] = ()) -> None:
        """Remove what was given of a range."""
        mine = [each.id for each in self._mine() if each.message.topic == topic and each.id not in left]
        given = [key for key in mine if self.deployment.rows.again.get(key, True)]
        for key in [key for key in given if first <= key <= last]:
            removed = self.deployment.rows.events.pop(key)
            self._resolve(removed.of, removed.message, key)

    def refuse(self, id: Any, reason: str) -> None:  # noqa: A002 - as the field is called
        """Take a message out of the order."""
        refused = self.deployment.rows.events.pop(id)
        self._resolve(refused.of, refused.message, id)
        self.deployment.rows.refused[id] = reason, refused

    def readmit(self, ids: Sequence[str], session: ClientSession) -> Held:
        """Let what was refused be sent again."""
        rows = self.deployment.rows
        again = [rows.refused.pop(key)[1] for key in list(rows.refused) if str(key) in ids]
        rows.events.update({each.id: each for each in again})
        rows.again.update({each.id: False for each in again})
        return Held(len(again), sum(each.size for each in again))

    def tells(self, collection: str) -> bool:
        """Everything is published."""
        return True

    def _resolve(self, of: str, message: Message, before: Any = None) -> None:
        """Forget what was refused before of the record that a message tells of, if it is one of a record."""
        refused, key = self.deployment.rows.refused, message.attributes.get("recordkey")
        for each in [each for each in refused if before is None or each < before]:
            other = refused[each][1]
            if key is not None and (other.of, other.message.attributes.get("recordkey")) == (of, key):
                del refused[each]

    def held(self) -> Held:
        """Count what waits."""
        return Held(len(self._mine()), sum(each.size for each in self._mine()))


@dataclass(frozen=True)
class FakeUntold:
    """Keys to be told of in a `Deployment`, numbered."""

    deployment: Deployment
    worker: str

    def note(self, shadow: str, keys: Sequence[Any], session: ClientSession) -> None:
        """Keep keys."""
        chunks = self.deployment.rows.untold
        chunks[max(chunks, default=0) + 1] = (self.worker, shadow, list(keys))

    def next(self, shadow: str, after: tuple[Any, ...]) -> UntoldChunk | None:
        """Give the next keys."""
        chunks = self.deployment.rows.untold
        behind = after[0] if after else 0
        mine = [
            number for number in chunks if number > behind and chunks[number][:2] == (self.worker, shadow)
        ]
        return UntoldChunk((mine[0],), chunks[mine[0]][2]) if mine else None

    def forget(self, shadow: str, session: ClientSession) -> None:
        """Forget keys of one shadow."""
        chunks = self.deployment.rows.untold
        for number in [number for number in chunks if chunks[number][:2] == (self.worker, shadow)]:
            del chunks[number]

    def others(self, shadows: Collection[str]) -> bool:
        """Whether there are keys of others."""
        return bool(self._beside(shadows))

    def keep(self, shadows: Collection[str], session: ClientSession) -> None:
        """Forget keys of others."""
        for number in self._beside(shadows):
            del self.deployment.rows.untold[number]

    def _beside(self, shadows: Collection[str]) -> list[int]:
        chunks = self.deployment.rows.untold.items()
        return [
            number
            for number, (worker, shadow, _) in chunks
            if worker == self.worker and shadow not in shadows
        ]


def _message(event: Published) -> Message:
    return Message(event.topic, event.data, event.attributes, event.ordering_key or "")


@dataclass(frozen=True)
class FakeJobs:
    """Jobs in a `Deployment`."""

    deployment: Deployment
    worker: str

    def ask(self, jobs: Sequence[Job], session: ClientSession | None = None) -> list[Job]:
        """Record jobs to be done."""
        asked = [replace(job, id=job.id or ObjectId()) for job in jobs]
        self.deployment.rows.jobs.update({job.id: (self.worker, job) for job in asked})
        return asked

    def next(self) -> Job | None:
        """Give the oldest job that is neither done nor paused, nor behind one that is not done."""
        left = {job.id for job in self.open()}
        return next((job for job in self.open() if not job.paused and left.isdisjoint(job.behind)), None)

    def is_wanted(self, job_id: Any) -> bool:
        """Whether a job is to be gone on with."""
        return any(job.id == job_id and not job.paused for job in self.open())

    def open(self) -> list[Job]:
        """Give all jobs that are not done."""
        return [
            job
            for worker, job in self.deployment.rows.jobs.values()
            if worker == self.worker and not job.done
        ]

    def of_gap(self, gap: tuple[Timestamp, Timestamp]) -> list[Job]:
        """Give all jobs, done ones too, that make a gap good."""
        return [
            job
            for worker, job in self.deployment.rows.jobs.values()
            if worker == self.worker and job.gap == gap
        ]

    def get(self, job_id: Any) -> Job | None:
        """Give one job."""
        found = self.deployment.rows.jobs.get(job_id)
        return found[1] if found else None

    def declined(self) -> list[Job]:
        """Give the rebuilds that were cancelled."""
        mine = [job for worker, job in self.deployment.rows.jobs.values() if worker == self.worker]
        return [job for job in mine if job.kind is JobKind.REBUILD and job.cancelled]

    def keeping(self) -> list[Job]:
        """Give the rebuilds that keep something."""
        mine = [job for worker, job in self.deployment.rows.jobs.values() if worker == self.worker]
        return [job for job in mine if job.kind is JobKind.REBUILD and job.keep]

    def save(self, job: Job, session: ClientSession) -> bool:
        """Record progress."""
        before = self.get(job.id)
        if before is not None and before.cancelled:
            return False
        self.deployment.rows.jobs[job.id] = (self.worker, job)
        return True


@dataclass
class FakeLeases:
    """Who holds which lease, on a clock that is moved by hand."""

    now: float = 0.0
    held: dict[str, tuple[str, float]] = field(default_factory=dict)


@dataclass
class FakeLease:
    """The lease of one worker's name, as seen by one process."""

    leases: FakeLeases
    worker: str
    seconds: float
    me: str

    def acquire(self) -> bool:
        """Take the lease if it is free or expired."""
        holder, expires = self.leases.held.get(self.worker, (self.me, 0.0))
        if holder != self.me and expires > self.leases.now:
            return False
        self._hold()
        return True

    def renew(self, slow: Sequence[SlowTransform] = ()) -> bool:
        """Push the expiry out; False when someone else holds it."""
        if not self._mine():
            return False
        self._hold()
        return True

    def release(self, *, working: bool = False) -> None:
        """Give it back."""
        if self._mine():
            del self.leases.held[self.worker]

    def announce(self, session_id: object, code: Mapping[str, str]) -> None:
        """Do nothing: there is no session to end."""

    def _mine(self) -> bool:
        return self.leases.held.get(self.worker, ("", 0.0))[0] == self.me

    def _hold(self) -> None:
        self.leases.held[self.worker] = (self.me, self.leases.now + self.seconds)


@dataclass
class FakePublisher:
    """Topics in memory. `failing` says of which messages the next one fails, and whether it arrives all the same."""

    topics: dict[str, list[Message]]
    failing: list[tuple[Callable[[Message], bool], bool]] = field(default_factory=list)
    limit: int = 10_000_000

    def send(self, messages: Sequence[Message]) -> Sequence[Sent]:
        """Publish in the order of the messages, behind what fails none of its ordering key."""
        failed: set[tuple[str, str]] = set()
        return [self._send(each, failed) for each in messages]

    def close(self) -> None:
        """Do nothing."""

    def _send(self, message: Message, failed: set[tuple[str, str]]) -> Sent:
        lane = (message.topic, message.ordering_key)
        sent = Sent("behind one that failed") if lane in failed else self._one(message)
        if sent.error and message.ordering_key:
            failed.add(lane)
        return sent

    def _one(self, message: Message) -> Sent:
        if len(message.data) > self.limit:
            return Sent("too large", lasting=True)
        if message.topic not in self.topics:
            return Sent("no such topic")
        fault = next((each for each in self.failing if each[0](message)), None)
        if fault:
            self.failing.remove(fault)
        if fault is None or fault[1]:
            self.topics[message.topic].append(message)
        return Sent("as it was ordered") if fault else Sent()
