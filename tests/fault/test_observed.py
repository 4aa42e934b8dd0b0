"""What metrics and health say while MongoDB is away."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from distributary.embedded import EmbeddedMongo
from tests.conftest import embedded_or_skip, eventually
from tests.fault.deployment import databases_of
from tests.harness import Harness
from tests.scraping import working
from tests.servers import free_port


@pytest.fixture
def single() -> Iterator[EmbeddedMongo]:
    """Give a replica set of one member that a test may stop."""
    with embedded_or_skip() as mongo:
        yield mongo


def test_an_outage_of_mongodb_is_told_and_is_no_reason_to_restart(
    single: EmbeddedMongo, tmp_path: Path
) -> None:
    """Without MongoDB a worker is not ready, says why and stays healthy; behind that the outage is counted."""
    with databases_of(f"{single.uri}&serverSelectionTimeoutMS=500") as databases:
        harness = replace(Harness(databases, tmp_path / "modules"), settings={"http.port": str(free_port())})
        with working(harness) as worker:
            eventually(lambda: "active" in worker.get("/readyz")[1])
            single.members[0].stop()
            eventually(lambda: worker.get("/readyz")[0] == 503)
            status, body = worker.get("/readyz")
            assert "trying again" in json.loads(body)["reason"]
            status, body = worker.get("/healthz")
            assert (status, json.loads(body)["healthy"]) == (200, True)
            single.members[0].start()
            eventually(lambda: "active" in worker.get("/readyz")[1], 60)
            worker.until(lambda seen: (seen["elections_total", ()], seen["lease_held", ()]) == (1, 1))
            databases.raw["orders"].insert_one({"_id": 1, "total": 3})
            worker.until(lambda seen: seen["changes_read_total", ()] == 1)
