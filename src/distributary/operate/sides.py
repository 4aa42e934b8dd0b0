"""The two sides of a verification: what documents yield now, and what is stored for them at one moment."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from bson import Timestamp, encode
from bson.errors import BSONError
from pymongo import ReadPreference
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.read_concern import ReadConcern

from distributary.change import CODEC, Identity, Version, identity
from distributary.chunks import chunks
from distributary.derive.batch import Derived, is_storable
from distributary.derive.plan import Owner, Stored
from distributary.derive.registry import Registry
from distributary.derive.shared import Whole, assembled
from distributary.engine.derivation import Derivation
from distributary.errors import Failed
from distributary.operate.comparison import Comparison, Difference, Found, Kind
from distributary.parts import is_parts, parts_of
from distributary.ports.source import Snapshot
from distributary.sink.stored import read_parts, read_records
from distributary.source import deployment
from distributary.source.documents import Documents
from distributary.state import Built, Checkpoint
from distributary.store.checkpoints import CHECKPOINTS, Checkpoints, from_document
from distributary.store.letters import Letters

#: Source keys, or keys of records, in one query.
QUERY_KEYS = 1000

#: The collections, by transform, in which there may be records of it.
Writers = Mapping[str, Collection[str]]


class Scope(NamedTuple):
    """Which transforms are compared, with the collections that they may have records in, and which are not."""

    compared: Mapping[str, frozenset[str]]
    outdated: tuple[str, ...]
    not_built: tuple[str, ...]
    left_behind: tuple[str, ...]


def scope_of(registry: Registry, names: Collection[str], checkpoint: Checkpoint) -> Scope:
    """Sort the named transforms: compared is what the plugged-in code built whole."""
    compared: dict[str, frozenset[str]] = {}
    outdated, not_built = [], []
    for name in sorted(names):
        transform, built = registry.transforms[name], checkpoint.transforms.get(name)
        if built is None or not _is_built(built, transform.source):
            not_built.append(name)
        elif built.fingerprint != transform.fingerprint:
            outdated.append(name)
        else:
            compared[name] = built.places | transform.collections
    left_behind = sorted(checkpoint.transforms.keys() - registry.transforms.keys())
    return Scope(compared, tuple(outdated), tuple(not_built), tuple(left_behind))


def _is_built(built: Built, source: str) -> bool:
    return built.built and not built.unplugged and built.source == source


class Moment:
    """The derived deployment at one moment: a checkpoint, and the records that were committed with it."""

    def __init__(
        self, derived: Database[Any], state: Database[Any], checkpoint: Checkpoint, session: ClientSession
    ) -> None:
        self._derived = derived.with_options(CODEC, ReadPreference.PRIMARY)
        self._state = state.with_options(CODEC, ReadPreference.PRIMARY)
        self.session = session
        self.checkpoint = checkpoint

    @property
    def at(self) -> Timestamp | None:
        """The time of the source that the records show exactly; None while some show newer or older states."""
        return self.checkpoint.position.time if self.checkpoint.is_level else None

    @property
    def newest(self) -> Version:
        """The newest version that a committed record can have."""
        checkpoint = self.checkpoint
        return Version(checkpoint.epoch, max(checkpoint.position.time, checkpoint.ahead))

    def stored_for(self, transform: str, keys: Sequence[Any], collection: str) -> Iterator[Stored]:
        """Give the records that a transform has stored for source keys in one derived collection."""
        for some in chunks(keys, QUERY_KEYS):
            query = {"_src.by": transform, "_src.key": {"$in": some}}
            yield from read_records(self._in(collection), collection, query, self.session)

    def stored_under(self, keys: Sequence[Any], collection: str) -> Iterator[Stored]:
        """Give the records with these keys."""
        for some in chunks(keys, QUERY_KEYS):
            yield from read_records(self._in(collection), collection, {"_id": {"$in": some}}, self.session)

    def _in(self, collection: str) -> Database[Any]:
        return self._state if is_parts(collection) else self._derived

    def next_records(
        self, collection: str, after: tuple[Any, ...], limit: int, fields: Mapping[str, int] | None = None
    ) -> list[dict[str, Any]]:
        """Give the next records behind a key, or some fields of them, in the order of keys."""
        query = {"_id": {"$ne": after[0]}} if after else {}
        found = self._derived[collection].find(query, fields, limit=limit, session=self.session)
        found = found.hint([("_id", 1)]).sort("_id", 1)
        return list(found.min([("_id", after[0])]) if after else found)

    def records_under(self, collection: str, keys: Sequence[Any]) -> list[dict[str, Any]]:
        """Give the records with these keys."""
        storable = [key for key in keys if is_storable(key)]
        return list(self._derived[collection].find({"_id": {"$in": storable}}, session=self.session))

    def wholes(self, collection: str, query: Mapping[str, Any]) -> Iterator[Whole]:
        """Put shared records together from those of their parts that match a query, in the order of keys."""
        yield from assembled(read_parts(self._state, parts_of(collection), dict(query), self.session))


class Compared(NamedTuple):
    """What came of a slice: the number of records that were looked up, so many of them parts, and the differences.

    `digests` has a number for each source document that differs, the same as long as the document is.
    """

    records: int
    parts: int
    differences: Mapping[Owner, Sequence[Difference]]
    digests: Mapping[Identity, int]


@dataclass(frozen=True, slots=True)
class Sides:
    """The raw, the derived and the state database of one worker, and its transforms."""

    registry: Registry
    raw: Database[Any]
    derived: Database[Any]
    state: Database[Any]
    worker: str
    max_records: int

    @property
    def documents(self) -> Documents:
        """The source's documents."""
        return Documents(self.raw)

    def reader(self, collection: str) -> Documents:
        """Give what reads a collection of records or parts in the same way."""
        return Documents(self.state if is_parts(collection) else self.derived)

    def holding(self, collection: str) -> Database[Any]:
        """Give the database that a collection of records or parts lies in; only what is durable is read."""
        database = self.state if is_parts(collection) else self.derived
        return database.with_options(CODEC, ReadPreference.PRIMARY, read_concern=ReadConcern("majority"))

    def checkpoint(self) -> Checkpoint:
        """Give the worker's checkpoint; raises `Failed` without one."""
        return self._known(Checkpoints(self.state).load(self.worker))

    def checked(self) -> Checkpoint:
        """Give the checkpoint when it belongs to this source, else raise `Failed`."""
        source, checkpoint = deployment.identify(self.raw), self.checkpoint()
        if checkpoint.source.differs(source):
            other = f"{checkpoint.source.set_name}/{checkpoint.source.database}"
            raise Failed(
                f"Worker {self.worker!r} reads {other}, not the source of this configuration.",
                "Correct `source` or `worker.name`.",
            )
        return checkpoint

    def _known(self, checkpoint: Checkpoint | None) -> Checkpoint:
        if checkpoint is None:
            raise Failed(
                f"Worker {self.worker!r} never ran: nothing was derived yet.", "Run `distributary run`."
            )
        return checkpoint

    def parked(self) -> set[Owner]:
        """Give the owners that are parked."""
        letters = Letters(self.state, self.worker).parked()
        return {Owner(each.key.transform, identity(each.key.key)) for each in letters}

    def writers(self) -> Writers:
        """Give the collections that each transform or trigger, plugged in or known to a worker, may have written."""
        writers = {name: set(each.collections) for name, each in self.registry.transforms.items()}
        writers |= {name: set(each.collections) for name, each in self.registry.triggers.items()}
        for checkpoint in Checkpoints(self.state).all():
            for name, built in checkpoint.transforms.items():
                writers.setdefault(name, set()).update(built.places)
        return writers

    @contextmanager
    def moment(self) -> Iterator[Moment]:
        """Give the derived deployment as it is now, and stays inside; use it within five minutes."""
        with self.derived.client.start_session(snapshot=True) as session:
            checkpoints = self.state.get_collection(CHECKPOINTS, CODEC, ReadPreference.PRIMARY)
            query = {"_id": self.worker, "position": {"$exists": True}}
            document = checkpoints.find_one(query, session=session)
            yield Moment(self.derived, self.state, self._known(document and from_document(document)), session)

    def compare(
        self,
        moment: Moment,
        snapshot: Snapshot,
        transforms: Mapping[str, Collection[str]],
        parked: Collection[Owner],
        keys: Sequence[Any] = (),
    ) -> Compared:
        """Compare what documents of one source yield with what is stored for them.

        `transforms` are those of the source that are compared, with their collections. Those of `keys` that
        the snapshot does not have do not exist, so that nothing may be stored for them.
        """
        documents = {identity(each["_id"]): each for each in snapshot.documents}
        derived = self._derived(moment, snapshot, transforms, parked, keys)
        comparison = Comparison(derived.desired, moment.newest)
        self._look_up(moment, derived, transforms, comparison)
        differences = comparison.found | _failing(derived)
        digests = {
            owner.identity: _digest(documents[owner.identity])
            for owner in differences
            if owner.identity in documents
        }
        return Compared(comparison.records, comparison.parts, differences, digests)

    def _derived(
        self,
        moment: Moment,
        snapshot: Snapshot,
        names: Collection[str],
        parked: Collection[Owner],
        keys: Sequence[Any],
    ) -> Derived:
        """Derive what is not parked; a source key that cannot be encoded always is."""
        epoch = moment.checkpoint.epoch
        derivation = Derivation(self.documents, self.registry.by_source, epoch, self.max_records)
        source = self.registry.transforms[next(iter(names))].source
        derived = derivation.of_snapshot(source, snapshot, tuple(names), keys)
        return Derived(
            [item for item in derived.desired if item.owner not in parked],
            [
                item
                for item in derived.failed
                if Owner(item.transform.name, item.document.identity) not in parked
                and is_storable(item.document.key)
            ],
        )

    def _look_up(self, moment: Moment, derived: Derived, writers: Writers, comparison: Comparison) -> None:
        for name, collections in writers.items():
            keys = [item.key for item in derived.desired if item.transform == name]
            for collection in sorted(collections):
                for record in moment.stored_for(name, keys, collection):
                    comparison.owned(record)
        comparison.under(self._under(moment, comparison.unseen()))

    def _under(self, moment: Moment, keys: Mapping[str, Sequence[Any]]) -> Iterator[Found]:
        writers = self.writers() if keys else {}
        for collection, some in keys.items():
            for record in moment.stored_under(some, collection):
                yield Found.of(record, writers)


def _failing(derived: Derived) -> dict[Owner, list[Difference]]:
    return {
        Owner(item.transform.name, item.document.identity): [
            Difference(Kind.FAILING, "", None, item.transform.name, item.document.key)
        ]
        for item in derived.failed
    }


def _digest(document: Mapping[str, Any]) -> int:
    try:
        return hash(encode(document, codec_options=CODEC))
    except (BSONError, ValueError, OverflowError):  # invalid UTF-8 somewhere in it
        return hash(repr(document))
