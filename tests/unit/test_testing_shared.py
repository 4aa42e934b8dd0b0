"""Shared records in `distributary.testing`: `apply` puts them together from what several documents yield."""

from typing import Any

import pytest
from bson import Timestamp

from distributary import DerivedCollection, Item, Rollup, Section, transform
from distributary.testing import Change, Deleted, NotDerived, apply

people = DerivedCollection("people")
cities = Rollup("cities", over=people, by="profile.city", compute={"people": {"$sum": 1}})


@transform("users")
def users(user: dict[str, Any]) -> Section:
    """Give a section of a shared record."""
    return people.section(user.get("as", user["_id"]), "profile", {"city": user["city"]})


@transform("visits")
def visits(visit: dict[str, Any]) -> Item:
    """Give an item of a shared record."""
    return people.item(visit["user"], "visits", visit["_id"], {"page": visit["page"]})


def visit(key: Any, user: str = "U1", page: str = "x") -> dict[str, Any]:
    """Give a visit."""
    return {"_id": key, "user": user, "page": page}


def stored(database: Any, collection: str) -> dict[Any, Any]:
    """Give the records of a collection by their keys, without the engine's field."""
    return {each.pop("_id"): each for each in database[collection].find({}, {"_src": False})}


def test_shared_records_follow_their_parts() -> None:
    """A section and items make one record, a part that moves is in another one, and with the last part it is gone."""
    ann: list[Change] = [
        ("users", {"_id": "U1", "city": "Bern"}),
        ("visits", visit(10)),
        ("visits", visit(9.0)),
    ]
    database = apply([users, visits], ann)
    assert stored(database, "people") == {
        "U1": {"profile": {"city": "Bern"}, "visits": [{"_id": 9.0, "page": "x"}, {"_id": 10, "page": "x"}]}
    }
    assert stored(database, "cities") == {"Bern": {"people": 1}}
    moved: list[Change] = [
        ("visits", visit(9, "U2")),
        ("visits", visit(10, page="y")),
        ("users", Deleted("U1")),
    ]
    apply([users, visits], moved, database)
    assert stored(database, "people") == {
        "U1": {"visits": [{"_id": 10, "page": "y"}]},
        "U2": {"visits": [{"_id": 9, "page": "x"}]},
    }
    assert stored(database, "cities") == {}
    apply([users, visits], [("visits", Deleted(9)), ("visits", Deleted(10))], database)
    assert stored(database, "people") == stored(database, "parts/people") == {}


def test_shared_records_are_stored_as_a_worker_stores_them() -> None:
    """They are marked as such, and who owns what of them is told with their parts."""
    database = apply([users, visits], [("visits", visit(1)), ("users", {"_id": "U1", "city": "Bern"})])
    (record,) = database["people"].find()
    assert record["_src"] == {"shared": True, "at": Timestamp(2, 1), "epoch": 1}
    owners = {
        each["_id"]["s"]: (each["_src"]["by"], each["_src"]["key"])
        for each in database["parts/people"].find()
    }
    assert owners == {"profile": ("users", "U1"), "visits": ("visits", 1)}


def test_a_part_has_one_owner() -> None:
    """A second document that yields a section is told, with the first one."""
    changes = [("users", {"_id": "U1", "city": "Bern"}), ("users", {"_id": "U2", "as": "U1", "city": "Thun"})]
    with pytest.raises(NotDerived, match=r"people\['U1'\]\.profile, which source document 'U1' owns"):
        apply([users, visits], changes)
