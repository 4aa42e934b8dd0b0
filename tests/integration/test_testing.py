"""The pytest plugin's fixture, and `apply` into a real MongoDB."""

from typing import Any

from pymongo import MongoClient

from distributary import DerivedCollection, Record, transform
from distributary.testing import Change, Deleted, apply
from tests.conftest import Databases

out = DerivedCollection("out")


@transform("raw")
def moving(document: dict[str, Any]) -> Record:
    """Give a record under a key that moves."""
    return out.record(document["key"], {"by": document["_id"]})


def test_the_fixture_gives_a_replica_set(distributary_mongo: str) -> None:
    """What tests of whole workers need: transactions and change streams."""
    with MongoClient[dict[str, Any]](distributary_mongo) as client:
        assert client.admin.command("hello")["setName"]
        with client.start_session() as session, session.start_transaction():
            client["some"]["where"].insert_one({"_id": 1}, session=session)


def test_changes_are_carried_out_in_a_real_database(databases: Databases) -> None:
    """A database that is given may be a real one."""
    moved: list[Change] = [{"_id": 1, "key": {"a": 1}}, {"_id": 2, "key": "b"}, {"_id": 1, "key": "c"}]
    apply(moving, [*moved, Deleted(2)], databases.derived)
    (record,) = databases.derived["out"].find({}, {"_src": False})
    assert record == {"_id": "c", "by": 1}
