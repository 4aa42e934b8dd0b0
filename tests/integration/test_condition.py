"""`status` says of real workers what their endpoints say, and what no endpoint can."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from tests.conftest import Databases, eventually
from tests.faulty import faulty
from tests.harness import ORDERS, Harness
from tests.pubsub import PROJECT
from tests.scraping import Worker, working
from tests.servers import free_port


@pytest.fixture
def harness(databases: Databases, tmp_path: Path) -> Harness:
    """Give a worker with the orders module."""
    settings = {"http.port": str(free_port())}
    return Harness(databases, tmp_path / "modules", settings=settings)


class Watching:
    """A `status --watch` that runs beside the test, and what it said last of the worker."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self.said: dict[str, Any] = {}

    def until(self, condition: str, **others: Any) -> dict[str, Any]:
        """Give the first look that finds the worker in this condition, and with these values."""
        for line in self._lines:
            (self.said,) = json.loads(line)["workers"]
            if self.said["condition"] == condition and all(self.said[k] == v for k, v in others.items()):
                return self.said
        raise AssertionError(self.said)


@contextmanager
def watching(harness: Harness) -> Iterator[Watching]:
    """Watch the worker until the end of the block."""
    with harness.process("status", "--watch", "--json", stdout=PIPE) as process:
        assert process.stdout is not None
        try:
            yield Watching(iter(process.stdout.readline, ""))
        finally:
            process.kill()


def answers(worker: Worker) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give what /healthz and /readyz say, but for what changes with the time of day."""
    healthz, readyz = (json.loads(worker.get(path)[1]) for path in ("/healthz", "/readyz"))
    return timeless(healthz), timeless(readyz)


def timeless(answer: dict[str, Any]) -> dict[str, Any]:
    """Give an answer without seconds."""
    kept = {name: each for name, each in answer.items() if not name.endswith("_seconds")}
    return {name: timeless(each) if isinstance(each, dict) else each for name, each in kept.items()}


def phases(worker: dict[str, Any]) -> list[str]:
    """Give the phases of a worker's processes, in alphabetical order."""
    return sorted(each["readyz"]["phase"] for each in worker["processes"])


def test_it_says_what_the_endpoints_say(harness: Harness) -> None:
    """Of the active one and of a standby, in JSON and for people."""
    second = replace(harness, settings={**harness.settings, "http.port": str(free_port())})
    with watching(harness) as status:
        with working(harness) as first, working(second) as other:
            eventually(lambda: "active" in first.get("/readyz")[1] and "standby" in other.get("/readyz")[1])
            while phases(status.until("active")) != ["active", "standby"]:
                continue
            said = {each["name"] == status.said["holder"]: each for each in status.said["processes"]}
            for has_lease, worker in ((True, first), (False, other)):
                found = timeless(said[has_lease]["healthz"]), timeless(said[has_lease]["readyz"])
                assert found == answers(worker)
                assert not said[has_lease]["silent"]
            page = harness.said("status").splitlines()
            assert page[0] == f"worker default: active, held by {status.said['holder']}"
            standby = said[False]["name"]
            assert page[1] == f"  process {standby}: standing by: another process holds the lease"
        assert (status.until("stopped")["processes"], status.said["state"]) == ([], "stopped")


def test_a_worker_that_was_stopped_or_killed_is_silent(harness: Harness, databases: Databases) -> None:
    """SIGSTOP is seen though the process is there, and passes; SIGKILL is seen, and what to do is said."""
    with working(harness) as worker, watching(harness) as status:
        status.until("active")
        worker.process.send_signal(signal.SIGSTOP)
        silent = status.until("silent")
        assert "killed, paused, or cut off from MongoDB" in silent["why"]
        assert "tart the worker again" in silent["next"]
        eventually(lambda: "silent" in harness.said("status"))
        worker.process.send_signal(signal.SIGCONT)
        again = status.until("active")
        databases.raw.orders.insert_one({"_id": 1})
        eventually(lambda: databases.derived.orders_by_customer.count_documents({}) == 1)
        worker.process.kill()
        worker.process.wait()
        killed = status.until("silent", holder=None)
        assert killed["why"] == f"{again['holder']} was killed, paused, or cut off from MongoDB"
        assert any(each["silent"] for each in killed["processes"])
        page = harness.said("status").splitlines()
        assert page[0] == "worker default: silent"
        assert page[1] == f"  why:  {killed['why']}"
        assert page[2] == f"  next: {killed['next']}"


def test_a_worker_that_waits_for_publishing_says_so(
    harness: Harness, databases: Databases, tmp_path: Path
) -> None:
    """At the outbox's bound it is alive, ready, and waits; behind the outage it is active again."""
    published = ORDERS.replace('"order_lines",', '"order_lines", publish="LINES",')
    settings = {**harness.settings, "pubsub.project": PROJECT, "pubsub.outbox_events": "5"}
    bounded = Harness(databases, tmp_path / "modules", {"orders": published}, settings)
    with (
        faulty(f"projects/{PROJECT}/topics/LINES") as service,
        working(bounded) as worker,
        watching(bounded) as status,
    ):
        status.until("active")
        service.stop()
        databases.raw.orders.insert_one({"_id": 1, "skus": list("abcdefg")})
        waiting = status.until("waiting")
        assert waiting["why"] == "waiting for publishing: 7 events wait already"
        assert "`distributary check`" in waiting["next"]
        code, readyz = worker.get("/readyz")
        assert (code, json.loads(readyz)["why"]) == (200, waiting["why"])
        assert worker.get("/healthz")[0] == 200
        service.start()
        assert status.until("active")["outbox"] == 0
