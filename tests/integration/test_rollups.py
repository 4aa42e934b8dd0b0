"""Rollups, kept by a worker on a real server."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Databases
from tests.harness import Harness

MODULE = """
    from distributary import DerivedCollection, Rollup, transform

    by_customer = DerivedCollection("orders_by_customer")
    spend = Rollup(
        "customer_spend",
        over=by_customer,
        by="customer",
        compute={"orders": {"$sum": 1}, "spent": {"$sum": "$total"}, "tags": {"$addToSet": "$tag"}},
        indexes=["-spent"],
    )

    @transform("orders")
    def orders(order):
        yield by_customer.record(order["_id"], {name: each for name, each in order.items() if name != "_id"})
"""


@pytest.fixture
def harness(databases: Databases, tmp_path: Path) -> Iterator[Harness]:
    """Give a worker with one rollup."""
    yield Harness(databases, tmp_path / "transformers", {"orders": MODULE})


def stored(harness: Harness, name: str = "customer_spend") -> dict[Any, dict[str, Any]]:
    """Give what is stored of a rollup, without the engine's field."""
    found = {}
    for each in harness.databases.derived[name].find():
        each.pop("_src")
        key = each.pop("_id")
        found[tuple(key.items()) if isinstance(key, dict) else key] = each
    return found


def totals(harness: Harness) -> dict[Any, tuple[int, Any]]:
    """Give the number of orders and the sum of each customer."""
    return {key: (each["orders"], each["spent"]) for key, each in stored(harness).items()}


def test_a_record_that_moves_leaves_no_stale_total(harness: Harness) -> None:
    """A record that moves between groups is counted in the new one only, and an empty group is gone."""
    orders = harness.databases.raw["orders"]
    orders.insert_many(
        [
            {"_id": 1, "customer": "a", "total": 5},
            {"_id": 2, "customer": "a", "total": 7},
            {"_id": 3, "customer": "b", "total": 1},
        ]
    )
    harness.catch_up()
    assert totals(harness) == {"a": (2, 12), "b": (1, 1)}
    orders.update_one({"_id": 2}, {"$set": {"customer": "b"}})
    orders.update_one({"_id": 1}, {"$set": {"customer": "c", "total": 6}})
    harness.catch_up()
    assert totals(harness) == {"b": (2, 8), "c": (1, 6)}
    orders.delete_many({"customer": "b"})
    harness.catch_up()
    assert totals(harness) == {"c": (1, 6)}
