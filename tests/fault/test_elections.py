"""Elections, restarts and outages of MongoDB: the worker waits, goes on by itself, and ends equal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import ConfigurationError, PyMongoError
from pymongo.write_concern import WriteConcern
from structlog.testing import capture_logs

from distributary.cli.failures import tell
from distributary.embedded import EmbeddedMongo, Member
from tests.conftest import SOAK, Databases, embedded_or_skip, eventually
from tests.fault.deployment import databases_of, serving
from tests.harness import CUSTOMERS, Harness

#: Operations of the load between two faults.
BETWEEN = 100

#: Faults in a row, under one load.
FAULTS = 3 * SOAK


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedMongo]:
    """Give a replica set of three members."""
    with embedded_or_skip(members=3, parameters={"enableTestCommands": "1"}) as mongo:
        yield mongo


@pytest.fixture
def single() -> Iterator[EmbeddedMongo]:
    """Give a replica set of one member that a test may stop."""
    with embedded_or_skip() as mongo:
        yield mongo


@pytest.fixture
def databases(cluster: EmbeddedMongo) -> Iterator[Databases]:
    """Give fresh databases on the three members."""
    cluster.wait_until_writable()
    with databases_of(cluster.uri) as fresh:
        yield fresh


@pytest.fixture
def harness(databases: Databases, tmp_path: Path) -> Harness:
    """Give a worker with orders, customers and rollups over both."""
    return Harness(databases, tmp_path / "modules", {"orders": CUSTOMERS})


class Load:
    """Someone who changes orders all the time, and whose operations are counted; faults make it try again."""

    def __init__(self, databases: Databases) -> None:
        self._orders = databases.raw.get_collection("orders", write_concern=WriteConcern("majority"))
        self._over = Event()
        self.done = 0

    @contextmanager
    def running(self) -> Iterator["Load"]:
        """Change orders beside the test."""
        thread = Thread(target=self._run, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._over.set()
            thread.join()

    def passes(self, operations: int) -> None:
        """Wait until so many more operations are done."""
        until = self.done + operations
        eventually(lambda: self.done >= until, 90)

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                self._change(self.done)
            except PyMongoError:
                continue
            self.done += 1

    def _change(self, number: int) -> None:
        key = number * 7 % 60
        changes: list[Callable[[], Any]] = [
            lambda: self._orders.replace_one({"_id": key}, _order(key, number % 4), upsert=True),
            lambda: self._orders.update_one({"_id": key}, {"$set": {"skus": ["u"] * (number % 3)}}),
            lambda: self._orders.delete_one({"_id": key - 1}),
        ]
        changes[number % len(changes)]()


def _order(number: int, lines: int) -> dict[str, Any]:
    return {"_id": number, "customer": f"c{lines}", "total": number, "skus": [f"s{n}" for n in range(lines)]}


def settled(harness: Harness) -> None:
    """Wait until derived equals recomputed; nothing may have been parked."""
    eventually(lambda: harness.derived() == harness.recomputed(), 90)
    assert harness.databases.state.dead_letters.count_documents({}) == 0


def primary(cluster: EmbeddedMongo) -> Member:
    """Give the member that is the primary, once there is one."""

    def leads(member: Member) -> bool:
        try:
            with member.client() as client:
                return bool(client.admin.command("hello")["isWritablePrimary"])
        except PyMongoError:
            return False

    found: list[Member] = []

    def looked() -> bool:
        found[:] = filter(leads, cluster.members)
        return bool(found)

    eventually(looked, 60)
    return found[0]


def step_down(cluster: EmbeddedMongo) -> None:
    """Make the primary step down, so that another member is elected."""
    member = primary(cluster)
    with member.client() as client:
        client.admin.command("replSetStepDown", 20, secondaryCatchUpPeriodSecs=10, force=True)


def test_step_downs_under_load(cluster: EmbeddedMongo, harness: Harness) -> None:
    """Each time the primary steps down the worker goes on behind the last change that it processed."""
    with serving(harness), Load(harness.databases).running() as load:
        for _ in range(FAULTS):
            load.passes(BETWEEN)
            step_down(cluster)
        load.passes(BETWEEN)
        load._over.set()
        settled(harness)


def test_killed_primaries_under_load(cluster: EmbeddedMongo, harness: Harness) -> None:
    """A primary that is killed and comes back costs an election, and no change."""
    with serving(harness), Load(harness.databases).running() as load:
        for _ in range(FAULTS):
            load.passes(BETWEEN)
            member = primary(cluster)
            member.kill()
            load.passes(BETWEEN)
            member.start()
            cluster.wait_until_writable()
        load._over.set()
        settled(harness)


def test_standbys_survive_an_election(cluster: EmbeddedMongo, harness: Harness) -> None:
    """Of two workers one works and one waits; both do so after an election, and the second takes over."""
    with Load(harness.databases).running() as load, serving(harness) as first:
        eventually(lambda: first.holder() is not None)
        with serving(harness) as second:
            load.passes(BETWEEN)
            step_down(cluster)
            load.passes(BETWEEN)
            holder = first.holder()
            assert holder is not None
            first.stop.set()
            eventually(lambda: (now := second.holder()) is not None and now.name != holder.name, 60)
            before = first.checkpoint()
            assert before is not None

            def taken_over() -> bool:
                now = second.checkpoint()
                return now is not None and now.position.time > before.position.time

            load.passes(BETWEEN)
            eventually(taken_over, 60)
            load._over.set()
            settled(harness)


def test_a_restarted_server(single: EmbeddedMongo, tmp_path: Path) -> None:
    """A server that is shut down, or killed, and started again is found again."""
    with databases_of(single.uri) as databases:
        harness = Harness(databases, tmp_path / "modules")
        with serving(harness), Load(databases).running() as load:
            for end in [single.members[0].stop, single.members[0].kill] * SOAK:
                load.passes(BETWEEN)
                end()
                single.members[0].start()
            load.passes(BETWEEN)
            load._over.set()
            settled(harness)


def test_a_deployment_that_is_away(single: EmbeddedMongo, tmp_path: Path) -> None:
    """While nothing answers the worker waits and says so; when the deployment is back it goes on."""
    with databases_of(f"{single.uri}&serverSelectionTimeoutMS=500") as databases:
        harness = Harness(databases, tmp_path / "modules")
        with capture_logs() as log, serving(harness), Load(databases).running() as load:
            load.passes(BETWEEN)
            single.members[0].stop()
            eventually(lambda: sum(line["event"] == "trying again" for line in log) >= 3)
            single.members[0].start()
            load.passes(BETWEEN)
            load._over.set()
            settled(harness)


def test_a_connection_to_a_member_in_transition(
    single: EmbeddedMongo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Connections that are made while a member is neither primary nor secondary are not kept for good."""
    with (
        databases_of(f"{single.uri}&directConnection=true") as databases,
        single.members[0].client() as client,
    ):
        harness = Harness(databases, tmp_path / "modules")
        databases.raw.orders.insert_one(_order(1, 2))
        client.admin.command("replSetStepDown", 60, force=True)
        client.admin.command({"replSetMaintenance": True})
        with capture_logs() as log, serving(harness):
            eventually(lambda: any(line["event"] == "trying again" for line in log))
            with MongoClient[Any](databases.uri) as own, own.start_session() as session:
                with pytest.raises(ConfigurationError) as told:
                    own.admin.command("ping", session=session)
                assert tell(told.value) == 3
                assert "changing its role.\n  cure: Run it again." in capsys.readouterr().err
            client.admin.command({"replSetMaintenance": False})
            client.admin.command("replSetFreeze", 0)
            settled(harness)
    assert any("Sessions are not supported" in line.get("error", "") for line in log)
