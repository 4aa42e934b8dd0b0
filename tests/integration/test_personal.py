"""Pseudonyms in derived collections of a real worker, and what becomes of them when their key changes."""

from pathlib import Path

import pytest

from distributary.errors import ConfigurationError
from distributary.operate.status import workers
from distributary.personal import pseudonym
from distributary.testing import personal_key
from tests.conftest import Databases
from tests.harness import Harness

MODULE = """
    from distributary import DerivedCollection, transform
    from distributary.personal import pseudonym

    people = DerivedCollection("people")

    @transform("people")
    def people_by_address(person):
        yield people.record(person["_id"], {"who": pseudonym(person.get("email"))})
"""

FIRST, SECOND = "the first key of two", "the second key of two"


def harness_with(databases: Databases, folder: Path, key: str, **settings: str) -> Harness:
    """Give a worker whose configuration has a key."""
    return Harness(databases, folder, {"people": MODULE}, {"personal_data.key": key} | settings)


def state_of(harness: Harness) -> str:
    """Give what `status` says of the transform."""
    databases = harness.databases
    (worker,) = workers(databases.raw, databases.state, "default", harness.registry)
    return worker.transforms["people_by_address"].state


@personal_key(None)
def test_another_key_makes_what_is_stored_outdated(databases: Databases, tmp_path: Path) -> None:
    """`status` says so; what is built anew has pseudonyms of the new key."""
    databases.raw.people.insert_one({"_id": 1, "email": "Ada@example.com"})
    for key, before in ((FIRST, "not built"), (SECOND, "outdated")):
        harness = harness_with(databases, tmp_path / "m", key, **{"worker.on_change": "rebuild"})
        assert state_of(harness) == before
        harness.catch_up()
        assert state_of(harness) == "built"
        (record,) = databases.derived.people.find()
        with personal_key(key):
            assert record["who"] == pseudonym("ada@example.com")


@personal_key(None)
def test_a_worker_without_a_key_does_not_start(databases: Databases, tmp_path: Path) -> None:
    """It says where a pseudonym is made, rather than to park every document."""
    harness = Harness(databases, tmp_path / "m", {"people": MODULE})
    with pytest.raises(ConfigurationError, match=r"people.py:8: .*people_by_address.*PERSONAL_DATA__KEY"):
        harness.catch_up()
    assert databases.state.list_collection_names() == []
