"""The worker: holds the lease, tails the stream, commits batch after batch, and does jobs in between."""

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from threading import Event
from time import monotonic

from bson import Timestamp
from pymongo.client_session import ClientSession
from pymongo.errors import PyMongoError
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_when_event_set,
    wait_random_exponential,
)

from distributary.change import identity
from distributary.derive.collapse import Latest
from distributary.derive.plan import Owner
from distributary.derive.transform import Transform
from distributary.engine import begin, gap, publishing
from distributary.engine.begin import Beginning, Wanted
from distributary.engine.breaker import Breaker
from distributary.engine.commit import Committer, Stores
from distributary.engine.derivation import Derivation, Prepared
from distributary.engine.looking import Looking
from distributary.engine.observer import SILENT, Observer, Part, Phase, Standing
from distributary.engine.pace import RATE, Limits, Pace
from distributary.engine.pipeline import Bounds, Pipeline, StreamEnded
from distributary.engine.publishing import Backlog, Outgoing, Publishing, Tellings
from distributary.engine.rebuild import BUILDING, Rebuilds
from distributary.engine.replay import Replays
from distributary.engine.report import Report
from distributary.engine.retry import Verdict, judge, reason
from distributary.engine.rollups import Builds, Draining
from distributary.engine.slices import Slices
from distributary.engine.triggers import Triggers, TriggersLost, TriggerTail, follow
from distributary.errors import POSITION_CURE, ConfigurationError, Fault, PositionLost
from distributary.log import get_logger
from distributary.ports import (
    Batch,
    Carrier,
    Changes,
    Documents,
    GroupReader,
    Publisher,
    Shelf,
    Source,
    Start,
)
from distributary.state import Checkpoint, Job, JobKind

log = get_logger()

#: How often the worker looks for jobs that were asked for, in seconds.
LOOK_SECONDS = 1.0

#: How long the loop waits for a batch when there is nothing else to do, in seconds.
WAIT_SECONDS = 0.1

#: Batches between two runs of the cyclic garbage collector while changes keep coming.
COLLECT_BATCHES = 200

#: Lost positions, each before the one before it was made good, after which the worker stops: the history is
#: shorter than it takes to derive everything again.
LOSSES = 3

#: Batches without changes that are taken at once: those that were read ahead while a slice was committed tell how far
#: the stream was then, and jobs would wait for it without need.
IDLE_BATCHES = 10

#: How often it is looked whether pending groups of rollups are computed, in seconds.
DRAINING_SECONDS = 0.01

#: Parked documents that are tried again in one go.
DUE = 1000


@dataclass(frozen=True, slots=True)
class Settings:
    """What the configuration says about a worker; times in seconds."""

    bounds: Bounds
    idle_save: float
    max_records: int
    scan_documents: int
    pace: Limits
    purge: bool
    resync: bool
    breaker: tuple[int, int]
    outbox: publishing.Bounds = publishing.UNBOUNDED

    @property
    def slice_documents(self) -> int:
        """Documents in one slice of a job, at most; not more than a second's."""
        return min(self.scan_documents, round(self.pace.rate) or self.scan_documents)


@dataclass(frozen=True, slots=True)
class Parts:
    """What the worker drives; `tidy` removes, in a transaction, some of what nobody wants any more, until `is_tidy`."""

    stores: Stores
    documents: Documents
    by_source: Mapping[str, Sequence[Transform]]
    new_source: Callable[[], Source]
    newest: Callable[[], Timestamp]
    oldest: Callable[[], Timestamp | None]
    prepare: Callable[[], None]
    shelf: Shelf
    draw: Callable[[], str]
    told: Callable[[Iterable[Latest]], Iterable[Latest]]
    groups: GroupReader | None = None
    rollups: Mapping[str, str] = field(default_factory=dict)
    triggers: Triggers | None = None
    new_publisher: Callable[[], Publisher] | None = None
    publishes: bool = False
    is_tidy: Callable[[], bool] = lambda: True
    tidy: Callable[[ClientSession], None] = lambda _: None
    observer: Observer = SILENT
    look: Callable[[], Standing] | None = None


@dataclass(frozen=True, slots=True)
class Goal:
    """When a run ends by itself: at `time` and once no job is left, or never.

    It waits until everything is published, but for Pub/Sub that is away only if it is `patient`.
    """

    time: Timestamp | None = None
    patient: bool = True


class Worker:
    """One holder of the lease, from the checkpoint until it is told to stop."""

    def __init__(self, parts: Parts, wanted: Wanted, settings: Settings, fence: int, stop: Event) -> None:
        self._parts = parts
        self._wanted = wanted
        self._settings = settings
        self._fence = fence
        self._stop = stop
        self._lost = self._triggers_lost = False
        self._losses = 0
        self._followed: Changes | None = None
        self._observer = parts.observer
        self._backlog = Backlog(settings.outbox, self._observer)
        self._published: Publishing | None = None

    def run(self, goal: Goal) -> None:
        """Work until the goal is reached or the stop event is set; transient failures are waited out."""
        patient = Retrying(
            retry=retry_if_exception(lambda error: judge(error) is Verdict.TRANSIENT),
            wait=wait_random_exponential(multiplier=0.5, max=10),
            sleep=self._pause,
            stop=stop_when_event_set(self._stop),
            before_sleep=self._tell,
            reraise=True,
        )
        with _collector_off(), self._publishing(patient), self._looking():
            while not self._stop.is_set() and not patient(self._tail, goal):
                continue

    @contextmanager
    def _publishing(self, patient: Retrying) -> Iterator[None]:
        """Publish beside the work, if anything is to be published."""
        if self._parts.new_publisher is None:
            yield
            return
        patient(self._backlog.count, self._parts.stores.outbox.held)
        self._published = Publishing(
            self._parts.stores.outbox, self._parts.new_publisher(), self._backlog, self._observer
        )
        self._published.start()
        try:
            yield
        finally:
            self._published.close()

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """Look now and then what is left to be done, if anybody wants to know."""
        if self._parts.look is None:
            yield
            return
        looking = Looking(self._parts.look, self._observer)
        looking.start()
        try:
            yield
        finally:
            looking.close()

    def _pause(self, seconds: float) -> None:
        self._observer.beat(Part.WORK)
        self._stop.wait(seconds)

    def _tell(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if error is not None:
            self._wait(error)
            log.warning("trying again", attempt=state.attempt_number, error=reason(error))

    def _wait(self, error: BaseException) -> None:
        self._observer.enter(Phase.WAITING, f"trying again: {reason(error)}")

    def _tail(self, goal: Goal) -> bool:
        """Tail the stream from the checkpoint on; True when the goal was reached.

        A failure after something was committed gives False, so that the next one is waited out from the start.
        """
        source = self._parts.new_source()
        tail: _Tail | None = None
        try:
            committer = self._open(source)
            outgoing = Outgoing(self._backlog, self._published, self._stop.wait)
            tail = _Tail(self._parts, self._settings, committer, source, self._stop, outgoing, self._followed)
            tail.run(goal)
        except StreamEnded:
            return False
        except TriggersLost:
            if not self._settings.resync:
                raise
            self._triggers_lost = True
            return False
        except PositionLost as error:
            self._lose(error, opened=tail is not None)
            return False
        except PyMongoError as error:
            if judge(error) is Verdict.TRANSIENT and tail is not None and tail.committed:
                self._wait(error)
                log.warning("trying again", error=reason(error))
                return False
            raise
        finally:
            source.close()
            if self._followed is not None:
                self._followed.close()
                self._followed = None
        return True

    def _lose(self, error: PositionLost, *, opened: bool) -> None:
        """Note that the position is lost, so that the next stream opens at the present; raises when it may not."""
        before = self._parts.stores.checkpoints.load(self._wanted.worker)
        if before is None:
            raise PositionLost(error.message, "Begin elsewhere: change worker.start.") from error
        made_good = opened and not any(job.gap for job in self._parts.stores.jobs.open())
        self._losses = 1 if made_good else self._losses + 1
        lost = gap.uncertain(error, before.position.time, self._parts.newest())
        if not self._settings.resync:
            raise lost from error
        if self._losses >= LOSSES:
            raise gap.endless(lost, self._losses) from error
        log.error("position lost", reason=lost.message, next="every document is derived again")
        self._lost = True

    def _open(self, source: Source) -> Committer:
        """Open the stream where the checkpoint or the configuration says, and commit that."""
        beginning = self._begin(source)
        if beginning.changed:
            log.warning("code changed", transforms=beginning.changed)
        self._parts.prepare()
        checkpoint, breaker = self._follow(beginning.checkpoint), Breaker(*self._settings.breaker)
        self._parts.documents.not_before(max(checkpoint.ahead, checkpoint.position.time))
        stores, told = self._parts.stores, self._backlog.add
        committer = Committer(
            stores, self._wanted.transforms, checkpoint, self._fence, breaker, told, self._observer
        )
        committer.begin(beginning.jobs, freed=beginning.freed)
        while not self._parts.is_tidy():
            committer.aside(self._parts.tidy)
        self._lost = self._triggers_lost = False
        self._observer.enter(Phase.ACTIVE)
        log.info(
            "tailing",
            worker=self._wanted.worker,
            since=checkpoint.position.time.as_datetime().isoformat(),
            sources=list(checkpoint.watched),
            jobs=len(beginning.jobs),
        )
        return committer

    def _follow(self, checkpoint: Checkpoint) -> Checkpoint:
        """Open the stream of the triggers, if there are any, and give the checkpoint with its position."""
        if self._parts.triggers is None:
            left = checkpoint.triggers and replace(checkpoint.triggers, collections=frozenset())
            return replace(checkpoint, triggers=left)
        newest, lost = self._parts.newest(), self._triggers_lost
        self._followed, checkpoint = follow(self._parts.triggers, checkpoint, newest, lost=lost)
        return checkpoint

    def _begin(self, source: Source) -> Beginning:
        before = self._parts.stores.checkpoints.load(self._wanted.worker)
        jobs = self._parts.stores.jobs
        if before is None:
            self._refuse_shared()
            return begin.first(self._wanted, source.open(self._wanted.start))
        if self._lost:
            return begin.lost(self._wanted, before, source.open(Start()), jobs.open())
        self._refuse_shared()
        beginning = begin.resumed(self._wanted, before, [*jobs.open(), *jobs.declined()])
        if before.position.time > self._parts.newest():
            raise PositionLost(
                f"The position ({before.position.time.as_datetime():%Y-%m-%d %H:%M:%S} UTC) lies in the source's "
                "future: the source was restored from a backup, or is another one.",
                POSITION_CURE,
            )
        position = source.open(beginning.start)
        if beginning.start.token is not None:
            return beginning
        return beginning._replace(checkpoint=beginning.checkpoint.moved(position))

    def _refuse_shared(self) -> None:
        """Refuse derived collections that another worker writes: one writer knows who owns what."""
        claimed = self._parts.stores.checkpoints.claimed(self._wanted.worker)
        named = {name for each in self._wanted.transforms.values() for name in each.collections}
        named |= self._wanted.rollups.keys()
        named |= self._parts.triggers.filled if self._parts.triggers else frozenset()
        shared = sorted(named & claimed.keys())
        if shared:
            raise ConfigurationError(
                [
                    Fault(
                        "worker.name",
                        f"derived collection {name!r} is written by worker {claimed[name]!r} already.",
                        "Give the collection to one worker, by `worker.only`, or give it another name.",
                    )
                    for name in shared
                ]
            )


class _Tail:
    """One open stream: the loop of batches and job slices."""

    def __init__(
        self,
        parts: Parts,
        settings: Settings,
        committer: Committer,
        source: Source,
        stop: Event,
        outgoing: Outgoing,
        followed: Changes | None = None,
    ) -> None:
        self._settings = settings
        self._observer = parts.observer
        self._outgoing = outgoing
        self._committer = committer
        self._stop = stop
        self._derivation = Derivation(
            parts.documents,
            parts.by_source,
            committer.checkpoint.epoch,
            settings.max_records,
            parts.told,
            settings.bounds.bytes,
            observer=parts.observer,
        )
        self._slices = Slices(
            self._derivation, committer, parts.stores, settings.slice_documents, purge=settings.purge
        )
        self._pace = Pace(settings.pace, parts.newest, parts.oldest)
        self._held = ""
        self._replays = Replays(self._slices, parts.new_source, told=parts.publishes)
        self._rebuilds = Rebuilds(self._slices, parts.shelf, parts.draw)
        self._builds = Builds(committer, parts.rollups)
        self._draining = Draining(parts.groups, committer)
        self._tellings = Tellings(committer)
        self._stores = parts.stores
        self._report = Report(parts.newest)
        self._names = [each.name for some in parts.by_source.values() for each in some]
        self._pipeline = Pipeline(
            source, self._derivation, settings.bounds, committer.horizon, parts.observer
        )
        self._triggers: TriggerTail | None = None
        if parts.triggers is not None and followed is not None:
            self._triggers = TriggerTail(parts.triggers, followed, committer)
        self._reached = committer.checkpoint.position
        self._job: Job | None = None
        self._waiting = False
        self._looked = self._saved = float("-inf")
        self._batches = 0

    def run(self, goal: Goal) -> None:
        """Commit batches and slices until the goal or the stop event; the position is saved at the end."""
        self._rebuilds.finish()
        self._pipeline.start()
        if self._triggers is not None:
            self._triggers.start()
        try:
            while not self._stop.is_set() and not self._done(goal):
                self._step()
            self._save()
        finally:
            self._slices.close()
            self._replays.close()
            self._draining.close()
            self._pipeline.close()
            if self._triggers is not None:
                self._triggers.close()

    @property
    def committed(self) -> bool:
        """Whether a batch was committed since the stream opened."""
        return self._batches > 0

    def _step(self) -> None:
        self._observer.beat(Part.WORK)
        self._observer.reached(self._reached, self._pipeline.read_ahead)
        if not self._outgoing.is_open():
            return
        prepared = self._pipeline.next(self._patience())
        for _ in range(IDLE_BATCHES):
            if prepared is None or prepared.batch.changes:
                break
            self._take(prepared)
            prepared = self._pipeline.next(0.0)
        if prepared is not None:
            self._take(prepared)
            self._report.count(len(prepared.batch.changes))
        if self._triggers is not None and self._triggers.step():
            self._collect()
        self._work()
        self._draining.step(idle=self._job is None and (prepared is None or not prepared.batch.changes))
        self._report.tell(self._reached, self._job)

    def _patience(self) -> float:
        """Give how long the stream is waited for, in seconds, before something else has its turn."""
        if (self._job and not self._waiting) or (self._triggers and self._triggers.waiting):
            return 0.0
        return DRAINING_SECONDS if self._draining.is_reading else 0.1

    def _take(self, prepared: Prepared) -> None:
        """Commit a batch; one without changes only moves the position, which is saved now and then."""
        if prepared.batch.changes or prepared.batch.collections:
            for part in self._current(prepared):
                since = monotonic()
                self._committer.batch(part, purge=self._settings.purge)
                self._saved = monotonic()
                self._observer.committed(len(part.batch.changes), self._saved - since)
                self._collect()
        self._reached = prepared.batch.position
        if monotonic() - self._saved >= self._settings.idle_save:
            self._save()

    def _current(self, prepared: Prepared) -> Iterator[Prepared]:
        """Give the batch itself, or derived once more where something newer was committed in the meantime."""
        horizon = self._committer.horizon
        if not prepared.outdated(horizon):
            yield prepared
            return
        rest: Batch | None = prepared.batch
        while rest is not None:
            part = self._derivation.again(rest)
            horizon.note((place for place, _ in part.states), part.shown)
            rest = part.rest
            yield part

    def _save(self) -> None:
        if self._reached != self._committer.checkpoint.position:
            self._committer.position(self._reached)
        if self._triggers is not None:
            self._triggers.save()
        self._saved = monotonic()

    def _work(self) -> None:
        """Do a slice of the job at hand, or look for one."""
        if self._job is not None and self._is_halted(self._job):
            log.info(
                "job halted", kind=self._job.kind, source=self._job.source, documents=self._job.documents
            )
            self._leave()
        if self._job is not None:
            if self._is_held(self._job):
                return
            self._slice(self._job)
            if self._job.done:
                log.info(
                    "job done", kind=self._job.kind, source=self._job.source, documents=self._job.documents
                )
                gap.tell(self._stores.jobs, self._job)
                self._leave()
        elif monotonic() - self._looked >= LOOK_SECONDS:
            self._look()

    def _slice(self, job: Job) -> None:
        """Do a slice of the job at hand; one that waits for the stream waits for a saved position, too."""
        self._job = self._carrier(job).run(job)
        self._pace.spent(max(0, self._job.documents - job.documents))
        self._waiting = self._job is job
        if self._waiting:
            self._save()

    def _is_held(self, job: Job) -> bool:
        """Whether the job at hand has to wait; that is told once."""
        reason = self._pace.reason(self._reached)
        if reason and not self._held and reason != RATE:
            log.info("job waits", kind=job.kind, source=job.source, reason=reason)
        self._held, self._waiting = reason, bool(reason)
        return self._waiting

    def _carrier(self, job: Job) -> Carrier:
        if self._triggers is not None and self._triggers.retries(job):
            return self._triggers
        if job.kind is JobKind.REPLAY:
            return self._replays
        if job.kind is JobKind.ROLLUP:
            return self._builds
        if job.kind is JobKind.PUBLISH:
            return self._tellings
        return self._slices if job.kind in {JobKind.BACKFILL, JobKind.DERIVE} else self._rebuilds

    def _leave(self) -> None:
        """Leave the job at hand, and look for the next one at once."""
        self._slices.close()
        self._replays.close()
        self._job, self._waiting, self._looked = None, False, float("-inf")

    def _is_halted(self, job: Job) -> bool:
        """Look now and then whether an operator has paused or cancelled the job at hand."""
        if monotonic() - self._looked < LOOK_SECONDS:
            return False
        self._looked = monotonic()
        return not self._stores.jobs.is_wanted(job.id)

    def _look(self) -> None:
        self._looked = monotonic()
        job = self._stores.jobs.next()
        self._job = job and self._carrier(job).taken(job)
        if job is None or job.kind not in BUILDING:
            self._rebuilds.tidy()
        if self._job is None:
            self._retry()

    def _retry(self) -> None:
        """Try parked documents again that are due, as long as some are resolved or new ones become due."""
        tried: set[Owner] = set()
        resolved = 0
        if self._triggers is not None:
            self._triggers.retry()
        while self._committer.parked and (due := self._stores.letters.due(self._names, DUE)):
            owners = {Owner(key.transform, identity(key.key)) for key in due}
            if owners <= tried and not resolved:
                return
            tried |= owners
            resolved = self._slices.retry(due)

    def _done(self, goal: Goal) -> bool:
        if goal.time is None or self._reached.time < goal.time or self._job is not None:
            return False
        if self._triggers is not None and not self._triggers.passed(goal.time):
            return False
        self._look()
        told = self._outgoing.is_done or (not goal.patient and self._outgoing.is_stuck)
        done = self._is_idle() and self._draining.is_done and told
        if done:
            log.info("caught up")
        return done

    def _is_idle(self) -> bool:
        """Whether there is no job at hand."""
        return self._job is None

    def _collect(self) -> None:
        """Collect cycles rarely: the collector costs more than half of a batch (docs/decisions)."""
        self._batches += 1
        if self._batches % COLLECT_BATCHES == 0:
            gc.collect()


class _collector_off(AbstractContextManager[None]):  # noqa: N801 - reads as a statement
    """Freeze what is loaded and keep the cyclic collector off while batches are processed."""

    def __enter__(self) -> None:
        gc.collect()
        gc.freeze()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        gc.enable()
        gc.unfreeze()
