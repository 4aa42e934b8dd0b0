"""What a change stream meets at its edges: changes as large as MongoDB allows and beyond, and silence."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from distributary.embedded import EmbeddedMongo
from tests.conftest import Databases, embedded_or_skip, eventually
from tests.fault.deployment import databases_of, serving
from tests.harness import Harness

MB = 1024 * 1024

#: As large as a document may be, with some room for what the server adds to it.
LARGEST = 16 * MB - 16 * 1024


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedMongo]:
    """Give a server that holds a few large documents in its cache."""
    with embedded_or_skip(arguments=["--wiredTigerCacheSizeGB", "1"]) as mongo:
        yield mongo


@pytest.fixture
def databases(server: EmbeddedMongo) -> Iterator[Databases]:
    """Give fresh databases there."""
    with databases_of(server.uri) as fresh:
        yield fresh
        for database in fresh:
            fresh.client.drop_database(database.name)


@pytest.fixture
def harness(databases: Databases, tmp_path: Path) -> Harness:
    """Give a worker with the orders module."""
    return Harness(databases, tmp_path / "modules")


def order(key: Any, *skus: str, **fields: Any) -> dict[str, Any]:
    """Give a raw order."""
    return {"_id": key, "customer": "c", "total": 1, "skus": list(skus), **fields}


def settled(harness: Harness) -> None:
    """Wait until derived equals recomputed; nothing may have been parked."""
    eventually(lambda: harness.derived() == harness.recomputed(), 60)
    assert harness.databases.state.dead_letters.count_documents({}) == 0


def checkpoint(harness: Harness) -> Mapping[str, Any]:
    """Give the worker's checkpoint as it is stored."""
    found = harness.databases.state.checkpoints.find_one({"_id": "default"})
    assert found is not None
    return found


@pytest.mark.parametrize("images", [False, True], ids=["without images", "with pre- and post-images"])
def test_the_largest_documents_pass(harness: Harness, images: bool) -> None:  # noqa: FBT001 - a parameter
    """Documents of 16 MB are inserted, updated in a little and in nearly all, replaced and deleted."""
    raw = harness.databases.raw
    raw.create_collection("orders", changeStreamPreAndPostImages={"enabled": images})
    with serving(harness):
        eventually(lambda: harness.databases.state.checkpoints.count_documents({}) > 0)
        raw.orders.insert_one(order(1, "a", blob="x" * (LARGEST - 300)))
        raw.orders.insert_many([order(2, "b"), order(3, "c", blob="y" * 8 * MB)])
        settled(harness)
        raw.orders.update_one({"_id": 1}, {"$set": {"skus": ["d", "e"]}})
        raw.orders.update_one({"_id": 2}, {"$set": {"blob": "z" * (LARGEST - 300)}})
        raw.orders.replace_one({"_id": 3}, order(3, "f", blob="w" * (LARGEST - 300)))
        settled(harness)
        raw.orders.delete_one({"_id": 1})
        raw.orders.update_one({"_id": 2}, {"$unset": {"blob": ""}})
        settled(harness)


def test_changes_that_are_too_large_to_be_carried_are_read(harness: Harness) -> None:
    """A change that is too large with its document is read without it, and the stream goes on."""
    harness.settings = {"worker.carry_bytes": "16MiB"}
    harness.catch_up()
    before = checkpoint(harness)["epoch"]
    orders = harness.databases.raw.orders
    with serving(harness):
        orders.insert_many([order(number, "a") for number in range(5)])
        orders.insert_one(order("k" * MB, "b", blob="x" * 14 * MB))
        orders.insert_many([order(number, "c") for number in range(5, 10)])
        settled(harness)
    assert checkpoint(harness)["epoch"] == before


def test_a_change_that_no_stream_can_report_is_a_lost_position(harness: Harness) -> None:
    """A key of many megabytes is too large for any change: everything is derived again, and the log says so."""
    harness.catch_up()
    before = checkpoint(harness)["epoch"]
    orders = harness.databases.raw.orders
    with capture_logs() as log, serving(harness):
        orders.insert_one(order("k" * 7 * MB))
        eventually(lambda: any(line["event"] == "position lost" for line in log), 60)
        orders.delete_many({})
        orders.insert_one(order(1, "a"))
        settled(harness)
    # its deletion is too large as well, which the next stream meets when it opened in front of it
    assert checkpoint(harness)["epoch"] - before in {1, 2}


def test_the_position_advances_while_only_others_write(harness: Harness) -> None:
    """Heavy writes elsewhere move the saved position, and not more often than it is configured."""
    harness.settings = {"worker.idle_save_seconds": "1"}
    harness.catch_up()
    other = harness.databases.client[f"{harness.databases.raw.name}_other"].heavy
    with serving(harness):
        eventually(lambda: checkpoint(harness)["revision"] > 0)
        begun = checkpoint(harness)

        def advanced() -> bool:
            other.insert_many([{"filler": "x" * 1000} for _ in range(500)])
            return bool(checkpoint(harness)["position"]["time"].time >= begun["position"]["time"].time + 4)

        eventually(advanced, 60)
        now = checkpoint(harness)
    harness.databases.client.drop_database(other.database.name)
    seconds = (now["saved_at"] - begun["saved_at"]).total_seconds()
    assert now["revision"] - begun["revision"] <= seconds + 3  # the first ones come at once
