"""The shipped transform modules, each against the raw documents that matter to it."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from bson import Decimal128, decode

from distributary.change import CODEC
from distributary.derive.transform import Failure, Transform, derive
from distributary.plugins import load
from distributary.sample import data_set, sizes_at

FOLDER = Path(__file__).parents[2] / "transformers"
MODULES = ("customers", "orders", "products")
NOON = datetime(2025, 3, 4, 12, tzinfo=UTC)

Derived = dict[str, list[dict[str, Any]]]


REGISTRY = load([FOLDER], entry_points=False)


def shipped(module: str) -> Transform:
    """Give the one transform of a shipped module."""
    (transform,) = REGISTRY.by_source[module]
    return transform


def derived(module: str, document: dict[str, Any]) -> Derived:
    """Give what a document yields, by derived collection."""
    records = derive(shipped(module), document, 1000)
    assert not isinstance(records, Failure), records
    stored: Derived = {}
    for record in records:
        stored.setdefault(record.collection, []).append(decode(record.body, CODEC))
    return stored


def an_order(**fields: Any) -> dict[str, Any]:
    """Give an order of two lines, with some fields changed."""
    lines = [
        {"sku": "P1", "quantity": 2, "price": Decimal128("0.10")},
        {"sku": "P2", "quantity": 1, "price": Decimal128("19.99")},
    ]
    return {"_id": 7, "customer_id": "C1", "ordered_at": NOON, "status": "placed", "lines": lines} | fields


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_named_after_its_source_collection(module: str) -> None:
    """Users find a transform by the name of the collection that it reads."""
    assert shipped(module).name == module
    assert f"{module}.py:" in shipped(module).place


def test_five_collections_are_filled() -> None:
    """Every collection that is declared is named by a transform, and no other."""
    filled = {name for transform in REGISTRY.transforms.values() for name in transform.collections}
    assert filled == set(REGISTRY.collections)
    assert len(filled) == 5


@pytest.mark.parametrize("module", MODULES)
def test_a_document_without_any_field_is_derived(module: str) -> None:
    """What is missing is left out, it does not park the document."""
    assert all("_id" in record for records in derived(module, {"_id": 1}).values() for record in records)


@pytest.mark.parametrize("module", MODULES)
def test_fields_that_are_null_are_derived(module: str) -> None:
    """A null counts as missing."""
    names = ("lines", "status", "email", "phone", "price", "name", "customer_id")
    derived(module, {"_id": 1} | dict.fromkeys(names))


def test_the_whole_sample_is_derived_and_no_key_is_yielded_twice() -> None:
    """No two sample documents contend for a record."""
    keys = set()
    count = 0
    for name, documents in data_set(sizes_at(0.02)):
        transform = shipped(name)
        for document in documents:
            records = derive(transform, document, 1000)
            assert not isinstance(records, Failure), records
            count += len(records)
            keys |= {(record.collection, record.identity) for record in records}
    assert len(keys) == count


def test_customers_are_found_by_every_address() -> None:
    """An e-mail address is compared without regard to case and surrounding space."""
    name = {"given": "Ada", "family": "Wong"}
    raw = {"_id": "C1", "name": name, "email": " Ada@Example.com", "phone": "+1-202", "consent": True}
    email, phone = derived("customers", raw)["customer_contacts"]
    assert email == {
        "_id": {"value": "ada@example.com", "channel": "email", "customer": "C1"},
        "channel": "email",
        "value": "ada@example.com",
        "customer_id": "C1",
        "name": name,
        "consent": True,
    }
    assert phone["_id"] == {"value": "+1-202", "channel": "phone", "customer": "C1"}


def test_a_changed_address_moves_the_record() -> None:
    """The address is part of the key."""
    keys = [
        derived("customers", {"_id": "C1", "email": email}) for email in ("a@example.com", "b@example.com")
    ]
    before, after = (records["customer_contacts"][0]["_id"] for records in keys)
    assert before != after


def test_customers_who_share_a_phone_do_not_contend() -> None:
    """The customer is part of the key."""
    one, other = (
        derived("customers", {"_id": key, "phone": "+1"})["customer_contacts"] for key in ("C1", "C2")
    )
    assert one[0]["value"] == other[0]["value"]
    assert one[0]["_id"] != other[0]["_id"]


def test_a_product_is_shown_with_its_exact_price() -> None:
    """The catalogue has what a shop window shows, and no stock."""
    raw = {
        "_id": "P1",
        "name": "Mug",
        "brand": "Dune",
        "category": "Kitchen",
        "price": Decimal128("5.90"),
        "stock": 3,
    }
    (entry,) = derived("products", raw)["product_catalogue"]
    del raw["stock"]
    assert entry == raw


@pytest.mark.parametrize("change", [{"discontinued": True}, {"price": None}])
def test_a_product_that_cannot_be_bought_is_not_shown(change: dict[str, Any]) -> None:
    """It leaves the catalogue."""
    assert derived("products", {"_id": "P1", "price": Decimal128("1")} | change) == {}


def test_an_order_is_summed_up_exactly() -> None:
    """Money is added as decimals; dates keep their zone."""
    (order,) = derived("orders", an_order())["orders_by_customer"]
    assert order == {
        "_id": 7,
        "customer_id": "C1",
        "ordered_at": NOON,
        "status": "placed",
        "lines": 2,
        "total": Decimal128("20.19"),
    }


def test_every_line_is_a_record() -> None:
    """Lines carry whose they are and what was bought."""
    lines = derived("orders", an_order())["order_lines"]
    assert [line["_id"] for line in lines] == [{"order": 7, "line": 1}, {"order": 7, "line": 2}]
    assert lines[0] == {
        "_id": {"order": 7, "line": 1},
        "customer_id": "C1",
        "ordered_at": NOON,
        "sku": "P1",
        "quantity": 2,
        "price": Decimal128("0.10"),
    }


def test_a_cancelled_line_leaves_and_the_others_keep_their_keys() -> None:
    """The fan-out shrinks by that line only, and the total follows."""
    raw = an_order()
    raw["lines"][0]["cancelled"] = True
    after = derived("orders", raw)
    assert [line["_id"]["line"] for line in after["order_lines"]] == [2]
    assert after["orders_by_customer"][0]["total"] == Decimal128("19.99")


def test_a_cancelled_order_has_no_lines() -> None:
    """It stays in the history of its customer and nowhere else."""
    after = derived("orders", an_order(status="cancelled"))
    assert set(after) == {"orders_by_customer"}
    assert after["orders_by_customer"][0]["total"] == Decimal128("0.00")


@pytest.mark.parametrize(
    ("status", "is_open"), [("placed", True), ("paid", True), ("shipped", False), (None, False)]
)
def test_only_what_is_to_be_shipped_is_open(status: str | None, is_open: bool) -> None:  # noqa: FBT001 - a table
    """An order leaves the open ones when it is shipped."""
    assert ("open_orders" in derived("orders", an_order(status=status))) is is_open
