"""The worker: holds the lease, tails the stream, commits batch after batch, and does jobs in between."""

import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from threading import Event

from pymongo.errors import PyMongoError
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_when_event_set,
    wait_random_exponential,
)

from distributary.engine import begin, gap
from distributary.engine.begin import Beginning, Wanted
from distributary.engine.breaker import Breaker
from distributary.engine.commit import Committer
from distributary.engine.looking import Looking
from distributary.engine.observer import Part, Phase
from distributary.engine.pipeline import StreamEnded
from distributary.engine.portions import Portion
from distributary.engine.publishing import Backlog, Outgoing, Publishing
from distributary.engine.retry import Verdict, judge, reason
from distributary.engine.tail import Tail
from distributary.engine.triggers import TriggersLost, follow
from distributary.engine.wiring import Goal, Settings, Wiring
from distributary.errors import POSITION_CURE, ConfigurationError, Fault, PositionLost
from distributary.log import get_logger
from distributary.ports.source import Changes, Source, Start
from distributary.state import Checkpoint

log = get_logger()

#: Lost positions, each before the one before it was made good, after which the worker stops: the history is
#: shorter than it takes to derive everything again.
LOSSES = 3


class Worker:
    """One holder of the lease, from the checkpoint until it is told to stop."""

    def __init__(self, wiring: Wiring, wanted: Wanted, settings: Settings, fence: int, stop: Event) -> None:
        self._wiring = wiring
        self._wanted = wanted
        self._settings = settings
        self._fence = fence
        self._stop = stop
        self._lost = self._triggers_lost = False
        self._losses = 0
        self._portion = Portion(settings.bounds.changes)
        self._followed: Changes | None = None
        self._observer = wiring.observer
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
        if self._wiring.new_publisher is None:
            yield
            return
        patient(self._backlog.count, self._wiring.stores.outbox.held)
        self._published = Publishing(
            self._wiring.stores.outbox, self._wiring.new_publisher(), self._backlog, self._observer
        )
        self._published.start()
        try:
            yield
        finally:
            self._published.close()

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """Look now and then what is left to be done, if anybody wants to know."""
        if self._wiring.look is None:
            yield
            return
        looking = Looking(self._wiring.look, self._observer)
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
        source = self._wiring.new_source()
        tail: Tail | None = None
        try:
            committer = self._open(source)
            outgoing = Outgoing(self._backlog, self._published, self._stop.wait, self._observer)
            tail = Tail(
                self._wiring,
                self._settings,
                committer,
                source,
                self._stop,
                outgoing,
                self._followed,
                self._portion,
            )
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
        before = self._wiring.stores.checkpoints.load(self._wanted.worker)
        if before is None:
            raise PositionLost(error.message, "Begin elsewhere: change worker.start.") from error
        made_good = opened and not any(job.gap for job in self._wiring.stores.jobs.open())
        self._losses = 1 if made_good else self._losses + 1
        lost = gap.uncertain(error, before.position.time, self._wiring.newest())
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
        self._wiring.prepare()
        checkpoint, breaker = self._follow(beginning.checkpoint), Breaker(*self._settings.breaker)
        self._wiring.documents.not_before(max(checkpoint.ahead, checkpoint.position.time))
        stores, told = self._wiring.stores, self._backlog.add
        committer = Committer(
            stores, self._wanted.transforms, checkpoint, self._fence, breaker, told, self._observer
        )
        committer.begin(beginning.jobs, freed=beginning.freed)
        while not self._wiring.is_tidy():
            committer.aside(self._wiring.tidy)
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
        if self._wiring.triggers is None:
            left = checkpoint.triggers and replace(checkpoint.triggers, collections=frozenset())
            return replace(checkpoint, triggers=left)
        newest, lost = self._wiring.newest(), self._triggers_lost
        self._followed, checkpoint = follow(self._wiring.triggers, checkpoint, newest, lost=lost)
        return checkpoint

    def _begin(self, source: Source) -> Beginning:
        before = self._wiring.stores.checkpoints.load(self._wanted.worker)
        jobs = self._wiring.stores.jobs
        if before is None:
            self._refuse_shared()
            return begin.first(self._wanted, source.open(self._wanted.start))
        if self._lost:
            return begin.lost(self._wanted, before, source.open(Start()), jobs.open())
        self._refuse_shared()
        beginning = begin.resumed(self._wanted, before, [*jobs.open(), *jobs.declined()])
        if before.position.time > self._wiring.newest():
            raise PositionLost(
                f"The position ({before.position.time.as_datetime():%Y-%m-%d %H:%M:%S} UTC) lies in the source's "
                "future: the source was restored from a backup, or is another one.",
                POSITION_CURE,
            )
        position = source.open(beginning.start)
        if beginning.start.token is not None:
            return beginning
        moved = beginning.checkpoint.moved(position, torn=beginning.checkpoint.torn)
        return beginning._replace(checkpoint=moved)

    def _refuse_shared(self) -> None:
        """Refuse derived collections that another worker writes: one writer knows who owns what."""
        claimed = self._wiring.stores.checkpoints.claimed(self._wanted.worker)
        named = {name for each in self._wanted.transforms.values() for name in each.collections}
        named |= self._wanted.rollups.keys()
        named |= self._wiring.triggers.filled if self._wiring.triggers else frozenset()
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


class _collector_off(AbstractContextManager[None]):  # noqa: N801 - reads as a statement
    """Freeze what is loaded and keep the cyclic collector off while batches are processed."""

    def __enter__(self) -> None:
        gc.collect()
        gc.freeze()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        gc.enable()
        gc.unfreeze()
