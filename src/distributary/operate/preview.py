"""What a transform yields for some documents now, held against what is stored for them. Nothing is written."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, NamedTuple

from bson import decode, encode
from bson.errors import BSONError
from pymongo import ReadPreference
from pymongo.database import Database
from pymongo.read_concern import ReadConcern

from distributary.change import CODEC, RAW, Identity, Version, identity
from distributary.derive.batch import is_storable
from distributary.derive.plan import Owner, Stored
from distributary.derive.purity import Call, call, differ
from distributary.derive.records import ENGINE_FIELD, EncodedRecord, Place
from distributary.derive.transform import Failure, Transform, failure_of
from distributary.excerpt import behind_key, key_of
from distributary.operate.comparison import differing
from distributary.operate.sides import Sides
from distributary.parts import is_parts, told
from distributary.sink.stored import read_records
from distributary.state import Checkpoint
from distributary.store.checkpoints import Checkpoints


class State(StrEnum):
    """How a record that is yielded or stored stands to the other side.

    `contested`: it is yielded under a key that another document has. `kept`: it is stored, and stays as it is
    because its document cannot be derived.
    """

    ADDED = "added"
    CHANGED = "changed"
    REMOVED = "removed"
    UNCHANGED = "unchanged"
    CONTESTED = "contested"
    KEPT = "kept"


class FieldDiff(NamedTuple):
    """A field that differs; `old` and `new` hold its value, or nothing where there is none."""

    name: str
    old: tuple[Any, ...]
    new: tuple[Any, ...]

    def answer(self) -> dict[str, Any]:
        """Give it as JSON has it: without `old` or `new` where there is none."""
        sides = {"old": self.old, "new": self.new}
        return {"name": self.name} | {side: value[0] for side, value in sides.items() if value}


class RecordDiff(NamedTuple):
    """One record; `version` is that of what is stored for the document, None where nothing is.

    `holder` is the transform and source key that have the record's key. One that is changed and has no `fields`
    differs in their order only.
    """

    state: State
    collection: str
    key: Any
    fields: tuple[FieldDiff, ...] = ()
    holder: tuple[str, Any] | None = None
    version: Version | None = None

    @property
    def place(self) -> Place:
        """Where it is."""
        return (self.collection, identity(self.key))

    def answer(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        return {
            "state": self.state.value,
            **told(self.collection, self.key),
            "fields": [each.answer() for each in self.fields],
            "holder": self.holder and {"transform": self.holder[0], "key": self.holder[1]},
        }


@dataclass(frozen=True, slots=True)
class DocumentDiff:
    """One document: the records that it yields, in their order, then those that it yields no longer.

    One with a `failure` would be parked, one that is `contested` too; both would keep what they have.
    `unstable` says that a second call yielded something else, `mutates` that the transform changed its document.
    """

    key: Any
    exists: bool
    records: tuple[RecordDiff, ...]
    failure: Failure | None = None
    unstable: bool = False
    mutates: bool = False

    @property
    def contested(self) -> bool:
        """Whether another document has one of its keys."""
        return any(each.state is State.CONTESTED for each in self.records)

    def of(self, state: State) -> list[RecordDiff]:
        """Give the records of one state."""
        return [each for each in self.records if each.state is state]

    def answer(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        return {
            "key": self.key,
            "exists": self.exists,
            "contested": self.contested,
            "failure": self.failure and self.failure._asdict(),
            "unstable": self.unstable,
            "changes_document": self.mutates,
            "records": [each.answer() for each in self.records],
        }


class Preview:
    """One transform as it is plugged in, built or not, tried on documents one after the other.

    What an earlier one of these documents yields is not free for a later one, unless it is contested itself.
    """

    def __init__(self, sides: Sides, name: str) -> None:
        self._sides = sides
        self._claims: dict[Place, tuple[str, Any]] = {}
        self.transform: Transform = sides.registry.transforms[name]

    @cached_property
    def _collections(self) -> Sequence[str]:
        """Every derived collection that may hold records of the transform."""
        return sorted(self._sides.writers()[self.transform.name])

    @cached_property
    def _giving_way(self) -> frozenset[str]:
        """The transforms that the worker knows and that are not plugged in: they hold no key against others."""
        checkpoint: Checkpoint | None = Checkpoints(self._sides.state).load(self._sides.worker)
        known = checkpoint.transforms.keys() if checkpoint else ()
        return frozenset(known) - self._sides.registry.transforms.keys()

    def of_sample(self, count: int) -> Iterator[DocumentDiff]:
        """Try documents that are drawn at random, each once, in the order of their keys."""
        seen: set[Identity] = set()
        for document in self._read([{"$sample": {"size": count}}]):
            key = key_of(document)
            if identity(key) not in seen:
                seen.add(identity(key))
                yield self._diff(key, document)

    def of_keys(self, asked: Sequence[Sequence[Any]]) -> Iterator[DocumentDiff]:
        """Try documents by key, in the order of their keys, then tell of those that do not exist.

        Each of `asked` lists what one key may be: the first that exists counts, and where none does, the first
        that something is stored for.
        """
        every = [key for candidates in asked for key in candidates]
        documents = {identity(key_of(each)): each for each in self._read([{"$match": _among(every)}])}
        keys = {identity(key): key for key in (self._chosen(each, documents) for each in asked)}
        for found, document in documents.items():
            if found in keys:
                yield self._diff(key_of(document), document)
        for missing in keys.keys() - documents.keys():
            yield self._diff(keys[missing], None)

    def _chosen(self, candidates: Sequence[Any], documents: Mapping[Identity, bytes]) -> Any:
        for key in candidates:
            if identity(key) in documents:
                return key
        return next((key for key in candidates if self._owned(key)), candidates[0])

    def _read(self, stages: list[dict[str, Any]]) -> Iterator[bytes]:
        """Read documents of the source in BSON, in the order of their keys."""
        source = committed(self._sides.raw).get_collection(self.transform.source, RAW)
        with source.aggregate([*stages, {"$sort": {"_id": 1}}], batchSize=10) as found:
            for each in found:
                yield each.raw

    # --- one document ---------------------------------------------------------------------------------------

    def _diff(self, key: Any, document: bytes | None) -> DocumentDiff:
        stored = self._owned(key)
        if document is None:
            return DocumentDiff(key, exists=False, records=tuple(map(_removed, stored)))
        if not is_storable(key):
            failure = Failure(f"the source key {key!r} is not valid UTF-8", "")
            return DocumentDiff(key, exists=True, records=(), failure=failure)
        first, second = (call(self.transform, document, self._sides.max_records) for _ in range(2))
        failed = failure_of(first.error) if first.error else None
        records = map(_kept, stored) if failed else self._records(first, stored)
        diff = DocumentDiff(
            key,
            exists=True,
            records=tuple(records),
            failure=failed,
            unstable=differ(first.output, second.output),
            mutates=first.changed or second.changed,
        )
        if not diff.contested:
            self._claims |= {record.place: (self.transform.name, key) for record in first.records}
        return diff

    def _owned(self, key: Any) -> list[Stored]:
        return owned(self._sides, self._collections, self.transform.name, key)

    def _records(self, first: Call, stored: Sequence[Stored]) -> Iterator[RecordDiff]:
        mine = {record.place: record for record in stored}
        others = self._under([record for record in first.records if record.place not in mine])
        for record in first.records:
            if holder := self._claims.get(record.place):
                yield RecordDiff(State.CONTESTED, record.collection, record.key, holder=holder)
            elif record.place in mine:
                yield _compared(mine[record.place], record)
            elif record.place in others:
                yield self._taken(others[record.place], record)
            else:
                fields = field_diffs(record.collection, b"", record.document)
                yield RecordDiff(State.ADDED, record.collection, record.key, fields)
        yielded = {record.place for record in first.records}
        yield from (_removed(record) for record in stored if record.place not in yielded)

    def _under(self, records: Iterable[EncodedRecord]) -> dict[Place, Stored]:
        """Give what lies under the keys of records."""
        keys: dict[str, list[Any]] = defaultdict(list)
        for record in records:
            keys[record.collection].append(record.key)
        return {
            found.place: found
            for collection, some in keys.items()
            for found in read_records(self._sides.holding(collection), collection, _among(some))
        }

    def _taken(self, stored: Stored, record: EncodedRecord) -> RecordDiff:
        """Tell of a key that is taken: its owner keeps it, unless there is none that may."""
        if stored.owner is not None and stored.owner.transform not in self._giving_way:
            holder = (stored.owner.transform, decode(stored.raw, CODEC)[ENGINE_FIELD]["key"])
            return RecordDiff(State.CONTESTED, record.collection, record.key, holder=holder)
        origin = decode(stored.raw, CODEC).get(ENGINE_FIELD)
        differing = field_diffs(record.collection, stored.raw, record.document)
        fields = (*differing, FieldDiff(ENGINE_FIELD, (origin,), ()))
        return RecordDiff(State.CHANGED, record.collection, record.key, fields)


def committed(database: Database[Any]) -> Database[Any]:
    """Give a database in which only what is durable is read, from the primary."""
    return database.with_options(read_preference=ReadPreference.PRIMARY, read_concern=ReadConcern("majority"))


def owned(sides: Sides, collections: Iterable[str], transform: str, key: Any) -> list[Stored]:
    """Give the records that a transform has stored for a document in these collections."""
    owner = Owner(transform, identity(key))
    query = {"_src.by": transform, "_src.key": {"$in": [key]}}
    found = [
        record
        for collection in (collections if is_storable(key) else ())
        for record in read_records(sides.holding(collection), collection, query)
    ]
    return [record for record in found if record.owner == owner]


def _among(keys: Sequence[Any]) -> dict[str, Any]:
    return {"_id": {"$in": list(keys)}}


def _removed(stored: Stored) -> RecordDiff:
    fields = field_diffs(stored.collection, stored.raw, b"")
    return RecordDiff(State.REMOVED, stored.collection, stored.key, fields, version=stored.version)


def _kept(stored: Stored) -> RecordDiff:
    return RecordDiff(State.KEPT, stored.collection, stored.key, version=stored.version)


def _compared(stored: Stored, wanted: EncodedRecord) -> RecordDiff:
    if not differing(stored, wanted):
        return RecordDiff(State.UNCHANGED, stored.collection, stored.key, version=stored.version)
    fields = field_diffs(stored.collection, stored.raw, wanted.document)
    return RecordDiff(State.CHANGED, stored.collection, stored.key, fields, version=stored.version)


def field_diffs(collection: str, before: bytes, after: bytes) -> tuple[FieldDiff, ...]:
    """Give the fields in which two records differ, in value or type; without one record, those of the other.

    The engine's field does not count, and the key only where both have it. Fields of a part are those that its shared
    record shows.
    """
    old, new = (_fields(_shown(collection, each)) for each in (before, after))
    if not (before and after):
        old.pop("_id", None)
        new.pop("_id", None)
    return tuple(
        FieldDiff(name, _held(old, name), _held(new, name))
        for name in old | new
        if _encoded(_held(old, name)) != _encoded(_held(new, name))
    )


def _shown(collection: str, record: bytes) -> bytes:
    return behind_key(record) if record and is_parts(collection) else record


def _fields(record: bytes) -> dict[str, Any]:
    fields = decode(record, CODEC) if record else {}
    fields.pop(ENGINE_FIELD, None)
    return fields


def _held(fields: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    return (fields[name],) if name in fields else ()


def _encoded(value: tuple[Any, ...]) -> bytes | str:
    """Give a value in BSON, or as text where it holds what no encoder takes, such as invalid UTF-8."""
    try:
        return encode({"": list(value)}, codec_options=CODEC)
    except (BSONError, ValueError, OverflowError):
        return repr(value)
