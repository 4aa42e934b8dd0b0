"""Comparing derived collections with a recomputation, through both sides in the order of their keys.

Nothing is held but a slice, and the differences that are still to be confirmed. The source side finds what is
missing, stale, or stored for a document that does not yield it; the derived side finds what is stored for a
document that is gone, or for nobody. What was seen is only a suspicion: it is looked at again, beside a living
worker once that has passed the time of the read, and then if possible as both sides were at one moment.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

from bson import Timestamp
from pymongo.database import Database
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from distributary.change import Identity, identity
from distributary.chunks import chunks
from distributary.derive.batch import is_storable
from distributary.derive.plan import Owner
from distributary.derive.records import ENGINE_FIELD, Place
from distributary.engine.retry import Verdict, judge
from distributary.operate.comparison import Difference, Kind
from distributary.operate.repair import repairs
from distributary.operate.rollups import RollupVerifier
from distributary.operate.shared import SLICE as SHARED_SLICE
from distributary.operate.shared import Slice, compare, compare_keys
from distributary.operate.sides import Compared, Scope, Sides, Writers, scope_of
from distributary.operate.watch import Watch
from distributary.parts import is_parts, parts_of
from distributary.ports.source import Documents, Snapshot
from distributary.sink.stored import is_foreign
from distributary.source import deployment
from distributary.state import BEGINNING, Checkpoint, Job, LetterKind
from distributary.store.checkpoints import lag_seconds
from distributary.store.letters import count_letters

#: Documents, and derived records, that are read and compared at once.
SLICE = 1000

#: Suspicions that are collected before they are looked at again.
SUSPECTS = 5000

#: Looks at a document that changes in between, before it counts as unsettled.
LOOKS = 5

#: Differences that the answer names; all of them are counted.
NAMED = 100

#: Differing records that are told apart, so that one that is seen twice counts once. About 500 bytes each.
TOLD_APART = 50_000

#: Tries of one slice whose reading fails for a passing reason.
TRIES = 6

#: The digest of a document that does not exist.
GONE = 0

T = TypeVar("T")

Told = Callable[[int, int], None]


@dataclass(slots=True)
class Verification:
    """What was compared, and what came of it. A shared record is one of the `records`, whatever parts it has.

    `missing`, `stale`, `orphaned` and `failing` count what differs now, `repaired` what did and was made good;
    `differences` names the first of both. `unsettled` counts documents that changed faster than they could be
    compared. Not compared: documents that are parked, source collections that are `detached`, transforms that
    are `outdated`, `not_built` or `left_behind`, collections that triggers fill (`audited`). `behind_seconds` is how
    far the position is behind the source when no worker is alive.
    """

    documents: int = 0
    records: int = 0
    collections: int = 0
    missing: int = 0
    stale: int = 0
    orphaned: int = 0
    failing: int = 0
    repaired: int = 0
    unsettled: int = 0
    parked: int = 0
    contested: int = 0
    detached: tuple[str, ...] = ()
    outdated: tuple[str, ...] = ()
    not_built: tuple[str, ...] = ()
    left_behind: tuple[str, ...] = ()
    audited: tuple[str, ...] = ()
    sampled: bool = False
    alive: bool = False
    behind_seconds: int = 0
    differences: list[Difference] = field(default_factory=list)

    @property
    def remaining(self) -> int:
        """The number of differences that there are now."""
        return self.missing + self.stale + self.orphaned + self.failing

    @property
    def equal(self) -> bool:
        """Whether nothing that was compared differs now."""
        return not self.remaining


class Suspect(NamedTuple):
    """A source key that seems to differ; `at` is when its document was read, `digest` what it was then."""

    transform: str
    key: Any
    at: Timestamp
    digest: int | None


@dataclass(slots=True)
class _Suspects:
    """What is to be looked at again: owners, and records that nobody owns."""

    owners: dict[Owner, Suspect] = field(default_factory=dict)
    foreign: dict[Place, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.owners) + len(self.foreign)


class Verifier:
    """One verification of the transforms in `names`.

    `sample` is how many documents and records of each collection are drawn at random; 0 means all of them.
    With `repair`, which returns when the jobs it is given are done, confirmed differences are made good.
    """

    def __init__(
        self,
        sides: Sides,
        names: Collection[str],
        watch: Watch,
        *,
        sample: int = 0,
        repair: Callable[[Sequence[Job]], object] | None = None,
        progress: Told = lambda _done, _total: None,
    ) -> None:
        self._sides = sides
        self._names = names
        self._watch = watch
        self._sample = sample
        self._repair = repair
        self._progress = progress
        self._scope = Scope({}, (), (), ())
        self._parked: set[Owner] = set()
        self._writers: Writers = {}
        self._without_source: set[str] = set()
        self._detached: set[str] = set()
        self._suspects = _Suspects()
        self._tally = _Tally()
        self._done = self._total = 0
        self._not_built: tuple[str, ...] = ()

    def run(self) -> Verification:
        """Compare, and repair if that was asked for."""
        checkpoint = self._sides.checked()
        self._scope = scope_of(self._sides.registry, self._names, checkpoint)
        self._parked = self._sides.parked()
        self._writers = self._sides.writers()
        sources = self._sources()
        self._without_source = {name for name in sources if self._is_detached(name, checkpoint)}
        collections = sorted(frozenset[str]().union(*self._scope.compared.values()))
        shared = [name for name in collections if name in checkpoint.shared]
        self._estimate(sources, collections)
        for source in sorted(sources.keys() - self._without_source):
            self._source_side(source, sources[source])
        for collection in collections:
            if collection not in shared:
                self._derived_side(collection)
        self._settle()
        for collection in shared:
            self._shared_side(collection)
        rollups = self._rollups()
        return self._answer(sum(not is_parts(name) for name in collections) + rollups)

    # --- the two passes -------------------------------------------------------------------------------------

    def _source_side(self, source: str, names: Sequence[str]) -> None:
        """Hold every document of a source collection against what is stored for it."""
        transforms = {name: some for name, some in self._scope.compared.items() if name in names}
        if not transforms:  # a job began to build them anew
            return
        for snapshot in self._slices(self._sides.documents, self._sides.raw, source):
            count = len(snapshot.documents)
            compared = _steadily(partial(self._compared, snapshot, transforms))
            self._tally.result.documents += count
            # parts are counted with their shared records
            self._tally.result.records += compared.records - compared.parts
            self._suspects.owners |= _suspects(compared, snapshot.time)
            self._settle_many()
            self._advance(count)

    def _compared(self, snapshot: Snapshot, transforms: Mapping[str, Collection[str]]) -> Compared:
        with self._sides.moment() as moment:
            return self._sides.compare(moment, snapshot, transforms, self._parked)

    def _derived_side(self, collection: str) -> None:
        """Look for records that nobody owns, or that are stored for a document that is gone."""
        reader, database = self._sides.reader(collection), self._sides.holding(collection)
        for snapshot in self._slices(reader, database, collection):
            owners: dict[str, dict[Identity, Any]] = defaultdict(dict)
            for document in snapshot.documents:
                if is_foreign(collection, document, self._writers):
                    self._suspects.foreign[collection, identity(document["_id"])] = document["_id"]
                else:
                    by, key = document[ENGINE_FIELD]["by"], document[ENGINE_FIELD]["key"]
                    owners[by][identity(key)] = key
            for name in owners.keys() & self._scope.compared.keys():
                self._suspects.owners |= _steadily(partial(self._gone, name, owners[name]))
            self._settle_many()
            self._advance(len(snapshot.documents))

    def _shared_side(self, collection: str) -> None:
        """Hold every shared record, or those that are drawn, against its parts, which are compared by themselves."""
        for part in self._shared_slices(collection):
            found = left = part.differences
            if found and self._repair:
                self._repair(repairs(found, self._compared_sources()))
                keys = [each.key for each in found]
                left = self._compared_under(collection, keys).differences
            self._tally.add(found, left)
            self._tally.result.records += part.records
            self._advance(part.records)

    def _shared_slices(self, collection: str) -> Iterator[Slice]:
        if self._sample:
            for some in chunks(self._drawn_shared(collection), SHARED_SLICE):
                yield self._compared_under(collection, some)
            return
        after: tuple[Any, ...] = ()
        while (part := _steadily(partial(self._compared_shared, collection, after))).behind:
            yield part
            after = part.behind
        yield part

    def _drawn_shared(self, collection: str) -> list[Any]:
        """Draw keys of shared records, and parts, since one that is missing has nothing else."""
        parts = parts_of(collection)
        stored = _drawn(self._sides.holding(collection), collection, self._sample)
        drawn = _drawn(self._sides.holding(parts), parts, self._sample)
        wanted = [each["k"] for each in drawn if isinstance(each, dict) and "k" in each]
        return list({identity(key): key for key in (*stored, *wanted)}.values())

    def _compared_shared(self, collection: str, after: tuple[Any, ...]) -> Slice:
        with self._sides.moment() as moment:
            return compare(moment, collection, after)

    def _compared_under(self, collection: str, keys: Sequence[Any]) -> Slice:
        return _steadily(partial(self._looked_under, collection, keys))

    def _looked_under(self, collection: str, keys: Sequence[Any]) -> Slice:
        with self._sides.moment() as moment:
            return compare_keys(moment, collection, keys)

    def _compared_sources(self) -> dict[str, str]:
        return {name: self._sides.registry.transforms[name].source for name in self._scope.compared}

    def _gone(self, name: str, keys: Mapping[Identity, Any]) -> dict[Owner, Suspect]:
        """Suspect those source keys of a transform that have records and no document."""
        source = self._sides.registry.transforms[name].source
        if source in self._without_source:
            self._detached.add(source)
            return {}
        there = self._sides.documents.existing(source, list(keys.values()))
        gone = keys.keys() - {identity(each["_id"]) for each in there.documents}
        owners = {Owner(name, each): Suspect(name, keys[each], there.time, GONE) for each in gone}
        return {owner: each for owner, each in owners.items() if owner not in self._parked}

    def _slices(self, reader: Documents, database: Database[Any], collection: str) -> Iterator[Snapshot]:
        """Give a collection in the order of its keys, or what is drawn at random, a slice at a time."""
        if self._sample:
            keys = _drawn(database, collection, self._sample)
            for some in chunks(keys, SLICE):
                yield _steadily(partial(reader.fetch, collection, some))
            return
        after: tuple[Any, ...] = ()
        skip = 0
        while (snapshot := _steadily(partial(reader.scan, collection, after, SLICE, skip))).documents:
            count, behind = len(snapshot.documents), _behind(snapshot)  # a transform may change its document
            yield snapshot
            after, skip = (behind, 0) if behind else (after, skip + count)

    # --- looking again --------------------------------------------------------------------------------------

    def _settle_many(self) -> None:
        """Settle what is suspected before it becomes too much to hold."""
        if len(self._suspects) >= SUSPECTS:
            self._settle()

    def _settle(self) -> None:
        """Confirm or drop what is suspected; what is confirmed is made good and looked at once more."""
        suspects, self._suspects = self._suspects, _Suspects()
        found = left = self._confirmed(suspects)
        if found and self._repair:
            self._repair(repairs(found, self._compared_sources()))
            left = self._confirmed(self._involved(found))
        self._tally.add(found, left)

    def _confirmed(self, suspects: _Suspects) -> list[Difference]:
        found = _steadily(partial(self._still_foreign, suspects.foreign))
        pending = suspects.owners
        for _ in range(LOOKS):
            if not pending:
                break
            alive = self._watch.passed(max(each.at for each in pending.values()))
            self._scope = scope_of(self._sides.registry, self._names, self._sides.checkpoint())
            self._parked = self._sides.parked()
            differing, pending = self._looked_at(pending, alive=alive)
            found += differing
        self._tally.result.unsettled += len(pending)
        return found

    def _looked_at(
        self, pending: Mapping[Owner, Suspect], *, alive: bool
    ) -> tuple[list[Difference], dict[Owner, Suspect]]:
        """Look at suspects once; gives what differs, and those to be looked at again."""
        found: list[Difference] = []
        again: dict[Owner, Suspect] = {}
        for name in sorted({owner.transform for owner in pending} & self._scope.compared.keys()):
            mine = [(owner, each) for owner, each in pending.items() if owner.transform == name]
            for some in chunks(mine, SLICE):
                differing, changing = _steadily(partial(self._look, name, dict(some), alive=alive))
                found += differing
                again |= changing
        return found, again

    def _look(
        self, name: str, suspects: Mapping[Owner, Suspect], *, alive: bool
    ) -> tuple[list[Difference], dict[Owner, Suspect]]:
        """Look at both sides as of the worker's position; where that cannot be, at each as it is now.

        In the latter case a difference counts only for a document that is as it was at the last look.
        """
        source = self._sides.registry.transforms[name].source
        keys = [each.key for each in suspects.values()]
        with self._sides.moment() as moment:
            at = moment.at if alive else None
            snapshot = self._sides.documents.fetch(source, keys, at)
            if self._is_detached(source, moment.checkpoint):
                return [], {}
            writers = {name: self._scope.compared[name]}
            compared = self._sides.compare(moment, snapshot, writers, self._parked, keys)
        now = _suspects(compared, snapshot.time)
        settled = [
            owner
            for owner, each in now.items()
            if snapshot.time == at or each.digest == suspects[owner].digest
        ]
        found = [each for owner in settled for each in compared.differences[owner]]
        return found, {owner: each for owner, each in now.items() if owner not in set(settled)}

    def _still_foreign(self, suspects: Mapping[Place, Any]) -> list[Difference]:
        """Read records that nobody owns once more; one whose key cannot be encoded cannot be read by it."""
        by_collection: dict[str, list[Any]] = defaultdict(list)
        for (collection, _), key in suspects.items():
            by_collection[collection].append(key)
        writers = self._sides.writers() if suspects else {}
        found = []
        for collection, keys in by_collection.items():
            found += [_nobodys(collection, key) for key in keys if not is_storable(key)]
            for some in chunks([key for key in keys if is_storable(key)], SLICE):
                records = self._sides.reader(collection).fetch(collection, some).documents
                found += [
                    _nobodys(collection, each["_id"])
                    for each in records
                    if is_foreign(collection, each, writers)
                ]
        return found

    def _involved(self, found: Iterable[Difference]) -> _Suspects:
        """Give everything that has to do with differences, as if nothing was known of it."""
        suspects = _Suspects()
        for each in found:
            for name, key in each.owners():
                if name in self._scope.compared:
                    suspects.owners[Owner(name, identity(key))] = Suspect(name, key, BEGINNING, None)
            if each.foreign:
                suspects.foreign[each.collection, identity(each.key)] = each.key
        return suspects

    def _rollups(self) -> int:
        """Compare rollups, and give how many."""
        rollups = RollupVerifier(self._sides, self._names, self._watch, self._sample, self._repair, _steadily)
        compared = rollups.run()
        self._tally.add(compared.found, compared.left)
        self._tally.result.records += compared.groups
        self._tally.result.unsettled += compared.unsettled
        self._not_built = compared.not_built
        return len(compared.names)

    # --- around it ------------------------------------------------------------------------------------------

    def _sources(self) -> dict[str, list[str]]:
        """Give the source collections with the names of their compared transforms."""
        sources: dict[str, list[str]] = defaultdict(list)
        for name in self._scope.compared:
            sources[self._sides.registry.transforms[name].source].append(name)
        return sources

    def _is_detached(self, source: str, checkpoint: Checkpoint) -> bool:
        """Whether a source collection was dropped, known to the worker or not yet; its records stay as they are."""
        return source in checkpoint.detached or not self._sides.documents.exists(source)

    def _estimate(self, sources: Iterable[str], collections: Iterable[str]) -> None:
        counts = [self._sides.documents.count(name) for name in sources]
        counts += [self._sides.reader(name).count(name) for name in collections]
        self._total = sum(min(count, self._sample or count) for count in counts)

    def _advance(self, count: int) -> None:
        self._done += count
        self._progress(self._done, max(self._done, self._total))

    def _answer(self, collections: int) -> Verification:
        result, scope, checkpoint = self._tally.result, self._scope, self._sides.checkpoint()
        known = {name for name in checkpoint.detached if name in self._without_source}
        result.collections = collections
        result.audited = tuple(sorted(self._sides.registry.audited))
        result.detached = tuple(sorted(self._detached | known))
        result.outdated, result.not_built, result.left_behind = scope[1:]
        result.not_built += self._not_built
        result.contested, result.parked = self._letters()
        result.sampled = bool(self._sample)
        result.alive = self._watch.alive()
        if not result.alive:
            head = deployment.head(self._sides.raw.client)
            result.behind_seconds = lag_seconds(head, checkpoint.position)
        return result

    def _letters(self) -> tuple[int, int]:
        """Count the parked documents of the named transforms: contested ones, and others."""
        mine = {"worker": self._sides.worker, "transform": {"$in": sorted(self._names)}}
        every = count_letters(self._sides.state, mine)
        contested = count_letters(self._sides.state, {**mine, "kind": LetterKind.CONTESTED.value})
        return contested, every - contested


class _Tally:
    """Counts differences; a record that both sides see counts once, by what the source side says of it."""

    def __init__(self) -> None:
        self.result = Verification()
        self._told: dict[Place, Difference] = {}

    def add(self, found: Iterable[Difference], left: Iterable[Difference]) -> None:
        """Count what was found, of which all that is not left was made good."""
        remaining = {each.place for each in left}
        for each in [*left, *found]:
            difference = each._replace(repaired=each.place not in remaining)
            before = self._told.get(each.place)
            if before is None:
                self._count(difference, 1)
            elif before.kind is Kind.ORPHANED and each.kind is not Kind.ORPHANED:
                self._count(before, -1)
                self._count(difference, 1)

    def _count(self, difference: Difference, by: int) -> None:
        result = self.result
        counted = "repaired" if difference.repaired else difference.kind.value
        setattr(result, counted, getattr(result, counted) + by)
        if by < 0:
            result.differences = [each for each in result.differences if each is not difference]
        else:
            if len(self._told) < TOLD_APART:
                self._told[difference.place] = difference
            if len(result.differences) < NAMED:
                result.differences.append(difference)


def _suspects(compared: Compared, at: Timestamp) -> dict[Owner, Suspect]:
    """Give the owners whose records differ."""
    return {
        owner: Suspect(owner.transform, found[0].source_key, at, compared.digests.get(owner.identity, GONE))
        for owner, found in compared.differences.items()
    }


def _nobodys(collection: str, key: Any) -> Difference:
    return Difference(Kind.ORPHANED, collection, key, fields=(ENGINE_FIELD,), foreign=True)


def _drawn(database: Database[Any], collection: str, count: int) -> list[Any]:
    """Draw keys of a collection at random, each once."""
    stages = [{"$sample": {"size": count}}, {"$project": {"_id": 1}}]
    keys = {identity(each["_id"]): each["_id"] for each in database[collection].aggregate(stages)}
    return [key for key in keys.values() if is_storable(key)]


def _behind(snapshot: Snapshot) -> tuple[Any, ...]:
    """Give the key to go on behind: the last one that can be encoded."""
    keys = (each["_id"] for each in reversed(snapshot.documents))
    return next(((key,) for key in keys if is_storable(key)), ())


def _steadily(read: Callable[[], T]) -> T:
    """Read a slice, again when that fails for a reason that passes."""
    retrying = Retrying(
        retry=retry_if_exception(lambda error: judge(error) is Verdict.TRANSIENT),
        wait=wait_random_exponential(multiplier=0.2, max=5),
        stop=stop_after_attempt(TRIES),
        reraise=True,
    )
    return retrying(read)
