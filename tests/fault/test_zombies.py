"""Workers that were stopped for longer than their lease, with older code than the one that went on meanwhile."""

import signal
from pathlib import Path

from tests.conftest import Databases, eventually
from tests.fault.launcher import PATIENCE, Launcher, Trap
from tests.fault.load import SETTINGS
from tests.harness import Harness

RECORDS = """
    from distributary import DerivedCollection, Rollup, transform

    records = DerivedCollection("records")

    @transform("orders")
    def orders(order):
        yield records.record(order["_id"], {"by": order["by"], "number": order["number"]})
"""

#: A group with a record that was stored before, and that cannot be computed, stays pending.
ROLLUP = (
    '    sums = Rollup("sums", over=records, by="by", compute={"sum": {"$sum": {"$toInt": "$number"}}})\n'
)


def test_a_zombie_does_not_forget_what_is_pending(
    databases: Databases, tmp_path: Path, launcher: Launcher
) -> None:
    """A worker without a rollup that wakes after one with it took over leaves the pending groups alone."""
    settings = SETTINGS | {"worker.lease_seconds": "5"}
    harness = Harness(databases, tmp_path / "modules", {"orders": RECORDS}, settings)
    databases.raw.orders.insert_many(
        [{"_id": 1, "by": "a", "number": "x"}, {"_id": 2, "by": "b", "number": "2"}]
    )
    harness.catch_up()
    with launcher.running(harness.environment, Trap("before it is prepared", 1, signal.SIGSTOP)) as zombie:
        eventually(lambda: zombie.stopped, PATIENCE)
        harness.write({"orders": RECORDS + ROLLUP})
        with harness.running():
            eventually(lambda: pending(databases) == ["a"], PATIENCE)
            zombie.send(signal.SIGCONT)
            eventually(lambda: "lease lost" in zombie.said or "stepped back" in zombie.said, PATIENCE)
            zombie.send(signal.SIGTERM)
            zombie.ended()
    assert pending(databases) == ["a"]


def test_who_runs_without_a_rollup_forgets_what_is_pending(databases: Databases, tmp_path: Path) -> None:
    """Groups of a rollup that is not plugged in any more are nobody's; when it is again, they are computed."""
    harness = Harness(databases, tmp_path / "modules", {"orders": RECORDS}, SETTINGS)
    databases.raw.orders.insert_one({"_id": 1, "by": "a", "number": "x"})
    harness.catch_up()
    for code, left in ((RECORDS + ROLLUP, ["a"]), (RECORDS, []), (RECORDS + ROLLUP, ["a"])):
        harness.write({"orders": code})
        harness.catch_up()
        assert pending(databases) == left


def pending(databases: Databases) -> list[str]:
    """Give the groups that are to be computed."""
    return [each["_id"]["group"] for each in databases.state.pending.find()]
