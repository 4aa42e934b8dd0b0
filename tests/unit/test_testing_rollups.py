"""Rollups in `distributary.testing`: `apply` computes them, `derive` refuses what fits no group."""

from collections.abc import Iterator
from typing import Any

import mongomock
import pytest
from bson import Decimal128

from distributary import DerivedCollection, Record, Rollup, transform
from distributary.derive.transform import Transform
from distributary.errors import EnvironmentFault
from distributary.testing import Change, Deleted, NotDerived, apply, derive
from distributary.testing.rollups import Followed

visits = DerivedCollection("visits")
spend = Rollup(
    "visits_by_city",
    over=visits,
    by=["city", "at.year"],
    compute={"visits": {"$count": {}}, "spent": {"$sum": "$spent"}, "names": {"$addToSet": "$name"}},
    match={"open": {"$ne": True}},
)


@transform("visits")
def read(visit: dict[str, Any]) -> Iterator[Record]:
    """Give a record of its own."""
    yield visits.record(visit["_id"], {name: each for name, each in visit.items() if name != "_id"})


def visit(key: int, city: Any = "x", **fields: Any) -> dict[str, Any]:
    """Give a visit."""
    return {"_id": key, "city": city, "at": {"year": 2025}, "spent": key, "name": f"n{-key}"} | fields


def test_apply_computes_the_rollups_of_the_module() -> None:
    """Groups follow what moves and leaves, with sorted sets, whatever mongomock gives."""
    changes: list[Change] = [
        visit(1),
        visit(2),
        visit(3, "y"),
        visit(4, open=True),
        visit(2, "y"),
        Deleted(1),
        visit(5, "y"),
    ]
    database = apply(read, changes)
    (found,) = database["visits_by_city"].find()
    assert found == {
        "_id": {"city": "y", "at_year": 2025},
        "visits": 3,
        "spent": 10,
        "names": ["n-2", "n-3", "n-5"],
        "_src": {"by": "visits_by_city"},
    }


def test_what_fits_no_group_is_not_derived() -> None:
    """A list as a group is refused where a worker would park the document."""
    with pytest.raises(NotDerived, match="'city', by which rollup 'visits_by_city' groups, is a list"):
        derive(read, visit(1, ["x"]))


def test_what_mongomock_lacks_is_said() -> None:
    """An accumulator that mongomock does not know is an error with a cure."""
    others = DerivedCollection("others")
    best = Rollup("best", over=others, by="city", compute={"best": {"$maxN": {"input": "$spent", "n": 1}}})

    @transform("others")
    def reading(visit: dict[str, Any]) -> Record:
        return others.record(visit["_id"], {"city": visit["city"], "spent": visit["spent"]})

    reading.__globals__["best"] = best
    try:
        with pytest.raises(EnvironmentFault, match=r"mongomock cannot compute rollup 'best'.*a real MongoDB"):
            apply(reading, [visit(1)])
    finally:
        del reading.__globals__["best"]


@pytest.mark.parametrize(
    "compute",
    [
        {"r": {"$avg": "$total"}},
        {"r": {"$max": "$total"}},
        {"r": {"$sum": {"$cond": [{"$gt": ["$total", 1]}, 1, 0]}}},
    ],
    ids=["avg", "max", "cond"],
)
def test_decimals_that_mongomock_takes_for_no_numbers_are_said(compute: dict[str, Any]) -> None:
    """It would give an average of None; a sum of decimals is right, and decimals in other fields do not matter."""
    added = Rollup("added", over=visits, by="city", compute={"sum": {"$sum": "$total"}})
    hard = Rollup("hard", over=visits, by="city", compute=compute)
    assert followed(added, Decimal128("2.5")) == [{"_id": "x", "sum": Decimal128("2.5")}]
    assert [each["_id"] for each in followed(hard, 2)] == ["x"]
    with pytest.raises(
        EnvironmentFault, match=r"'hard': it takes no Decimal128 in city, total\..*real MongoDB"
    ):
        followed(hard, Decimal128("2.5"))


@pytest.mark.parametrize(
    "match",
    [
        {"total": {"$gt": 1}},
        {"detail.total": 1},
        {"$or": [{"name": "x"}, {"total": 1}]},
        {"$expr": {"$gt": ["$total", 1]}},
    ],
    ids=["field", "path", "or", "expression"],
)
def test_decimals_that_a_query_looks_at_are_said(match: dict[str, Any]) -> None:
    """They would be found by no comparison with a number."""
    asked = Rollup("asked", over=visits, by="city", compute={"visits": {"$sum": 1}}, match=match)
    with pytest.raises(EnvironmentFault, match="'asked': it takes no Decimal128"):
        followed(asked, Decimal128("2.5"), detail={"total": Decimal128("1")})


def followed(rollup: Rollup, total: object, **fields: Any) -> list[dict[str, Any]]:
    """Give what a rollup comes to over one record in memory."""
    database: Any = mongomock.MongoClient()["derived"]
    database.visits.insert_one(visit(1, total=total, other=Decimal128("1"), **fields))
    reading = Transform("read", "raw", read, "", frozenset({"visits"}), "", {"visits": [rollup]})
    Followed(database, [reading]).follow_shared("visits", list(database.visits.find()))
    return list(database[rollup.name].find({}, {"_src": 0}))
