"""Where a worker starts: from its checkpoint, or without one as the configuration says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from distributary.change import Position
from distributary.derive.groups import groups
from distributary.derive.transform import Transform
from distributary.engine.rebuild import CHANGED
from distributary.engine.rollups import rollup_job
from distributary.engine.sources import entry
from distributary.errors import Failed
from distributary.ports.source import Start
from distributary.state import BEGINNING, Built, Checkpoint, Job, JobKind, SourceIdentity

#: The fingerprint of a rollup that was built by another definition: its groups are of the one or of the other.
MIXED = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is plugged in, and what the configuration says about starting.

    `start` is where the stream opens without a checkpoint; `backfill` whether existing documents are derived
    then; `rebuild` whether those of a transform whose code changed are. `rollups` are their fingerprints by name.
    """

    worker: str
    transforms: Mapping[str, Transform]
    source: SourceIdentity
    start: Start
    backfill: bool
    rebuild: bool
    rollups: Mapping[str, str] = field(default_factory=dict)

    @property
    def watched(self) -> tuple[str, ...]:
        """The source collections that the stream names."""
        return tuple(sorted({each.source for each in self.transforms.values()}))


class Beginning(NamedTuple):
    """A checkpoint to commit first, where the stream opens, the jobs to ask for, and changed transforms.

    `freed` says that a transform was left out since, so that its records hold no key any more.
    """

    checkpoint: Checkpoint
    start: Start
    jobs: list[Job]
    changed: list[str]
    freed: bool = False


def first(wanted: Wanted, position: Position) -> Beginning:
    """Begin without a checkpoint, at a position of a stream that is open."""
    transforms = {name: entry(each, None, built=False) for name, each in wanted.transforms.items()}
    checkpoint = Checkpoint(wanted.worker, position, BEGINNING, wanted.source, 1, wanted.watched, transforms)
    jobs = backfills(transforms, transforms, "first start") if wanted.backfill else []
    jobs += rollup_jobs(wanted.rollups, {}, ())
    return Beginning(checkpoint, Start(token=position.token), jobs, [])


def resumed(wanted: Wanted, before: Checkpoint, known_jobs: Sequence[Job] = ()) -> Beginning:
    """Begin at a checkpoint; what was plugged in since gets its backfill, what changed is named.

    `known_jobs` are those that are open, and rebuilds that were cancelled: the same is not asked for again.
    """
    _refuse_other_source(wanted, before)
    known, plugged = before.transforms, wanted.transforms
    new = {
        name: entry(each, known.get(name), built=False)
        for name, each in plugged.items()
        if _is_new(each, known)
    }
    kept = {name: _kept(built, plugged.get(name)) for name, built in known.items() if name not in new}
    changed = [
        name
        for name, built in kept.items()
        if name in plugged and built.fingerprint != plugged[name].fingerprint
    ]
    rollups = {
        name: built if built == wanted.rollups[name] else MIXED
        for name, built in before.rollups.items()
        if name in wanted.rollups
    }
    jobs = backfills(new, new, "new transform") + rollup_jobs(wanted.rollups, rollups, known_jobs)
    if wanted.rebuild:
        jobs += _rebuilds(wanted, [name for name in changed if kept[name].built], known_jobs)
    freed = any(built.unplugged and not known[name].unplugged for name, built in kept.items())
    checkpoint = replace(before, transforms=kept | new, watched=wanted.watched, rollups=rollups)
    time = before.position.time
    if before.watched == wanted.watched:
        return Beginning(checkpoint, Start(token=before.position.token), jobs, changed, freed)
    return Beginning(checkpoint.seen(time), Start(time=time), jobs, changed, freed)


def rollup_jobs(plugged: Mapping[str, str], built: Mapping[str, str], known_jobs: Sequence[Job]) -> list[Job]:
    """Give the jobs that build rollups which are new or defined in another way, unless they are asked for already."""
    asked = {job.source for job in known_jobs if job.kind is JobKind.ROLLUP and not job.done and not job.keys}
    return [
        rollup_job(name, "changed definition" if name in built else "new rollup")
        for name, fingerprint in sorted(plugged.items())
        if built.get(name) != fingerprint and name not in asked
    ]


def _rebuilds(wanted: Wanted, changed: Sequence[str], known_jobs: Sequence[Job]) -> list[Job]:
    """Give the jobs that build anew what changed code fills, unless they are asked for or were cancelled."""
    code = {name: each.fingerprint for name, each in wanted.transforms.items()}
    asked = {
        name
        for job in known_jobs
        for name in job.transforms
        if job.kind is JobKind.REBUILD and (not job.done or job.code.get(name) == code.get(name))
    }
    collections = {name: sorted(each.collections) for name, each in wanted.transforms.items()}
    return [
        Job(
            None,
            JobKind.REBUILD,
            wanted.transforms[group[0]].source,
            group,
            CHANGED,
            code={name: code[name] for name in group},
            publish=True,
        )
        for group in groups(collections, [name for name in changed if name not in asked])
    ]


def _refuse_other_source(wanted: Wanted, before: Checkpoint) -> None:
    if before.source.differs(wanted.source):
        raise Failed(
            f"The checkpoint of worker {wanted.worker!r} belongs to another source "
            f"({before.source.set_name}/{before.source.database}, now {wanted.source.set_name}/"
            f"{wanted.source.database}): its position means nothing here.",
            "Point `source` at the old deployment again, or use an empty state database and an empty derived one.",
        )


def _kept(built: Built, transform: Transform | None) -> Built:
    if transform is None:
        return replace(built, built=False, unplugged=True)
    return entry(transform, built, built=built.built)


def _is_new(transform: Transform, known: Mapping[str, Built]) -> bool:
    """Whether existing documents have to go through a transform: it is new, was away, or reads another source."""
    before = known.get(transform.name)
    return before is None or before.unplugged or before.source != transform.source


def lost(wanted: Wanted, before: Checkpoint, position: Position, known_jobs: Sequence[Job] = ()) -> Beginning:
    """Begin anew after the position was lost: a new epoch, and every collection is derived again with a sweep.

    The jobs name the range of time in which changes may have been missed.
    """
    resumption = resumed(wanted, before).checkpoint
    transforms = {name: replace(built, built=False) for name, built in resumption.transforms.items()}
    checkpoint = replace(
        resumption,
        position=position,
        ahead=BEGINNING,
        epoch=before.epoch + 1,
        transforms=transforms,
        rebuilding=None,
    )
    plugged = [name for name in transforms if name in wanted.transforms]
    since, until = sorted((before.position.time, position.time))
    jobs = [replace(job, gap=(since, until)) for job in backfills(transforms, plugged, "position lost")]
    built = rollup_jobs(wanted.rollups, checkpoint.rollups, known_jobs)
    return Beginning(checkpoint, Start(token=position.token), built + jobs, [])


def backfills(
    transforms: Mapping[str, Built], names: Sequence[str] | Mapping[str, Built], reason: str
) -> list[Job]:
    """Give one backfill job for each source collection of these transforms."""
    by_source: dict[str, list[str]] = {}
    for name in names:
        by_source.setdefault(transforms[name].source, []).append(name)
    return [
        Job(None, JobKind.BACKFILL, source, tuple(sorted(each)), reason, sweep=True)
        for source, each in sorted(by_source.items())
    ]
