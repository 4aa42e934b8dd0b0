"""SIGKILL at every step of the worker's loop, and at random moments: derived always equals recomputed."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from random import Random, SystemRandom
from threading import Event

import pytest

from distributary.state import Job, JobKind
from distributary.store.jobs import Jobs
from tests.conftest import SOAK, Databases, eventually
from tests.fault.launcher import PATIENCE, Launcher, Trap, Worker
from tests.fault.load import MODULE, SETTINGS, Load, Trail, Watch
from tests.harness import Harness

#: Kills at one step, and at random moments of one load.
KILLS_AT_A_STEP, KILLS_AT_RANDOM = 4 * SOAK, 16 * SOAK

#: Operations between two kills.
BURST = 80

#: Seconds after which a random kill comes at the latest, counted from the moment when the lease is held.
LATEST = 0.4

#: Steps that come once in a run, in every batch, in the first job, in a job beside the stream (with the times at
#: which to kill), and when a parked document is tried again.
ONCE = ["lease taken", "fence raised"]
STREAM = [
    "read",
    "derived",
    "before the transaction",
    "before the records",
    "records written",
    "letters written",
    "checkpoint written",
    "before the commit",
    "after the commit",
    "after the transaction",
    "position saved",
]
FIRST = ["swept", "scanned", "stage ended", "job done"]
JOB = {"swept": [1, 2, 3], "scanned": [1, 2], "job done": [1], "after the transaction": [2, 4, 6, 8]}
RETRY = ["before a retry", "retried"]

#: Every so many kills a job is asked for.
JOB_EVERY = 3

#: Loads with random kills.
LOADS = 7

#: Repeats a load with the seed that a failed test printed.
SEED_VARIABLE = "DISTRIBUTARY_SEED"


@dataclass
class Stage:
    """A worker's databases under load, and the means to kill that worker."""

    harness: Harness
    launcher: Launcher
    load: Load
    watch: Watch
    trail: Trail | None = None

    def kill_at(self, step: str, number: int = 1) -> None:
        """Start a worker and see it die at a step."""
        worker = self.launcher.start(self.harness.environment, Trap(step, number))
        assert worker.ended() == -signal.SIGKILL, worker.said

    def kill_after(self, seconds: float) -> None:
        """Start a worker and kill it so many seconds after it has got the lease."""
        worker = self.launcher.start(self.harness.environment)
        eventually(lambda: self._holds(worker), PATIENCE)
        Event().wait(seconds)
        worker.kill()
        assert worker.code == -signal.SIGKILL, worker.said

    def _holds(self, worker: Worker) -> bool:
        assert worker.code is None, worker.said
        lease = self.harness.databases.state.leases.find_one({})
        return lease is not None and f":{worker.pid}:" in str(lease["holder"])

    def forget(self) -> None:
        """Forget how far the worker is, so that it begins with a job that sweeps and scans."""
        state = self.harness.databases.state
        state.checkpoints.drop()
        state.jobs.drop()
        self.trail = None

    def ask(self) -> None:
        """Ask for a job that sweeps and scans, ahead of what the stream still has to bring."""
        job = Job(None, JobKind.BACKFILL, "orders", ("orders",), "asked for", sweep=True)
        Jobs(self.harness.databases.state, "default").ask([job])

    def assert_equal(self) -> None:
        """Let every document be derived, and compare with a recomputation."""
        self.load.settle()
        self.harness.catch_up()
        self.harness.assert_equal()
        assert self.harness.databases.state.dead_letters.count_documents({}) == 0
        if self.trail is not None:
            self.trail.assert_complete()


@pytest.fixture
def stage(databases: Databases, tmp_path: Path, launcher: Launcher) -> Stage:
    """Give a worker that has caught up with a load."""
    return staged(databases, tmp_path, launcher, seed=1)


def staged(databases: Databases, folder: Path, launcher: Launcher, seed: int) -> Stage:
    """Give a worker that has caught up with the load of a seed."""
    harness = Harness(databases, folder / "modules", {"load": MODULE}, SETTINGS)
    load = Load(databases, seed)
    load.burst(BURST)
    harness.catch_up()
    return Stage(harness, launcher, load, Watch(harness), Trail(harness))


@pytest.mark.parametrize("step", ONCE + STREAM)
def test_killed_while_it_follows_the_stream(stage: Stage, step: str) -> None:
    """Killed at any step of a batch, a worker repeats what was not committed, and nothing else."""
    with stage.watch.watching():
        for kill in range(KILLS_AT_A_STEP):
            stage.load.burst(BURST)
            stage.kill_at(step, 1 if step in ONCE else 1 + kill % 3)
        stage.assert_equal()


@pytest.mark.parametrize("step", FIRST)
def test_killed_while_it_begins(stage: Stage, step: str) -> None:
    """Killed before everything is derived for the first time, a worker goes on with what it had asked for."""
    for _ in range(KILLS_AT_A_STEP):
        stage.load.burst(BURST)
        stage.forget()
        stage.kill_at(step, 2)
    stage.assert_equal()


@pytest.mark.parametrize("step", JOB)
def test_killed_while_it_does_a_job(stage: Stage, step: str) -> None:
    """Killed in a sweep or scan that is ahead of the stream, a worker goes on and takes nothing back."""
    with stage.watch.watching():
        for kill in range(KILLS_AT_A_STEP):
            stage.load.part(BURST)
            stage.ask()
            stage.kill_at(step, JOB[step][kill % len(JOB[step])])
        stage.assert_equal()


@pytest.mark.parametrize("step", RETRY)
def test_killed_while_it_tries_a_parked_document_again(stage: Stage, step: str) -> None:
    """A contested document whose owner left is derived, whenever the worker was killed in between."""
    orders = stage.harness.databases.raw.orders
    with stage.watch.watching():
        for kill in range(KILLS_AT_A_STEP):
            owner, rival = (
                {
                    "_id": f"{role} {kill}",
                    "code": f"k{kill}",
                    "revision": 1,
                    "life": 1,
                    "skus": [],
                    "customer": 1,
                }
                for role in ("owner", "rival")
            )
            orders.insert_one(owner)
            stage.harness.catch_up()
            orders.insert_one(rival)
            stage.harness.catch_up()
            orders.delete_one({"_id": owner["_id"]})
            stage.kill_at(step)
        stage.assert_equal()


@pytest.mark.parametrize("number", range(LOADS))
def test_killed_at_random_moments_of_a_live_load(
    databases: Databases, tmp_path: Path, launcher: Launcher, number: int
) -> None:
    """Killed again and again under load, a worker loses nothing, tears nothing and takes nothing back."""
    seed = int(os.environ.get(SEED_VARIABLE) or (number if SOAK == 1 else SystemRandom().getrandbits(32)))
    print(f"{SEED_VARIABLE}={seed}")  # noqa: T201 - shown when the test fails
    stage, random = staged(databases, tmp_path, launcher, seed), Random(seed)
    with stage.watch.watching():
        with stage.load.live():
            for kill in range(KILLS_AT_RANDOM):
                if kill % JOB_EVERY == 0:
                    stage.ask()
                stage.kill_after(random.uniform(0, LATEST))
        stage.assert_equal()
