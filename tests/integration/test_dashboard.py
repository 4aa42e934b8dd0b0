"""Every query of the dashboard and of the alerts is answered by a real Prometheus that scrapes a worker under load."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from math import isnan
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from urllib.parse import urlencode

import pytest
import yaml

from distributary.embedded import Keeper
from tests.conftest import Databases, eventually
from tests.harness import Harness
from tests.scraping import get
from tests.servers import free_port, prometheus_tool

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = DEPLOY / "grafana/dashboards/distributary.json"
RULES = DEPLOY / "prometheus/rules.yaml"

#: Transforms of which one parks what is poisoned, and a rollup.
MODULE = """
    from distributary import DerivedCollection, Rollup, transform

    lines = DerivedCollection("lines")
    totals = DerivedCollection("totals")
    sold = Rollup("sold", over=lines, by="sku", compute={"lines": {"$sum": 1}})

    @transform("orders")
    def orders(order):
        if "poison" in order:
            raise ValueError("poison")
        for number, sku in enumerate(order["skus"]):
            yield lines.record({"order": order["_id"], "line": number}, {"sku": sku})

    @transform("orders")
    def sums(order):
        yield totals.record(order["_id"], {"lines": len(order["skus"])})
"""

#: Metrics of which a worker that publishes nothing has none.
PUBLISHING = ("published_total", "publish_failures_total", "publish_seconds")


class Prometheus:
    """A Prometheus of the test's own."""

    def __init__(self, port: int) -> None:
        self._port = port

    def get(self, path: str) -> tuple[int, str]:
        """Ask, and give status and body."""
        return get(self._port, path)

    def is_ready(self) -> bool:
        """Whether it answers queries."""
        try:
            return self.get("/-/ready")[0] == 200
        except ConnectionRefusedError:
            return False

    def numbers(self, query: str) -> list[float]:
        """Give the numbers that a query answers now."""
        status, body = self.get("/api/v1/query?" + urlencode({"query": query}))
        assert status == 200, (query, body)
        values = [float(sample["value"][1]) for sample in json.loads(body)["data"]["result"]]
        return [value for value in values if not isnan(value)]


@contextmanager
def prometheus(folder: Path, target: int) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes a port of this machine every second and has the rules."""
    binary = prometheus_tool("prometheus")
    folder.mkdir()
    jobs = [{"job_name": "shop", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}]
    settings = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    written = {"global": settings, "rule_files": [str(RULES)], "scrape_configs": jobs}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(written), encoding="utf-8")
    port = free_port()
    keeper = Keeper(folder)
    try:
        keeper.start(
            [
                binary,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            folder / "prometheus.log",
        )
        answering = Prometheus(port)
        eventually(answering.is_ready)
        yield answering
    finally:
        keeper.leave()


@pytest.fixture
def harness(databases: Databases, tmp_path: Path) -> Harness:
    """Give a worker whose jobs are so slow that one is open all the time."""
    settings = {
        "http.port": str(free_port()),
        "dead_letters.max_in_window": "0",
        "worker.job_documents_per_second": "1",
        "worker.scan_documents": "1",
    }
    return Harness(databases, tmp_path / "transformers", {"orders": MODULE}, settings)


def queries() -> list[tuple[str, str]]:
    """Give each panel's queries with its title."""
    panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    return [(each["title"], _filled(target["expr"])) for each in panels for target in each.get("targets", [])]


def _filled(query: str) -> str:
    """Fill in what Grafana does."""
    return query.replace("$__rate_interval", "10s").replace("$job", ".*")


def test_every_panel_has_data(harness: Harness, databases: Databases, tmp_path: Path) -> None:
    """Each query of the dashboard has a number, but for those of what a worker without Pub/Sub never has."""
    wanted = [each for each in queries() if not any(name in each[1] for name in PUBLISHING)]
    orders = databases.raw["orders"]
    orders.insert_many([{"_id": number, "skus": ["a"]} for number in range(1000)])
    numbers = count(1000)
    silent: list[str] = []
    with (
        prometheus(tmp_path / "prometheus", harness.config.http.port) as scraping,
        working(harness) as worker,
    ):

        def answered() -> bool:
            assert worker.poll() is None, worker.communicate()
            number = next(numbers)
            orders.insert_one(
                {"_id": number, "skus": ["x", "y"]} | ({"poison": 1} if number % 7 == 0 else {})
            )
            silent[:] = [title for title, query in wanted if not scraping.numbers(query)]
            return not silent

        try:
            eventually(answered)
        except pytest.fail.Exception as failure:
            pytest.fail(f"{failure}; without a number: {silent}")


@contextmanager
def working(harness: Harness) -> Iterator[Popen[str]]:
    """Run a worker process until the end of the block."""
    with harness.process("run", stdout=DEVNULL, stderr=PIPE) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
