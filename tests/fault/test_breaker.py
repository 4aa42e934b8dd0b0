"""Transforms that fail for most documents, and transforms that hang: the worker says so, and skips nothing."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE
from threading import Event

import pytest

from distributary.errors import TooManyDeadLetters
from tests.conftest import Databases, eventually
from tests.fault.launcher import Launcher, Worker
from tests.harness import Harness

MODULE = """
    import re, time
    from distributary import DerivedCollection, transform

    parts = DerivedCollection("parts")
    others = DerivedCollection("others")

    @transform("orders", name="others")
    def other(order):
        yield others.record(order["_id"], {{"number": order["number"]}})

    @transform("orders", name="parts")
    def part(order):
        {bad}
        yield parts.record(order["_id"], {{"number": order["number"]}})
"""

GOOD = MODULE.format(bad="pass")

FAILS = MODULE.format(bad="order['number'] % 10 and order['missing']")

HANGS = MODULE.format(bad="while order['number'] == 7: time.sleep(0.01)")

#: A limit that a few documents reach.
LIMITS = {"dead_letters.max_in_window": "10", "dead_letters.window": "50"}

#: Seconds that a document may take here, and that a worker has to stop.
SLOW, SHUTDOWN = 0.5, 1.0


Make = Callable[[str, dict[str, str]], Harness]


@pytest.fixture
def make(databases: Databases, tmp_path: Path) -> Make:
    """Give what makes a worker of a module, with documents in the raw database if wanted."""

    def made(module: str, settings: dict[str, str]) -> Harness:
        return Harness(databases, tmp_path / "modules", {"parts": module}, LIMITS | settings)

    return made


def insert(harness: Harness, numbers: range) -> None:
    """Insert documents one after the other."""
    harness.databases.raw.orders.insert_many([{"_id": n, "number": n} for n in numbers])


def letters(harness: Harness) -> int:
    """Count what is parked."""
    return harness.databases.state.dead_letters.count_documents({})


def assert_corrected(harness: Harness) -> None:
    """Correct the module, and fail unless everything is derived."""
    harness.write({"parts": GOOD})
    harness.catch_up()
    harness.assert_equal()
    assert letters(harness) == 0


def test_a_transform_that_fails_for_most_documents_stops_the_worker(make: Make, launcher: Launcher) -> None:
    """It ends with 1 and names transform, document and reason; corrected, everything is derived."""
    harness = make(GOOD, {})
    harness.catch_up()
    harness.write({"parts": FAILS})
    insert(harness, range(100))
    worker = launcher.start(harness.environment)
    assert worker.ended() == 1, worker.said
    for words in ("changes could not be derived", "'parts'", "orders[", "KeyError", "nothing was skipped"):
        assert words in worker.said
    assert "Traceback" not in worker.said
    assert_corrected(harness)


def test_a_backfill_that_fails_for_most_documents_stops_the_worker(make: Make) -> None:
    """Documents that are derived for the first time count too, and the backfill goes on where it was."""
    harness = make(FAILS, {"worker.scan_documents": "20"})
    insert(harness, range(100))
    with pytest.raises(TooManyDeadLetters):
        harness.catch_up()
    assert_corrected(harness)


def test_it_stops_again_until_it_is_corrected(make: Make) -> None:
    """Started again without a correction it stops again, and is no further than before."""
    harness = make(GOOD, {"worker.batch_changes": "20"})
    harness.catch_up()
    harness.write({"parts": FAILS})
    insert(harness, range(200))
    positions = set()
    for _ in range(3):
        with pytest.raises(TooManyDeadLetters):
            harness.catch_up()
        checkpoint = harness.databases.state.checkpoints.find_one({})
        assert checkpoint is not None
        positions.add(checkpoint["position"]["token"])
    assert len(positions) == 1
    assert_corrected(harness)


def test_few_failures_are_parked(make: Make) -> None:
    """Documents that fail now and then are data: they are parked, and the worker goes on."""
    harness = make(MODULE.format(bad="order['number'] % 10 or order['missing']"), {})
    harness.catch_up()
    insert(harness, range(100))
    harness.catch_up()
    assert letters(harness) == 10
    assert harness.databases.derived.parts.count_documents({}) == 90


def test_without_a_limit_everything_that_fails_is_parked(make: Make) -> None:
    """`max_in_window = 0` never stops: what fails is parked, and the rest is derived."""
    harness = make(FAILS, {"dead_letters.max_in_window": "0"})
    harness.catch_up()
    insert(harness, range(100))
    harness.catch_up()
    assert letters(harness) == 90
    assert harness.databases.derived.parts.count_documents({}) == 10
    assert harness.databases.derived.others.count_documents({}) == 100


# --- transforms that hang -----------------------------------------------------------------------------------

HANGING = {"worker.slow_transform_seconds": str(SLOW), "worker.shutdown_seconds": str(SHUTDOWN)}


def assert_named(worker: Worker) -> None:
    """Wait until the log names transform, collection and place, once, and no key."""
    worker.says("a transform takes long")
    (line,) = [line for line in worker.said.splitlines() if "a transform takes long" in line]
    assert "transform=parts" in line
    assert "source=orders" in line
    assert "key=…" in line
    assert "parts.py:" in line


@pytest.mark.parametrize("existing", [False, True], ids=["in the stream", "in a backfill"])
def test_a_transform_that_hangs_is_named(make: Make, launcher: Launcher, existing: bool) -> None:  # noqa: FBT001
    """The log names it with the document; SIGTERM still ends the worker in time, with a reason."""
    harness = make(HANGS, HANGING)
    if existing:
        insert(harness, range(20))
    with launcher.running(harness.environment) as worker:
        if not existing:
            worker.says("job done")
            insert(harness, range(20))
        assert_named(worker)
        eventually(lambda: "parts has been working on orders[7] for" in status(harness))
        began = time.monotonic()
        worker.send(signal.SIGTERM)
        assert worker.ended() == 0, worker.said
        assert time.monotonic() - began < 5
        assert "stopping" in worker.said
    assert "stopped" in status(harness)
    assert_corrected(harness)


def test_the_read_ahead_of_a_transform_that_hangs_is_bounded(make: Make, launcher: Launcher) -> None:
    """However much is changed behind a document that hangs, the worker does not read on."""
    limit = {"worker.batch_changes": "10", "worker.read_ahead_batches": "2", "worker.carry_bytes": "1MiB"}
    harness = make(HANGS, HANGING | limit)
    with launcher.running(harness.environment) as worker:
        worker.says("job done")
        insert(harness, range(8))
        assert_named(worker)
        before = resident(worker)
        large = [{"_id": n, "number": n, "text": "x" * 500_000} for n in range(100, 400)]
        harness.databases.raw.orders.insert_many(large)
        eventually(lambda: resident(worker) > before + 3_000_000)
        still(lambda: resident(worker))
        assert resident(worker) - before < 60_000_000
        assert worker.said.count("a transform takes long") == 1


def status(harness: Harness) -> str:
    """Give what `status` says."""
    process = harness.process("status", stdout=PIPE)
    said = process.communicate()[0]
    assert process.returncode == 0, said
    return said


def resident(worker: Worker) -> int:
    """Give the bytes of memory that a process holds."""
    pages = Path(f"/proc/{worker.pid}/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * 4096


def still(measure: Callable[[], int], looks: int = 10) -> None:
    """Wait until a measure has not moved by a megabyte for so many looks."""
    seen: list[int] = []

    def settled() -> bool:
        Event().wait(0.05)
        seen.append(measure())
        return len(seen) > looks and max(seen[-looks:]) - min(seen[-looks:]) < 1_000_000

    eventually(settled)
