"""The sample data as they arrive, late, corrected and merged, beside a worker with the shipped modules."""

from pathlib import Path

import pytest

from distributary.sample import insurance_life, retail
from distributary.store.letters import Letters
from tests.conftest import Databases
from tests.harness import Harness
from tests.integration.test_sample import live_for

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
        live_for(domain, databases.raw, 300, seed=1)
    harness.catch_up()
    harness.assert_equal()
    assert Letters(databases.state, "default").parked() == []
