"""What becomes of transforms and their source collections in the checkpoint: built, detached, derived anew."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from distributary.change import CollectionChange
from distributary.derive.transform import Transform
from distributary.state import Built, Checkpoint, Job, JobKind


def entry(transform: Transform, before: Built | None, *, built: bool) -> Built:
    """Give a transform's entry in the checkpoint: the collections it names now and those it ever wrote."""
    ever: frozenset[str] = before.collections if before else frozenset()
    fingerprint = before.fingerprint if before else transform.fingerprint
    collections = ever | transform.collections
    if before is None:
        return Built(transform.source, fingerprint, collections, built)
    return replace(before, source=transform.source, collections=collections, built=built, unplugged=False)


def built_by(checkpoint: Checkpoint, job: Job) -> Checkpoint:
    """Note that every existing document of a source went through these transforms, and that it is there."""
    for name, fingerprint in job.code.items():
        entry = checkpoint.transforms[name]
        checkpoint = checkpoint.with_built(
            name, replace(entry, fingerprint=fingerprint, built=not entry.unplugged)
        )
    if not job.documents:
        return checkpoint
    return replace(checkpoint, detached={k: v for k, v in checkpoint.detached.items() if k != job.source})


def with_shared(
    checkpoint: Checkpoint, new: Mapping[str, frozenset[str]], transforms: Mapping[str, Transform]
) -> Checkpoint:
    """Note shared records to which transforms contribute, too."""
    for name, shared in new.items():
        built, code = checkpoint.transforms[name], transforms[name].fingerprint
        noted = replace(built, shared=built.shared | shared, shared_by=code)
        checkpoint = checkpoint.with_built(name, noted)
    return checkpoint


def attached(checkpoint: Checkpoint, sources: Iterable[str]) -> tuple[Checkpoint, list[Job]]:
    """Take back detached collections in which something happens again: they are derived anew, with a sweep."""
    back = [name for name in sources if name in checkpoint.detached]
    detached = {name: time for name, time in checkpoint.detached.items() if name not in back}
    jobs = [job_for(checkpoint, name, "created again") for name in back]
    return replace(checkpoint, detached=detached) if back else checkpoint, jobs


def changed(
    checkpoint: Checkpoint, changes: Sequence[CollectionChange], *, purge: bool
) -> tuple[Checkpoint, list[Job]]:
    """Detach, purge or derive anew the source collections that were dropped, renamed or replaced."""
    jobs = []
    for change in changes:
        detached = dict(checkpoint.detached)
        detached.pop(change.collection, None)
        if change.gone and not purge:
            detached[change.collection] = change.time
        else:
            reason = "dropped" if change.gone else "replaced by a rename"
            jobs.append(job_for(checkpoint, change.collection, reason))
        checkpoint = replace(checkpoint, detached=detached)
    return checkpoint, jobs


def job_for(checkpoint: Checkpoint, source: str, reason: str) -> Job:
    """Give the job that derives one source collection anew for all of its transforms."""
    names = tuple(sorted(name for name, built in checkpoint.transforms.items() if built.source == source))
    return Job(None, JobKind.BACKFILL, source, names, reason, sweep=True)
