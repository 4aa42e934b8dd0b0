"""How a worker is, from its lease and from what its processes say."""

from typing import Any

import pytest

from distributary.engine.observer import Part, Phase
from distributary.health import STUCK_SECONDS, Health
from distributary.operate.condition import Condition, Judgement, judged
from distributary.state import SlowTransform
from distributary.store.lease import Holder
from distributary.store.processes import Process


class Teller:
    """A process whose health is as a real one's."""

    def __init__(self, name: str = "a") -> None:
        self.name, self.now = name, 0.0
        self.health = Health(lambda _: "", lambda: self.now)

    def process(self, silent: float = 0.0) -> Process:
        """Give what it said of itself so long ago."""
        return Process(self.name, silent, 2.0, self.health.healthy().why, self.health.ready().why)


def process(phase: Phase, why: str = "", **others: Any) -> Process:
    """Give what a process in a phase says."""
    teller = Teller(others.pop("name", "a"))
    teller.health.enter(phase, why)
    return teller.process(**others)


def holder(**others: Any) -> Holder:
    """Give who holds the lease."""
    return Holder(**{"name": "a", "alive": True, **others})


@pytest.mark.parametrize(
    ("phase", "condition"),
    [
        (Phase.OPENING, Condition.STARTING),
        (Phase.WAITING, Condition.WAITING),
        (Phase.STOPPING, Condition.STOPPING),
    ],
)
def test_who_holds_the_lease_is_taken_at_its_word(phase: Phase, condition: Condition) -> None:
    """Its phase is the worker's, with its reason, whatever the others say; what passes by itself has a cure."""
    found = judged(holder(), [process(Phase.STANDBY, name="b"), process(phase, "because")], begun=True)
    assert (found.condition, found.why) == (condition, "because")
    assert bool(found.cure) is (condition is Condition.WAITING)


def test_who_commits_nothing_though_it_is_active_waits() -> None:
    """A full outbox is told as /readyz tells it, and what looks at the topics is named."""
    teller = Teller()
    teller.health.enter(Phase.ACTIVE)
    assert judged(holder(), [teller.process()], begun=True) == Judgement(Condition.ACTIVE)
    teller.health.blocked("waiting for publishing: 7 events wait already")
    found = judged(holder(), [teller.process()], begun=True)
    assert (found.condition, found.why) == (
        Condition.WAITING,
        "waiting for publishing: 7 events wait already",
    )
    assert "distributary check" in found.cure
    assert teller.health.ready().good
    teller.health.enter(Phase.ACTIVE)
    assert judged(holder(), [teller.process()], begun=True) == Judgement(Condition.ACTIVE)


@pytest.mark.parametrize("ready", [True, False])
def test_a_phase_of_another_release_is_told_as_it_is(ready: bool) -> None:  # noqa: FBT001 - a parameter
    """Whether the process is ready decides, and its own words are the reason."""
    said = {"ready": ready, "reason": "ready soon: rewinding", "phase": "rewinding", "why": None}
    told = process(Phase.ACTIVE)._replace(readyz=said)
    held = judged(holder(), [told], begun=True)
    assert held == Judgement(Condition.ACTIVE if ready else Condition.WAITING, "ready soon: rewinding")
    free = judged(None, [told], begun=True)
    assert free == Judgement(Condition.STANDBY if ready else Condition.WAITING, "ready soon: rewinding")


def test_a_part_without_a_step_is_stuck_and_to_be_restarted() -> None:
    """As /healthz says, whether the process holds the lease or not."""
    teller = Teller()
    teller.health.enter(Phase.ACTIVE)
    teller.health.beat(Part.WORK)
    teller.now += STUCK_SECONDS
    for has_it in (holder(), None):
        found = judged(has_it, [teller.process()], begun=True)
        assert (found.condition, found.why) == (Condition.STUCK, "stuck without a reason: work")
        assert "Restart" in found.cure


def test_a_transform_that_takes_long_is_named_as_the_reason() -> None:
    """The process is healthy, and the worker does not go on."""
    slow = (SlowTransform("orders", "orders", "7", 30.0),)
    found = judged(holder(slow=slow), [process(Phase.ACTIVE)], begun=True)
    assert (found.condition, "transform" in found.why) == (Condition.WAITING, True)


def test_who_is_not_heard_of_is_silent() -> None:
    """While its lease lasts a standby is waited for; behind that, somebody has to start the worker."""
    lasting = judged(holder(), [process(Phase.ACTIVE, silent=7.0)], begun=True)
    assert (lasting.condition, "7 s" in lasting.why) == (Condition.SILENT, True)
    assert "standby" in lasting.cure
    over = judged(holder(alive=False), [process(Phase.ACTIVE, silent=20.0)], begun=True)
    assert (over.condition, over.why) == (Condition.SILENT, "a was killed, paused, or cut off from MongoDB")
    assert "distributary run" in over.cure


def test_without_a_holder_the_processes_that_are_heard_of_count() -> None:
    """A standby that is about to take over, or one that cannot, is told before one that was killed."""
    killed, standby = process(Phase.ACTIVE, silent=20.0), process(Phase.STANDBY, name="b")
    assert judged(holder(alive=False), [killed, standby], begun=True).condition is Condition.STANDBY
    waiting = process(Phase.WAITING, "trying again: it is away", name="c")
    assert judged(None, [standby, waiting], begun=True).condition is Condition.WAITING


def test_without_any_process_it_is_stopped_or_never_was() -> None:
    """Who said farewell needs no cure; a verb that works without a worker is active."""
    assert judged(None, [], begun=True) == Judgement(Condition.STOPPED)
    assert judged(None, [], begun=False) == Judgement(Condition.NEVER)
    assert judged(holder(), [], begun=True) == Judgement(Condition.ACTIVE)
