"""Rebuilds, replays and backfills under live load and SIGKILL: each ends equal, and nothing is torn or goes back."""

import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from distributary.change import Position
from distributary.engine.ahead import DEPTH
from distributary.source import deployment
from distributary.state import Job, JobKind
from distributary.store.checkpoints import Checkpoints
from distributary.store.jobs import Jobs
from tests.conftest import SOAK, Databases, eventually
from tests.fault.launcher import PATIENCE, Launcher
from tests.fault.load import MODULE, SETTINGS, Load, Trail, Watch
from tests.fault.test_kill import BURST, Stage
from tests.harness import Harness

#: Slices that are derived and not committed, at most: those that wait, one in hand, and one in its transaction.
AHEAD = DEPTH + 2

#: Kills at random moments of one rebuild, replay or backfill, and at one step.
KILLS, KILLS_AT_A_STEP = 8 * SOAK, 2 * SOAK

#: Seconds after which a random kill comes at the latest, counted from the moment when the lease is held.
LATEST = 0.6

STEPS = [
    "shadow made",
    "shadow filled",
    "shadow verified",
    "before a swap",
    "after a swap",
    "rebuilt",
]

#: The code that is deployed before a rebuild: the same records with another field.
CHANGED = MODULE.replace('{"order": order["_id"], ', '{"order": order["_id"], "form": "new", ')


@pytest.fixture
def stage(databases: Databases, tmp_path: Path, launcher: Launcher) -> Stage:
    """Give a worker that has caught up with a load, and changed code."""
    settings = {**SETTINGS, "worker.scan_documents": "20"}
    harness = Harness(databases, tmp_path / "modules", {"load": MODULE}, settings)
    load = Load(databases, seed=1)
    load.burst(BURST)
    harness.catch_up()
    harness.write({"load": CHANGED})
    return Stage(harness, launcher, load, Watch(harness), Trail(harness))


def rebuild() -> Job:
    """Give the job that rebuilds all collections of the orders, and of the members who are in one of them."""
    return Job(None, JobKind.REBUILD, "members", ("group_members", "orders"), "test", keep=True)


def replay(stage: Stage, since: Position) -> Job:
    """Give the job that replays everything since a position."""
    now = deployment.head(stage.harness.databases.client)
    names = ("links", "members", "orders")
    return Job(None, JobKind.REPLAY, "orders", names, "test", after=(since.token,), span=(since.time, now))


def ensure(stage: Stage, job: Job) -> None:
    """Ask for a job unless one of its kind is open."""
    jobs = Jobs(stage.harness.databases.state, "default")
    if not any(each.kind is job.kind for each in jobs.open()):
        jobs.ask([job])


def assert_clean(stage: Stage) -> None:
    """Everything is equal to a recomputation, no shadow is left, and no job failed."""
    stage.assert_equal()
    databases = stage.harness.databases
    names = databases.derived.list_collection_names() + databases.state.list_collection_names()
    assert not [name for name in names if "__rebuild_" in name]
    assert [each["failure"] for each in databases.state.jobs.find() if each["failure"]] == []


def test_a_rebuild_that_is_killed_at_random_moments(stage: Stage) -> None:
    """Killed 20 times under live load and gone on with, a rebuild ends equal.

    Rollups are computed behind it.
    """
    random = Random(1)
    stage.watch.computed = False
    with stage.watch.watching():
        with stage.load.live():
            for _ in range(KILLS):
                ensure(stage, rebuild())
                stage.kill_after(random.uniform(0, LATEST))
        assert_clean(stage)


@pytest.mark.parametrize("step", STEPS)
def test_a_rebuild_that_is_killed_at_a_step(stage: Stage, step: str) -> None:
    """Killed between any two things that it does, a rebuild ends equal.

    Between two swaps, documents that are parked may be shown in two states. Rollups are computed behind them.
    """
    stage.watch.computed = False
    stage.watch.torn = "swap" not in step
    with stage.watch.watching():
        for _ in range(KILLS_AT_A_STEP):
            stage.load.burst(BURST)
            ensure(stage, rebuild())
            stage.kill_at(step)
        assert_clean(stage)


def test_a_replay_that_is_killed_at_random_moments(stage: Stage) -> None:
    """Killed under live load and gone on with, a replay of everything takes nothing back and ends equal."""
    checkpoint = Checkpoints(stage.harness.databases.state).load("default")
    assert checkpoint is not None
    random = Random(2)
    with stage.watch.watching():
        with stage.load.live():
            for _ in range(KILLS):
                ensure(stage, replay(stage, checkpoint.position))
                stage.kill_after(random.uniform(0, LATEST))
        stage.harness.catch_up()
        ensure(stage, replay(stage, checkpoint.position))
        assert_clean(stage)


def test_a_backfill_that_is_killed_at_random_moments(
    databases: Databases, tmp_path: Path, launcher: Launcher
) -> None:
    """Killed again and again, a backfill goes on behind its last slice: what was read ahead is all that is repeated."""
    count, part, told = 8000, 25, tmp_path / "derived"
    told.touch()
    module = COUNTED.format(path=str(told))
    settings = {**SETTINGS, "worker.scan_documents": str(part), "worker.lease_seconds": "0.4"}
    harness = Harness(databases, tmp_path / "modules", {"load": module}, settings)
    databases.raw.orders.insert_many([{"_id": number} for number in range(count)])
    harness.catch_up()
    told.write_text("")
    jobs, random = Jobs(databases.state, "default"), Random(3)
    (job,) = jobs.ask([Job(None, JobKind.BACKFILL, "orders", ("orders",), "test", sweep=True)])
    kills = 0

    def is_done() -> bool:
        found = jobs.get(job.id)
        return found is not None and found.done

    def goes_on(documents: int) -> Callable[[], bool]:
        until = lines(told) + documents
        return lambda: lines(told) >= until or is_done()

    while kills < 10 and not is_done():
        has_gone_on = goes_on(random.randint(300, 600))
        with launcher.running(harness.environment) as worker:
            eventually(has_gone_on, PATIENCE)
        assert worker.code == -signal.SIGKILL, worker.said
        kills += 1
    assert kills >= 3
    harness.catch_up()
    derived = Counter(told.read_text().split())
    harness.assert_equal()
    assert len(derived) == count
    assert derived.total() <= count + 2 * kills * AHEAD * part


def lines(path: Path) -> int:
    """Count the lines of a file."""
    return path.read_bytes().count(b"\n")


#: Each call is told to a file, which a kill does not lose.
COUNTED = """
    import os
    from distributary import DerivedCollection, transform

    records = DerivedCollection("records")
    told = os.open({path!r}, os.O_WRONLY | os.O_APPEND)

    @transform("orders")
    def orders(order):
        os.write(told, f"{{order['_id']}}\\n".encode())
        yield records.record(order["_id"], {{"known": True}})
"""
