"""Shared records, rollups and triggers where they meet each other, a hand, and code that changes."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from distributary.derive.transform import derive
from distributary.errors import ConfigurationError
from distributary.sink import rollups as sink_rollups
from tests.conftest import Databases
from tests.harness import CUSTOMERS, ORDERS, Harness, work

#: Orders with an audit trail, and a rollup over that.
AUDITED = """
    from distributary import DerivedCollection, Rollup, trigger

    audit = DerivedCollection("audit")
    changes = Rollup("changes", over=audit, by="operation", compute={"count": {"$sum": 1}})

    @trigger("orders")
    def trail(change):
        yield audit.record(change.position, {"operation": change.operation})
"""


@pytest.fixture
def harness(databases: Databases, tmp_path: Path) -> Harness:
    """Give a worker with customers, whose codes are counted by order, that has caught up with three orders."""
    harness = Harness(databases, tmp_path / "modules", {"orders": CUSTOMERS})
    databases.raw.orders.insert_many([order(number, code=f"k{number}") for number in range(3)])
    harness.catch_up()
    harness.assert_equal()
    return harness


def order(key: Any, **fields: Any) -> dict[str, Any]:
    """Give a raw order."""
    return {"_id": key, "customer": "c", "total": key, **fields}


def drop_state(harness: Harness) -> None:
    """Lose all that the worker remembers."""
    harness.databases.client.drop_database(harness.databases.state.name)


def test_rollups_over_shared_records_that_outlived_their_state(harness: Harness) -> None:
    """A shared record that nobody contributes to any more goes on a first start, and its group with it."""
    drop_state(harness)
    harness.databases.raw.orders.delete_one({"_id": 2})
    harness.catch_up()
    harness.assert_equal()


def test_what_was_derived_before_a_first_commit_is_no_claim(harness: Harness) -> None:
    """A process that derived documents and then had to begin again still looks for what outlived its state."""
    drop_state(harness)
    harness.databases.raw.orders.delete_one({"_id": 2})
    with harness.assembled() as assembled:
        for document in harness.databases.raw.orders.find():
            derive(assembled.registry.transforms["orders"], document, 100)
        work(assembled, assembled.goal_of_now())
    harness.assert_equal()


DAMAGES: dict[str, Callable[[Harness], object]] = {
    "changed": lambda harness: harness.databases.derived.customer.update_one(
        {"_id": "k1"}, {"$set": {"coded.order": 0}}
    ),
    "removed": lambda harness: harness.databases.derived.customer.delete_one({"_id": "k1"}),
    "added": lambda harness: harness.databases.derived.customer.insert_one(
        {"_id": "k9", "coded": {"order": 1}, "_src": {"shared": True}}
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_groups_of_a_repaired_shared_record_are_computed(harness: Harness, damage: str) -> None:
    """A group that was computed from a damaged record is computed again with the repair."""
    DAMAGES[damage](harness)
    compute_all(harness)
    assert json.loads(harness.said("verify", "--repair", "--json"))["repaired"]
    harness.catch_up()
    harness.assert_equal()


def compute_all(harness: Harness) -> None:
    """Have every group computed from what is stored now."""
    definition = '"coded.order", compute={"codes": {"$sum": 1}}'
    changed = CUSTOMERS.replace(definition, '"coded.order", compute={"codes": {"$sum": 2}}')
    assert changed != CUSTOMERS
    for code in (changed, CUSTOMERS):
        harness.write({"orders": code})
        harness.catch_up()


def test_a_rollup_over_an_audit_trail(
    databases: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups that triggers touch are computed before a worker has caught up, large ones as well."""
    monkeypatch.setattr(sink_rollups, "ROLLUP_RECORDS", 3)
    harness = Harness(databases, tmp_path / "modules", {"audit": AUDITED})
    harness.catch_up()
    databases.raw.orders.insert_one(order(0))
    harness.catch_up()
    assert counted(harness) == 1
    databases.raw.orders.insert_many([order(number) for number in range(1, 10)])
    harness.catch_up()
    assert counted(harness) == 10


def counted(harness: Harness) -> int:
    """Give the number of inserts that the audit trail's rollup counts."""
    found = harness.databases.derived.changes.find_one({"_id": "insert"})
    return found["count"] if found else 0


#: A customer's profile as a record of its own, as a section, and as one beside orders.
RECORD = """
    from distributary import DerivedCollection, transform

    customer = DerivedCollection("customer")

    @transform("users")
    def users(user):
        yield customer.record(user["_id"], {"name": user["name"]})
"""
SECTION = RECORD.replace('record(user["_id"],', 'section(user["_id"], "profile",')
TOGETHER = (
    SECTION
    + """
    @transform("orders")
    def orders(order):
        yield customer.item(order["user"], "orders", order["_id"], {"total": order["total"]})
"""
)
#: The same with orders that yield nothing.
ALONE = (
    RECORD
    + """
    @transform("orders")
    def orders(order):
        return None
"""
)


@pytest.mark.parametrize(
    "codes",
    [(RECORD, SECTION), (SECTION, RECORD), (RECORD, SECTION, RECORD), (SECTION, RECORD, SECTION)],
    ids=["to sections", "to records", "to sections and back", "to records and back"],
)
def test_records_become_sections_in_place(databases: Databases, tmp_path: Path, codes: Sequence[str]) -> None:
    """With `on_change = "warn"`, each document that changed code derives has its section, or its record again."""
    harness = Harness(databases, tmp_path / "modules", {}, {"worker.on_change": "warn"})
    databases.raw.users.insert_one({"_id": 1, "name": "a"})
    for code in codes:
        harness.write({"users": code})
        harness.catch_up()
        databases.raw.users.update_one({"_id": 1}, {"$set": {"name": code}})
        harness.catch_up()
        harness.assert_equal()


@pytest.mark.parametrize("codes", [(RECORD, TOGETHER), (TOGETHER, ALONE)], ids=["to sections", "to records"])
def test_records_become_shared_ones_in_place(
    databases: Databases, tmp_path: Path, codes: tuple[str, str]
) -> None:
    """Whichever of several documents is derived first by the new code, nothing of the old kind is left of a record."""
    harness = Harness(databases, tmp_path / "modules", {}, {"worker.on_change": "warn"})
    databases.raw.users.insert_many([{"_id": 1, "name": "a"}, {"_id": 2, "name": "b"}])
    databases.raw.orders.insert_many([{"_id": 5, "user": 1, "total": 1}, {"_id": 6, "user": 3, "total": 1}])
    for code in codes:
        harness.write({"users": code})
        harness.catch_up()
    databases.raw.users.update_many({}, {"$set": {"name": "c"}})
    harness.catch_up()
    databases.raw.orders.delete_many({})
    harness.catch_up()
    harness.assert_equal()
    databases.raw.users.delete_one({"_id": 1})
    harness.catch_up()
    harness.assert_equal()


def test_an_audit_trail_has_one_worker(databases: Databases, tmp_path: Path) -> None:
    """A second worker that would fill the same collection is refused, as long as the first has the trigger."""
    first = Harness(databases, tmp_path / "modules", {"audit": AUDITED})
    first.catch_up()
    second = Harness(databases, tmp_path / "others", {"audit": AUDITED}, {"worker.name": "second"})
    with pytest.raises(ConfigurationError, match="'audit' is written by worker 'default' already"):
        second.catch_up()
    first.write({"orders": ORDERS})
    first.catch_up()
    second.catch_up()
