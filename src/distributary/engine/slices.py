"""Jobs, one slice at a time: each slice reads, derives and commits before the stream's next batch does."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bson import Timestamp

from distributary.change import identity
from distributary.engine.commit import Committer, Stores
from distributary.engine.derivation import Derivation, key_of, letters
from distributary.state import Job, JobKind, LetterKey


@dataclass(frozen=True, slots=True)
class Slices:
    """Carries out jobs for the holder of the lease.

    A slice is read after everything that was committed and is committed before anything else is, so that
    what it shows is never older than what was shown, and nothing that was deleted comes back.
    """

    derivation: Derivation
    committer: Committer
    stores: Stores
    documents: int

    def run(self, job: Job) -> Job:
        """Do the next slice of a job and give the job as it is then."""
        if job.kind is JobKind.DERIVE:
            return self._derive(job)
        if job.kind is JobKind.BACKFILL and not job.stage:
            return self._scan(job)
        return self._sweep(job)

    def retry(self, keys: Sequence[LetterKey]) -> None:
        """Derive parked documents again from their current state."""
        for name in sorted({key.transform for key in keys}):
            source = self.committer.checkpoint.transforms[name].source
            wanted = [key.key for key in keys if key.transform == name]
            snapshot = self.derivation.documents.fetch(source, wanted)
            derived = self.derivation.of_snapshot(source, snapshot, [name], wanted)
            self.committer.retried(snapshot.time, derived.desired, letters(derived.failed))

    def _scan(self, job: Job) -> Job:
        snapshot = self.derivation.documents.scan(job.source, job.after, self.documents)
        if not snapshot.documents:
            return self._advance(job, snapshot.time)
        last = key_of(snapshot.documents[-1])
        derived = self.derivation.of_snapshot(job.source, snapshot, job.transforms)
        after = replace(job, after=(last,), documents=job.documents + len(snapshot.documents))
        self.committer.job(after, snapshot.time, derived.desired, letters(derived.failed))
        return after

    def _derive(self, job: Job) -> Job:
        """Read keys again; foreign records are removed in the transaction that writes what takes their place.

        A collection that was dropped is left to the stream, which detaches or purges it.
        """
        size = len(job.keys) if job.foreign else self.documents
        some, rest = job.keys[:size], job.keys[size:]
        snapshot = self.derivation.documents.fetch(job.source, some)
        dropped = len(snapshot.documents) < len(some) and not self.derivation.documents.exists(job.source)
        keys = () if dropped else some
        derived = self.derivation.of_snapshot(job.source, snapshot, job.transforms, keys)
        after = replace(job, keys=rest, documents=job.documents + len(some), done=not rest)
        self.committer.job(after, snapshot.time, derived.desired, letters(derived.failed))
        return after

    def _sweep(self, job: Job) -> Job:
        """Remove the records of one slice of source keys whose documents are gone."""
        stage = job.stage or self._stages(job)[0] if self._stages(job) else ""
        if not stage:
            return self._finish(job)
        transform, _, collection = stage.partition("/")
        keys = self._distinct(collection, transform, job.after)
        if not keys:
            return self._advance(replace(job, stage=stage), self.committer.checkpoint.ahead)
        there = self.derivation.documents.existing(job.source, keys)
        alive = {identity(each["_id"]) for each in there.documents}
        gone = [key for key in keys if identity(key) not in alive]
        after = replace(job, stage=stage, after=(keys[-1],))
        self.committer.job(after, there.time, self.derivation.gone(job.source, gone, there.time, transform))
        return after

    def _distinct(self, collection: str, transform: str, after: tuple[Any, ...]) -> list[Any]:
        found = self.stores.sink.swept(collection, transform, after, self.documents)
        return list({identity(key): key for key in found}.values())

    def _stages(self, job: Job) -> list[str]:
        if not job.sweep:
            return []
        entries = self.committer.checkpoint.transforms
        return [
            f"{name}/{each}"
            for name in job.transforms
            if name in entries
            for each in sorted(entries[name].collections)
        ]

    def _advance(self, job: Job, shown: Timestamp) -> Job:
        """Go on to the next stage, or finish."""
        stages = ["", *self._stages(job)]
        following = stages[stages.index(job.stage) + 1 :]
        if not following:
            return self._finish(job)
        after = replace(job, stage=following[0], after=())
        self.committer.job(after, shown, [])
        return after

    def _finish(self, job: Job) -> Job:
        after = replace(job, done=True)
        self.committer.job(after, self.committer.checkpoint.ahead, [])
        return after
