"""SIGKILL of workers with triggers: every change has its effects once, in order, whatever was killed when."""

import json
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from random import Random
from threading import Event
from typing import Any

import pytest

from tests.conftest import SOAK, Databases, eventually
from tests.fault.launcher import PATIENCE, Launcher, Trap
from tests.harness import Harness

#: An audit trail, an event for each change, and a derived collection beside it; a change that is `bad` fails.
MODULE = """
    import os
    from distributary import DerivedCollection, Publish, transform, trigger

    audit = DerivedCollection("audit", indexes=["form"])
    states = DerivedCollection("states")

    @transform("forms")
    def state(form):
        yield states.record(form["_id"], {"n": form["n"]})

    @trigger("forms")
    def trail(change):
        if change.updated.get("bad") and os.environ.get("CORRECTED") != "1":
            raise ValueError("bad")
        yield audit.record(change.position, {
            "form": change.key, "operation": change.operation,
            "n": change.document and change.document["n"], "before": change.before and change.before["n"]})
        yield Publish("forms", {"n": change.document and change.document["n"]}, ordering_key=str(change.key))
"""

SETTINGS = {
    "worker.batch_changes": "20",
    "worker.lease_seconds": "0.4",
    "worker.idle_save_seconds": "0.1",
    "dead_letters.max_in_window": "0",
}

STEPS = [
    "triggers called",
    "before the effects",
    "events written",
    "checkpoint written",
    "before the commit",
    "after the commit",
    "effects committed",
    "position saved",
]

#: Kills at one step, and at random moments.
KILLS_AT_A_STEP, KILLS_AT_RANDOM = 2 * SOAK, 12 * SOAK

#: Operations between two kills, and forms that they are on.
BURST, FORMS = 60, 12

#: Seconds after which a random kill comes at the latest, counted from the moment when the lease is held.
LATEST = 0.4

#: What an audit record tells of a change, or a write does: form, operation, the state behind it and before it.
Told = tuple[int, str, int | None, int | None]


@dataclass
class Stage:
    """Forms that are written to, with a note of each write, and the workers that follow them."""

    harness: Harness
    launcher: Launcher
    random: Random
    written: list[Told] = field(default_factory=list)
    numbers: dict[int, int] = field(default_factory=dict)

    def burst(self, bad: float = 0) -> None:
        """Write to forms at random; a part of the updates is `bad`."""
        for _ in range(BURST):
            self._write(self.random.randrange(FORMS), bad=self.random.random() < bad)

    def _write(self, form: int, *, bad: bool) -> None:
        forms, before = self.harness.databases.raw.forms, self.numbers.get(form)
        n = len(self.written)
        if before is None:
            forms.insert_one({"_id": form, "n": n})
            self.written.append((form, "insert", n, None))
        elif self.random.random() < 0.2:
            forms.delete_one({"_id": form})
            self.written.append((form, "delete", None, before))
            del self.numbers[form]
            return
        else:
            forms.update_one({"_id": form}, {"$set": {"n": n, **({"bad": n} if bad else {})}})
            self.written.append((form, "update", n, before))
        self.numbers[form] = n

    def kill_at(self, step: str, number: int) -> None:
        """Start a worker and see it die at a step."""
        worker = self.launcher.start(self.harness.environment, Trap(step, number))
        assert worker.ended() == -signal.SIGKILL, worker.said

    def kill_after(self, seconds: float) -> None:
        """Start a worker and kill it so many seconds after it has got the lease."""
        with self.launcher.running(self.harness.environment) as worker:

            def holds() -> bool:
                assert worker.code is None, worker.said
                lease = self.harness.databases.state.leases.find_one({})
                return lease is not None and f":{worker.pid}:" in str(lease["holder"])

            eventually(holds, PATIENCE)
            Event().wait(seconds)

    def assert_once(self) -> None:
        """Let a worker catch up, and fail unless each write has one audit record and one event.

        Those of one form were written in the order of the writes.
        """
        self.harness.catch_up()
        databases = self.harness.databases
        trail = [self._told(each) for each in databases.derived.audit.find().sort("$natural", 1)]
        assert _by_form(trail) == _by_form(self.written)
        events = databases.state.outbox.find().sort("_id", 1)
        told = [(int(each["ordering_key"]), json.loads(each["data"])["data"]["n"]) for each in events]
        assert _by_form(told) == _by_form([(form, n) for form, _, n, _ in self.written])
        states = {each["_id"]: each["n"] for each in databases.derived.states.find()}
        assert states == self.numbers

    def _told(self, record: dict[str, Any]) -> Told:
        return record["form"], record["operation"], record["n"], record["before"]


def _by_form(told: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Put together what is told of each form, as it follows on each other."""
    return sorted(told, key=itemgetter(0))


@pytest.fixture
def stage(databases: Databases, tmp_path: Path, launcher: Launcher) -> Stage:
    """Give a worker that has caught up with a few writes."""
    harness = Harness(databases, tmp_path / "modules", {"load": MODULE}, SETTINGS)
    databases.raw.create_collection("forms", changeStreamPreAndPostImages={"enabled": True})
    harness.catch_up()
    stage = Stage(harness, launcher, Random(1))
    stage.burst()
    stage.assert_once()
    return stage


@pytest.mark.timeout(300)
@pytest.mark.parametrize("step", STEPS)
def test_killed_while_triggers_are_called(stage: Stage, step: str) -> None:
    """A worker that dies at any step leaves nothing out and does nothing twice: neither records nor events."""
    for number in range(1, KILLS_AT_A_STEP + 1):
        stage.burst()
        stage.kill_at(step, number)
    stage.assert_once()


@pytest.mark.timeout(600)
def test_killed_at_random_moments(stage: Stage) -> None:
    """An audit trail has each change once and in order, after workers were killed at any moment of a load."""
    for _ in range(KILLS_AT_RANDOM):
        stage.burst()
        stage.kill_after(stage.random.random() * LATEST)
    stage.assert_once()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("step", ["parked change done", "after the commit", "events written"])
def test_killed_while_parked_changes_are_tried_again(
    stage: Stage, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After retries that were killed, parked changes have their effects once, in the order of each document."""
    stage.burst(bad=0.3)
    stage.harness.catch_up()
    letters = stage.harness.databases.state.dead_letters
    parked = letters.count_documents({})
    assert 0 < letters.count_documents({"kind": "waiting"}) < parked
    corrected = stage.harness.environment | {"CORRECTED": "1"}
    retry = ("dead-letters", "retry", "--all")
    for number in range(1, KILLS_AT_A_STEP + 1):
        worker = stage.launcher.start(corrected, Trap(step, number + 1), verb=retry)
        assert worker.ended() == -signal.SIGKILL, worker.said
    worker = stage.launcher.start(corrected, verb=retry)
    assert worker.ended() == 0, worker.said
    assert letters.count_documents({}) == 0
    monkeypatch.setenv("CORRECTED", "1")
    stage.assert_once()
