"""Rollups beside the stream: how often pending groups are read, what is committed, and which jobs are asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from pymongo.errors import AutoReconnect, OperationFailure

from distributary.engine.begin import rollup_jobs
from distributary.engine.commit import Committer
from distributary.engine.rollups import GROUPS, LOOK_SECONDS, PAUSE, RETRY_SECONDS, Draining, rollup_job
from distributary.ports.records import Behind
from distributary.ports.rollups import Drained, Group, PendingGroup
from distributary.state import Job, JobKind
from tests.conftest import eventually


@dataclass
class Clock:
    """A clock that is set by hand."""

    now: float = 0.0

    def __call__(self) -> float:
        """Give the time."""
        return self.now


@dataclass
class Reader:
    """Gives what it is told to, and takes so many seconds for it."""

    clock: Clock
    replies: list[tuple[list[Drained], Behind] | Exception] = field(default_factory=list)
    takes: float = 0.0
    asked: list[tuple[Behind, int]] = field(default_factory=list)

    def read(self, after: Behind, limit: int) -> tuple[list[Drained], Behind]:
        """Give the next reply; nothing is pending when there is none left."""
        self.asked.append((after, limit))
        self.clock.now += self.takes
        reply = self.replies.pop(0) if self.replies else ([], ())
        if isinstance(reply, Exception):
            raise reply
        return reply


@dataclass
class Settled:
    """Notes what is committed."""

    marks: int = 0
    groups: list[Any] = field(default_factory=list)

    def settle(self, drained: Sequence[Drained]) -> None:
        """Commit groups."""
        self.groups += [each.pending.group.key for each in drained]


@dataclass
class Bench:
    """Draining, with a reader, a committer and a clock of the test's."""

    clock: Clock = field(default_factory=Clock)
    settled: Settled = field(default_factory=Settled)

    def __post_init__(self) -> None:
        self.reader = Reader(self.clock)
        self.draining = Draining(self.reader, cast("Committer", self.settled), self.clock)

    def step(self, *, idle: bool) -> None:
        """Take a step, and wait for what is read."""
        self.draining.step(idle=idle)
        thread = self.draining._thread
        eventually(lambda: thread is None or not thread.is_alive())


def drained(*keys: Any) -> list[Drained]:
    """Give groups that were computed."""
    return [Drained(PendingGroup(Group("r", key), 1, 1), {"_id": key}) for key in keys]


def test_it_reads_until_nothing_is_pending() -> None:
    """A pass goes on behind its last group; only one that found nothing is the last."""
    bench = Bench()
    bench.reader.replies = [(drained(1, 2), (2,)), (drained(3), ()), ([], ())]
    for _ in range(5):
        bench.step(idle=True)
    assert bench.settled.groups == [1, 2, 3]
    assert bench.reader.asked == [((), GROUPS), ((2,), GROUPS), ((), GROUPS)]
    assert bench.draining.is_done
    assert not bench.draining.is_reading


def test_it_looks_again_when_something_became_pending_or_a_minute_went_by() -> None:
    """What cannot be computed is looked at now and then, what was touched at once."""
    bench = Bench()
    for _ in range(3):
        bench.step(idle=True)
    assert len(bench.reader.asked) == 1
    bench.settled.marks += 1
    assert not bench.draining.is_done
    for _ in range(3):
        bench.step(idle=True)
    assert len(bench.reader.asked) == 2
    bench.clock.now += LOOK_SECONDS
    for _ in range(3):
        bench.step(idle=True)
    assert len(bench.reader.asked) == 3


def test_it_leaves_the_stream_its_time() -> None:
    """While changes keep coming it pauses for a multiple of what a read took, and not at all without any."""
    bench = Bench()
    bench.reader.takes = 2.0
    bench.reader.replies = [(drained(n), ()) for n in range(10)]
    bench.step(idle=False)
    bench.step(idle=False)
    assert len(bench.reader.asked) == 1
    bench.clock.now += 2.0 * PAUSE - 0.1
    bench.step(idle=False)
    assert len(bench.reader.asked) == 1
    bench.clock.now += 0.1
    bench.step(idle=False)
    assert len(bench.reader.asked) == 2
    bench.step(idle=True)
    assert len(bench.reader.asked) == 3


def test_a_read_that_fails_is_repeated_with_fewer_groups() -> None:
    """What passes by itself is tried again a moment later, from the beginning."""
    bench = Bench()
    bench.reader.replies = [(drained(1), (1,)), AutoReconnect("gone"), (drained(2), ())]
    for _ in range(3):
        bench.step(idle=False)
    assert [limit for _, limit in bench.reader.asked] == [GROUPS, GROUPS]
    bench.clock.now += RETRY_SECONDS
    bench.step(idle=False)
    assert bench.reader.asked[-1] == ((), GROUPS // 2)


def test_a_read_that_fails_for_good_is_raised() -> None:
    """What does not pass by itself ends the worker, as it does elsewhere."""
    bench = Bench()
    bench.reader.replies = [OperationFailure("not allowed", 13)]
    bench.step(idle=True)
    with pytest.raises(OperationFailure):
        bench.step(idle=True)


def test_without_rollups_nothing_is_read() -> None:
    """A worker without rollups is done with them."""
    draining = Draining(None, cast("Committer", Settled()))
    draining.step(idle=True)
    assert draining.is_done
    assert not draining.is_reading


def test_what_is_new_or_changed_is_built_once() -> None:
    """A job is asked for when none is open; one that repairs some groups builds nothing."""
    plugged, built = {"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "other"}
    jobs = rollup_jobs(plugged, built, ())
    assert [(job.kind, job.source, job.reason) for job in jobs] == [
        (JobKind.ROLLUP, "b", "changed definition"),
        (JobKind.ROLLUP, "c", "new rollup"),
    ]
    known: list[Job] = [jobs[0], rollup_job("c", "repair", ["x"])]
    assert [job.source for job in rollup_jobs(plugged, built, known)] == ["c"]
