"""One open stream: batch after batch is committed, and slices of jobs in between."""

import gc
from collections.abc import Iterator
from contextlib import suppress
from threading import Event
from time import monotonic

from bson import Timestamp

from distributary.derive.plan import Owner
from distributary.engine import gap
from distributary.engine.commit import Committer
from distributary.engine.derivation import Derivation, Prepared
from distributary.engine.handing import Interrupted, until
from distributary.engine.observer import Part
from distributary.engine.pace import RATE, Pace
from distributary.engine.parked import owner_of
from distributary.engine.parts import Goal, Parts, Settings
from distributary.engine.pipeline import Pipeline
from distributary.engine.portions import Portion
from distributary.engine.publishing import Outgoing, Tellings
from distributary.engine.rebuild import BUILDING, Rebuilds
from distributary.engine.replay import Replays
from distributary.engine.report import Report
from distributary.engine.rollups import Builds, Draining
from distributary.engine.slices import Slices
from distributary.engine.spans import Stage, Unit
from distributary.engine.triggers import TriggerTail
from distributary.log import get_logger
from distributary.ports.source import Batch, Changes, Source
from distributary.ports.stores import Carrier
from distributary.state import Job, JobKind

log = get_logger()

#: How often the worker looks for jobs that were asked for, in seconds.
LOOK_SECONDS = 1.0

#: How long the stream is waited for when there is nothing else to do, in seconds.
WAIT_SECONDS = 0.1

#: Batches between two runs of the cyclic garbage collector while changes keep coming.
COLLECT_BATCHES = 200

#: Batches without changes that are taken at once: those that were read ahead while a slice was committed tell how far
#: the stream was then, and jobs would wait for it without need.
IDLE_BATCHES = 10

#: How often it is looked whether pending groups of rollups are computed, in seconds.
DRAINING_SECONDS = 0.01

#: Parked documents that are tried again in one go.
DUE = 1000

#: How long each thread that reads or derives ahead is waited for, in seconds: when the worker is asked to stop, and
#: when something went wrong, of which is told behind that.
LEAVE_SECONDS, CLOSE_SECONDS = 0.3, 10.0


class Tail:
    """One open stream: the loop of batches and job slices."""

    def __init__(
        self,
        parts: Parts,
        settings: Settings,
        committer: Committer,
        source: Source,
        stop: Event,
        outgoing: Outgoing,
        followed: Changes | None,
        portion: Portion,
    ) -> None:
        self._settings = settings
        self._portion = portion
        self._observer = parts.observer
        self._outgoing = outgoing
        self._committer = committer
        self._stop = stop
        self._derivation = Derivation(
            parts.documents,
            parts.by_source,
            committer.checkpoint.epoch,
            settings.max_records,
            lambda documents: until(stop, parts.told(documents)),
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
            source, self._derivation, settings.bounds, committer.horizon, parts.observer, portion
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
        """Commit batches and slices until the goal or the stop event; the position is saved at the end.

        When asked to stop, what is derived is left between two documents, and a thread that does not end is left
        behind: it commits nothing.
        """
        self._rebuilds.finish()
        self._pipeline.start()
        if self._triggers is not None:
            self._triggers.start()
        try:
            with suppress(Interrupted):
                while not self._stop.is_set() and not self._done(goal):
                    self._step()
            self._save()
        finally:
            patience = LEAVE_SECONDS if self._stop.is_set() else CLOSE_SECONDS
            self._slices.close()
            self._replays.close()
            self._draining.close()
            self._pipeline.close(patience)
            if self._triggers is not None:
                self._triggers.close(patience)

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
        self._report.tell(self._reached, None if self._held not in {"", RATE} else self._job)

    def _patience(self) -> float:
        """Give how long the stream is waited for, in seconds, before something else has its turn."""
        if (self._job and not self._waiting) or (self._triggers and self._triggers.waiting):
            return 0.0
        return DRAINING_SECONDS if self._draining.is_reading else WAIT_SECONDS

    def _take(self, prepared: Prepared) -> None:
        """Commit a batch; one without changes only moves the position, which is saved now and then."""
        if prepared.batch.changes or prepared.batch.collections:
            for part in self._current(prepared):
                since = monotonic()
                self._commit(part)
                self._saved = monotonic()
                self._reached = part.batch.position
                self._observer.committed(len(part.batch.changes), self._saved - since)
                self._collect()
        self._reached = prepared.batch.position
        if monotonic() - self._saved >= self._settings.idle_save:
            self._save()

    def _commit(self, part: Prepared) -> None:
        """Commit a batch, and learn from how long that took, also where it failed."""
        changes, spans = len(part.batch.changes), self._observer.spans
        with spans.unit(Unit.BATCH, changes=changes, position_time=part.batch.position.time.time):
            spans.stage(Stage.READ, part.batch.read, changes=changes)
            spans.stage(Stage.DERIVE, part.derived, documents=len(part.states), failed=len(part.letters))
            since = monotonic()
            try:
                self._committer.batch(part, purge=self._settings.purge)
            except BaseException:
                self._portion.failed(changes, monotonic() - since)
                raise
            self._portion.took(changes, monotonic() - since)

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
        with self._observer.spans.unit(Unit.SLICE, job_kind=job.kind.value, job_source=job.source):
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
            with self._observer.spans.unit(Unit.RETRY):
                self._triggers.retry()
        while self._committer.parked and (due := self._stores.letters.due(self._names, DUE)):
            owners = {owner_of(key) for key in due}
            if owners <= tried and not resolved:
                return
            tried |= owners
            with self._observer.spans.unit(Unit.RETRY, documents=len(due)):
                resolved = self._slices.retry(due)

    def _done(self, goal: Goal) -> bool:
        if goal.time is None or self._job is not None or not self._has_passed(goal.time):
            return False
        if self._triggers is not None and not self._triggers.passed(goal.time):
            return False
        self._look()
        told = self._outgoing.is_done or (not goal.patient and self._outgoing.is_stuck)
        done = self._is_idle() and self._draining.is_done and told
        if done:
            log.info("caught up")
        return done

    def _has_passed(self, time: Timestamp) -> bool:
        """Whether everything up to a cluster time is committed; a position without changes may not be saved yet."""
        checkpoint = self._committer.checkpoint
        torn = checkpoint.torn and checkpoint.position == self._reached
        return checkpoint.moved(self._reached, torn=torn).has_passed(time)

    def _is_idle(self) -> bool:
        """Whether there is no job at hand."""
        return self._job is None

    def _collect(self) -> None:
        """Collect cycles rarely: the collector costs more than half of a batch (docs/decisions)."""
        self._batches += 1
        if self._batches % COLLECT_BATCHES == 0:
            gc.collect()
