"""Comparing rollups with what the server computes now over the collections that they are over.

A transaction keeps both together, so that at one moment they agree but for the groups that are pending. The stored
groups are held against what they come to, and the records' groups are looked for among the stored ones.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pymongo import ReadPreference
from pymongo.client_session import ClientSession
from pymongo.database import Database

from distributary.change import CODEC, Identity, identity
from distributary.chunks import chunks
from distributary.derive.records import ENGINE_FIELD
from distributary.derive.rollup import Rollup, agree, group_of
from distributary.engine.retry import passes
from distributary.engine.rollups import JOB_KEYS, rollup_job
from distributary.operate.comparison import Difference, Kind
from distributary.operate.sides import Moment, Sides
from distributary.operate.watch import LOOK_SECONDS, Watch
from distributary.ports.rollups import Group
from distributary.sink.rollups import Server
from distributary.state import Job, JobKind
from distributary.store.jobs import JOBS
from distributary.store.pending import Pending

#: Groups that are compared at once, and records whose groups are looked for at once.
SLICE_GROUPS = 500
SLICE_RECORDS = 5000

_REASON = "verify found differences"

Document = dict[str, Any]

#: Groups by their identity.
Groups = Mapping[Identity, Any]


@dataclass(slots=True)
class Compared:
    """What came of it: the rollups and the number of groups that were compared, and what differs.

    `found` is what differed, `left` what differs now. `unsettled` groups were always pending, or cannot be computed.
    """

    names: tuple[str, ...] = ()
    not_built: tuple[str, ...] = ()
    groups: int = 0
    unsettled: int = 0
    found: list[Difference] = field(default_factory=list)
    left: list[Difference] = field(default_factory=list)


@dataclass(slots=True)
class _Looked:
    """What one look at some groups gave; those that are pending are to be looked at again."""

    differing: list[Difference]
    pending: dict[Identity, Any]


class RollupVerifier:
    """One verification of the rollups over what the transforms in `names` fill; see `Verifier`."""

    def __init__(
        self,
        sides: Sides,
        names: Collection[str],
        watch: Watch,
        sample: int,
        repair: Callable[[Sequence[Job]], object] | None,
        steadily: Callable[[Callable[[], Any]], Any],
    ) -> None:
        self._sides = sides
        self._watch = watch
        self._sample = sample
        self._repair = repair
        self._steadily = steadily
        transforms = [each for name, each in sides.registry.transforms.items() if name in names]
        filled = {name for each in transforms for name in each.collections}
        self._rollups = {
            name: each for name, each in sides.registry.rollups.items() if each.over.name in filled
        }
        self._derived: Database[Any] = sides.derived.with_options(CODEC, ReadPreference.PRIMARY)
        self._server = Server(self._derived, passes)
        self._pending = Pending(sides.state, sides.worker)
        self._unsettled: set[tuple[str, Identity]] = set()
        self._result = Compared()

    def run(self) -> Compared:
        """Compare, and repair if that was asked for."""
        result = self._result
        built = self._built()
        result.names = tuple(name for name in sorted(self._rollups) if name in built)
        result.not_built = tuple(name for name in sorted(self._rollups) if name not in built)
        for name in result.names:
            self._compare(self._rollups[name])
        result.unsettled = len(self._unsettled)
        return result

    def _compare(self, rollup: Rollup) -> None:
        found: list[Difference] = []
        pending: dict[Identity, Any] = {}
        for groups in (*self._stored(rollup), *self._missing(rollup)):
            looked = self._steadily(partial(self._look, rollup, groups))
            found += looked.differing
            pending |= looked.pending
        found += self._settled(rollup, pending)
        left = found
        if found and self._repair is not None:
            keys = [each.key for each in found]
            self._repair([rollup_job(rollup.name, _REASON, some) for some in chunks(keys, JOB_KEYS)])
            again = {identity(key): key for key in keys}
            left = self._settled(rollup, again)
        self._result.found += found
        self._result.left += left

    # --- what is looked at ----------------------------------------------------------------------------------

    def _stored(self, rollup: Rollup) -> Iterator[Groups]:
        """Give the stored groups, or some of them drawn at random, a slice at a time."""
        for documents in self._slices(rollup.name, {"_id": 1}, SLICE_GROUPS):
            self._result.groups += len(documents)
            yield {identity(each["_id"]): each["_id"] for each in documents}

    def _missing(self, rollup: Rollup) -> Iterator[Groups]:
        """Give the groups of records that are not stored."""
        fields = dict.fromkeys(("_id", *rollup.paths), 1)
        for documents in self._slices(rollup.over.name, fields, SLICE_RECORDS):
            groups = {identity(key): key for each in documents if (key := group_of(rollup, each)) is not None}
            for some in chunks(list(groups), SLICE_GROUPS):
                wanted = [groups[each] for each in some]
                there = self._derived[rollup.name].find({"_id": {"$in": wanted}}, {"_id": 1})
                stored = {identity(each["_id"]) for each in there}
                if missing := {each: groups[each] for each in some if each not in stored}:
                    yield missing

    def _slices(self, collection: str, fields: Mapping[str, int], limit: int) -> Iterator[list[Document]]:
        if self._sample:
            stages: list[Document] = [{"$sample": {"size": self._sample}}, {"$project": dict(fields)}]
            yield from chunks(list(self._derived[collection].aggregate(stages)), limit)
            return
        after: tuple[Any, ...] = ()
        while documents := self._steadily(partial(self._next, collection, fields, after, limit)):
            yield documents
            after = (documents[-1]["_id"],)

    def _next(
        self, collection: str, fields: Mapping[str, int], after: tuple[Any, ...], limit: int
    ) -> list[Document]:
        with self._sides.moment() as moment:
            return moment.next_records(collection, after, limit, fields)

    # --- looking --------------------------------------------------------------------------------------------

    def _look(self, rollup: Rollup, groups: Groups) -> _Looked:
        """Hold groups as they are stored against what they come to, both at one moment."""
        with self._sides.moment() as moment:
            if not self._is_settled(rollup.name, moment):
                return _Looked([], dict(groups))
            known = self._pending.known([Group(rollup.name, key) for key in groups.values()], moment.session)
            left = {identity(each.group.key) for each in known}
            failing = {identity(each.group.key) for each in known if each.error}
            self._unsettled |= {(rollup.name, each) for each in failing}
            there = {each: key for each, key in groups.items() if each not in left}
            pending = {each: groups[each] for each in left - failing}
            return _Looked(list(self._differing(rollup, there, moment.session)), pending)

    def _differing(self, rollup: Rollup, groups: Groups, session: ClientSession) -> Iterator[Difference]:
        keys = list(groups.values())
        found = self._derived[rollup.name].find({"_id": {"$in": keys}}, session=session)
        stored = {identity(each["_id"]): each for each in found}
        computed = self._server.compute_apart(
            rollup, keys, session
        ).groups  # for the others nothing can be stored
        for group, key in groups.items():
            before, now = stored.get(group), computed.get(group)
            if before is None or now is None:
                if before is not now:
                    kind = Kind.MISSING if before is None else Kind.ORPHANED
                    yield Difference(kind, rollup.name, key, rollup.name, key)
            elif fields := differing(before, now.document):
                yield Difference(Kind.STALE, rollup.name, key, rollup.name, key, fields)

    def _settled(self, rollup: Rollup, pending: Groups) -> list[Difference]:
        """Look at groups again until they are not pending, as long as somebody may compute them."""
        found: list[Difference] = []
        until = self._watch.clock() + self._watch.patience
        while pending:
            left: dict[Identity, Any] = {}
            for some in chunks(list(pending), SLICE_GROUPS):
                looked = self._steadily(partial(self._look, rollup, {each: pending[each] for each in some}))
                found += looked.differing
                left |= looked.pending
            pending = left
            if pending and (not self._watch.alive() or self._watch.clock() > until):
                break
            if pending:
                self._watch.sleep(LOOK_SECONDS)
        self._unsettled |= {(rollup.name, each) for each in pending}
        return found

    # --- the worker's word ----------------------------------------------------------------------------------

    def _built(self) -> set[str]:
        with self._sides.moment() as moment:
            return {name for name in self._rollups if self._is_settled(name, moment)}

    def _is_settled(self, name: str, moment: Moment) -> bool:
        """Whether a rollup was built as it is defined now, and is not being built anew."""
        checkpoint, rollup = moment.checkpoint, self._rollups[name]
        if checkpoint.rollups.get(name) != rollup.fingerprint:
            return False
        if checkpoint.rebuilding is not None and checkpoint.rebuilding.swapping:
            return rollup.over.name not in checkpoint.rebuilding.shadows
        building = {
            "worker": self._sides.worker,
            "kind": JobKind.ROLLUP.value,
            "source": name,
            "keys": [],
            "done": False,
        }
        return self._sides.state[JOBS].find_one(building, {"_id": 1}, session=moment.session) is None


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """Name the fields in which a stored group differs from what it comes to."""
    names: Iterable[str] = dict.fromkeys((*now, *before))
    return tuple(
        name
        for name in names
        if name != ENGINE_FIELD
        and (name not in before or name not in now or not agree(before[name], now[name]))
    )
