"""Several workers of one name: one is active, and another goes on where it stopped, died or fell silent."""

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from distributary.change import CODEC
from tests.conftest import Databases, eventually
from tests.fault.launcher import PATIENCE, Launcher, Trap, Worker
from tests.fault.load import MODULE, SETTINGS, Load, Watch
from tests.harness import Harness

#: Seconds of the lease where a test waits for its end.
LEASE = 2.0

#: Seconds that a loaded machine is given on top of what is promised; a transaction that a holder left open would block
#: the next one for a minute.
SLACK = 25.0

STANDING_BY = "standing by"

#: Seconds within which a worker that is asked to stop has left, and in which a standby goes on, too; a lease that
#: outlasts them.
LEFT, AT_ONCE, LONG_LEASE = 5.0, 15.0, "60"

#: Seconds without a commit when a worker is replaced on a machine with other work; `benchmarks/rolling.py` measures it.
PAUSE = 15.0


@dataclass
class Stage:
    """Workers of one name over one database."""

    harness: Harness
    launcher: Launcher
    stack: ExitStack
    _marks: list[int] = field(default_factory=list)

    def lasts(self, seconds: str) -> None:
        """Give the lease of those who are started from here on another duration."""
        self.harness.settings = SETTINGS | {"worker.lease_seconds": seconds}

    def start(self, *traps: Trap, clock: float = 0) -> Worker:
        """Start a worker, which is killed at the end of the test if it still runs."""
        return self.stack.enter_context(self.launcher.running(self.harness.environment, *traps, clock=clock))

    def active(self) -> Worker:
        """Start a worker and wait until it has the lease and commits."""
        worker = self.start()
        self.derives()
        assert self.holds(worker), worker.said
        return worker

    def standby(self, clock: float = 0) -> Worker:
        """Start a worker beside an active one."""
        worker = self.start(clock=clock)
        worker.says(STANDING_BY)
        return worker

    def holds(self, worker: Worker) -> bool:
        """Whether this worker holds the lease."""
        assert worker.code is None, worker.said
        lease = self.harness.databases.state.leases.find_one({})
        return lease is not None and f":{worker.pid}:" in str(lease["holder"])

    def derives(self) -> float:
        """Insert a document and wait until it is derived; gives the seconds that it took."""
        began, mark = time.monotonic(), len(self._marks)
        self._marks.append(mark)
        self.harness.databases.raw.orders.insert_one(
            {"_id": f"mark {mark}", "life": 1, "revision": 1, "customer": 1, "skus": []}
        )
        derived = self.harness.databases.derived.orders_by_customer
        eventually(lambda: derived.find_one({"_id": f"mark {mark}"}) is not None, PATIENCE)
        return time.monotonic() - began

    @property
    def fence(self) -> int:
        """How often the lease was taken."""
        return int(self.checkpoint["fence"])

    @property
    def checkpoint(self) -> dict[str, Any]:
        """What was committed last."""
        found = self.harness.databases.state.checkpoints.find_one({})
        assert found is not None
        return found


@pytest.fixture
def stage(databases: Databases, tmp_path: Path, launcher: Launcher) -> Iterator[Stage]:
    """Give a place for workers."""
    settings = SETTINGS | {"worker.lease_seconds": str(LEASE)}
    harness = Harness(databases, tmp_path / "modules", {"load": MODULE}, settings)
    with ExitStack() as stack:
        yield Stage(harness, launcher, stack)
    for lease in databases.state.leases.find({"session": {"$ne": None}}):
        databases.client.admin.command("killSessions", [{"id": lease["session"]}], codec_options=CODEC)


def leave(worker: Worker) -> float:
    """Ask a worker to stop; gives the seconds until it had ended with 0."""
    began = time.monotonic()
    worker.send(signal.SIGTERM)
    assert worker.ended() == 0, worker.said
    return time.monotonic() - began


def test_of_three_workers_one_is_active(stage: Stage) -> None:
    """Workers that start at the same time agree on one; the others say that they stand by and write nothing."""
    stage.lasts(LONG_LEASE)
    workers = [stage.start() for _ in range(3)]
    stage.derives()
    eventually(lambda: sum(STANDING_BY in worker.said for worker in workers) == 2)
    assert sum(stage.holds(worker) for worker in workers) == 1
    assert sum("tailing" in worker.said for worker in workers) == 1
    assert stage.fence == 1
    for worker in workers:
        leave(worker)
    stage.harness.assert_equal()


def test_a_killed_worker_is_replaced_when_its_lease_expires(stage: Stage) -> None:
    """After a crash a standby goes on within the lease's duration and a moment, one after the other."""
    killed, *standbys = stage.active(), stage.standby(), stage.standby()
    for _ in standbys:
        killed.kill()
        assert stage.derives() < LEASE + SLACK
        killed = next(worker for worker in standbys if worker.code is None and stage.holds(worker))
    stage.harness.assert_equal()


def test_a_crash_costs_fifteen_seconds_with_the_default_lease(stage: Stage) -> None:
    """With the lease that is the default, another worker goes on within 15 seconds."""
    stage.lasts("10")
    killed, standby = stage.active(), stage.standby()
    killed.kill()
    assert stage.derives() < 15
    assert stage.holds(standby)


def test_a_worker_that_is_asked_to_stop_hands_over_at_once(stage: Stage) -> None:
    """SIGTERM ends the active worker with 0 and a saved position, and a standby goes on at once."""
    stage.lasts(LONG_LEASE)
    stopped, standby = stage.active(), stage.standby()
    began = time.monotonic()
    before = stage.harness.databases.client.admin.command("ping")["$clusterTime"]["clusterTime"]
    assert leave(stopped) < LEFT
    stage.derives()
    assert time.monotonic() - began < AT_ONCE
    assert stage.holds(standby)
    assert stage.checkpoint["position"]["time"] >= before
    assert leave(standby) < LEFT


def test_a_standby_that_is_asked_to_stop_leaves_at_once(stage: Stage) -> None:
    """SIGTERM ends a standby with 0, and the active worker does not notice."""
    stage.lasts(LONG_LEASE)
    active, standby = stage.active(), stage.standby()
    assert leave(standby) < LEFT
    stage.derives()
    assert stage.holds(active)
    assert stage.fence == 1


@pytest.mark.parametrize(
    "step",
    [
        "read",
        "derived",
        "before the transaction",
        "records written",
        "checkpoint written",
        "before the commit",
        "after the commit",
        "position saved",
    ],
)
def test_a_worker_that_was_stopped_for_longer_than_its_lease_steps_back(stage: Stage, step: str) -> None:
    """Paused (SIGSTOP) anywhere, even with an open transaction, a worker neither blocks the next one nor commits."""
    stage.harness.catch_up()
    paused = stage.start(Trap(step, 3, signal.SIGSTOP))
    load = Load(stage.harness.databases, seed=1)
    load.burst(100)
    eventually(lambda: paused.stopped, PATIENCE)
    with Watch(stage.harness).watching():
        other = stage.start()
        assert stage.derives() < LEASE + SLACK
        fence = stage.fence
        paused.send(signal.SIGCONT)
        paused.says(STANDING_BY)
        assert "stepped back" in paused.said or "lease lost" in paused.said
        load.burst(20)
        stage.derives()
        assert stage.holds(other)
        assert stage.fence == fence
        leave(other)
        stage.derives()
        assert stage.holds(paused)
        load.settle()
        leave(paused)
        stage.harness.catch_up()
    stage.harness.assert_equal()


def test_a_lease_that_cannot_be_renewed_is_given_up(stage: Stage) -> None:
    """While the lease cannot be written for its whole duration nobody is active; then someone is again."""
    worker = stage.active()
    with failing(stage, ["update", "findAndModify"], "leases"):
        worker.says("lease lost")
        worker.says("trying again")
    stage.derives()
    assert stage.holds(worker)
    assert stage.fence == 2
    assert leave(worker) < LEFT
    stage.harness.assert_equal()


def test_a_lease_that_is_renewed_in_time_again_is_kept(stage: Stage) -> None:
    """A renewal that fails is tried again, and the worker goes on meanwhile."""
    stage.lasts("20")
    worker = stage.active()
    with failing(stage, ["update"], "leases"):
        worker.says("lease not renewed")
        stage.derives()
    stage.derives()
    assert stage.fence == 1
    assert "lease lost" not in worker.said


@contextmanager
def failing(stage: Stage, commands: list[str], collection: str) -> Iterator[None]:
    """Let commands on one collection of the state database fail."""
    admin = stage.harness.databases.client.admin
    data = {
        "failCommands": commands,
        "errorCode": 11601,
        "namespace": f"{stage.harness.databases.state.name}.{collection}",
    }
    admin.command({"configureFailPoint": "failCommand", "mode": "alwaysOn", "data": data})
    try:
        yield
    finally:
        admin.command({"configureFailPoint": "failCommand", "mode": "off"})


@pytest.mark.parametrize("hours", [-10, 10])
def test_only_the_clock_of_the_server_counts(stage: Stage, hours: int) -> None:
    """A machine whose clock is hours wrong neither takes a lease that is held nor lets go of its own."""
    active, wrong = stage.active(), stage.standby(clock=hours * 3600)
    eventually(lambda: _renewals(stage) > 2 * LEASE)
    assert stage.holds(active)
    active.kill()
    assert stage.derives() < LEASE + SLACK
    standby = stage.standby()
    eventually(lambda: _renewals(stage) > 2 * LEASE)
    assert stage.holds(wrong)
    assert STANDING_BY in standby.said
    assert stage.fence == 2


def _renewals(stage: Stage) -> float:
    """Give the seconds by which the lease was extended since it was taken."""
    lease = stage.harness.databases.state.leases.find_one({})
    assert lease is not None
    return float((lease["expires"] - lease["taken_at"]).total_seconds())


def test_two_workers_are_replaced_one_by_one_under_load(stage: Stage) -> None:
    """A rolling replacement pauses what is derived for a moment each time, and loses and repeats nothing."""
    stage.lasts(LONG_LEASE)
    load = Load(stage.harness.databases, seed=2)
    stage.harness.catch_up()
    old = [stage.active(), stage.standby()]
    with Watch(stage.harness).watching(), load.live(), pauses(stage) as seconds:
        for worker in old:
            stage.standby()
            leave(worker)
            stage.derives()
    assert len(seconds) > 10
    print(f"longest pause: {max(seconds):.2f} s")  # noqa: T201 - shown when the test fails
    assert max(seconds) < PAUSE
    load.settle()
    stage.derives()
    eventually(lambda: stage.harness.derived() == stage.harness.recomputed(), PATIENCE)
    assert stage.fence in {3, 4}


@contextmanager
def pauses(stage: Stage) -> Iterator[list[float]]:
    """Give the seconds between commits, once what is done inside has ended."""
    stop, found = Event(), list[float]()

    def look() -> None:
        revision, since = stage.checkpoint["revision"], time.monotonic()
        while not stop.wait(0.01):
            now = stage.checkpoint["revision"]
            if now != revision:
                found.append(time.monotonic() - since)
                revision, since = now, time.monotonic()

    thread = Thread(target=look, name="pauses")
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


def test_verbs_beside_a_running_worker_do_not_disturb_it(stage: Stage) -> None:
    """A verb ends with 0 and leaves the lease where it is."""
    stage.lasts(LONG_LEASE)
    worker = stage.active()
    for verb in ("status", "verify", "dead-letters list", "check"):
        asked = stage.launcher.start(stage.harness.environment, verb=verb.split())
        assert asked.ended() == 0, asked.said
        stage.derives()
    assert stage.holds(worker)
    assert stage.fence == 1


@pytest.mark.parametrize("step", ["before the transaction", "repaired"])
def test_work_that_was_handed_over_survives_its_worker(stage: Stage, step: str) -> None:
    """`verify --repair` ends well although the worker that repairs is killed: the next holder goes on."""
    stage.harness.databases.raw.orders.insert_many(
        [{"_id": n, "life": 1, "revision": 1, "customer": n, "skus": ["a"]} for n in range(120)]
    )
    stage.harness.catch_up()
    stage.harness.databases.derived.order_lines.update_many({}, {"$set": {"sku": "changed by hand"}})
    worker = stage.start(Trap(step, 2 if step == "before the transaction" else 1))
    eventually(lambda: stage.holds(worker), PATIENCE)
    repair = stage.launcher.start(stage.harness.environment, verb=["verify", "--repair"])
    assert worker.ended() == -signal.SIGKILL, repair.said
    stage.start()
    assert repair.ended() == 0, repair.said
    stage.harness.assert_equal()
