"""Whether a process should be restarted, and whether it is ready."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread, get_ident
from types import ModuleType

import pytest

from distributary.engine.observer import Part, Phase
from distributary.health import Health, waits_for
from tests.conftest import eventually


class Stage:
    """A health on a clock of its own, and what its threads are said to wait for."""

    def __init__(self) -> None:
        self.now, self.waits = 1000.0, ""
        self.health = Health(lambda _: self.waits, lambda: self.now, stuck=120)

    def is_healthy(self, *, after: float = 0) -> bool:
        """Ask after some seconds."""
        self.now += after
        return self.health.healthy().good


def test_a_part_without_a_step_is_stuck_once_the_time_is_over() -> None:
    """A thread that hangs in our own code is told after two minutes, by name, and no longer once it goes on."""
    stage = Stage()
    for part in (Part.WORK, Part.LEASE):
        stage.health.beat(part)
    assert stage.is_healthy(after=119)
    stage.health.beat(Part.LEASE)
    verdict = stage.health.healthy()
    assert not stage.is_healthy(after=1)
    verdict = stage.health.healthy()
    assert verdict.why["reason"] == "stuck without a reason: work"
    assert verdict.why["parts"]["lease"] == {"silent_seconds": 1.0, "waits_for": None, "stuck": False}
    stage.health.beat(Part.WORK)
    assert stage.is_healthy()


@pytest.mark.parametrize("what", ["MongoDB", "Pub/Sub", "a transform"])
def test_who_waits_for_others_is_healthy_however_long(what: str) -> None:
    """An outage and a long transaction are no reason to restart, and the body says what is waited for."""
    stage = Stage()
    stage.health.beat(Part.WORK)
    stage.waits = what
    assert stage.is_healthy(after=86_400)
    assert stage.health.healthy().why["parts"]["work"]["waits_for"] == what
    stage.waits = ""
    assert stage.is_healthy(after=119)
    assert not stage.is_healthy(after=1)


def test_a_part_that_ended_is_not_waited_for() -> None:
    """A standby that held the lease before has neither a heartbeat nor publishing, and is healthy."""
    stage = Stage()
    for part in Part:
        stage.health.beat(part)
    stage.health.rest(Part.LEASE)
    stage.health.rest(Part.PUBLISHING)
    stage.now += 500
    stage.health.beat(Part.WORK)
    assert stage.is_healthy()


def test_who_stops_is_not_restarted_and_stays_stopping() -> None:
    """While the last batch is committed, a probe does not kill the process, which is not ready any more."""
    stage = Stage()
    stage.health.beat(Part.WORK)
    stage.health.enter(Phase.STOPPING)
    stage.health.enter(Phase.ACTIVE)
    assert stage.is_healthy(after=500)
    assert not stage.health.ready().good


@pytest.mark.parametrize(
    ("phase", "good"),
    [
        (Phase.STARTING, False),
        (Phase.STANDBY, True),
        (Phase.OPENING, False),
        (Phase.ACTIVE, True),
        (Phase.WAITING, False),
        (Phase.STOPPING, False),
    ],
)
def test_ready_are_the_active_one_and_a_standby(phase: Phase, *, good: bool) -> None:
    """Ready is who works, or could take over; the body names the phase."""
    health = Stage().health
    health.enter(phase, "since the server is away")
    assert health.ready().good is good
    assert health.ready().why["phase"] == phase.value


def test_why_it_is_not_ready_holds_no_password() -> None:
    """What went wrong is told without credentials."""
    health = Stage().health
    health.enter(Phase.WAITING, "trying again: mongodb://me:secret@db:27017/ is away")
    reason = health.ready().why["reason"]
    assert "is away" in reason
    assert "secret" not in reason


def test_the_phase_says_since_when() -> None:
    """The seconds of a phase run on while it stays, and begin anew with another one."""
    stage = Stage()
    stage.health.enter(Phase.ACTIVE)
    stage.now += 10
    stage.health.enter(Phase.ACTIVE)
    assert stage.health.ready().why["phase_seconds"] == 10.0
    stage.health.enter(Phase.WAITING, "x")
    assert stage.health.ready().why["phase_seconds"] == 0.0


@contextmanager
def waiting_in(module: str) -> Iterator[int]:
    """Give a thread that waits in code of a module of this name."""
    code = ModuleType(module)
    exec("def work(begun, end):\n    begun()\n    end.wait()", code.__dict__)
    found: list[int] = []
    end = Event()
    thread = Thread(target=code.work, args=(lambda: found.append(get_ident()), end))
    thread.start()
    try:
        eventually(lambda: found)
        yield found[0]
    finally:
        end.set()
        thread.join()


@pytest.mark.parametrize(
    ("module", "what"),
    [
        ("pymongo.synchronous.pool", "MongoDB"),
        ("distributary.pubsub.publisher", "Pub/Sub"),
        ("grpc._channel", "Pub/Sub"),
        ("distributary.derive.transform", "a transform"),
        ("distributary.engine.worker", ""),
        ("pymongoose", ""),
    ],
)
def test_what_a_thread_waits_for_is_seen_by_its_code(module: str, what: str) -> None:
    """Code of the driver, of the client library and of transforms explains a wait; other code does not."""
    with waiting_in(module) as thread:
        assert waits_for(thread) == what


def test_a_thread_that_is_gone_waits_for_nothing() -> None:
    """A thread that died explains nothing, so that it is told."""
    thread = Thread(target=get_ident)
    thread.start()
    thread.join()
    assert thread.ident is not None
    assert waits_for(thread.ident) == ""
