"""Changes carried out in a database in memory, so that a test can query what they lead to."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bson import Timestamp, decode, encode
from bson.binary import UuidRepresentation

from distributary.change import CODEC, Operation, Version
from distributary.change import Change as SourceChange
from distributary.derive.batch import derive_all
from distributary.derive.collapse import Latest, Place, collapse
from distributary.derive.plan import Contest, Owner, Plan, Stored, reconcile, stored
from distributary.derive.records import ENGINE_FIELD, EncodedRecord
from distributary.derive.shared import is_shared, mark, part_of
from distributary.derive.transform import Function, Transform
from distributary.errors import EnvironmentFault
from distributary.excerpt import key_of
from distributary.parts import called, is_parts, parts_of, shared_of
from distributary.testing.deriving import MAX_RECORDS, NotDerived, derivable, in_bson, transform_for, whole
from distributary.testing.rollups import Followed

if TYPE_CHECKING:  # the driver is slow to import, and every run of pytest imports this
    from pymongo.database import Database

#: What an encoder without options takes: mongomock has none for UUIDs.
_PLAIN = CODEC.with_options(uuid_representation=UuidRepresentation.UNSPECIFIED)

_EPOCH = 1


@dataclass(frozen=True, slots=True)
class Deleted:
    """The document of this key is deleted."""

    key: Any


#: A document is now like this, or gone; with its collection where there are several.
State = Mapping[str, Any] | Deleted
Change = State | tuple[str, State]


def apply(
    functions: Function | Iterable[Function],
    changes: Iterable[Change],
    database: "Database[dict[str, Any]] | None" = None,
    *,
    max_records: int = MAX_RECORDS,
) -> "Database[dict[str, Any]]":
    """Carry changes out, one after the other, and give the database with the derived collections.

    A change is a document, which is now like this, or `Deleted(key)`; when the functions read several
    collections, `(collection, document)` or `(collection, Deleted(key))`. Records are stored as a worker stores
    them, with `_src`, and what a document no longer yields is removed. A document that contests a key waits for
    it as with a worker. Raises `NotDerived` for a document that a worker would park, for one that still waits
    for its key at the end, too. Rollups in the functions' modules are computed after every change.

    What shared records are made of lies beside them, in `parts/customer` for `customer`.
    Without a database it is a new one in memory, of mongomock, which has limits: it takes no `Decimal128` as a
    key and shows UUIDs as `bson.Binary`. A database that was given may be filled already, and may be a real one.
    """
    transforms = _transforms(functions)
    application = _Application(transforms, _mock() if database is None else database, max_records)
    for change in changes:
        application.apply(change)
    application.finish()
    return application.database


def _transforms(functions: Function | Iterable[Function]) -> list[Transform]:
    return [transform_for(each) for each in ([functions] if callable(functions) else functions)]


def _mock() -> "Database[dict[str, Any]]":
    try:
        import mongomock  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise EnvironmentFault(
            "There is no mongomock, in which the records would be stored.",
            "Run `pip install 'distributary[testing]'`, or give a database.",
        ) from error
    database: Database[dict[str, Any]] = mongomock.MongoClient(tz_aware=True)["derived"]
    return database


class _Application:
    """One call of `apply`; `waiting` are documents that contest a key, `contests` what each waits for."""

    def __init__(
        self, transforms: Sequence[Transform], database: "Database[dict[str, Any]]", max_records: int
    ) -> None:
        self.database = database
        self._max_records = max_records
        self._transforms: dict[str, list[Transform]] = {}
        for transform in transforms:
            self._transforms.setdefault(transform.source, []).append(transform)
        self._sources = {transform.name: transform.source for transform in transforms}
        self._rollups = Followed(database, transforms)
        named = sorted({name for each in transforms for name in each.collections})
        self._collections = [*map(parts_of, named), *named]
        self._time = max((record.version.time.time for record in self._stored()), default=0)
        self._waiting: dict[Place, Latest] = {}
        self._contests: dict[Place, Contest] = {}

    def apply(self, change: Change) -> None:
        """Carry one change out, as a batch of its own with the documents that wait."""
        self._time += 1
        (latest,) = collapse([self._source_change(change)], None)
        for transform in self._transforms[latest.collection]:
            if latest.document is not None:
                derivable(transform, in_bson(latest.document), self._max_records)
        self._waiting[latest.collection, latest.identity] = latest
        contests = self._commit([*self._waiting])
        while free := [place for place, contest in contests.items() if contest.free]:
            contests = self._commit(free)

    def finish(self) -> None:
        """Raise `NotDerived` when a document still waits for a key."""
        for contest in self._contests.values():
            held = called(contest.place[0], contest.key)
            owner = f"source document {contest.holder.identity!r:.80} owns ({contest.holder.transform})"
            item = contest.desired
            raise NotDerived(item.transform, item.key, f"yields {held}, which {owner}")

    def _commit(self, places: Sequence[Place]) -> Mapping[Place, Contest]:
        """Derive some of the documents that changed or wait, write what they yield, and give who must wait."""
        documents = [deepcopy(self._waiting[place]) for place in places]
        derived = derive_all(documents, self._transforms, _EPOCH, self._max_records)
        for transform, item, failure in derived.failed:
            raise NotDerived(transform.name, item.key, failure.reason)
        known = list(self._stored())
        plan = reconcile(derived.desired, known)
        self._write(plan)
        self._rollups.follow(plan, known)
        contests = {self._place_of(contest.desired.owner): contest for contest in plan.contests}
        for place in set(places) - contests.keys():
            del self._waiting[place]
            self._contests.pop(place, None)
        self._contests.update(contests)
        return contests

    def _place_of(self, owner: Owner) -> Place:
        return (self._sources[owner.transform], owner.identity)

    def _stored(self) -> Iterator[Stored]:
        for name in self._collections:
            for document in self.database[name].find():
                if not is_shared(document):
                    yield stored(name, document, encode(document, codec_options=CODEC))

    def _write(self, plan: Plan) -> None:
        for name, keys in plan.deletes.items():
            self.database[name].delete_many({"_id": {"$in": keys}})
        for name, writes in plan.replaces.items():
            for document in [_document(record) for record, _ in writes]:
                self.database[name].replace_one({"_id": document["_id"]}, document)
        for name, writes in plan.inserts.items():
            self.database[name].insert_many([_document(record) for record, _ in writes])
        touched = {name for some in (plan.deletes, plan.replaces, plan.inserts) for name in some}
        for name in filter(is_parts, touched):
            self._assemble(name)

    def _assemble(self, parts: str) -> None:
        """Put the shared records together from all of their parts."""
        shared = self.database[shared_of(parts)]
        before = list(shared.find())
        shared.delete_many({f"{ENGINE_FIELD}.shared": True})
        found = [encode(each, codec_options=CODEC) for each in self.database[parts].find()]
        version = Version(_EPOCH, Timestamp(self._time, 1))
        for key, fields in whole(part_of(key_of(each), each) for each in found):
            shared.insert_one({"_id": key, **fields, ENGINE_FIELD: mark(version)})
        self._rollups.follow_shared(shared_of(parts), [*before, *shared.find()])

    def _source_change(self, change: Change) -> SourceChange:
        source, state = self._placed(change)
        time = Timestamp(self._time, 1)
        if isinstance(state, Deleted):
            return SourceChange(source, state.key, time, Operation.DELETE, None)
        document = decode(in_bson(state), CODEC)
        if "_id" not in document:
            raise ValueError(f"a document of {source!r} has no _id: {document!r:.80}")
        return SourceChange(source, document["_id"], time, Operation.REPLACE, document)

    def _placed(self, change: Change) -> tuple[str, State]:
        source, state = change if isinstance(change, tuple) else (self._only_source(), change)
        if source not in self._transforms:
            there = ", ".join(sorted(self._transforms)) or "none"
            raise ValueError(f"none of these transforms reads {source!r}; they read: {there}")
        if not isinstance(state, Mapping | Deleted):
            raise TypeError(f"{state!r:.80} is no change: give a document or Deleted(key)")
        return source, state

    def _only_source(self) -> str:
        if len(self._transforms) != 1:
            there = ", ".join(sorted(self._transforms)) or "none"
            raise TypeError(f"say of which collection each change is, (collection, document): {there}")
        return next(iter(self._transforms))


def _document(record: EncodedRecord) -> dict[str, Any]:
    return decode(record.document, _PLAIN)
