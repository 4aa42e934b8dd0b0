"""Committing: what a batch yields, its dead letters and jobs, the checkpoint and last the fence, together."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from bson import Timestamp
from pymongo.client_session import ClientSession
from pymongo.errors import OperationFailure

from distributary.change import Position
from distributary.chunks import chunks
from distributary.derive.batch import is_storable
from distributary.derive.plan import Desired
from distributary.derive.transform import Transform
from distributary.derive.trigger import Event
from distributary.engine.ahead import Overtaken
from distributary.engine.breaker import Breaker
from distributary.engine.derivation import Prepared
from distributary.engine.horizon import Horizon
from distributary.engine.observer import SILENT, Observer, Part
from distributary.engine.parked import Parked
from distributary.engine.sources import attached, built_by, changed, with_shared
from distributary.engine.work import Finished, Stores, Unwanted, Work, fitting
from distributary.ports.events import Commit, Held, Put
from distributary.ports.records import Behind, RecordState, Shown, TooMuch
from distributary.ports.rollups import Drained, Group, Marked, RollupRefused
from distributary.ports.sink import ManyRefused, Outcome
from distributary.state import (
    Checkpoint,
    Job,
    JobKind,
    Letter,
    LetterKey,
    LetterKind,
)

T = TypeVar("T")

#: The end of a transaction: what is committed, and what was done for it.
_Finish = Callable[[Work, ClientSession, Outcome], None]

#: Parked documents whose records are carried into shadows at once.
CARRIED = 200

#: Shared records that are put together in one transaction.
ASSEMBLED = 1000

#: BSONObjectTooLarge, TransactionTooLarge, TransactionExceededLifetimeLimitSeconds, TransactionTooLargeForCache
#: (its number differs by version).
TOO_LARGE = frozenset({10334, 257, 290, 313, 388})


class Committer:
    """The one writer of a worker's name: commits under a fence, and knows the last committed checkpoint."""

    def __init__(
        self,
        stores: Stores,
        transforms: Mapping[str, Transform],
        checkpoint: Checkpoint,
        fence: int,
        breaker: Breaker,
        told: Callable[[Held], None] = lambda _: None,
        observer: Observer = SILENT,
    ) -> None:
        self._stores = stores
        self.observer = observer
        self._told = told
        self._transforms = transforms
        self._fence = fence
        self._breaker = breaker
        self._parked = Parked(stores.letters, transforms)
        self.checkpoint = checkpoint
        self.horizon = Horizon(checkpoint.ahead)
        self.overtaken = Overtaken()
        self._unswept: set[str] = set()
        self._suspended: set[str] = set()
        self.marks = 0

    @property
    def stores(self) -> Stores:
        """What survives a restart."""
        return self._stores

    @property
    def fence(self) -> int:
        """The fence under which everything is committed."""
        return self._fence

    def check(self, changes: int, letters: Sequence[Letter]) -> None:
        """Count changes and those of them that failed; raises `TooManyDeadLetters`."""
        self._breaker.check(changes, letters)

    @property
    def parked(self) -> int:
        """The number of documents that are parked."""
        return len(self._parked)

    def parked_keys(self, transform: str) -> list[Any]:
        """Give the source keys that are parked for a transform."""
        return [each.key.key for each in self._parked.of(transform)]

    def begin(self, asked: Sequence[Job], *, freed: bool = False) -> None:
        """Commit the checkpoint that the worker starts from, with the jobs that it asks for.

        `freed` says that keys may be free now that were not: contested documents are tried again.
        """
        due = self._parked.contested if freed else []
        self._stores.sink.share(self.checkpoint.shared)
        for name, transform in self._transforms.items():
            built = self.checkpoint.transforms.get(name)
            if built is not None and built.shared_by == transform.fingerprint:
                transform.shapes.know(built.shared)
        jobs = [*asked, *self._stores.jobs.open()]
        self._suspended = {job.source for job in jobs if self._is_to_build(job)}
        self._stores.sink.suspend(self._suspended)
        if self.checkpoint.revision:
            self._unswept = {job.source for job in jobs if job.sweep}
        self._transact(Work([], [], self.checkpoint, asked, due=due))

    def _is_to_build(self, job: Job) -> bool:
        """Whether a job is about to build a rollup that never was: until it begins, groups need no computing."""
        fresh = job.kind is JobKind.ROLLUP and not (job.keys or job.stage or job.done)
        return fresh and job.source not in self.checkpoint.rollups

    def resume(self, rollup: str) -> None:
        """Keep a rollup along from now on."""
        if rollup in self._suspended:
            self._suspended.remove(rollup)
            self._stores.sink.suspend(self._suspended)

    def batch(self, prepared: Prepared, *, purge: bool) -> Outcome:
        """Commit a batch of the stream and move the position behind it."""
        batch = prepared.batch
        self._breaker.check(len(batch.changes), prepared.letters)
        checkpoint = self.checkpoint.moved(batch.position, torn=batch.torn).seen(prepared.shown)
        checkpoint, returned = attached(checkpoint, prepared.sources)
        checkpoint, asked = changed(checkpoint, batch.collections, purge=purge)
        self._unswept.update(job.source for job in returned)
        desired = self._doubted(prepared.desired)
        outcome = self._commit(Work(desired, prepared.letters, checkpoint, [*returned, *asked]))
        self._unswept.update(job.source for job in asked)
        self.horizon.passed = checkpoint.position.time
        self.overtaken.note(prepared.states, void=bool(batch.collections))
        return outcome

    def job(
        self,
        job: Job,
        shown: Timestamp,
        desired: Sequence[Desired],
        letters: Sequence[Letter] = (),
        detached: Timestamp | None = None,
        *,
        alone: bool = False,
    ) -> Outcome:
        """Commit a slice of a job with its progress; the position stays.

        `detached` is when the job's source collection was found not to be there, with its records kept. `alone` leaves
        the collections as they are that have shadows.
        """
        self._breaker.check(len(desired) + len(letters), letters)
        checkpoint = self.checkpoint.seen(shown)
        if job.done and job.kind is JobKind.BACKFILL and job.only is None:
            checkpoint = built_by(checkpoint, job)
        if detached is not None:
            checkpoint = replace(checkpoint, detached={**checkpoint.detached, job.source: detached})
        self._note(desired, shown)
        work = Work(desired, letters, checkpoint, progress=job, foreign=job.foreign, alone=alone, defer=True)
        if job.kind is JobKind.REPLAY:
            work = replace(work, silent=not job.publish, states=job.publish)
        outcome = self._commit(work)
        if job.done and job.sweep:
            self._unswept = {each.source for each in self._stores.jobs.open() if each.sweep}
        return outcome

    def progress(
        self,
        job: Job,
        checkpoint: Checkpoint,
        asked: Sequence[Job] = (),
        due: Sequence[LetterKey] = (),
        *,
        wanted: bool = False,
    ) -> None:
        """Commit a job's progress and a checkpoint without any record; raises `Unwanted` if that matters."""
        self._commit(Work([], [], checkpoint, asked, progress=job, due=due, wanted=wanted))

    def carry(self, job: Job, transform: str, *, contested: bool) -> None:
        """Let parked documents have in the shadows what they have in the live collections.

        Those that are contested, only where they have nothing there (one may be free in a shadow), or all others.
        """
        keys = [
            each.key
            for each in self._parked.of(transform)
            if (each.kind is LetterKind.CONTESTED) is contested
        ]
        storable = [key for key in keys if is_storable(key.key)]
        for some in chunks(storable, CARRIED):
            self._carry(job, transform, some, missing=contested)

    def _carry(self, job: Job, transform: str, keys: Sequence[LetterKey], *, missing: bool) -> None:
        def still_parked(session: ClientSession) -> list[Any]:
            return [each.key for each in self._stores.letters.still_parked(keys, session)]

        sink, shadows, work = self._stores.sink, self.checkpoint.shadows, self._beside(job)
        try:
            self._finished_by(
                lambda finish: sink.carry(
                    transform, still_parked, shadows, lambda *end: finish(work, *end), missing=missing
                )
            )
        except TooMuch:
            half = len(keys) // 2
            self._carry(job, transform, keys[:half], missing=missing)
            self._carry(job, transform, keys[half:], missing=missing)

    def copy(self, job: Job, name: str, onto: str, limit: int, shared: str | None = None) -> Job:
        """Copy the next records of a collection, and give the job behind them; at the end nothing is behind.

        Of parts that are copied, the records in `shared` are put together anew.
        """
        sink = self._stores.sink

        def after(behind: Behind) -> Job:
            return replace(job, after=behind)

        behind, _ = self._finished_by(
            lambda finish: sink.copy(
                name,
                onto,
                job.after,
                limit,
                lambda session, behind: finish(self._beside(after(behind)), session, Outcome()),
                shared,
            )
        )
        return after(behind)

    def settle(self, drained: Sequence[Drained]) -> Outcome:
        """Commit pending groups of rollups that were computed; what the server does not take stays with its error."""
        if not drained:
            return Outcome()
        sink, version, work = self._stores.sink, self.checkpoint.version, self._beside()
        try:
            outcome, _ = self._finished_by(
                lambda finish: sink.settle(drained, version, lambda *end: finish(work, *end))
            )
        except RollupRefused as error:
            if len(drained) == 1:
                return self.settle([drained[0]._replace(document=None, error=error.reason)])
            half = len(drained) // 2
            return self.settle(drained[:half]) + self.settle(drained[half:])
        self.observer.wrote(outcome, ())
        return outcome

    def aside(self, write: Callable[[ClientSession], None]) -> None:
        """Write something in a transaction of its own, under the fence."""
        self._aside(self._beside(), write)

    def _aside(self, work: Work, write: Callable[[ClientSession], None]) -> None:
        def written(finish: _Finish) -> None:
            def end(session: ClientSession, outcome: Outcome) -> None:
                write(session)
                finish(work, session, outcome)

            self._stores.sink.mark([], end)

        self._finished_by(written)

    def mark(self, job: Job, checkpoint: Checkpoint, groups: Sequence[Group]) -> None:
        """Let groups of rollups be pending, and commit the job and the checkpoint behind that."""
        sink, work = self._stores.sink, Work([], [], checkpoint, progress=job)
        self._finished_by(lambda finish: sink.mark(groups, lambda *end: finish(work, *end)))
        self.marks += len(groups)

    def mark_next(self, job: Job, rollup: str, limit: int, *, stored: bool) -> Job:
        """Let the next groups of a rollup be pending, and give the job behind them; at the end nothing is behind."""
        sink = self._stores.sink

        def after(marked: Marked) -> Job:
            return replace(job, after=marked.behind, documents=job.documents + marked.documents)

        marked, _ = self._finished_by(
            lambda finish: sink.mark_next(
                rollup,
                job.after,
                limit,
                lambda session, marked: finish(self._beside(after(marked)), session, Outcome()),
                stored=stored,
            )
        )
        self.marks += 1
        return after(marked)

    def show(self, job: Job, limit: int, *, ends: bool = True) -> Job:
        """Publish the next records of a collection, or of the job's keys, and give the job behind them.

        It is done then if there are no more, and it `ends` there.
        """
        sink = self._stores.sink

        def after(shown: Shown) -> Job:
            left = replace(job, keys=shown.behind) if job.keys else replace(job, after=shown.behind)
            return replace(left, documents=job.documents + len(shown.states), done=ends and not shown.behind)

        def written(finish: _Finish) -> Shown:
            def end(session: ClientSession, shown: Shown) -> None:
                finish(self._beside(after(shown)), session, Outcome(states=list(shown.states)))

            return sink.show(job.source, job.after, limit, end, job.keys)

        with self.observer.spans.transaction():
            shown, _ = self._finished_by(written)
        return after(shown)

    def send_again(self, job: Job) -> Job:
        """Let the refused events that a job names be sent again, and give the job, which is done."""
        done = replace(job, keys=(), documents=job.documents + len(job.keys), done=True)
        held = Held()

        def readmit(session: ClientSession) -> None:
            nonlocal held
            held = self._stores.outbox.readmit(job.keys, session)

        self._aside(self._beside(done), readmit)
        self._told(held)
        return done

    def retried(self, shown: Timestamp, desired: Sequence[Desired], letters: Sequence[Letter]) -> int:
        """Commit parked documents that were derived again; gives how many are parked no more."""
        before = len(self._parked)
        self._note(desired, shown)
        self._commit(Work(desired, letters, self.checkpoint.seen(shown), retry=True))
        return before - len(self._parked)

    def position(self, position: Position) -> None:
        """Save a position behind which nothing of ours happened."""
        self.save(self.checkpoint.moved(position))
        self.horizon.passed = position.time

    def save(self, checkpoint: Checkpoint) -> None:
        """Commit a checkpoint by itself."""
        self.checkpoint = self._stores.checkpoints.save(checkpoint, self._fence)

    def _doubted(self, desired: Sequence[Desired]) -> Sequence[Desired]:
        """Take no document for new of whose key there may be records of an earlier life, until they are swept."""
        if not self._unswept:
            return desired
        return [
            replace(item, fresh=item.fresh and self._transforms[item.transform].source not in self._unswept)
            for item in desired
        ]

    def _note(self, desired: Iterable[Desired], shown: Timestamp) -> None:
        places = {(self._transforms[item.transform].source, item.owner.identity) for item in desired}
        self.horizon.note(places, shown)

    # --- the transaction ------------------------------------------------------------------------------------

    def _commit(self, work: Work) -> Outcome:
        """Commit, in one transaction where it fits in one; the position moves with the last."""
        work = replace(work, checkpoint=with_shared(work.checkpoint, self._share(), self._transforms))
        if work.alone:
            free = [item for item in work.desired if not self._parked.is_contested(item.owner)]
            work = replace(work, desired=free)
        *former, last = fitting(work.desired)
        outcome = Outcome()
        for some in former:
            outcome += self._divided(work.former(some, self.checkpoint))
        return outcome + self._divided(work.last(last, self.checkpoint))

    def _share(self) -> Mapping[str, frozenset[str]]:
        """Note to which shared records transforms contribute, before they do so for the first time; gives what is new.

        What lies in such a collection then is left over from a state that was dropped: it has no parts. What others
        derive meanwhile is noted the next time.
        """
        new = {name: shared for name in self._transforms if (shared := self._unnoted(name))}
        if not new:
            return new
        known = self.checkpoint.shared
        sharing = frozenset[str]().union(*new.values())
        self._stores.sink.share(sharing)
        for name in sorted(sharing - known):
            self._assemble(name)
        self.save(with_shared(self.checkpoint, new, self._transforms))
        return new

    def _unnoted(self, name: str) -> frozenset[str]:
        """Give to which shared records a transform contributes, if that or the code that does so is not noted yet."""
        built, transform = self.checkpoint.transforms.get(name), self._transforms[name]
        shared = transform.shared
        noted = built is None or (shared <= built.shared and built.shared_by == transform.fingerprint)
        return frozenset() if noted else shared

    def _assemble(self, collection: str) -> None:
        """Put all shared records of a collection together from their parts, some at a time."""
        behind: Behind | None = None
        while behind != ():
            behind = self._assembled(collection, behind or ())
            self.marks += 1

    def _assembled(self, collection: str, after: Behind) -> Behind:
        sink, work = self._stores.sink, self._beside()
        behind, _ = self._finished_by(
            lambda finish: sink.assemble(collection, after, ASSEMBLED, lambda *end: finish(work, *end))
        )
        return behind

    def _divided(self, work: Work) -> Outcome:
        """Commit a transaction; one that is too large, or of which MongoDB refuses much, is halved."""
        try:
            return self._transact(work)
        except (ManyRefused, TooMuch):
            pass
        except OperationFailure as error:
            if error.code not in TOO_LARGE or len(work.desired) <= 1:
                raise
        half = len(work.desired) // 2
        outcome = self._divided(work.former(work.desired[:half], self.checkpoint))
        return outcome + self._divided(work.last(work.desired[half:], self.checkpoint))

    def _transact(self, work: Work) -> Outcome:
        """Commit one transaction."""
        sink, entries = self._stores.sink, work.checkpoint.transforms
        with self.observer.spans.transaction():
            outcome, finished = self._finished_by(
                lambda finish: sink.write(
                    work.desired,
                    {name: built.places for name, built in entries.items()},
                    lambda *end: finish(work, *end),
                    work.foreign,
                    [name for name, built in entries.items() if built.unplugged],
                    work.checkpoint.shadows,
                    alone=work.alone,
                    defer=work.defer,
                    states=work.states,
                )
            )
            self.observer.spans.wrote(outcome)
        self.marks += outcome.pending
        self.observer.wrote(outcome, finished.letters)
        outcome.states.clear()
        return outcome

    def _finished_by(self, write: Callable[[_Finish], T]) -> tuple[T, Finished]:
        """Let something be written in one transaction whose end calls what is given here.

        Called again where the transaction is repeated, the last call counts. What is remembered changes behind it.
        """
        finished: Finished | None = None

        def finish(work: Work, session: ClientSession, outcome: Outcome) -> None:
            nonlocal finished
            finished = self._finish(work, session, outcome)

        written = write(finish)
        assert finished is not None
        self.committed(finished)
        return written, finished

    def _finish(self, work: Work, session: ClientSession, outcome: Outcome) -> Finished:
        """Write what goes with the records, inside their transaction, and last the checkpoint with the fence."""
        letters, resolved = self._parked.write(work, outcome, self.checkpoint.position, session)
        self._stores.jobs.ask(work.asked, session)
        if work.progress is not None:
            saved = self._stores.jobs.save(work.progress, session)
            if work.wanted and not saved:
                raise Unwanted
        put = Put() if work.silent else self.put((), outcome.states, work.checkpoint, session)
        checkpoint = self._stores.checkpoints.save(work.checkpoint, self._fence, session)
        return Finished(letters, resolved, checkpoint, put)

    def put(
        self,
        events: Sequence[Event],
        states: Sequence[RecordState],
        checkpoint: Checkpoint,
        session: ClientSession,
    ) -> Put:
        """Put what is to be published into the outbox, in the transaction that saves a checkpoint."""
        if not (events or states):
            return Put()
        newest = max(checkpoint.position.time, checkpoint.ahead)
        commit = Commit(checkpoint.position, checkpoint.revision + 1, newest, self.observer.spans.trace)
        return self._stores.outbox.put(events, states, commit, session)

    def committed(self, finished: Finished) -> None:
        """Note what was committed."""
        self._parked.note(finished.letters, finished.resolved)
        self.checkpoint = finished.checkpoint
        self._told(finished.put.held)
        self.observer.beat(Part.WORK)

    def _beside(self, progress: Job | None = None) -> Work:
        """Give what a transaction commits beside what it writes: no records, and the progress of a job."""
        return Work([], [], self.checkpoint, progress=progress)
