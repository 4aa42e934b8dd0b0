"""Commands that the server fails, every one that the worker sends: it recovers by itself, or says why not."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pymongo.errors import OperationFailure
from structlog.testing import capture_logs

from distributary.embedded import EmbeddedMongo
from tests.conftest import SOAK, Databases, embedded_or_skip, eventually
from tests.fault.deployment import Failpoint, databases_of, failing, serving
from tests.fault.launcher import Launcher
from tests.harness import CUSTOMERS, Harness

#: What passes by itself. Labels are left to the server, which adds those that belong to command and code.
PASSING: Mapping[str, Mapping[str, Any]] = {
    "closed connection": {"closeConnection": True},
    "NotWritablePrimary": {"errorCode": 10107},
    "InterruptedDueToReplStateChange": {"errorCode": 11602},
    "MaxTimeMSExpired": {"errorCode": 50},
    "ExceededTimeLimit": {"errorCode": 262},
    "slow": {"blockConnection": True, "blockTimeMS": 300},
}

CONFLICT = {"errorCode": 112}

#: Commands that a worker sends when it starts, and those that it goes on to send.
STARTING = [
    "hello",
    "replSetGetConfig",
    "listCollections",
    "createIndexes",
    "findAndModify",
    "aggregate",
    "find",
    "insert",
    "update",
    "commitTransaction",
]
WORKING = ["find", "getMore", "insert", "update", "delete", "commitTransaction"]

#: Failures in a row: one that the driver may hide by a second try, and one more than it hides.
ROWS = (1, 2)


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedMongo]:
    """Give a server of this module's own: a failpoint holds for everyone on it."""
    with embedded_or_skip(parameters={"enableTestCommands": "1"}) as mongo:
        yield mongo


@pytest.fixture
def databases(server: EmbeddedMongo) -> Iterator[Databases]:
    """Give fresh databases there."""
    with databases_of(server.uri) as fresh:
        yield fresh


@pytest.fixture
def harness(databases: Databases, tmp_path: Path) -> Harness:
    """Give a worker with orders, customers and rollups over both."""
    return Harness(databases, tmp_path / "modules", {"orders": CUSTOMERS})


def order(number: int, lines: int = 2) -> dict[str, Any]:
    """Give a raw order."""
    return {
        "_id": number,
        "customer": f"c{number % 3}",
        "total": number,
        "skus": [f"s{n}" for n in range(lines)],
    }


class Load:
    """Changes that make a worker send every command: it inserts, learns, reads, replaces and deletes."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.orders = harness.databases.raw.orders
        self.first = 0

    def change(self) -> None:
        """Insert, shrink, empty, move and delete some orders."""
        first, self.first = self.first, self.first + 10
        self.orders.insert_many([order(first + number) for number in range(10)])
        self.orders.update_one({"_id": first}, {"$set": {"skus": ["z"]}})
        self.orders.update_one({"_id": first + 1}, {"$set": {"skus": [], "code": first}})
        self.orders.replace_one({"_id": first + 2}, order(first + 2, 5))
        self.orders.delete_many({"_id": {"$in": [first - 1, first + 3]}})

    def settle(self) -> None:
        """Wait until derived equals recomputed; nothing may have been parked."""
        eventually(lambda: self.harness.derived() == self.harness.recomputed(), 60)
        assert self.harness.databases.state.dead_letters.count_documents({}) == 0

    def hit(self, failpoint: Failpoint, times: int) -> None:
        """Change orders until the failpoint was hit so often."""

        def enough() -> bool:
            self.change()
            return failpoint.hits >= times

        eventually(enough, 60)


#: Faults that each command meets; in `make soak` it meets all of them.
SOME = 2


def _faults(commands: list[str], faults: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    names = list(faults)
    return [
        pytest.param(each, faults[fault], id=f"{each} {fault}")
        for index, each in enumerate(commands)
        for place, fault in enumerate(names)
        if SOAK > 1 or (place - index) % len(names) < SOME
    ]


@pytest.mark.parametrize(("command", "fault"), _faults(STARTING, PASSING))
def test_a_worker_starts_though_a_command_fails(
    harness: Harness, command: str, fault: Mapping[str, Any]
) -> None:
    """Whatever fails while a worker starts and derives what is there, it tries again until it works."""
    load, client = Load(harness), harness.databases.client
    load.change()
    with failing(client, [command], {"times": 2}, fault) as failpoint, serving(harness):
        load.settle()
        assert failpoint.hits


@pytest.mark.parametrize(("command", "fault"), _faults(WORKING, PASSING))
def test_a_worker_goes_on_though_a_command_fails(
    harness: Harness, command: str, fault: Mapping[str, Any]
) -> None:
    """Whatever fails while a worker follows its source, it goes on by itself and ends equal."""
    load, client = Load(harness), harness.databases.client
    with serving(harness):
        load.change()
        load.settle()
        for times in ROWS:
            with failing(client, [command], {"times": times}, fault) as failpoint:
                load.hit(failpoint, times)
            load.settle()


@pytest.mark.parametrize("command", ["find", "insert", "update", "delete", "commitTransaction"])
def test_conflicts_in_a_transaction_are_repeated(harness: Harness, command: str) -> None:
    """A write conflict aborts the transaction, which is repeated until it comes through."""
    load, client = Load(harness), harness.databases.client
    with serving(harness):
        load.change()
        load.settle()
        for times in ROWS:
            with failing(client, [command], {"times": times}, CONFLICT) as failpoint:
                load.hit(failpoint, times)
            load.settle()


def test_an_abort_that_fails_harms_nothing(harness: Harness) -> None:
    """A transaction that can be neither written nor aborted is left to the server, and the batch repeated."""
    load, client = Load(harness), harness.databases.client
    with serving(harness):
        load.change()
        load.settle()
        with failing(
            client, ["insert", "abortTransaction"], {"times": 4}, {"closeConnection": True}
        ) as failpoint:
            load.hit(failpoint, 4)
        load.settle()


def test_everything_fails_now_and_then(harness: Harness) -> None:
    """A server that fails some commands at random, for a while, delays the worker and does not stop it."""
    load, client = Load(harness), harness.databases.client
    everything = sorted({*STARTING, *WORKING, "abortTransaction", "killCursors"} - {"hello"})
    with serving(harness):
        for fault in [*PASSING.values(), CONFLICT] * SOAK:
            with failing(client, everything, {"activationProbability": 0.03}, fault) as failpoint:
                load.hit(failpoint, 5)
        load.settle()


# --- what does not pass by itself ---------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["find", "getMore", "insert"])
def test_a_missing_privilege_ends_the_worker(harness: Harness, launcher: Launcher, command: str) -> None:
    """A command that the worker may not send ends it with exit 3, what is missing, and the cure."""
    Load(harness).change()
    with (
        failing(harness.databases.client, [command], "alwaysOn", {"errorCode": 13}),
        launcher.running(harness.environment) as worker,
    ):
        assert worker.ended() == 3
    assert "error: A privilege is missing" in worker.said
    assert "`distributary check` lists what is needed" in worker.said


def _lost(code: int) -> dict[str, Any]:
    return {"errorCode": code}


#: ChangeStreamHistoryLost, InvalidResumeToken, ChangeStreamFatalError.
LOST = [
    pytest.param(command, code, id=f"{command} {code}")
    for command in ("aggregate", "getMore")
    for code in (286, 260, 280)
]


@pytest.mark.parametrize(("command", "code"), LOST)
def test_a_lost_position_stops_the_worker(
    harness: Harness, launcher: Launcher, command: str, code: int
) -> None:
    """With `fail`, exit 4 says which range of time is uncertain and what to do; nothing is skipped."""
    harness.settings = {"worker.on_lost_position": "fail"}
    harness.catch_up()
    before = checkpoint(harness)
    harness.databases.raw.orders.insert_one(order(1))
    with (
        failing(harness.databases.client, [command], "alwaysOn", _lost(code)),
        launcher.running(harness.environment) as worker,
    ):
        assert worker.ended() == 4
    since = before["position"]["time"].as_datetime()
    assert f"Changes between {since:%Y-%m-%d %H:%M:%S} UTC and " in worker.said
    assert 'Set worker.on_lost_position = "resync"' in worker.said
    assert checkpoint(harness)["position"] == before["position"]
    harness.catch_up()
    harness.assert_equal()


@pytest.mark.parametrize(("command", "code"), LOST)
def test_a_lost_position_is_made_good_and_reported(harness: Harness, command: str, code: int) -> None:
    """With `resync`, a new epoch begins, everything is derived again and swept, and the log says what came of it."""
    orders = harness.databases.raw.orders
    orders.insert_many([order(number) for number in range(5)])
    harness.catch_up()
    epoch = checkpoint(harness)["epoch"]
    orders.delete_one({"_id": 0})
    orders.update_one({"_id": 1}, {"$set": {"skus": []}})
    with (
        failing(harness.databases.client, [command], {"times": 1}, _lost(code)),
        capture_logs() as log,
        serving(harness),
    ):
        eventually(lambda: any(line["event"] == "lost position made good" for line in log), 60)
        harness.assert_equal()
    (report,) = [line for line in log if line["event"] == "lost position made good"]
    assert report["documents"] == 4
    assert report["since"] <= report["until"]
    assert checkpoint(harness)["epoch"] == epoch + 1


def test_the_report_of_a_gap_counts_what_was_repaired(harness: Harness) -> None:
    """Documents looked at, and records written and removed for changes that nobody saw, are counted."""
    orders = harness.databases.raw.orders
    orders.insert_many([order(number) for number in range(5)])
    harness.catch_up()
    orders.delete_one({"_id": 0})
    orders.insert_many([order(7), order(8)])
    with capture_logs() as log, failing(harness.databases.client, ["aggregate"], {"times": 1}, _lost(286)):
        harness.catch_up()
    harness.assert_equal()
    (report,) = [line for line in log if line["event"] == "lost position made good"]
    assert (report["documents"], report["written"], report["removed"]) == (6, 8, 4)


def test_a_collection_that_was_dropped_unseen_is_detached(harness: Harness) -> None:
    """What a collection yielded that was dropped in the gap is kept as ever, and swept when it is created again."""
    orders = harness.databases.raw.orders
    orders.insert_many([order(number) for number in range(5)])
    harness.catch_up()
    orders.drop()
    with failing(harness.databases.client, ["aggregate"], {"times": 1}, _lost(286)):
        harness.catch_up()
    assert harness.databases.derived.orders_by_customer.count_documents({}) == 5
    assert list(checkpoint(harness)["detached"]) == ["orders"]
    orders.insert_one(order(3))
    harness.catch_up()
    harness.assert_equal()


def test_the_third_loss_before_everything_was_made_good_stops(harness: Harness, launcher: Launcher) -> None:
    """A history that is shorter than deriving everything again takes ends the worker instead of going round."""
    harness.databases.raw.orders.insert_one(order(1))
    harness.catch_up()
    with (
        failing(harness.databases.client, ["getMore"], "alwaysOn", _lost(286)),
        launcher.running(harness.environment) as worker,
    ):
        assert worker.ended() == 4
    assert worker.said.count("position lost") == 2
    assert "loss number 3" in worker.said
    assert "oplog larger" in worker.said


def test_a_history_that_rolled_over_is_noticed_and_made_good(tmp_path: Path) -> None:
    """A worker that was away for longer than the oplog reaches says so, and everything is derived again."""
    with (
        embedded_or_skip(arguments=["--oplogSize", "1", "--syncdelay", "1"]) as mongo,
        databases_of(mongo.uri) as databases,
    ):
        harness = Harness(databases, tmp_path / "modules")
        orders = databases.raw.orders
        orders.insert_many([order(number) for number in range(5)])
        harness.catch_up()
        orders.delete_one({"_id": 0})
        orders.insert_one(order(9))
        roll_over(harness)
        with capture_logs() as log:
            harness.catch_up()
        harness.assert_equal()
    events = [line["event"] for line in log]
    assert "position lost" in events
    assert "lost position made good" in events


def checkpoint(harness: Harness) -> Mapping[str, Any]:
    """Give the worker's checkpoint as it is stored."""
    found = harness.databases.state.checkpoints.find_one({"_id": "default"})
    assert found is not None
    return found


def roll_over(harness: Harness) -> None:
    """Write until the source's history no longer has the worker's position."""
    token = {"_data": checkpoint(harness)["position"]["token"]}

    def gone() -> bool:
        harness.databases.raw.other.insert_many([{"filler": "x" * 100_000} for _ in range(10)])
        try:
            with harness.databases.raw.watch(start_after=token) as stream:
                stream.try_next()
        except OperationFailure as error:
            return error.code == 286
        return False

    eventually(gone, 60)
