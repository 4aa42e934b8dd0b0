"""Writing plans to MongoDB: one transaction per batch, learning what is stored only where it can matter."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from bson import MaxKey, MinKey, Regex, decode_all, encode
from bson.codec_options import CodecOptions
from bson.errors import BSONError, InvalidBSON
from bson.raw_bson import RawBSONDocument
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.errors import OperationFailure

from distributary.change import CODEC, Identity, Version, decoded, identity
from distributary.derive.batch import is_storable
from distributary.derive.plan import UNKNOWN_VERSION, Desired, Plan, Stored, Write, reconcile, stored
from distributary.derive.records import ENGINE_FIELD, EncodedRecord, Place, RawDocument
from distributary.derive.shadows import shadowed, written
from distributary.derive.touched import Touched
from distributary.excerpt import excerpt, key_of
from distributary.ports import (
    Behind,
    Drained,
    Finish,
    FinishCopy,
    FinishMarking,
    Group,
    ManyRefused,
    Marked,
    Outcome,
    RollupRefused,
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

#: Records in one reply, at most.
REPLY_RECORDS = 100_000

#: Bytes of stored records that one transaction learns; where the documents of a batch have more, it is halved.
LEARN_BYTES = 32 * 1024 * 1024

#: Bytes of a reply up to which its records are decoded, all at once; of a larger one only what is looked at.
DECODE_BYTES = 4 * 1024 * 1024

_DUPLICATE_KEY = 11000

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


@dataclass(slots=True)
class _Attempt:
    """What is left to write of a batch, and how carefully."""

    desired: list[Desired]
    foreign: Sequence[tuple[str, Any]]
    unplugged: Collection[str]
    shadows: Mapping[str, str]
    alone: bool
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

    `first` is entered for what keeps the server waiting, without reading from it. `rollups` are kept along.
    """

    def __init__(
        self,
        derived: Database[Any],
        session: ClientSession,
        first: AbstractContextManager[None] | None = None,
        rollups: Rollups | None = None,
    ) -> None:
        self._database = derived.with_options(codec_options=CODEC)
        self._session = session
        self._first = first or nullcontext()
        self._rollups = rollups

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
    ) -> Outcome:
        """Make what is stored for these owners equal to what they yield; durable on return.

        The same is done in the shadows of collections, or there alone; each side is planned for itself.

        A document whose records MongoDB refuses (too large, a unique index of the user's, a validator) is
        taken out and the batch repeated, until those documents stand alone in the outcome.
        `foreign` are records that nobody may have written, or only in a future that is none; those that
        still are such are removed first. Groups of rollups that are touched become pending with `defer`, and where they
        are too much for a transaction. Raises `TooMuch` when what is stored for several documents is more than
        may be held, and `ManyRefused`.
        """
        attempt = _Attempt(list(desired), foreign, unplugged, shadows, alone)
        if defer and self._rollups is not None:
            attempt.deferred.update(self._rollups.names)
        while True:
            try:
                return transact(self._session, lambda: self._transact(attempt, collections, finish))
            except _Taken:
                attempt.look()
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
        found = self._database[collection].find(query, {"_src.key": 1, "_id": 0}, limit=limit)
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
            for each in self._database[collection].find(query, {"_src.key": 1}, session=self._session):
                left.pop(identity(each["_src"]["key"]), None)
        return list(left.values())

    def _carry(self, transform: str, keys: Sequence[Any], shadows: Mapping[str, str]) -> None:
        query = {"_src.by": transform, "_src.key": {"$in": list(keys)}}
        for shadow in shadows.values():
            self._database[shadow].delete_many(query, session=self._session)
        for collection, shadow in shadows.items():
            records = _within(
                read_records(self._database, collection, query, self._session), range(len(keys))
            )
            there = {"_id": {"$in": [each.key for each in records]}}
            taken = {each.place[1] for each in read_records(self._database, shadow, there, self._session)}
            self._put(shadow, [each.raw for each in records if each.place[1] not in taken])

    def copy(self, name: str, onto: str, after: tuple[Any, ...], limit: int, finish: FinishCopy) -> Behind:
        """Copy the next records in key order into another collection, in one transaction with `finish`.

        What lies under their keys already stays. Fewer than `limit` are copied where they are large.
        """

        def work() -> Behind:
            query = {"_id": {"$ne": after[0]}} if after else {}
            source: Any = self._database.get_collection(name, _RAW)
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
            there = self._database[onto].find({"_id": {"$in": keys}}, {"_id": 1}, session=self._session)
            for each in there:
                records.pop(identity(each["_id"]), None)
            self._put(onto, list(records.values()))
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
        reply = self._database.command(command, codec_options=CODEC, session=self._session)
        if errors := reply.get("writeErrors"):
            raise OperationFailure(errors[0]["errmsg"], errors[0]["code"], errors[0])

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
        removed = self._remove_foreign(attempt, collections, touched)
        live = Plan() if attempt.alone else self._planned(attempt, attempt.desired, collections, touched)
        outcome = _outcome(live, removed, attempt.refused)
        if attempt.shadows:
            contested = {each.desired.owner for each in live.contests}
            free = [item for item in attempt.desired if item.owner not in contested]
            places = written(collections, attempt.shadows)
            plan = self._planned(attempt, shadowed(free, attempt.shadows), places)
            outcome += _shadow_outcome(plan, attempt.shadows)
        if self._rollups is not None and touched is not None:
            outcome.rollups, outcome.pending = self._rollups.write(touched, attempt.version, attempt.deferred)
        finish(self._session, outcome)
        return outcome

    def _planned(
        self,
        attempt: _Attempt,
        desired: Sequence[Desired],
        collections: Mapping[str, Collection[str]],
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
                for some in _chunks(owned, QUERY_KEYS):
                    query = {"_src.by": transform, "_src.key": {"$in": some}}
                    yield from self._find(collection, query, familiar)

    def _learn_keys(self, desired: Iterable[Desired]) -> Iterator[Stored]:
        """Read what lies under the keys that the batch yields."""
        keys: dict[str, dict[Place, Any]] = defaultdict(dict)
        for item in desired:
            for record in item.records:
                keys[record.collection][record.collection, record.identity] = record.key
        for collection, wanted in keys.items():
            for some in _chunks(list(wanted.values()), QUERY_KEYS):
                query = {"_id": {"$in": some}}
                yield from read_records(self._database, collection, query, self._session)

    def _find(self, collection: str, query: Document, familiar: Familiar) -> Iterator[Stored]:
        for batch in _replies(self._database, collection, query, self._session):
            with self._first:
                for raw in _documents(batch):
                    yield familiar.stored(collection, raw) or stored(collection, _looked_at(raw), raw)

    def _apply(self, plan: Plan, *, apart: bool, by_key: bool) -> None:
        """Send the writes; deletes first, so that a key or a unique value that moves is free."""
        for collection, keys in plan.deletes.items():
            self._delete(collection, keys)
        if apart:
            for collection, writes in plan.replaces.items():
                self._delete(collection, [record.key for record, _ in writes])
        for collection, writes in plan.replaces.items():
            self._send(collection, _AS_NEW if apart else _AS_REPLACED, writes, by_key=by_key)
        for collection, writes in plan.inserts.items():
            self._send(collection, _AS_NEW, writes, by_key=by_key)

    def _delete(self, collection: str, keys: Sequence[Any]) -> None:
        for some in _chunks(keys, QUERY_KEYS):
            self._database[collection].delete_many({"_id": {"$in": some}}, session=self._session)

    def _remove_foreign(
        self, attempt: _Attempt, collections: Mapping[str, Collection[str]], touched: Touched | None
    ) -> list[tuple[str, Any]]:
        """Remove those of the foreign records that still are foreign or frozen, before anything is learned.

        Frozen is a record with a version that is newer than what its owner yields in this very batch: a hand
        set it, and the engine would leave it alone for ever.
        """
        versions = {item.owner: item.version for item in attempt.desired}
        removed = []
        for collection, keys in _grouped(attempt.foreign):
            for document in self._database[collection].find({"_id": {"$in": keys}}, session=self._session):
                foreign = is_foreign(collection, document, collections)
                record = read_record(collection, document)
                newest = versions.get(record.owner) if record.owner else None
                if foreign or (newest is not None and record.version > newest):
                    removed.append((collection, record.key))
                    if touched is not None:
                        touched.note(collection, document)
        for collection, keys in _grouped(removed):
            self._delete(collection, keys)
        return removed

    def _send(self, collection: str, form: "_Form", writes: Sequence[Write], *, by_key: bool) -> None:
        for some in _by_size(writes):
            statements = [form.statement(record) for record, _ in some]
            command = {form.verb: collection, "ordered": True, form.section: statements}
            reply = self._database.command(command, codec_options=CODEC, session=self._session)
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
    name = f"{record.collection}[{record.key!r:.80}]"
    return _Refused(desired, f"MongoDB refuses the record {name}: {error['errmsg']}", unique=unique)


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
