"""`status`: what is said of workers is what is stored of them."""

import json
import signal
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from bson import Timestamp

from distributary.operate.status import WorkerStatus, workers
from tests.conftest import Databases, eventually
from tests.harness import ORDERS, Harness

FAILING = """
    from distributary import DerivedCollection, transform

    parts = DerivedCollection("parts")

    @transform("orders", name="broken")
    def broken(order):
        raise ValueError(f"no part of {order['_id']}")
"""


@pytest.fixture
def harness(databases: Databases, tmp_path: Path) -> Harness:
    """Give a worker with the orders module."""
    return Harness(databases, tmp_path / "modules")


def status_of(harness: Harness, name: str = "default") -> WorkerStatus:
    """Look at one worker."""
    databases = harness.databases
    found = workers(databases.raw, databases.state, "default", harness.registry)
    return next(each for each in found if each.name == name)


def said(harness: Harness, *options: str) -> dict[str, Any]:
    """Give what `status --json` says."""
    answer: dict[str, Any] = json.loads(harness.said("status", "--json", *options))
    return answer


def test_a_worker_that_never_ran_is_shown_with_what_is_plugged_in(harness: Harness) -> None:
    """Nothing ran yet: no position, nothing built, and no error."""
    answer = said(harness)
    assert answer["schema"] == 1
    (worker,) = answer["workers"]
    assert (worker["name"], worker["state"], worker["position"]) == ("default", "never started", None)
    assert worker["transforms"]["orders"] == {
        "source": "orders",
        "state": "not built",
        "collections": ["order_lines", "orders_by_code", "orders_by_customer"],
    }
    assert harness.databases.state.list_collection_names() == []


def test_a_running_worker_is_active_and_a_stopped_one_is_not(harness: Harness) -> None:
    """Holder, position, lag and headroom are those of the worker; afterwards nobody holds the lease."""
    harness.databases.raw.orders.insert_one({"_id": 1})
    with harness.running():
        eventually(lambda: status_of(harness).transforms["orders"].state == "built")
        running = status_of(harness)
        assert (running.state, bool(running.holder)) == ("active", True)
        eventually(lambda: status_of(harness).lag_seconds == 0)
    stopped = status_of(harness)
    assert (stopped.state, stopped.holder) == ("stopped", None)
    assert stopped.position
    assert stopped.headroom_seconds is not None
    assert stopped.headroom_seconds >= 0
    assert stopped.saved_at
    assert stopped.unknown == ""


def test_changed_missing_and_new_code_is_told_apart(harness: Harness) -> None:
    """`outdated`, `left behind` and `not built` each mean what they say."""
    harness.write({"orders": ORDERS, "broken": FAILING})
    harness.catch_up()
    other = ORDERS.replace('"orders_by_code"', '"codes"').replace("start=1", "start=0")
    harness.write({"orders": other, "new": FAILING.replace("broken", "fresh").replace('"parts"', '"pieces"')})
    states = {name: each.state.value for name, each in status_of(harness).transforms.items()}
    assert states == {"broken": "left behind", "fresh": "not built", "orders": "outdated"}


def test_dead_letters_are_counted_by_transform_and_kind(harness: Harness) -> None:
    """A failing transform's documents show up under its name."""
    harness.write({"broken": FAILING})
    harness.databases.raw.orders.insert_many([{"_id": 1}, {"_id": 2}])
    harness.catch_up()
    assert status_of(harness).dead_letters == {"broken": {"failed": 2}}


def test_open_jobs_and_detached_sources_are_shown(harness: Harness) -> None:
    """A backfill that is not done has its progress; a dropped source is named with its time."""
    harness.catch_up()
    harness.databases.raw.orders.insert_many([{"_id": number} for number in range(5)])
    checkpoints, jobs = harness.databases.state.checkpoints, harness.databases.state.jobs
    checkpoints.update_one({"_id": "default"}, {"$set": {"detached": {"gone": Timestamp(1_700_000_000, 1)}}})
    jobs.update_one({"source": "orders"}, {"$set": {"done": False, "documents": 2}})
    (worker,) = said(harness)["workers"]
    assert worker["detached"] == {"gone": "2023-11-14T22:13:20+00:00"}
    (job,) = worker["jobs"]
    assert (job["kind"], job["documents"], job["total"]) == ("backfill", 2, 5)


def test_every_worker_of_the_state_database_is_shown(harness: Harness) -> None:
    """Another worker's transforms are judged by its own checkpoint and not by what is plugged in here."""
    harness.settings = {"worker.name": "other"}
    harness.catch_up()
    harness.settings = {}
    harness.write({"broken": FAILING})
    assert status_of(harness, "other").transforms["orders"].state == "built"
    assert status_of(harness).state == "never started"


def test_a_worker_of_another_source_has_no_lag_here(harness: Harness) -> None:
    """A position of another database is not held against this source's head."""
    harness.catch_up()
    harness.databases.state.checkpoints.update_one({}, {"$set": {"source.database": "elsewhere"}})
    status = status_of(harness)
    assert (status.lag_seconds, status.headroom_seconds) == (None, None)
    assert "elsewhere" in status.unknown


def test_modules_that_cannot_be_loaded_are_said_and_do_not_matter(harness: Harness) -> None:
    """The rest is shown as always."""
    harness.catch_up()
    harness.write({"orders": "import nothing_of_this_name"})
    answer = said(harness)
    assert answer["workers"][0]["transforms"]["orders"]["state"] == "built"
    assert "nothing_of_this_name" in answer["module_faults"][0]["problem"]


def test_the_page_for_people_has_a_line_for_each_transform(harness: Harness) -> None:
    """Without a terminal it is plain, aligned text."""
    harness.catch_up()
    with harness.process("status", stdout=PIPE) as process:
        out, _ = process.communicate(timeout=60)
    lines = out.splitlines()
    assert lines[0] == "worker default: stopped"
    assert "headroom" in lines[1]
    header, row = lines[2], lines[3]
    assert header.index("state") == row.index("built")
    assert "\x1b" not in out


def test_watch_looks_again_until_ctrl_c(harness: Harness) -> None:
    """One answer per look; Ctrl-C ends it with 0."""
    harness.catch_up()
    with harness.process("status", "--watch", "--json", stdout=PIPE) as process:
        assert process.stdout
        looks = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert [look["workers"][0]["name"] for look in looks] == ["default", "default"]
