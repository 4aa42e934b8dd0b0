"""The sample data as they arrive, late, corrected and merged, beside a worker with the shipped modules."""

from pathlib import Path
from threading import Event
from typing import Any

import pytest

from distributary.sample import insurance_life, retail
from distributary.store.letters import Letters
from tests.conftest import Databases
from tests.harness import Harness

FOLDER = Path(__file__).parents[2] / "transformers"
DOMAINS = {"retail": (retail, FOLDER), "insurance": (insurance_life, FOLDER / "insurance")}


@pytest.mark.parametrize("name", DOMAINS)
def test_what_arrives_beside_a_worker_is_derived(databases: Databases, tmp_path: Path, name: str) -> None:
    """Interim states, moves between customers and merges come to a recomputation, and no document is parked."""
    domain, folder = DOMAINS[name]
    settings = {"worker.transformers": str(folder), "personal_data.key": "a key of the tests"}
    harness = Harness(databases, tmp_path / "none", {}, settings)
    with harness.running():
        domain.load(databases.raw, 0.03)
        assert live_for(domain, databases, 300) == 300
    harness.catch_up()
    harness.assert_equal()
    assert Letters(databases.state, "default").parked() == []


def live_for(domain: Any, databases: Databases, writes: int) -> int:
    """Apply a number of live writes, and give how many there were."""
    stop, done = Event(), 0

    def wrote(_operation: str, _at: object) -> None:
        nonlocal done
        done += 1
        if done == writes:
            stop.set()

    domain.live(databases.raw, 1, stop, 1e9, wrote)
    return done
