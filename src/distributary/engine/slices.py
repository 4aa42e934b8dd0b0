"""Jobs, one slice at a time: each slice reads, derives and commits before the stream's next batch does."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bson import Timestamp

from distributary.change import identity
from distributary.derive.batch import is_storable
from distributary.derive.plan import Desired
from distributary.engine.commit import Committer, Stores
from distributary.engine.derivation import Derivation, key_of, letters
from distributary.ports import Snapshot
from distributary.state import BEGINNING, Job, JobKind, Letter, LetterKey

#: The stage of a job in which the source is walked.
SCAN = "scan"


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
    purge: bool

    def taken(self, job: Job) -> Job:
        """Give a job as it is to be gone on with: begun anew when the code that it derives with has changed."""
        code = {
            each.name: each.fingerprint
            for each in self.derivation.transforms.get(job.source, ())
            if each.name in job.transforms
        }
        if job.kind is JobKind.DERIVE or code == job.code:
            return job
        total = self.derivation.documents.count(job.source)
        return replace(job, code=code, stage="", after=(), documents=0, total=total)

    def run(self, job: Job) -> Job:
        """Do the next slice of a job and give the job as it is then."""
        if job.kind is JobKind.DERIVE:
            return self._derive(job)
        stages = self._stages(job)
        if job.stage not in stages:
            job = replace(job, stage=stages[0], after=())
        return self._scan(job) if job.stage == SCAN else self._sweep(job)

    def retry(self, keys: Sequence[LetterKey]) -> int:
        """Derive parked documents again from their current state, all in one; gives how many are parked no more."""
        entries = self.committer.checkpoint.transforms
        desired: list[Desired] = []
        parked: list[Letter] = []
        shown = BEGINNING
        for name in sorted({key.transform for key in keys}):
            source = entries[name].source
            wanted = [key.key for key in keys if key.transform == name]
            snapshot = self.derivation.documents.fetch(source, wanted)
            derived = self.derivation.of_snapshot(
                source, snapshot, [name], self._missing(source, snapshot, wanted)
            )
            desired += derived.desired
            parked += letters(derived.failed)
            shown = max(shown, snapshot.time)
        return self.committer.retried(shown, desired, parked)

    def _missing(self, source: str, snapshot: Snapshot, keys: Sequence[Any]) -> Sequence[Any]:
        """Give the keys whose records go when their documents are missing: none, when the collection is kept."""
        return () if len(snapshot.documents) < len(keys) and self._is_kept(source) else keys

    def _is_kept(self, source: str) -> bool:
        return not self.purge and not self.derivation.documents.exists(source)

    def _scan(self, job: Job, skip: int = 0) -> Job:
        """Derive the next documents; `skip` have keys that cannot be encoded, so that no slice starts there."""
        snapshot = self.derivation.documents.scan(job.source, job.after, self.documents, skip)
        if not snapshot.documents:
            return self._advance(job, snapshot.time)
        behind = _behind(snapshot.documents)
        derived = self.derivation.of_snapshot(job.source, snapshot, job.transforms)
        after = replace(job, after=behind or job.after, documents=job.documents + len(snapshot.documents))
        self.committer.job(after, snapshot.time, derived.desired, letters(derived.failed))
        return after if behind else self._scan(after, skip + len(snapshot.documents))

    def _derive(self, job: Job) -> Job:
        """Read keys again; foreign records are removed in the transaction that writes what takes their place.

        A collection that was dropped is left to the stream, which detaches or purges it.
        """
        size = len(job.keys) if job.foreign else self.documents
        some, rest = job.keys[:size], job.keys[size:]
        snapshot = self.derivation.documents.fetch(job.source, some)
        keys = self._missing(job.source, snapshot, some)
        derived = self.derivation.of_snapshot(job.source, snapshot, job.transforms, keys)
        after = replace(job, keys=rest, documents=job.documents + len(some), done=not rest)
        self.committer.job(after, snapshot.time, derived.desired, letters(derived.failed))
        return after

    def _sweep(self, job: Job) -> Job:
        """Remove the records of one slice of source keys whose documents are gone.

        The sweep comes before the scan: what it finds alive is scanned later, with all that is stored for it.
        """
        transform, _, collection = job.stage.partition("/")
        keys = self._distinct(collection, transform, job.after)
        if not keys:
            return self._advance(job, self.committer.checkpoint.ahead)
        there = self.derivation.documents.existing(job.source, keys)
        alive = {identity(each["_id"]) for each in there.documents}
        gone = [key for key in keys if identity(key) not in alive]
        if gone and self._is_kept(job.source):
            return self._finish(job)
        after = replace(job, after=(keys[-1],))
        self.committer.job(after, there.time, self.derivation.gone(job.source, gone, there.time, transform))
        return after

    def _distinct(self, collection: str, transform: str, after: tuple[Any, ...]) -> list[Any]:
        found = self.stores.sink.swept(collection, transform, after, self.documents)
        return list({identity(key): key for key in found}.values())

    def _stages(self, job: Job) -> list[str]:
        entries = self.committer.checkpoint.transforms
        names = [name for name in job.transforms if name in entries] if job.sweep else []
        return [*(f"{name}/{each}" for name in names for each in sorted(entries[name].collections)), SCAN]

    def _advance(self, job: Job, shown: Timestamp) -> Job:
        """Go on to the next stage, or finish."""
        stages = self._stages(job)
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


def _behind(documents: Sequence[dict[str, Any]]) -> tuple[Any, ...]:
    """Give the last key that a slice can start behind, out of reach of transforms; nothing without one."""
    keys = (key_of(each) for each in reversed(documents) if is_storable(each["_id"]))
    return next(((key,) for key in keys), ())
