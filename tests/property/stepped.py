"""A worker without threads: the real one, whose reader, deriver and writer take a step when they are told to."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from queue import Queue
from threading import Event
from typing import Any

from pymongo.database import Database
from pymongo.errors import PyMongoError

from distributary.assemble import Assembled
from distributary.engine.ahead import DEPTH, Ahead, End, Slice
from distributary.engine.derivation import Prepared
from distributary.engine.pipeline import Pipeline, StreamEnded
from distributary.engine.portions import Portion
from distributary.engine.publishing import UNBOUNDED, Backlog, Outgoing
from distributary.engine.retry import Verdict, judge
from distributary.engine.rollups import Draining
from distributary.engine.tail import Tail
from distributary.engine.triggers import Reader, TriggersLost, TriggerTail
from distributary.engine.wiring import Wiring
from distributary.engine.work import Stores
from distributary.engine.worker import Worker
from distributary.errors import CheckpointMoved, PositionLost
from distributary.ports.source import Start
from distributary.store.checkpoints import Checkpoints
from distributary.store.jobs import Jobs
from distributary.store.lease import LEASES, Lease
from distributary.store.letters import Letters
from distributary.store.untold import MongoUntold
from tests.tap import Tap, TappedCheckpoints, TappedSink

#: Batches that are derived ahead of the one that is committed: one waits, one is held by its thread.
AHEAD = 2

#: Steps after which a worker that has not caught up never will.
PATIENCE = 2000


def expire(state: Database[Any], worker: str) -> None:
    """Let the lease of a worker's name expire now."""
    past = {"$subtract": ["$$NOW", 1]}
    state[LEASES].update_one({"_id": worker}, [{"$set": {"expires": past}}])


class ByHand(Pipeline):
    """The read-ahead without its threads."""

    def start(self) -> None:
        """Have room for whatever is read; nothing starts."""
        self.held = False
        self._read = Queue()
        self._ready = Queue()

    def read(self) -> None:
        """Read one reply of the stream."""
        for batch in self._source.read(1):
            self._read.put(batch)
        if self._source.ended:
            self._read.put(StreamEnded())

    def derive(self) -> bool:
        """Derive what was read, gathered to a batch; False when nothing was read or enough is derived."""
        nothing = self._read.empty() and self._pending is None and self._rest is None
        if self._ready.qsize() >= AHEAD or nothing:
            return False
        self._wanted = True
        batch = self._gather()
        if batch is not None:
            self._ready.put(batch if isinstance(batch, BaseException) else self._prepare(batch))
        return batch is not None

    def next(self, timeout: float) -> Prepared | None:  # noqa: ARG002 - nothing is waited for
        """Give the next batch, without waiting; none while it is held back."""
        return super().next(0) if self._ready.qsize() and not self.held else None

    def close(self, seconds: float | None = None) -> None:
        """Nothing was started."""


class AheadByHand(Ahead):
    """Reads slices ahead without a thread: as many as may wait, whenever one is taken."""

    def __init__(self, slices: Iterator[Slice], stop: Event) -> None:  # noqa: ARG002 - there is no thread
        self._taken = slices
        self._waiting: list[Slice | None] = []

    def next(self, seconds: float) -> Slice | None:  # noqa: ARG002 - nothing is waited for
        """Give the next slice, and read those behind it."""
        while len(self._waiting) <= DEPTH:
            self._waiting.append(next(self._taken, None))
        if (part := self._waiting.pop(0)) is None:
            raise End
        return part

    def close(self, seconds: float) -> None:
        """Nothing was started."""


class DrainingByHand(Draining):
    """Reads pending groups whenever it may, and waits for what it reads."""

    def _begin(self) -> None:
        super()._begin()
        assert self._thread is not None
        self._thread.join()


class ReaderByHand(Reader):
    """Reads the triggers' stream without a thread, as far ahead as it is told to."""

    def start(self) -> None:
        """Have room for whatever is read; nothing starts."""
        self._ready = Queue()

    def read_on(self) -> None:
        """Read one reply of the stream, and call the triggers."""
        try:
            for batch in self._source.read(1):
                for ready in self._reacted(batch):
                    self._ready.put(ready)
                if self._source.ended:
                    self._source.open(Start(token=batch.position.token), batch.position.token)
        except PositionLost as error:
            self._ready.put(TriggersLost(error.message, error.cure))


#: Nothing is published here.
NOTHING_GOES_OUT = Outgoing(Backlog(UNBOUNDED), None, lambda _: None)


class Stepped:
    """A worker that took the lease from whoever held it, and works step by step."""

    def __init__(self, assembled: Assembled, tap: Tap) -> None:
        databases, name = assembled.databases, assembled.config.worker.name
        self._client = databases.raw.client
        self._goal = assembled.goal_of_now
        self.tap = tap
        self.session = databases.derived.client.start_session()
        checkpoints = Checkpoints(databases.state)
        stores = Stores(
            TappedSink(assembled.sink(self.session), tap),
            TappedCheckpoints(checkpoints, tap),
            Letters(databases.state, name),
            Jobs(databases.state, name),
            assembled.outbox(),
            MongoUntold(databases.state, name),
        )
        lease = Lease(databases.state, name, assembled.config.worker.lease_seconds)
        databases.state[LEASES].update_one(
            {"_id": name}, [{"$set": {"expires": {"$subtract": ["$$NOW", 1]}}}]
        )
        assert lease.acquire()
        lease.announce(dict(self.session.session_id), {})
        fence = checkpoints.raise_fence(name)
        self._wiring: Wiring = assembled._wiring(stores)
        settings = assembled._settings()
        self._settings = replace(settings, bounds=replace(settings.bounds, linger=0))
        self._worker = Worker(self._wiring, assembled.wanted(), self._settings, fence, Event())
        self._tail: Tail | None = None

    def open(self) -> None:
        """Open the stream where the checkpoint says and commit that, if it is not open."""
        while self._tail is None:
            source = self._wiring.new_source()
            try:
                committer = self._worker._open(source)
            except TriggersLost:
                self._worker._triggers_lost = True
                continue
            except PositionLost as error:
                self._worker._lose(error, opened=False)
                continue
            followed = self._worker._followed
            bounds = self._settings.bounds
            portion = Portion(1 + bounds.changes // 3)  # so that batches are cut
            self._tail = Tail(
                self._wiring, self._settings, committer, source, Event(), NOTHING_GOES_OUT, followed, portion
            )
            self._tail._pipeline = ByHand(
                source, self._tail._derivation, bounds, committer.horizon, portion=portion
            )
            self._tail._pipeline.start()
            self._tail._draining = DrainingByHand(self._wiring.groups, committer)
            self._tail._jobs._slices.reading = AheadByHand  # type: ignore[misc]
            triggers = _triggers(self._tail)
            assert followed is not None
            triggers._reader = ReaderByHand(triggers._triggers, followed, committer.checkpoint.epoch)
            triggers.start()

    def read(self) -> None:
        """Read one reply of the stream."""
        self._judged(lambda tail: _hand(tail).read())

    def derive(self) -> None:
        """Derive one batch ahead of what is committed."""
        self._judged(lambda tail: _hand(tail).derive())

    def react(self) -> None:
        """Read one reply of the triggers' stream, and call them."""

        def read(tail: Tail) -> None:
            reader = _triggers(tail)._reader
            assert isinstance(reader, ReaderByHand)
            reader.read_on()

        self._judged(read)

    def step(self) -> None:
        """Commit the next batch that is derived, if there is one, and do a slice of the job at hand."""
        self._judged(Tail._step)

    def slice(self) -> None:
        """Do a slice of the job at hand, while what is derived waits."""
        self._judged(_slice)

    def do_jobs(self) -> None:
        """Do slices until no job is left, or one waits for the stream, while what is derived waits."""
        idle = 0
        for _ in range(PATIENCE):
            self.slice()
            idle = 0 if self._tail is not None and self._tail._jobs.job is not None else idle + 1
            if idle > 1 or (self._tail is not None and self._tail._jobs.waits):
                return
        raise AssertionError("the jobs do not end")

    def catch_up(self) -> None:
        """Go on until everything until now is committed, no job is left and nothing is worth a retry."""
        goal = self._goal()
        for _ in range(PATIENCE):
            self.read()
            self.derive()
            self.react()
            self.step()
            if self._tail is not None and self._tail._done(goal):
                self._judged(Tail._save)
                return
        raise AssertionError("the worker does not catch up")

    def _judged(self, action: Callable[[Tail], object]) -> None:
        """Do something with an open stream; what the worker would wait out has it opened again."""
        self.open()
        assert self._tail is not None
        try:
            action(self._tail)
        except StreamEnded:
            self._drop()
        except TriggersLost:
            self._drop()
            self._worker._triggers_lost = True
        except PositionLost as error:
            self._drop()
            self._worker._lose(error, opened=True)
        except (PyMongoError, CheckpointMoved) as error:
            self._drop()
            if judge(error) is not Verdict.TRANSIENT:
                raise

    def _drop(self) -> None:
        assert self._tail is not None
        _hand(self._tail)._source.close()
        _triggers(self._tail).close()
        self._tail = None

    def end(self) -> None:
        """Leave as a process that is killed does: nothing is saved, and the server ends what was open."""
        if self._tail is not None:
            self._drop()
        self.session.end_session()


def _slice(tail: Tail) -> None:
    _hand(tail).held = True
    try:
        tail._step()
    finally:
        _hand(tail).held = False


def _triggers(tail: Tail) -> TriggerTail:
    assert tail._triggers is not None
    return tail._triggers


def _hand(tail: Tail) -> ByHand:
    assert isinstance(tail._pipeline, ByHand)
    return tail._pipeline
