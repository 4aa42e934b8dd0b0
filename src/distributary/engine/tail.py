"""One open stream: batch after batch is committed, and slices of jobs in between."""

import gc
from collections.abc import Iterator
from contextlib import suppress
from threading import Event
from time import monotonic

from bson import Timestamp

from distributary.engine.commit import Committer
from distributary.engine.derivation import Derivation, Prepared
from distributary.engine.handing import Interrupted, until
from distributary.engine.jobs import JobRunner
from distributary.engine.observer import Part
from distributary.engine.pipeline import Pipeline
from distributary.engine.portions import Portion
from distributary.engine.publishing import Outgoing
from distributary.engine.report import Report
from distributary.engine.rollups import Draining
from distributary.engine.spans import Stage, Unit
from distributary.engine.triggers import TriggerTail
from distributary.engine.wiring import Goal, Settings, Wiring
from distributary.log import get_logger
from distributary.ports.source import Batch, Changes, Source

log = get_logger()

#: How long the stream is waited for when there is nothing else to do, in seconds.
WAIT_SECONDS = 0.1

#: Batches between two runs of the cyclic garbage collector while changes keep coming.
COLLECT_BATCHES = 200

#: Batches without changes that are taken at once: those that were read ahead while a slice was committed tell how far
#: the stream was then, and jobs would wait for it without need.
IDLE_BATCHES = 10

#: How often it is looked whether pending groups of rollups are computed, in seconds.
DRAINING_SECONDS = 0.01

#: How long each thread that reads or derives ahead is waited for, in seconds: when the worker is asked to stop, and
#: when something went wrong, of which is told behind that.
LEAVE_SECONDS, CLOSE_SECONDS = 0.3, 10.0


class Tail:
    """One open stream: the loop of batches and job slices."""

    def __init__(
        self,
        wiring: Wiring,
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
        self._observer = wiring.observer
        self._outgoing = outgoing
        self._committer = committer
        self._stop = stop
        self._derivation = Derivation(
            wiring.documents,
            wiring.by_source,
            committer.checkpoint.epoch,
            settings.max_records,
            lambda documents: until(stop, wiring.told(documents)),
            settings.bounds.bytes,
            observer=wiring.observer,
        )
        self._triggers: TriggerTail | None = None
        if wiring.triggers is not None and followed is not None:
            self._triggers = TriggerTail(wiring.triggers, followed, committer)
        self._jobs = JobRunner(wiring, settings, committer, self._derivation, self._triggers)
        self._draining = Draining(wiring.groups, committer)
        self._report = Report(wiring.newest)
        self._pipeline = Pipeline(
            source, self._derivation, settings.bounds, committer.horizon, wiring.observer, portion
        )
        self._reached = committer.checkpoint.position
        self._saved = float("-inf")
        self._batches = 0

    def run(self, goal: Goal) -> None:
        """Commit batches and slices until the goal or the stop event; the position is saved at the end.

        When asked to stop, what is derived is left between two documents, and a thread that does not end is left
        behind: it commits nothing.
        """
        self._jobs.start()
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
            self._jobs.close()
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
        if self._jobs.step(self._reached):
            self._save()
        self._draining.step(idle=self._jobs.is_idle and (prepared is None or not prepared.batch.changes))
        self._report.tell(self._reached, self._jobs.shown)

    def _patience(self) -> float:
        """Give how long the stream is waited for, in seconds, before something else has its turn."""
        if not (self._jobs.is_idle or self._jobs.waits) or (self._triggers and self._triggers.waiting):
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

    def _done(self, goal: Goal) -> bool:
        if goal.time is None or not self._jobs.is_idle or not self._has_passed(goal.time):
            return False
        if self._triggers is not None and not self._triggers.passed(goal.time):
            return False
        idle = self._jobs.look()
        told = self._outgoing.is_done or (not goal.patient and self._outgoing.is_stuck)
        done = idle and self._draining.is_done and told
        if done:
            log.info("caught up")
        return done

    def _has_passed(self, time: Timestamp) -> bool:
        """Whether everything up to a cluster time is committed; a position without changes may not be saved yet."""
        checkpoint = self._committer.checkpoint
        torn = checkpoint.torn and checkpoint.position == self._reached
        return checkpoint.moved(self._reached, torn=torn).has_passed(time)

    def _collect(self) -> None:
        """Collect cycles rarely: the collector costs more than half of a batch (docs/decisions)."""
        self._batches += 1
        if self._batches % COLLECT_BATCHES == 0:
            gc.collect()
