"""What a worker's endpoint answers, over HTTP, while it works."""

import json
import signal
import socket
from dataclasses import replace
from math import isnan
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from tests.conftest import Databases, eventually
from tests.harness import Harness
from tests.scraping import working
from tests.servers import free_port

MODULE = """
    from distributary import DerivedCollection, Publish, transform, trigger

    lines = DerivedCollection("lines")
    totals = DerivedCollection("totals")

    @transform("orders")
    def orders(order):
        if "poison" in order:
            raise ValueError("poison")
        for number, sku in enumerate(order["skus"]):
            yield lines.record({"order": order["_id"], "line": number}, {"sku": sku})

    @transform("orders")
    def sums(order):
        yield totals.record(order["_id"], {"lines": len(order["skus"])})

    @trigger("orders", operations=["insert"])
    def placed(change):
        yield Publish("placed", {"order": change.key})
"""


@pytest.fixture
def harness(databases: Databases, tmp_path: Path) -> Harness:
    """Give a worker with two transforms, and a trigger that publishes; there is no Pub/Sub."""
    settings = {"http.port": str(free_port()), "dead_letters.max_in_window": "0"}
    return Harness(databases, tmp_path / "transformers", {"orders": MODULE}, settings)


def order(number: int, *skus: str) -> dict[str, Any]:
    """Give a raw order."""
    return {"_id": number, "skus": list(skus)}


def test_what_is_scraped_is_what_happened(harness: Harness, databases: Databases) -> None:
    """Changes, records, dead letters, jobs, lag and what is not published are those of what the test did."""
    orders = databases.raw["orders"]
    harness.catch_up()
    orders.insert_many([order(number, "a") for number in range(20)])
    harness.catch_up()
    with working(harness) as worker:
        begun = worker.until(lambda seen: not isnan(seen["lag_seconds", ()]))
        assert begun["lease_held", ()] == 1
        assert begun["unpublished_events", ()] == 20
        assert begun["records_written_total", ("lines",)] == 0
        orders.insert_one(order(100, "x", "y", "z"))
        orders.update_one({"_id": 100}, {"$set": {"skus": ["x"]}})
        orders.insert_one({"_id": 101, "skus": [], "poison": True})
        orders.delete_one({"_id": 0})
        seen = worker.until(
            lambda seen: seen["changes_read_total", ()] >= 4 and seen["dead_letters", ("orders",)] == 1
        )
        assert seen["changes_read_total", ()] == 4
        assert seen["records_removed_total", ("totals",)] == 1
        # three lines become one, in one batch or in two; and the one line of the deleted order goes
        written, removed = (seen[f"records_{what}_total", ("lines",)] for what in ("written", "removed"))
        assert (written, removed) in {(1, 1), (3, 3), (4, 3)}
        assert seen["dead_letters_total", ("orders",)] >= 1
        assert (seen["dead_letters", ("sums",)], seen["dead_letters_total", ("sums",)]) == (0, 0)
        assert seen["transform_documents_total", ("sums",)] >= 2
        assert seen["transform_seconds_total", ("sums",)] > 0
        assert seen["batch_changes_sum", ()] == 4
        commits = seen["stage_seconds_count", ("commit",)]
        assert 1 <= commits == seen["batch_changes_count", ()] <= 4
        seen = worker.until(lambda seen: seen["unpublished_events", ()] == 22)
        assert databases.state["outbox"].count_documents({}) == 22
        assert seen["unpublished_bytes", ()] > 0
        assert 0 <= seen["lag_seconds", ()] < 30
        assert seen["history_headroom_seconds", ()] > 0
        assert seen["catch_up_seconds", ()] == 0
        assert (seen["reconnects_total", ()], seen["elections_total", ()]) == (0, 0)


def test_open_jobs_show_how_far_they_are(harness: Harness, databases: Databases) -> None:
    """A job that waits or is under way has a series with its kind and source, which goes when it is done."""
    databases.raw["orders"].insert_many([order(number, "a") for number in range(40)])
    harness.catch_up()
    slow = replace(harness, settings={**harness.settings, "worker.job_documents_per_second": "5"})
    labels = ("backfill", "orders")
    with working(slow) as worker, slow.process("backfill", stderr=PIPE, stdout=PIPE) as asked:
        eventually(lambda: worker.series().get(("job_documents", labels), 0) > 0, 60)
        seen = worker.series()
        assert seen["job_documents", labels] <= seen["job_documents_expected", labels] == 40
        asked.communicate(timeout=60)
        eventually(lambda: ("job_documents", labels) not in worker.series(), 60)
    assert asked.returncode == 0


def test_the_active_one_and_a_standby_are_ready(harness: Harness) -> None:
    """Both are healthy and ready and say why; only one holds the lease, and the other takes over when it ends."""
    other = replace(harness, settings={**harness.settings, "http.port": str(free_port())})
    with working(harness) as first:
        eventually(lambda: "active" in first.get("/readyz")[1])
        with working(other) as second:
            status, body = second.get("/readyz")
            assert (status, json.loads(body)["phase"]) == (200, "standby")
            assert second.series()["lease_held", ()] == 0
            assert isnan(second.series()["lag_seconds", ()])
            status, body = first.get("/healthz")
            assert (status, json.loads(body)["healthy"]) == (200, True)
            assert set(json.loads(body)["parts"]) == {"work", "lease"}
            first.process.send_signal(signal.SIGTERM)
            eventually(lambda: json.loads(second.get("/readyz")[1])["phase"] == "active")
            assert second.series()["lease_held", ()] == 1


def test_a_port_that_is_taken_leaves_the_lease_alone(harness: Harness, databases: Databases) -> None:
    """A worker that cannot listen ends with 3 and the cure, before it has touched anything."""
    with socket.create_server(("127.0.0.1", harness.config.http.port)):
        said = harness.said("run", code=3)
    assert f"127.0.0.1:{harness.config.http.port} cannot be listened on" in said
    assert "http.port = 0" in said
    assert databases.state.list_collection_names() == []


def test_without_a_port_there_is_no_endpoint(harness: Harness) -> None:
    """With http.port = 0 a worker listens nowhere, and runs."""
    silent = replace(harness, settings={**harness.settings, "http.port": "0"})
    assert "listening" not in silent.said("run", "--until-caught-up")
    assert "listening" in harness.said("run", "--until-caught-up")
