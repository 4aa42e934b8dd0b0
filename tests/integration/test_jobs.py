"""`jobs`: what the worker was asked for is listed, and waits, goes on or ends when an operator says so."""

import json
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from tests.conftest import Databases, eventually
from tests.harness import Harness

ORDERS = """
    from distributary import DerivedCollection, transform

    codes = DerivedCollection("codes")

    @transform("orders")
    def coded(order):
        yield codes.record(order["_id"], {"code": order["code"]})
"""

#: So many that a backfill of one document a slice takes far longer than the test.
MANY = 20_000


@pytest.fixture
def harness(databases: Databases, tmp_path: Path) -> Iterator[Harness]:
    """Give a running worker that has begun a backfill which takes long."""
    databases.raw.orders.insert_many([{"_id": number, "code": "c"} for number in range(MANY)])
    made = Harness(databases, tmp_path / "modules", {"orders": ORDERS}, {"worker.scan_documents": "1"})
    with made.running():
        eventually(lambda: bool(opened(made)) and opened(made)[0]["documents"] > 0)
        yield made


def opened(harness: Harness) -> list[dict[str, Any]]:
    """Give the open jobs as they are stored."""
    return list(harness.databases.state.jobs.find({"done": False}).sort("_id", 1))


def jobs(harness: Harness, *arguments: str, code: int = 0) -> str:
    """Give what the verb says."""
    with harness.process("jobs", *arguments, stdout=PIPE, stderr=PIPE) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    return out if code == 0 else err


def stands_still(harness: Harness) -> bool:
    """Whether the first open job does not move while the stream does."""
    before = opened(harness)[0]["documents"]
    at = harness.databases.raw.orders.count_documents({}) + MANY
    harness.databases.raw.orders.insert_one({"_id": at, "code": "new"})
    eventually(lambda: harness.databases.derived.codes.find_one({"_id": at}) is not None)
    return bool(opened(harness)[0]["documents"] == before)


def test_a_job_is_paused_and_goes_on(harness: Harness) -> None:
    """The stream goes on meanwhile, and so does the job from where it was."""
    (job,) = json.loads(jobs(harness, "list", "--json"))["jobs"]
    assert (job["kind"], job["source"], job["paused"]) == ("backfill", "orders", False)
    assert "waits until" in jobs(harness, "pause", job["id"])
    eventually(lambda: stands_still(harness))
    assert "paused" in jobs(harness, "list")
    before = opened(harness)[0]["documents"]
    assert "goes on" in jobs(harness, "resume", job["id"])
    eventually(lambda: opened(harness)[0]["documents"] > before)


def test_a_job_is_cancelled(harness: Harness) -> None:
    """What it has written stays, the stream goes on, and what to do to build the rest is said."""
    job = str(opened(harness)[0]["_id"])
    assert "distributary backfill --transform coded" in jobs(harness, "cancel", job)
    assert jobs(harness, "list") == "No open jobs.\n"
    harness.databases.raw.orders.insert_one({"_id": "new", "code": "c"})
    eventually(lambda: harness.databases.derived.codes.find_one({"_id": "new"}) is not None)
    assert 0 < harness.databases.derived.codes.count_documents({}) < MANY
    assert opened(harness) == []
    assert "There is no open job" in jobs(harness, "cancel", job, code=1)


def test_a_verb_does_not_wait_for_a_paused_job(harness: Harness) -> None:
    """Who waits for work that an operator has paused is told so."""
    with harness.process("backfill", stdout=PIPE, stderr=PIPE) as process:
        eventually(lambda: len(opened(harness)) == 2)
        (asked,) = [each for each in opened(harness) if each["reason"] == "asked for"]
        jobs(harness, "pause", str(asked["_id"]))
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "was paused" in err
