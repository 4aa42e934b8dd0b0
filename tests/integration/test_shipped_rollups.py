"""The rollups of the shipped modules, computed by a real MongoDB over what the modules derive."""

from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from bson import Decimal128

from distributary.derive.registry import Registry
from distributary.derive.rollup import computed, computing
from distributary.plugins import load as loaded
from distributary.sample import insurance, retail
from distributary.testing import Records, personal_key
from tests.conftest import Databases
from tests.recompute import recompute

FOLDER = Path(__file__).parents[2] / "transformers"


@dataclass(frozen=True)
class Domain:
    """The modules of a folder, and what they derive from a sample."""

    folder: Path
    sample: Any
    scale: float

    @cached_property
    def registry(self) -> Registry:
        """What the modules declare."""
        return loaded([self.folder], entry_points=False)

    @cached_property
    def derived(self) -> dict[str, Records]:
        """What the modules derive from the sample."""
        functions = {each.source: each.function for each in self.registry.transforms.values()}
        made = self.sample.data_set(self.sample.sizes_at(self.scale))
        raw = [(name, document) for name, documents in made for document in documents]
        with personal_key("a key of the tests"):
            return recompute(functions, raw)


RETAIL = Domain(FOLDER, retail, 0.02)
INSURANCE = Domain(FOLDER / "insurance", insurance, 0.04)


def groups(databases: Databases, domain: Domain, name: str) -> list[dict[str, Any]]:
    """Give the groups of a rollup, as a worker has them computed."""
    rollup = domain.registry.rollups[name]
    records = [{"_id": key, **fields} for key, fields in domain.derived[rollup.over.name].items()]
    databases.derived["records"].insert_many(records)
    found = databases.derived["records"].aggregate(computing(rollup))
    return [group.document for each in found if (group := computed(rollup, each))]


def says_something(value: Any) -> bool:
    """Whether a result is another than that of a field which no record has."""
    return bool(value.to_decimal() if isinstance(value, Decimal128) else value)


@pytest.mark.parametrize(
    ("domain", "name"),
    [(domain, name) for domain in (RETAIL, INSURANCE) for name in domain.registry.rollups],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_mongodb_computes_every_shipped_rollup(databases: Databases, domain: Domain, name: str) -> None:
    """Every field is computed in every group, and in some group it is neither null, nor zero, nor empty."""
    found = groups(databases, domain, name)
    for field in domain.registry.rollups[name].compute:
        assert all(field in group for group in found)
        assert any(says_something(group[field]) for group in found), f"{field} is of no record"


def test_what_customers_spent_is_exact(databases: Databases) -> None:
    """Cancelled orders do not count; the value is a decimal, and the average is its part."""
    spent: dict[Any, list[Decimal]] = {}
    for order in RETAIL.derived["orders_by_customer"].values():
        if order["status"] != "cancelled":
            spent.setdefault(order["customer_id"], []).append(order["total"].to_decimal())
    found = {group["_id"]: group for group in groups(databases, RETAIL, "customer_spend")}
    assert found.keys() == spent.keys()
    for key, totals in spent.items():
        assert found[key]["no_of_orders"] == len(totals)
        assert found[key]["lifetime_value"] == Decimal128(sum(totals))
        average = found[key]["average_order_value"].to_decimal() * len(totals)
        assert abs(average - sum(totals)) < Decimal("1e-20")


def test_sessions_are_counted_once(databases: Databases) -> None:
    """As many as the customer's list of sessions has, however many clicks there were."""
    found = {group["_id"]: group for group in groups(databases, RETAIL, "customer_sessions")}
    customers = RETAIL.derived["customer"]
    listed = {key: len(customers[key]["sessions"]) for key in customers if "sessions" in customers[key]}
    assert {key: group["session_count"] for key, group in found.items() if group["session_count"]} == listed


def test_pairs_are_counted_over_orders(databases: Databases) -> None:
    """A pair's count is the number of orders that have both products."""
    pairs = Counter((each["first"], each["second"]) for each in RETAIL.derived["bought_together"].values())
    found = groups(databases, RETAIL, "product_affinity")
    assert {(each["_id"]["first"], each["_id"]["second"]): each["orders"] for each in found} == pairs


def test_an_agents_book_is_what_is_in_force(databases: Databases) -> None:
    """Lapsed policies are in the agent's list and not in the sums."""
    book: dict[Any, Decimal] = {}
    for policy in INSURANCE.derived["policies_by_agent"].values():
        if policy["status"] == "in force":
            book[policy["agent_id"]] = (
                book.get(policy["agent_id"], Decimal()) + policy["annual_premium"].to_decimal()
            )
    found = groups(databases, INSURANCE, "agent_book")
    assert {group["_id"]: group["annual_premium"] for group in found} == {
        key: Decimal128(premium) for key, premium in book.items()
    }


def test_the_newest_activity_is_the_last_one(databases: Databases) -> None:
    """The kind that is told is of the newest moment."""
    newest: dict[Any, dict[str, Any]] = {}
    for event in INSURANCE.derived["customer_timeline"].values():
        known = newest.get(event["customer_id"])
        if known is None or event["at"] > known["at"]:
            newest[event["customer_id"]] = event
    found = groups(databases, INSURANCE, "customer_activity")
    assert {group["_id"]: group["last_kind"] for group in found} == {
        key: event["kind"] for key, event in newest.items()
    }
