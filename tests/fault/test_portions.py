"""Commits that take long whatever they hold: batches do not become small by it."""

from pathlib import Path

from distributary.assemble import Assembled, connect
from distributary.engine.observer import Observer
from tests.conftest import Databases
from tests.fault.deployment import failing
from tests.harness import Harness, work

#: Changes in a batch, as configured, and all that there are; commits that wait.
MOST, ALL, WAITING = 1000, 12_000, 8


class Noted(Observer):
    """Notes how many changes each commit held, and how long it took."""

    def __init__(self) -> None:
        self.changes: list[int] = []
        self.seconds: list[float] = []

    def committed(self, changes: int, seconds: float) -> None:
        """Note one."""
        self.changes.append(changes)
        self.seconds.append(seconds)


def test_batches_stay_large_while_each_commit_waits(databases: Databases, tmp_path: Path) -> None:
    """Behind slow commits smaller ones are tried; they are no quicker, so that full ones follow; the end is equal."""
    harness = Harness(databases, tmp_path / "modules", settings={"worker.batch_changes": str(MOST)})
    harness.catch_up()
    orders = [{"_id": n, "customer": n, "total": n, "skus": []} for n in range(ALL)]
    databases.raw.orders.insert_many(orders)
    noted, slow = Noted(), {"blockConnection": True, "blockTimeMS": 1200}
    with connect(harness.config) as connected:
        assembled = Assembled(harness.config, connected, harness.registry, observer=noted)
        with failing(databases.client, ["commitTransaction"], {"times": WAITING}, slow):
            work(assembled, assembled.goal_of_now())
    waited = [size for size, took in zip(noted.changes, noted.seconds, strict=True) if took > 1.2]
    assert sum(noted.changes) == ALL
    assert min(waited[-2:]) >= MOST
    harness.assert_equal()
