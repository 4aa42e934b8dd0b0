"""SIGKILL and outages while events are published: who applies them ends with what is derived."""

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from threading import Event
from typing import Any

import grpc
import pytest

from distributary.operate.rebuild import rebuild
from distributary.store.jobs import Jobs
from tests.conftest import SOAK, Databases, eventually
from tests.fault.launcher import PATIENCE, Launcher, Trap, Worker
from tests.fault.load import MODULE, SETTINGS, Load
from tests.faulty import Fault, FaultyPubSub, faulty
from tests.harness import Harness
from tests.pubsub import HOST_VARIABLE, PROJECT, Emulator, Received, emulator_of_the_module

__all__ = ["emulator_of_the_module"]

#: Kills at one step, and at random moments.
KILLS_AT_A_STEP, KILLS_AT_RANDOM = 1 * SOAK, 4 * SOAK

#: Operations between two kills.
BURST = 80

#: Seconds after which a random kill comes at the latest, counted from the moment when the lease is held.
LATEST = 0.8

STEPS = ["page read", "page sent", "before a page is removed", "page removed"]

TELLING_STEPS = [
    "keys kept",
    "before a swap",
    "after a swap",
    "rebuilt",
    "what differs told",
    "events written",
]

CODES = [
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.ABORTED,
]

PUBLISHED = ["orders_by_customer", "order_lines", "orders_by_code", "customer"]

Document = dict[str, Any]


def module(topic: str) -> str:
    """Give the load's module, which tells a topic of every record and of every change of an order."""
    code = MODULE.replace("import DerivedCollection,", "import DerivedCollection, Publish,")
    for name in PUBLISHED:
        code = code.replace(f'DerivedCollection("{name}"', f'DerivedCollection("{name}", publish="{topic}"')
    event = f'yield Publish("{topic}", {{"of": change.key}}, ordering_key=str(change.key))'
    return code.replace('    @transform("orders")\n', f'        {event}\n\n    @transform("orders")\n', 1)


@dataclass
class Subscriber:
    """Applies events in the order in which they arrive, whatever they say, and notes what may never be seen."""

    applied: dict[str, dict[str, Document]] = field(default_factory=dict)
    changes: dict[str, list[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    repeated: int = 0
    _taken: int = 0
    _seen: dict[tuple[str, str, str], bytes] = field(default_factory=dict)
    _newest: dict[tuple[str, str], str] = field(default_factory=dict)
    _ids: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def take(self, messages: Sequence[Received]) -> None:
        """Apply those of the messages that came behind what was applied before."""
        for message in messages[self._taken :]:
            self._take(message, json.loads(message.data))
        self._taken = len(messages)

    def _take(self, message: Received, event: Document) -> None:
        is_record = event["type"] != "distributary.event"
        key, place = (
            (event["recordkey"], event["sequence"]) if is_record else (event["subject"], event["position"])
        )
        if message.ordering_key != event["subject"]:
            self.faults.append(f"ordering key {message.ordering_key!r} of {event}")
        self._is_same(event)
        self._is_in_order(event["source"], key, place, message.data)
        if is_record:
            self._apply(event, key)

    def _is_same(self, event: Document) -> None:
        """Note it when two different things have one id."""
        told = (event["source"], event["subject"], json.dumps(event.get("data")))
        if self._ids.setdefault(event["id"], told) != told:
            self.faults.append(f"one id, two events: {event} and {self._ids[event['id']]}")

    def _is_in_order(self, source: str, key: str, place: str, data: bytes) -> None:
        """Note it when something new comes behind what is newer, or what is repeated is not the same."""
        known = self._seen.get((source, key, place))
        if known is not None:
            self.repeated += 1
            if known != data:
                self.faults.append(f"repeated as another event: {known!r} and {data!r}")
            return
        self._seen[source, key, place] = data
        if place <= self._newest.get((source, key), ""):
            self.faults.append(f"late: {data!r} behind {self._newest[source, key]}")
        self._newest[source, key] = place
        if "sequence" not in json.loads(data):
            self.changes.setdefault(key, []).append(place)

    def _apply(self, event: Document, key: str) -> None:
        records = self.applied.setdefault(event["source"].rpartition("/")[2], {})
        if event["type"] == "distributary.record.deleted":
            records.pop(key, None)
        else:
            records[key] = event["data"]


#: Gives everything that has arrived, in its order.
Arrived = Callable[[], Sequence[Received]]


@dataclass
class Stage:
    """A worker that publishes a load, and who applies what arrives."""

    harness: Harness
    launcher: Launcher
    load: Load
    host: str
    arrived: Arrived
    subscriber: Subscriber = field(default_factory=Subscriber)

    def worker(self, *traps: Trap) -> Any:
        """Run a worker as a process."""
        environment = self.harness.environment | {HOST_VARIABLE: self.host}
        return self.launcher.running(environment, *traps)

    def kill_at(self, step: str, number: int) -> None:
        """Start a worker and see it die at a step."""
        with self.worker(Trap(step, number)) as worker:
            assert worker.ended() == -signal.SIGKILL, worker.said

    def kill_after(self, seconds: float) -> None:
        """Start a worker and kill it so many seconds after it has got the lease."""
        with self.worker() as worker:
            eventually(lambda: self.holds(worker), PATIENCE)
            Event().wait(seconds)

    def holds(self, worker: Worker) -> bool:
        """Whether a worker has the lease."""
        assert worker.code is None, worker.said
        lease = self.harness.databases.state.leases.find_one({})
        return lease is not None and f":{worker.pid}:" in str(lease["holder"])

    def assert_told(self) -> None:
        """Let everything be derived and published, and fail unless it was told as it is, in order."""
        self.load.settle()
        self.harness.catch_up()
        self.harness.assert_equal()
        assert self.harness.databases.state.outbox.count_documents({}) == 0
        eventually(self.is_told, PATIENCE)
        assert not self.subscriber.faults, "\n".join(self.subscriber.faults[:10])

    def is_told(self) -> bool:
        """Whether who applies the events has what is derived, and every change of an order."""
        self.subscriber.take(self.arrived())
        derived = self.harness.databases.derived
        same = all(self._applied(name) == _stored(derived[name].find({}, {"_src": 0})) for name in PUBLISHED)
        return same and self.subscriber.changes == self._changes()

    def _applied(self, name: str) -> dict[str, Document]:
        return _stored(self.subscriber.applied.get(name, {}).values())

    def _changes(self) -> dict[str, list[str]]:
        """Give the changes of each order, from the audit trail, which has each once."""
        found: dict[str, list[str]] = {}
        for each in self.harness.databases.derived.audit.find().sort("_id", 1):
            found.setdefault(str(each["of"]), []).append(each["_id"])
        return found


def _stored(documents: Any) -> dict[str, Document]:
    return {repr(each["_id"]): each for each in documents}


def staged(
    databases: Databases, folder: Path, launcher: Launcher, topic: str, host: str, arrived: Arrived
) -> Stage:
    """Give a worker that has published a load."""
    settings = {**SETTINGS, "pubsub.project": PROJECT}
    harness = Harness(databases, folder / "modules", {"load": module(topic)}, settings)
    load = Load(databases, seed=1)
    stage = Stage(harness, launcher, load, host, arrived)
    harness.catch_up()
    load.burst(BURST)
    stage.assert_told()
    return stage


class Pulling:
    """What arrives on a topic of the emulator."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator
        self._received: list[Received] = []
        self.topic = emulator.topic()
        self.subscribe()

    def subscribe(self) -> None:
        """Subscribe to what is published from now on."""
        self._subscription = self._emulator.subscribe(self.topic)

    def arrived(self) -> Sequence[Received]:
        """Give all that has arrived so far."""
        if count := self._subscription.pull():
            self._received += self._subscription.received[-count:]
        return self._received


@pytest.fixture
def pulling(emulator: Emulator) -> Pulling:
    """Give a topic of the test's own."""
    return Pulling(emulator)


@pytest.fixture
def stage(
    databases: Databases, tmp_path: Path, launcher: Launcher, emulator: Emulator, pulling: Pulling
) -> Stage:
    """Give a worker that publishes to the emulator."""
    return staged(databases, tmp_path, launcher, pulling.topic, emulator.host, pulling.arrived)


@pytest.fixture
def service() -> Iterator[FaultyPubSub]:
    """Give a Pub/Sub that fails on demand, and keeps what it has taken."""
    with faulty(f"projects/{PROJECT}/topics/told") as service:
        yield service


@pytest.fixture
def faulty_stage(databases: Databases, tmp_path: Path, launcher: Launcher, service: FaultyPubSub) -> Stage:
    """Give a worker that publishes there."""
    return staged(databases, tmp_path, launcher, "told", service.host, lambda: service.of("told"))


def test_killed_while_it_publishes(stage: Stage) -> None:
    """Killed at any step, a worker publishes again what was not removed, and nothing new behind what is newer."""
    for kill in range(KILLS_AT_A_STEP):
        for step in STEPS:
            stage.load.burst(BURST)
            stage.kill_at(step, 1 + kill % 2)
    stage.assert_told()
    assert stage.subscriber.repeated


def test_killed_at_random_moments(stage: Stage) -> None:
    """Whatever was under way, nothing is lost, and nothing is told that is not so."""
    random = Random(2)
    for _ in range(KILLS_AT_RANDOM):
        stage.load.burst(BURST)
        stage.kill_after(random.uniform(0, LATEST))
    stage.assert_told()


def test_a_worker_wakes_behind_its_successor(stage: Stage) -> None:
    """Stopped with a page that it has sent, it repeats at most what was told before, and steps back."""
    stage.load.burst(BURST)
    with stage.worker(Trap("before a page is removed", 1, signal.SIGSTOP)) as zombie:
        eventually(lambda: zombie.stopped, PATIENCE)
        stage.load.burst(BURST)
        stage.harness.catch_up()
        with stage.harness.running():
            zombie.send(signal.SIGCONT)
            stage.load.burst(BURST)
            eventually(lambda: "lease lost" in zombie.said or "stepped back" in zombie.said, PATIENCE)
    stage.assert_told()


def test_pubsub_is_away_and_comes_back(stage: Stage, pulling: Pulling, emulator: Emulator) -> None:
    """Derived collections stay current in the meantime; what was not confirmed arrives afterwards, in order."""
    emulator.stop(signal.SIGKILL)
    with stage.worker() as worker:
        stage.load.burst(BURST)
        stage.load.settle()
        worker.says("not published")
        eventually(lambda: stage.harness.derived() == stage.harness.recomputed(), PATIENCE)
        worker.send(
            signal.SIGSTOP
        )  # the emulator forgets topics, and must have a subscriber before it is published to
        emulator.start()
        emulator.topic(pulling.topic)
        pulling.subscribe()
        worker.send(signal.SIGCONT)
        eventually(stage.is_told, PATIENCE)
    stage.assert_told()


def other(code: str) -> str:
    """Give code by which some records stay as they are, and others change, come and go."""
    for before, after in (
        ('order["skus"], start=1', 'order["skus"][:1], start=1'),
        ('by_code.record(order["code"]', 'by_code.record("new " + order["code"]'),
        ('"customer": order["customer"]', '"customer": order["customer"] if order["_id"] % 2 else "even"'),
        ('customer.section(order["code"], "coded"', 'customer.section(order["code"], "encoded"'),
    ):
        assert before in code
        code = code.replace(before, after)
    return code


def test_killed_while_a_rebuild_is_told(faulty_stage: Stage) -> None:
    """Killed before, in and behind the swap, and while it is told, a rebuild ends with what subscribers have."""
    stage = faulty_stage
    codes = [other(module("told")), module("told")]
    for number, step in enumerate(TELLING_STEPS):
        stage.load.burst(BURST // 8)  # what it touches is derived by the other code before the rebuild
        stage.harness.write({"load": codes[number % 2]})
        job = rebuild(stage.harness.registry, ["orders", "group_members"], publish=True)
        Jobs(stage.harness.databases.state, "default").ask([job])
        stage.kill_at(step, 1)
        stage.assert_told()
    told = {"kind": "publish", "done": True, "documents": {"$gt": 0}}
    assert stage.harness.databases.state.jobs.count_documents(told) > 2 * len(TELLING_STEPS)
    assert stage.harness.databases.state.jobs.count_documents({"done": False}) == 0


@pytest.mark.parametrize("seed", range(2 * SOAK))
def test_requests_fail_and_workers_die(faulty_stage: Stage, service: FaultyPubSub, seed: int) -> None:
    """Requests that fail, taken or not, slow answers and a server that dies between kills change nothing of it."""
    random = Random(seed)
    for _ in range(KILLS_AT_RANDOM):
        faulty_stage.load.burst(BURST)
        service.faults = [
            Fault(
                random.choice(CODES),
                times=random.randint(1, 3),
                accepted=random.random() < 0.5,
                seconds=random.choice([0, 0, 0.05]),
                when=lambda _: random.random() < 0.3,
            )
            for _ in range(6)
        ]
        faulty_stage.kill_after(random.uniform(0, LATEST))
        if random.random() < 0.5:
            service.stop()
            service.start()
    service.faults = [Fault(accepted=True, dies=True)]
    with faulty_stage.worker() as worker:
        faulty_stage.load.burst(BURST)
        faulty_stage.load.settle()
        worker.says("not published")
        service.stop()
        service.start()
        eventually(faulty_stage.is_told, PATIENCE)
    faulty_stage.assert_told()
    assert faulty_stage.subscriber.repeated
