"""SIGTERM: whatever a worker is at, it has ended within five seconds, with 0, and the next one goes on from there."""

import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from distributary.embedded import EmbeddedMongo
from tests.conftest import Databases, embedded_or_skip, eventually
from tests.fault.deployment import Failpoint, databases_of, failing
from tests.fault.launcher import PATIENCE, Launcher, Worker
from tests.fault.load import MODULE, SETTINGS, Load
from tests.faulty import Fault, faulty
from tests.harness import Harness
from tests.pubsub import HOST_VARIABLE, PROJECT
from tests.servers import free_port

#: Seconds in which a worker has ended that is asked to: who runs it relies on them.
BOUND = 5.0

#: How long a command hangs that hangs, in seconds: longer than the bound.
HANGS = 8.0

ORDER = {"life": 1, "revision": 1, "customer": 1, "skus": ["a"]}

#: Computes for so many seconds for each document.
COMPUTES = """
    import time
    from distributary import DerivedCollection, transform

    by_customer = DerivedCollection("orders_by_customer")

    @transform("orders")
    def orders(order):
        until = time.monotonic() + ({seconds})
        while time.monotonic() < until:
            pass
        yield by_customer.record(order["_id"], {{"customer": order["customer"]}})
"""

#: A minute for one document, and a moment for each other one.
LARGE = COMPUTES.format(seconds='60 if order["_id"] == "large" else 0.005')


@dataclass
class Stage:
    """A worker that may be asked to leave, and its databases."""

    harness: Harness
    launcher: Launcher
    environment: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def worker(self) -> Iterator[Worker]:
        """Run a worker that tails."""
        with self.launcher.running(self.harness.environment | self.environment) as worker:
            worker.says("tailing")
            yield worker

    def insert(self, keys: Sequence[Any]) -> None:
        """Insert orders."""
        self.harness.databases.raw.orders.insert_many([{"_id": key, **ORDER} for key in keys])

    def rewrite(self, module: str) -> None:
        """Let the next worker run another module."""
        self.harness = replace(self.harness, modules={"load": module})

    def is_derived(self, key: Any) -> bool:
        """Whether an order is derived."""
        return self.harness.databases.derived.orders_by_customer.find_one({"_id": key}) is not None

    def position(self) -> Any:
        """Give the time of the saved position."""
        found = self.harness.databases.state.checkpoints.find_one({})
        assert found is not None
        return found["position"]["time"]

    def assert_goes_on(self) -> None:
        """Fail unless the next worker derives everything."""
        self.harness.catch_up()
        self.harness.assert_equal()


def leave(worker: Worker) -> None:
    """Ask a worker to stop; fails unless it has ended in time, with 0."""
    began = time.monotonic()
    worker.send(signal.SIGTERM)
    code = worker.ended()
    took = time.monotonic() - began
    assert code == 0, worker.said
    assert took < BOUND, worker.said


Make = Callable[..., Stage]


@pytest.fixture
def make(databases: Databases, tmp_path: Path, launcher: Launcher) -> Make:
    """Give what makes a stage of a module."""

    def made(module: str = MODULE, **settings: str) -> Stage:
        harness = Harness(databases, tmp_path / "modules", {"load": module}, {**SETTINGS, **settings})
        return Stage(harness, launcher)

    return made


def test_under_load(make: Make) -> None:
    """Under load the position is saved behind what was derived, and the next worker ends equal."""
    stage = make()
    load = Load(stage.harness.databases, seed=1)
    with load.live(), stage.worker() as worker:
        stage.insert(["mark"])
        at = stage.harness.databases.client.admin.command("ping")["operationTime"]
        eventually(lambda: stage.is_derived("mark"), PATIENCE)
        leave(worker)
        assert stage.position() >= at
    load.settle()
    stage.assert_goes_on()


def test_while_pubsub_hangs(make: Make) -> None:
    """A request that is not answered is left behind, and what it told of is told again."""
    topic = "told"
    module = MODULE.replace('"orders_by_customer"', f'"orders_by_customer", publish="{topic}"')
    stage = make(module, **{"pubsub.project": PROJECT})
    with faulty(f"projects/{PROJECT}/topics/{topic}") as service:
        stage.environment = {HOST_VARIABLE: service.host}
        service.faults = [Fault(grpc.StatusCode.UNAVAILABLE, seconds=HANGS, times=100)]
        with stage.worker() as worker:
            stage.insert(range(100))
            eventually(lambda: service.requests, PATIENCE)
            eventually(lambda: stage.is_derived(99), PATIENCE)
            leave(worker)
        service.faults = []
        assert stage.harness.databases.state.outbox.count_documents({}) == 100
        stage.assert_goes_on()
        told = {json.loads(message.data)["recordkey"] for message in service.of(topic)}
    assert len(told) == 100


@pytest.mark.parametrize("where", ["stream", "backfill"])
def test_while_a_transform_computes(make: Make, where: str) -> None:
    """A document that takes a minute is given up with what follows it."""
    stage = make(LARGE)
    keys = [*range(100), "large"]
    if where == "backfill":
        stage.insert(keys)
    with stage.worker() as worker:
        if where == "stream":
            stage.insert(keys)
        eventually(lambda: stage.is_derived(49), PATIENCE)
        leave(worker)
    stage.rewrite(COMPUTES.format(seconds="0"))
    stage.assert_goes_on()


def test_while_a_slice_is_derived(make: Make) -> None:
    """A slice of a job that takes longer than the bound is left between two documents."""
    stage = make(COMPUTES.format(seconds="0.05"), **{"worker.scan_documents": "2000"})
    stage.insert(range(600))
    with stage.worker() as worker:
        leave(worker)
        assert "job done" not in worker.said
        assert "batch given up" not in worker.said
    stage.rewrite(COMPUTES.format(seconds="0"))
    stage.assert_goes_on()


@contextmanager
def hanging(stage: Stage, commands: Sequence[str], mode: Any = "alwaysOn") -> Iterator[Failpoint]:
    """Let commands of workers hang; returns once they hang no longer."""
    fault = {"blockConnection": True, "blockTimeMS": int(1000 * HANGS)}
    with failing(stage.harness.databases.client, commands, mode, fault) as failpoint:
        yield failpoint


@pytest.mark.parametrize("commands", [["aggregate"], ["find", "getMore", "update"]], ids=", ".join)
def test_while_commands_hang(make: Make, commands: Sequence[str]) -> None:
    """What MongoDB does not answer is left: groups of rollups, or the stream, documents and the lease."""
    stage = make()
    with stage.worker() as worker:
        stage.insert(range(30))
        eventually(lambda: stage.is_derived(29), PATIENCE)
        with hanging(stage, commands) as failpoint:
            stage.insert(range(30, 60))
            stage.harness.databases.raw.orders.update_many({}, {"$inc": {"revision": 1}})
            eventually(lambda: failpoint.hits, PATIENCE)
            leave(worker)
    stage.assert_goes_on()


def test_while_a_commit_hangs(make: Make) -> None:
    """A transaction that was left open is ended by the next worker, who does not wait for it."""
    stage = make()
    with stage.worker() as worker, hanging(stage, ["commitTransaction"], {"times": 1}) as failpoint:
        stage.insert(range(30))
        eventually(lambda: failpoint.hits, PATIENCE)
        leave(worker)
        assert "batch given up" in worker.said
        stage.assert_goes_on()


@pytest.fixture
def single() -> Iterator[EmbeddedMongo]:
    """Give a replica set of one member that a test may leave without a primary."""
    with embedded_or_skip() as mongo:
        yield mongo


def test_while_there_is_no_primary(single: EmbeddedMongo, tmp_path: Path, launcher: Launcher) -> None:
    """While an election takes its time a worker leaves, without saving what cannot be saved."""
    with databases_of(single.uri) as databases:
        harness = Harness(databases, tmp_path / "modules", {"load": MODULE}, SETTINGS)
        stage = Stage(harness, launcher)
        with stage.worker() as worker:
            stage.insert(range(20))
            eventually(lambda: stage.is_derived(19), PATIENCE)
            with single.members[0].client() as member:
                member.admin.command("replSetStepDown", 60, secondaryCatchUpPeriodSecs=0, force=True)
                leave(worker)
                member.admin.command("replSetFreeze", 0)
        single.wait_until_writable()
        stage.assert_goes_on()


def test_before_mongodb_answers(make: Make) -> None:
    """A worker that waits for MongoDB from its start leaves as well."""
    stage = make()
    nowhere = {"DISTRIBUTARY_SOURCE__URI": f"mongodb://127.0.0.1:{free_port()}/?replicaSet=rs0"}
    with stage.launcher.running(stage.harness.environment | nowhere) as worker:
        eventually(lambda: catches(worker, signal.SIGTERM), PATIENCE)
        leave(worker)


def catches(worker: Worker, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{worker.pid}/status").read_text("ascii")
    (caught,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(int(caught, 16) >> (number - 1) & 1)
