"""Committing: what a batch yields, its dead letters and jobs, the checkpoint and last the fence, together."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from bson import Timestamp
from pymongo.client_session import ClientSession

from distributary.change import CollectionChange, Position, identity
from distributary.derive.plan import Contest, Desired
from distributary.derive.transform import Transform
from distributary.engine.derivation import Prepared
from distributary.engine.horizon import Horizon
from distributary.ports import CheckpointStore, JobStore, LetterStore, Outcome, Sink
from distributary.state import Built, Checkpoint, Job, JobKind, Letter, LetterKey, LetterKind, Parked


@dataclass(frozen=True, slots=True)
class Stores:
    """What survives a restart, and the sink; all in one deployment, so that one transaction spans them."""

    sink: Sink
    checkpoints: CheckpointStore
    letters: LetterStore
    jobs: JobStore


@dataclass(frozen=True, slots=True)
class Work:
    """What one transaction commits."""

    desired: Sequence[Desired]
    letters: Sequence[Letter]
    checkpoint: Checkpoint
    asked: Sequence[Job] = ()
    progress: Job | None = None
    foreign: Sequence[tuple[str, object]] = ()


class Committer:
    """The one writer of a worker's name: commits under a fence, and knows the last committed checkpoint."""

    def __init__(
        self, stores: Stores, transforms: Mapping[str, Transform], checkpoint: Checkpoint, fence: int
    ) -> None:
        self._stores = stores
        self._transforms = transforms
        self._fence = fence
        self._parked: set[Parked] = stores.letters.parked()
        self.checkpoint = checkpoint
        self.horizon = Horizon(checkpoint.ahead)

    @property
    def parked(self) -> int:
        """The number of documents that are parked."""
        return len(self._parked)

    def begin(self, asked: Sequence[Job]) -> None:
        """Commit the checkpoint that the worker starts from, with the jobs that it asks for."""
        self._commit(Work([], [], self.checkpoint, asked))

    def batch(self, prepared: Prepared, *, purge: bool) -> Outcome:
        """Commit a batch of the stream and move the position behind it."""
        checkpoint = self.checkpoint.moved(prepared.batch.position).seen(prepared.shown)
        checkpoint, returned = _attached(checkpoint, prepared.sources)
        checkpoint, changed = self._with_collections(checkpoint, prepared.batch.collections, purge=purge)
        return self._commit(Work(prepared.desired, prepared.letters, checkpoint, [*returned, *changed]))

    def job(
        self,
        job: Job,
        shown: Timestamp,
        desired: Sequence[Desired],
        letters: Sequence[Letter] = (),
    ) -> Outcome:
        """Commit a slice of a job with its progress; the position stays."""
        checkpoint = self.checkpoint.seen(shown)
        if job.done and job.kind is JobKind.BACKFILL:
            checkpoint = self._built(checkpoint, job)
        foreign = job.foreign if job.done else ()
        self._note(desired, shown)
        return self._commit(Work(desired, letters, checkpoint, progress=job, foreign=foreign))

    def retried(self, shown: Timestamp, desired: Sequence[Desired], letters: Sequence[Letter]) -> Outcome:
        """Commit parked documents that were derived again."""
        self._note(desired, shown)
        return self._commit(Work(desired, letters, self.checkpoint.seen(shown)))

    def _note(self, desired: Iterable[Desired], shown: Timestamp) -> None:
        places = {(self._transforms[item.transform].source, item.owner.identity) for item in desired}
        self.horizon.note(places, shown, self.checkpoint.position.time)

    def position(self, position: Position) -> None:
        """Save a position behind which nothing of ours happened."""
        checkpoint = self.checkpoint.moved(position)
        self._stores.checkpoints.save(checkpoint, self._fence)
        self.checkpoint = checkpoint

    # --- the transaction ------------------------------------------------------------------------------------

    def _commit(self, work: Work) -> Outcome:
        """Commit; what is remembered here changes only after that."""
        parked: list[Letter] = []
        resolved: list[LetterKey] = []

        def finish(session: ClientSession, outcome: Outcome) -> None:
            parked[:] = [*map(self._placed, work.letters), *self._contested(outcome), *self._refused(outcome)]
            lost = {(letter.transform, identity(letter.key)) for letter in parked}
            resolved[:] = self._resolved(work.desired, lost)
            self._stores.letters.resolve(resolved, session)
            self._stores.letters.put(parked, session)
            if self._parked and outcome.released:
                self._stores.letters.release(outcome.released, session)
            self._stores.jobs.ask(work.asked, session)
            if work.progress is not None:
                self._stores.jobs.save(work.progress, session)
            self._stores.checkpoints.save(work.checkpoint, self._fence, session)

        collections = {name: built.collections for name, built in work.checkpoint.transforms.items()}
        outcome = self._stores.sink.write(work.desired, collections, finish, work.foreign)
        self._parked -= {Parked(key.transform, identity(key.key)) for key in resolved}
        self._parked |= {Parked(letter.transform, identity(letter.key)) for letter in parked}
        self.checkpoint = work.checkpoint
        return outcome

    def _resolved(self, desired: Iterable[Desired], lost: set[tuple[str, object]]) -> list[LetterKey]:
        if not self._parked:
            return []
        owners = ((item, Parked(*item.owner)) for item in desired)
        return [
            LetterKey(item.transform, item.key)
            for item, owner in owners
            if owner in self._parked and owner not in lost
        ]

    def _placed(self, letter: Letter) -> Letter:
        """Give a letter of a scanned document the position that the worker was at."""
        return letter if letter.position.token else replace(letter, position=self.checkpoint.position)

    def _contested(self, outcome: Outcome) -> Iterator[Letter]:
        for contest in outcome.contests:
            reason = f"yields {_name(contest)}, which source document {contest.holder.identity!r:.80} owns"
            waits = (contest.place[0], contest.key)
            letter = self._letter(
                contest.desired, LetterKind.CONTESTED, f"{reason} ({contest.holder.transform})"
            )
            yield replace(letter, waits_for=waits, due=contest.free)

    def _refused(self, outcome: Outcome) -> Iterator[Letter]:
        for desired, reason in outcome.refused:
            yield self._letter(desired, LetterKind.REFUSED, reason)

    def _letter(self, desired: Desired, kind: LetterKind, reason: str) -> Letter:
        transform = self._transforms[desired.transform]
        position = Position(self.checkpoint.position.token, desired.version.time)
        return Letter(
            transform.name, desired.key, transform.source, kind, reason, "", position, transform.fingerprint
        )

    # --- whole collections ----------------------------------------------------------------------------------

    def _with_collections(
        self, checkpoint: Checkpoint, changes: Sequence[CollectionChange], *, purge: bool
    ) -> tuple[Checkpoint, list[Job]]:
        """Detach, purge or derive anew the source collections that were dropped, renamed or replaced."""
        jobs = []
        for change in changes:
            detached = dict(checkpoint.detached)
            detached.pop(change.collection, None)
            if change.gone and not purge:
                detached[change.collection] = change.time
            else:
                kind = JobKind.SWEEP if change.gone else JobKind.BACKFILL
                reason = "dropped" if change.gone else "replaced by a rename"
                jobs.append(job_for(checkpoint, change.collection, kind, reason))
            checkpoint = replace(checkpoint, detached=detached)
        return checkpoint, jobs

    def _built(self, checkpoint: Checkpoint, job: Job) -> Checkpoint:
        """Note that every existing document of a source went through these transforms."""
        for name in job.transforms:
            if name in self._transforms and name in checkpoint.transforms:
                entry = checkpoint.transforms[name]
                fingerprint = self._transforms[name].fingerprint
                checkpoint = checkpoint.with_built(name, replace(entry, fingerprint=fingerprint, built=True))
        return checkpoint


def _attached(checkpoint: Checkpoint, sources: Iterable[str]) -> tuple[Checkpoint, list[Job]]:
    """Take back detached collections in which something happens again: they are derived anew, with a sweep."""
    back = [name for name in sources if name in checkpoint.detached]
    detached = {name: time for name, time in checkpoint.detached.items() if name not in back}
    jobs = [job_for(checkpoint, name, JobKind.BACKFILL, "created again") for name in back]
    return replace(checkpoint, detached=detached) if back else checkpoint, jobs


def job_for(checkpoint: Checkpoint, source: str, kind: JobKind, reason: str) -> Job:
    """Give the job that derives or sweeps one source collection for all of its transforms."""
    names = tuple(sorted(name for name, built in checkpoint.transforms.items() if built.source == source))
    return Job(None, kind, source, names, reason, sweep=True)


def _name(contest: Contest) -> str:
    return f"{contest.place[0]}[{contest.key!r:.80}]"


def entry(transform: Transform, before: Built | None, *, built: bool) -> Built:
    """Give a transform's entry in the checkpoint: the collections it names now and those it ever wrote."""
    ever: frozenset[str] = before.collections if before else frozenset()
    fingerprint = before.fingerprint if before else transform.fingerprint
    return Built(transform.source, fingerprint, ever | transform.collections, built)
