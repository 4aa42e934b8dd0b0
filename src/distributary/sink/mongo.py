"""Writing plans to MongoDB: one transaction per batch, learning what is stored only where it can matter."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from bson import Int64, MaxKey, MinKey, ObjectId, Regex, decode_all, encode
from bson.codec_options import CodecOptions
from bson.errors import BSONError, InvalidBSON
from bson.raw_bson import RawBSONDocument
from pymongo import IndexModel
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.errors import OperationFailure

from distributary.change import CODEC, Identity, Version, decoded, identity
from distributary.derive.batch import is_storable
from distributary.derive.plan import (
    UNKNOWN_VERSION,
    Desired,
    Plan,
    Stored,
    Write,
    reconcile,
    stored,
    version_in,
)
from distributary.derive.records import ENGINE_FIELD, EncodedRecord, Place, RawDocument
from distributary.derive.shadows import shadowed, written
from distributary.derive.shared import Delta, Part, Whole, assembled, deltas, mark, of_keys, part_of
from distributary.derive.touched import Changed, Touched
from distributary.excerpt import excerpt, key_of
from distributary.parts import called, is_parts, parts_of, shared_of
from distributary.ports import (
    Behind,
    Drained,
    Finish,
    FinishCopy,
    FinishMarking,
    FinishShowing,
    Group,
    ManyRefused,
    Marked,
    Outcome,
    RecordState,
    RollupRefused,
    Shown,
    TooMuch,
)
from distributary.sink.familiar import Familiar
from distributary.sink.rollups import Rollups
from distributary.sink.transaction import transact

#: The index by which the records of a document are found.
OWNER_INDEX = [("_src.by", 1), ("_src.key", 1)]

#: A command's bounds: MongoDB takes 100,000 statements, the driver 16 MB in a command that is not its own.
COMMAND_WRITES = 10_000
COMMAND_BYTES = 12 * 1024 * 1024

#: What a statement takes beside its document: operators, the index in the array.
STATEMENT_BYTES = 64

#: Documents that are taken out of one transaction one by one; with more it is better halved.
REFUSALS = 4

#: Keys in one `$in`.
QUERY_KEYS = 5000

#: Source keys of one type from which on it is asked first whether there is anything in their range, and those types.
SEEK_KEYS = 100
_ORDERED = frozenset({str, int, Int64, ObjectId})

#: Records in one reply, at most.
REPLY_RECORDS = 100_000

#: Bytes of stored records that one transaction learns; where the documents of a batch have more, it is halved.
LEARN_BYTES = 32 * 1024 * 1024

#: Bytes of a reply up to which its records are decoded, all at once; of a larger one only what is looked at.
DECODE_BYTES = 4 * 1024 * 1024

#: Shared records that are put together at once.
ASSEMBLED = 200

_BAD_VALUE, _DUPLICATE_KEY = 2, 11000

#: A shared record has its key, the engine's field, and nothing else.
_HAS_NOTHING = {"$lte": [{"$size": {"$objectToArray": "$$ROOT"}}, 2]}

_RAW: CodecOptions[RawBSONDocument] = CODEC.with_options(document_class=RawBSONDocument)

Document = dict[str, Any]


def read_record(collection: str, document: Document) -> Stored:
    """Read a derived document that is decoded; of what no encoder takes (invalid UTF-8) the bytes are not had."""
    try:
        return stored(collection, document, encode(document, codec_options=CODEC))
    except (BSONError, UnicodeError):
        return stored(collection, document, b"")


def is_foreign(collection: str, document: Mapping[str, Any], known: Mapping[str, Collection[str]]) -> bool:
    """Whether a derived document names no owner that may have written it, so that nothing would ever remove it.

    `known` holds the collections that each transform may have written. No document has a list or a regular
    expression as its key.
    """
    origin = document.get(ENGINE_FIELD)
    if not isinstance(origin, dict) or not isinstance(origin.get("by"), str) or "key" not in origin:
        return True
    key = origin["key"]
    may_write = collection in known.get(origin["by"], ())
    return not may_write or isinstance(key, list | Regex) or not is_storable(key)


def read_records(
    database: Database[Any],
    collection: str,
    query: Document,
    session: ClientSession | None = None,
) -> Iterator[Stored]:
    """Read derived documents as they are stored, byte for byte."""
    for batch in _replies(database, collection, query, session):
        yield from _decoded(collection, batch)


def _replies(
    database: Database[Any], collection: str, query: Document, session: ClientSession | None
) -> Iterator[bytes]:
    found = database.get_collection(collection, CODEC)
    yield from found.find_raw_batches(query, batch_size=REPLY_RECORDS, session=session)


def _decoded(collection: str, batch: bytes) -> Iterator[Stored]:
    whole = len(batch) <= DECODE_BYTES
    try:
        documents: Iterable[Document] = (
            decode_all(batch, CODEC) if whole else map(_looked_at, _documents(batch))
        )
    except InvalidBSON:
        documents = map(decoded, _documents(batch))
    for document, raw in zip(documents, _documents(batch), strict=True):
        yield stored(collection, document, raw)


def _looked_at(document: bytes) -> Document:
    return excerpt(document, ("_id", ENGINE_FIELD))


def _documents(batch: bytes) -> Iterator[bytes]:
    """Cut a batch into documents; each begins with its length (bsonspec.org)."""
    start = 0
    while start < len(batch):
        end = start + int.from_bytes(batch[start : start + 4], "little")
        yield batch[start:end]
        start = end


def _within(records: Iterable[Stored], desired: Sequence[object]) -> list[Stored]:
    """Give records; refuses to hold more than the bound, unless they are one document's."""
    known: list[Stored] = []
    size = 0
    for record in records:
        known.append(record)
        size += len(record.raw)
        if size > LEARN_BYTES and len(desired) > 1:
            raise TooMuch(len(desired) // 2)
    return known


class _Taken(Exception):
    """A key that was thought to be new exists: the batch is repeated with what lies under its keys."""


class _Refused(Exception):
    """MongoDB refused one write."""

    def __init__(self, desired: Desired, reason: str, *, unique: bool) -> None:
        super().__init__(reason)
        self.desired = desired
        self.reason = reason
        self.unique = unique


class _Damaged(Exception):
    """A shared record is not what its parts say: the batch is repeated with the record put together anew."""

    def __init__(self, place: tuple[str, Any], refusal: _Refused) -> None:
        super().__init__(called(*place))
        self.place = place
        self.refusal = refusal


@dataclass(slots=True)
class _Attempt:
    """What is left to write of a batch, and how carefully."""

    desired: list[Desired]
    foreign: Sequence[tuple[str, Any]]
    unplugged: Collection[str]
    shadows: Mapping[str, str]
    alone: bool
    states: bool = False
    by_key: bool = False
    apart: bool = False
    refused: list[tuple[Desired, str]] = field(default_factory=list)
    deferred: set[str] = field(default_factory=set)

    @property
    def version(self) -> Version:
        """The newest version of what is written."""
        return max((item.version for item in self.desired), default=UNKNOWN_VERSION)

    def look(self) -> None:
        """Learn from a key that exists: nothing is taken for new any more."""
        self.by_key = True
        self.desired = [replace(item, fresh=False) for item in self.desired]

    def heal(self, damaged: _Damaged) -> None:
        """Put a shared record together anew first; where that was of no use, go on without the document."""
        if damaged.place in self.foreign:
            self.after(damaged.refusal)
        else:
            self.foreign = [*self.foreign, damaged.place]

    def after(self, refusal: _Refused) -> None:
        """Learn from a refusal: first write replaced records as new ones, then go on without the document."""
        if refusal.unique and not self.apart:
            self.apart = True
            return
        culprit = next(item for item in self.desired if item.owner == refusal.desired.owner)
        self.refused.append((culprit, refusal.reason))
        self.desired = [item for item in self.desired if item is not culprit]

    def without(self, rollup: str, culprits: Sequence[tuple[Desired, str]]) -> None:
        """Go on without the documents that a rollup cannot be computed with; without any, leave its groups pending."""
        self.refused += culprits
        taken = {id(item) for item, _ in culprits}
        self.desired = [item for item in self.desired if id(item) not in taken]
        if not culprits:
            self.deferred.add(rollup)


class MongoSink:
    """Writes derived collections of one database, in one session, as the holder of the lease.

    `first` is entered for what keeps the server waiting, without reading from it. `rollups` are kept along. Of changes
    in `published` collections the outcome tells what is stored then.
    """

    def __init__(
        self,
        derived: Database[Any],
        state: Database[Any],
        session: ClientSession,
        first: AbstractContextManager[None] | None = None,
        rollups: Rollups | None = None,
        published: Collection[str] = (),
    ) -> None:
        self._published = frozenset(published)
        self._derived = derived.with_options(codec_options=CODEC)
        self._state = state.with_options(codec_options=CODEC)
        self._session = session
        self._first = first or nullcontext()
        self._rollups = rollups

    def _in(self, collection: str) -> Database[Any]:
        """Give the database of a collection: parts of shared records are state."""
        return self._state if is_parts(collection) else self._derived

    def share(self, collections: Iterable[str]) -> None:
        """Make ready for the parts of these collections' shared records; what is there stays."""
        for name in collections:
            self._state[parts_of(name)].create_indexes([IndexModel(OWNER_INDEX, name="distributary_owner")])

    def suspend(self, rollups: Collection[str]) -> None:
        """Leave these rollups alone, and no other ones, until a job builds them from all records."""
        if self._rollups is not None:
            self._rollups.suspend(rollups)

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
        """Make what is stored for these owners equal to what they yield; durable on return.

        The same is done in the shadows of collections, or there alone; each side is planned for itself.

        A document whose records MongoDB refuses (too large, a unique index of the user's, a validator) is
        taken out and the batch repeated, until those documents stand alone in the outcome.
        `foreign` are records that nobody may have written, or only in a future that is none; those that
        still are such are removed first. Groups of rollups that are touched become pending with `defer`, and where they
        are too much for a transaction. With `states`, the outcome tells of published records that did not change, too.
        Raises `TooMuch` when what is stored for several documents is more than may be held, and `ManyRefused`.
        """
        attempt = _Attempt(list(desired), foreign, unplugged, shadows, alone, states)
        if defer and self._rollups is not None:
            attempt.deferred.update(self._rollups.names)
        while True:
            try:
                return transact(self._session, lambda: self._transact(attempt, collections, finish))
            except _Taken:
                attempt.look()
            except _Damaged as damaged:
                attempt.heal(damaged)
            except RollupRefused as refusal:
                assert self._rollups is not None
                attempt.without(refusal.rollup, self._rollups.culprits(refusal.rollup, attempt.desired))
            except _Refused as refusal:
                attempt.after(refusal)
                if len(attempt.refused) >= REFUSALS and len(attempt.desired) > REFUSALS:
                    raise ManyRefused from refusal

    def swept(self, collection: str, transform: str, after: tuple[Any, ...], limit: int) -> list[Any]:
        """Give source keys of a transform's records in key order, none at the end.

        `min` and `max` bound the index whatever the type of the keys.
        """
        low = {"_src.by": transform, "_src.key": after[0] if after else MinKey()}
        high = {"_src.by": transform, "_src.key": MaxKey()}
        query = {"_src.key": {"$ne": after[0]}} if after else {}
        found = self._in(collection)[collection].find(query, {"_src.key": 1, "_id": 0}, limit=limit)
        return [each["_src"]["key"] for each in found.hint(OWNER_INDEX).min(_pairs(low)).max(_pairs(high))]

    def carry(
        self,
        transform: str,
        keys: Callable[[ClientSession], Sequence[Any]],
        shadows: Mapping[str, str],
        finish: Finish,
        *,
        missing: bool = False,
    ) -> None:
        """Let documents have in the shadows what they have in the collections that are shadowed, in one transaction.

        What another document has under a key stays. With `missing`, only those that have nothing in the shadows.
        Raises `TooMuch` when the records of several documents are more than may be held.
        """

        def work() -> None:
            for some in _chunks(keys(self._session), QUERY_KEYS):
                wanted = self._without(transform, some, shadows.values()) if missing else some
                self._carry(transform, wanted, shadows)
            finish(self._session, Outcome())

        transact(self._session, work)

    def _without(self, transform: str, keys: Sequence[Any], collections: Iterable[str]) -> list[Any]:
        """Give those of the source keys for which a transform has no record in these collections."""
        left = {identity(key): key for key in keys}
        for collection in collections:
            query = {"_src.by": transform, "_src.key": {"$in": list(left.values())}}
            found = self._in(collection)[collection].find(query, {"_src.key": 1}, session=self._session)
            for each in found:
                left.pop(identity(each["_src"]["key"]), None)
        return list(left.values())

    def _carry(self, transform: str, keys: Sequence[Any], shadows: Mapping[str, str]) -> None:
        query = {"_src.by": transform, "_src.key": {"$in": list(keys)}}
        for collection, shadow in shadows.items():
            before = list(self._read(shadow, query)) if is_parts(collection) else []
            self._in(shadow)[shadow].delete_many(query, session=self._session)
            records = _within(self._read(collection, query), range(len(keys)))
            there = {"_id": {"$in": [each.key for each in records]}}
            taken = {each.place[1] for each in self._read(shadow, there)}
            self._put(shadow, [each.raw for each in records if each.place[1] not in taken])
            if is_parts(collection):
                self._assemble(
                    shadows[shared_of(collection)], shadow, [each.key["k"] for each in before + records]
                )

    def _read(self, collection: str, query: Document) -> Iterator[Stored]:
        return read_records(self._in(collection), collection, query, self._session)

    def copy(
        self,
        name: str,
        onto: str,
        after: tuple[Any, ...],
        limit: int,
        finish: FinishCopy,
        shared: str | None = None,
    ) -> Behind:
        """Copy the next records in key order into another collection, in one transaction with `finish`.

        What lies under their keys already stays. Fewer than `limit` are copied where they are large. Of parts that are
        copied, the records in `shared` are put together anew.
        """

        def work() -> Behind:
            query = {"_id": {"$ne": after[0]}} if after else {}
            source: Any = self._in(name).get_collection(name, _RAW)
            found = source.find(query, limit=limit, session=self._session).hint([("_id", 1)]).sort("_id", 1)
            records: dict[Identity, bytes] = {}
            last: tuple[Any, ...] = ()
            size, cut = 0, False
            for each in found.min([("_id", after[0])]) if after else found:
                raw = bytes(each.raw)
                key, size = key_of(raw), size + len(raw)
                last = (key,)
                records[identity(key)] = raw
                if cut := size > LEARN_BYTES:
                    break
            behind = last if cut or len(records) == limit else ()
            keys = [key_of(raw) for raw in records.values()]
            there = self._in(onto)[onto].find({"_id": {"$in": keys}}, {"_id": 1}, session=self._session)
            for each in there:
                records.pop(identity(each["_id"]), None)
            self._put(onto, list(records.values()))
            if shared is not None:
                self._assemble(shared, onto, [key["k"] for key in keys])
            finish(self._session, behind)
            return behind

        return transact(self._session, work)

    def _put(self, collection: str, records: Sequence[bytes]) -> None:
        """Insert records as they are, in commands that keep the bounds."""
        some: list[Any] = []
        size = 0
        for raw in records:
            if some and (len(some) >= COMMAND_WRITES or size + len(raw) > COMMAND_BYTES):
                self._insert(collection, some)
                some, size = [], 0
            some.append(RawDocument(raw))
            size += len(raw) + STATEMENT_BYTES
        if some:
            self._insert(collection, some)

    def _insert(self, collection: str, documents: Sequence[Any]) -> None:
        command = {"insert": collection, "ordered": True, "documents": list(documents)}
        reply = self._in(collection).command(command, codec_options=CODEC, session=self._session)
        if errors := reply.get("writeErrors"):
            raise OperationFailure(errors[0]["errmsg"], errors[0]["code"], errors[0])

    # --- shared records -------------------------------------------------------------------------------------

    def assemble(self, collection: str, after: tuple[Any, ...], limit: int, finish: Finish) -> Behind:
        """Put the next shared records in key order together anew from their parts, in one transaction with `finish`.

        The groups of rollups that they were or are in become pending.
        """

        def work() -> Behind:
            query = {f"{ENGINE_FIELD}.shared": True, **({"_id": {"$ne": after[0]}} if after else {})}
            found = self._derived[collection].find(query, {"_id": 1}, limit=limit, session=self._session)
            found = found.hint([("_id", 1)]).sort("_id", 1)
            keys = [each["_id"] for each in (found.min([("_id", after[0])]) if after else found)]
            touched = self._rollups.touched() if self._rollups else None
            changed = Changed(self._published)
            self._assemble(collection, parts_of(collection), keys, touched, changed)
            if self._rollups is not None and touched is not None:
                self._rollups.write(touched, UNKNOWN_VERSION, self._rollups.names)
            finish(self._session, Outcome(states=self._states(changed)))
            return (keys[-1],) if len(keys) == limit else ()

        return transact(self._session, work)

    def _assemble(
        self,
        collection: str,
        parts: str,
        keys: Sequence[Any],
        touched: Touched | None = None,
        changed: Changed | None = None,
    ) -> None:
        self._note_groups(collection, keys, touched)
        distinct = list({identity(key): key for key in keys}.values())
        for some in _chunks(distinct, ASSEMBLED):
            missing = {identity(key): key for key in some}
            for whole in assembled(read_parts(self._state, parts, of_keys(some), self._session)):
                del missing[identity(whole.key)]
                if self._put_whole(collection, whole) and changed is not None:
                    changed.note(collection, whole.key)
            self._delete(collection, list(missing.values()))
            if changed is not None:
                changed.note_all(collection, missing.values())
        self._note_groups(collection, keys, touched)

    def _put_whole(self, collection: str, whole: Whole) -> bool:
        """Store a shared record; False when it was stored like that."""
        document = {"_id": whole.key, **whole.fields, ENGINE_FIELD: mark(whole.version)}
        done = self._derived[collection].replace_one(
            {"_id": whole.key}, document, upsert=True, session=self._session
        )
        return bool(done.modified_count or done.upserted_id is not None)

    def _share(self, plan: Plan, shadows: Mapping[str, str], touched: Touched | None) -> None:
        """Change the shared records as the plan changes their parts; `shadows` holds where, if it is not themselves."""
        names = {
            each for some in (plan.deletes, plan.replaces, plan.inserts) for each in some if is_parts(each)
        }
        lives = {shadow: name for name, shadow in shadows.items()}
        for parts in sorted(names):
            live, changed = shared_of(lives.get(parts, parts)), deltas(plan, parts)
            keys = [delta.key for delta in changed]
            self._note_groups(live, keys, touched)
            self._send_deltas(shadows.get(live, live), changed)
            self._note_groups(live, keys, touched)

    def _note_groups(self, collection: str, keys: Sequence[Any], touched: Touched | None) -> None:
        """Note the groups of rollups that shared records are in."""
        fields = touched.fields(collection) if touched else ()
        if touched is None or not fields:
            return
        for some in _chunks(keys, QUERY_KEYS):
            found = self._derived[collection].find(
                {"_id": {"$in": some}}, dict.fromkeys(fields, 1), session=self._session
            )
            for document in found:
                touched.note(collection, document)

    def _send_deltas(self, collection: str, changed: Sequence[Delta]) -> None:
        """Send what changes in shared records, and remove those that have nothing left."""
        updates = [(update, delta) for delta in changed for update in delta.updates()]
        for some in _by_bytes(updates):
            command = {"update": collection, "ordered": True, "updates": [update for update, _ in some]}
            reply = self._derived.command(command, codec_options=CODEC, session=self._session)
            if errors := reply.get("writeErrors"):
                raise _delta_judged(collection, errors[0], some[errors[0]["index"]][1])
        emptied = [delta.key for delta in changed if delta.removes]
        for some_keys in _chunks(emptied, QUERY_KEYS):
            query = {"_id": {"$in": some_keys}, "$expr": _HAS_NOTHING}
            self._derived[collection].delete_many(query, session=self._session)

    # --- rollups --------------------------------------------------------------------------------------------

    def settle(self, drained: Sequence[Drained], version: Version, finish: Finish) -> Outcome:
        """Store pending groups that were computed, in one transaction; see `Sink.settle`."""

        def work() -> Outcome:
            outcome = Outcome()
            if self._rollups is not None:
                outcome.rollups = self._rollups.settle(drained, version)
            finish(self._session, outcome)
            return outcome

        return transact(self._session, work)

    def mark(self, groups: Sequence[Group], finish: Finish) -> None:
        """Let groups be pending, in one transaction."""

        def work() -> None:
            marked = self._rollups.mark(groups) if self._rollups else 0
            finish(self._session, Outcome(pending=marked))

        transact(self._session, work)

    def mark_next(
        self, rollup: str, after: Behind, limit: int, finish: FinishMarking, *, stored: bool
    ) -> Marked:
        """Let groups be pending of the next records that a rollup is over, or of those that it has stored."""

        def work() -> Marked:
            marked = Marked(0, ())
            if self._rollups is not None:
                marked = self._rollups.mark_next(rollup, after, limit, stored=stored)
            finish(self._session, marked)
            return marked

        return transact(self._session, work)

    # --- one attempt, inside the transaction ----------------------------------------------------------------

    def _transact(
        self, attempt: _Attempt, collections: Mapping[str, Collection[str]], finish: Finish
    ) -> Outcome:
        touched = self._rollups.touched() if self._rollups else None
        changed = Changed(self._published)
        removed = self._remove_foreign(attempt, collections, touched, changed)
        live = Plan()
        if not attempt.alone:
            live = self._planned(attempt, attempt.desired, collections, touched=touched)
            changed.note_plan(live)
        if attempt.states:
            changed.note_desired(attempt.desired)
        outcome = _outcome(live, removed, attempt.refused)
        if attempt.shadows:
            contested = {each.desired.owner for each in live.contests}
            free = [item for item in attempt.desired if item.owner not in contested]
            places = written(collections, attempt.shadows)
            plan = self._planned(attempt, shadowed(free, attempt.shadows), places, attempt.shadows)
            outcome += _shadow_outcome(plan, attempt.shadows)
        if self._rollups is not None and touched is not None:
            outcome.rollups, outcome.pending = self._rollups.write(touched, attempt.version, attempt.deferred)
        outcome.states = self._states(changed, attempt.desired)
        finish(self._session, outcome)
        return outcome

    # --- what is published ----------------------------------------------------------------------------------

    def show(
        self,
        collection: str,
        after: tuple[Any, ...],
        limit: int,
        finish: FinishShowing,
        keys: Sequence[Any] = (),
    ) -> Shown:
        """Tell of the next records in key order, in one transaction with `finish`; or of the first of `keys`.

        A key that no record has is told of, too: its record is gone.
        """

        def work() -> Shown:
            shown = self._some(collection, keys, limit) if keys else self._next(collection, after, limit)
            finish(self._session, shown)
            return shown

        return transact(self._session, work)

    def _next(self, collection: str, after: tuple[Any, ...], limit: int) -> Shown:
        query = {"_id": {"$ne": after[0]}} if after else {}
        source: Any = self._derived.get_collection(collection, _RAW)
        found = source.find(query, limit=limit, session=self._session).hint([("_id", 1)]).sort("_id", 1)
        states: list[RecordState] = []
        size = 0
        for each in found.min([("_id", after[0])]) if after else found:
            raw = bytes(each.raw)
            states.append(RecordState(collection, key_of(raw), raw))
            size += len(raw)
            if size > LEARN_BYTES:
                break
        more = size > LEARN_BYTES or len(states) == limit
        return Shown(states, (states[-1].key,) if more else ())

    def _some(self, collection: str, keys: Sequence[Any], limit: int) -> Shown:
        """Read the records with the first of these keys, as many as may be held."""
        source: Any = self._derived.get_collection(collection, _RAW)
        states: list[RecordState] = []
        size = 0
        for key in keys[:limit]:
            found = source.find_one({"_id": key}, session=self._session)
            raw = None if found is None else bytes(found.raw)
            states.append(RecordState(collection, key if raw is None else key_of(raw), raw))
            size += len(raw or b"")
            if size > LEARN_BYTES:
                break
        return Shown(states, tuple(keys[len(states) :]))

    def _states(self, changed: Changed, desired: Sequence[object] = (None,)) -> list[RecordState]:
        """Read the records that changed as they are now, each with its key, or without content when it is gone."""
        states: list[RecordState] = []
        size = 0
        for collection, keys in changed.keys.items():
            for some in _chunks(list(keys.values()), QUERY_KEYS):
                gone = {identity(key): key for key in some}
                for batch in _replies(self._derived, collection, {"_id": {"$in": some}}, self._session):
                    for raw in _documents(batch):
                        key = key_of(raw)
                        del gone[identity(key)]
                        states.append(RecordState(collection, key, raw))
                    size += len(batch)
                    if size > LEARN_BYTES and len(desired) > 1:
                        raise TooMuch(len(desired) // 2)
                states += [RecordState(collection, key, None) for key in gone.values()]
        return states

    def _planned(
        self,
        attempt: _Attempt,
        desired: Sequence[Desired],
        collections: Mapping[str, Collection[str]],
        shadows: Mapping[str, str] = MappingProxyType({}),
        touched: Touched | None = None,
    ) -> Plan:
        """Plan what makes some collections equal to what documents yield, and write it."""
        known = _within(self._learn(desired, collections), desired)
        if attempt.by_key:
            known += _within(self._learn_keys(desired), desired)
        with self._first:
            plan = reconcile(desired, known, attempt.unplugged)
            if touched is not None:
                touched.note_plan(plan, known)
        self._remove(plan)
        self._share(plan, shadows, touched)
        self._apply(plan, apart=attempt.apart, by_key=attempt.by_key)
        return plan

    def _learn(
        self, desired: Iterable[Desired], collections: Mapping[str, Collection[str]]
    ) -> Iterator[Stored]:
        """Read what the owners have stored: one query per transform and derived collection."""
        keys: dict[str, list[Any]] = defaultdict(list)
        known = [item for item in desired if not item.fresh]
        for item in known:
            keys[item.transform].append(item.key)
        familiar = Familiar(known)
        for transform, owned in keys.items():
            for collection in collections.get(transform, ()):
                if self._is_empty(collection, transform, owned):
                    continue
                for some in _chunks(owned, QUERY_KEYS):
                    query = {"_src.by": transform, "_src.key": {"$in": some}}
                    yield from self._find(collection, query, familiar)

    def _is_empty(self, collection: str, transform: str, keys: Sequence[Any]) -> bool:
        """Whether a transform has no record of any source key in the range of many: one look at the index tells.

        A backfill goes through the keys in their order, mostly where nothing is stored yet.
        """
        if len(keys) < SEEK_KEYS or len(types := set(map(type, keys))) > 1 or not types <= _ORDERED:
            return False
        query = {"_src.by": transform, "_src.key": {"$gte": min(keys), "$lte": max(keys)}}
        return self._in(collection)[collection].find_one(query, {"_id": 1}, session=self._session) is None

    def _learn_keys(self, desired: Iterable[Desired]) -> Iterator[Stored]:
        """Read what lies under the keys that the batch yields."""
        keys: dict[str, dict[Place, Any]] = defaultdict(dict)
        for item in desired:
            for record in item.records:
                keys[record.collection][record.collection, record.identity] = record.key
        for collection, wanted in keys.items():
            for some in _chunks(list(wanted.values()), QUERY_KEYS):
                yield from self._read(collection, {"_id": {"$in": some}})

    def _find(self, collection: str, query: Document, familiar: Familiar) -> Iterator[Stored]:
        for batch in _replies(self._in(collection), collection, query, self._session):
            with self._first:
                for raw in _documents(batch):
                    yield familiar.stored(collection, raw) or stored(collection, _looked_at(raw), raw)

    def _remove(self, plan: Plan) -> None:
        """Send the deletes; they come first, so that a key or a unique value that moves is free."""
        for collection, keys in plan.deletes.items():
            self._delete(collection, keys)

    def _apply(self, plan: Plan, *, apart: bool, by_key: bool) -> None:
        """Send the other writes."""
        if apart:
            for collection, writes in plan.replaces.items():
                self._delete(collection, [record.key for record, _ in writes])
        for collection, writes in plan.replaces.items():
            self._send(collection, _AS_NEW if apart else _AS_REPLACED, writes, by_key=by_key)
        for collection, writes in plan.inserts.items():
            self._send(collection, _AS_NEW, writes, by_key=by_key)

    def _delete(self, collection: str, keys: Sequence[Any]) -> None:
        for some in _chunks(keys, QUERY_KEYS):
            self._in(collection)[collection].delete_many({"_id": {"$in": some}}, session=self._session)

    def _remove_foreign(
        self,
        attempt: _Attempt,
        collections: Mapping[str, Collection[str]],
        touched: Touched | None,
        changed: Changed,
    ) -> list[tuple[str, Any]]:
        """Remove those of the foreign records that still are foreign or frozen, before anything is learned.

        Frozen is a record with a version that is newer than what its owner yields in this very batch: a hand
        set it, and the engine would leave it alone for ever. Shared records are put together anew instead.
        """
        versions = {item.owner: item.version for item in attempt.desired}
        places = {name for some in collections.values() for name in some}
        removed = []
        for collection, keys in _grouped(attempt.foreign):
            if parts_of(collection) in places:
                self._assemble(collection, parts_of(collection), keys, touched, changed)
                continue
            database = self._in(collection)
            for document in database[collection].find({"_id": {"$in": keys}}, session=self._session):
                foreign = is_foreign(collection, document, collections)
                record = read_record(collection, document)
                newest = versions.get(record.owner) if record.owner else None
                if foreign or (newest is not None and record.version > newest):
                    removed.append((collection, record.key))
                    changed.note(collection, record.key)
                    if touched is not None:
                        touched.note(collection, document)
        for collection, keys in _grouped(removed):
            self._delete(collection, keys)
        return removed

    def _send(self, collection: str, form: "_Form", writes: Sequence[Write], *, by_key: bool) -> None:
        for some in _by_size(writes):
            statements = [form.statement(record) for record, _ in some]
            command = {form.verb: collection, "ordered": True, form.section: statements}
            reply = self._in(collection).command(command, codec_options=CODEC, session=self._session)
            if errors := reply.get("writeErrors"):
                raise _judged(errors[0], some, by_key=by_key)


class _Form(NamedTuple):
    """How a record is written: the command, where its statements lie in it, and one statement."""

    verb: str
    section: str
    statement: Callable[[EncodedRecord], Any]


def _insert(record: EncodedRecord) -> RawDocument:
    return RawDocument(record.document)


def _replace(record: EncodedRecord) -> Document:
    return {"q": {"_id": record.key}, "u": RawDocument(record.document), "upsert": True}


_AS_NEW = _Form("insert", "documents", _insert)
_AS_REPLACED = _Form("update", "updates", _replace)


def _judged(error: Document, writes: Sequence[Write], *, by_key: bool) -> Exception:
    """Turn the first write error into what the batch does next."""
    record, desired = writes[error["index"]]
    unique = error["code"] == _DUPLICATE_KEY
    if unique and "_id" in error.get("keyPattern", {"_id": 1}) and not by_key:
        return _Taken()
    name = called(record.collection, record.key)
    return _Refused(desired, f"MongoDB refuses the record {name}: {error['errmsg']}", unique=unique)


def _delta_judged(collection: str, error: Document, delta: Delta) -> Exception:
    """Turn the first error of a shared record into what the batch does next.

    A list that is not there was changed by a hand. Else the document that yields most is taken out.
    """
    name = called(collection, delta.key)
    reason = f"MongoDB refuses the shared record {name}: {error['errmsg']}"
    culprit = max(delta.culprits, key=lambda desired: desired.size)
    refusal = _Refused(culprit, reason, unique=False)
    return _Damaged((collection, delta.key), refusal) if error["code"] == _BAD_VALUE else refusal


def _by_bytes(updates: Iterable[tuple[Document, Delta]]) -> Iterator[list[tuple[Document, Delta]]]:
    """Cut updates of shared records into commands that keep the bounds on count and bytes."""
    some: list[tuple[Document, Delta]] = []
    size = 0
    for update in updates:
        taken = update[1].size + STATEMENT_BYTES
        if some and (len(some) >= COMMAND_WRITES or size + taken > COMMAND_BYTES):
            yield some
            some, size = [], 0
        size += taken
        some.append(update)
    if some:
        yield some


def read_parts(
    state: Database[Any], parts: str, query: Document, session: ClientSession | None = None
) -> Iterator[tuple[Part, Version]]:
    """Read parts in the order of their keys, with their versions."""
    found: Any = state.get_collection(parts, _RAW)
    for each in found.find(query, session=session).sort("_id", 1):
        raw = bytes(each.raw)
        yield part_of(key_of(raw), raw), version_in(excerpt(raw, (ENGINE_FIELD,)).get(ENGINE_FIELD))


def _outcome(plan: Plan, foreign: list[tuple[str, Any]], refused: list[tuple[Desired, str]]) -> Outcome:
    deleted = [(collection, key) for collection, keys in plan.deletes.items() for key in keys]
    return Outcome(
        inserted=Counter({collection: len(writes) for collection, writes in plan.inserts.items()}),
        replaced=Counter({collection: len(writes) for collection, writes in plan.replaces.items()}),
        removed=Counter(collection for collection, _ in deleted + foreign),
        unchanged=plan.unchanged,
        overtaken=plan.overtaken,
        contests=plan.contests,
        refused=list(refused),
        released=deleted + foreign,
    )


def _shadow_outcome(plan: Plan, shadows: Mapping[str, str]) -> Outcome:
    """Give what was done in shadows, whose contests are told of the collections that they belong to."""
    outcome = _outcome(plan, [], [])
    lives = {shadow: name for name, shadow in shadows.items()}
    contests = [each._replace(place=(lives[each.place[0]], each.place[1])) for each in outcome.contests]
    released = [(lives[shadow], key) for shadow, key in outcome.released]
    return Outcome(outcome.inserted, outcome.replaced, outcome.removed, contests=contests, released=released)


def _grouped(places: Iterable[tuple[str, Any]]) -> Iterable[tuple[str, list[Any]]]:
    grouped: dict[str, list[Any]] = defaultdict(list)
    for collection, key in places:
        grouped[collection].append(key)
    return grouped.items()


def _chunks(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def _by_size(writes: Sequence[Write]) -> Iterator[list[Write]]:
    """Cut writes into commands that keep the bounds on count and bytes."""
    some: list[Write] = []
    size = 0
    for write in writes:
        taken = len(write[0].document) + STATEMENT_BYTES
        if some and (len(some) >= COMMAND_WRITES or size + taken > COMMAND_BYTES):
            yield some
            some, size = [], 0
        size += taken
        some.append(write)
    if some:
        yield some


def _pairs(bounds: Document) -> list[tuple[str, Any]]:
    return list(bounds.items())
