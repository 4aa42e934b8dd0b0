"""The shipped transform modules, each against the raw documents that matter to it."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from bson import Decimal128

from distributary.plugins import load as loaded
from distributary.sample import data_set, sizes_at
from distributary.testing import Deleted, apply, derive, load

FOLDER = Path(__file__).parents[2] / "transformers"
NOON = datetime(2025, 3, 4, 12, tzinfo=UTC)

REGISTRY = loaded([FOLDER], entry_points=False)

customers = load(FOLDER / "customers.py").customers
orders = load(FOLDER / "orders.py").orders
products = load(FOLDER / "products.py").products

SHIPPED = {"customers": customers, "orders": orders, "products": products}


def an_order(**fields: Any) -> dict[str, Any]:
    """Give an order of two lines, with some fields changed."""
    lines = [
        {"sku": "P1", "quantity": 2, "price": Decimal128("0.10")},
        {"sku": "P2", "quantity": 1, "price": Decimal128("19.99")},
    ]
    return {"_id": 7, "customer_id": "C1", "ordered_at": NOON, "status": "placed", "lines": lines} | fields


def test_modules_are_named_after_their_source_collections() -> None:
    """Users find a transform by the name of the collection that it reads."""
    assert set(REGISTRY.sources) == set(SHIPPED)
    for name in SHIPPED:
        (transform,) = REGISTRY.by_source[name]
        assert transform.name == name
        assert f"{name}.py:" in transform.place


def test_five_collections_are_filled() -> None:
    """Every collection that is declared is named by a transform, and no other."""
    filled = {name for transform in REGISTRY.transforms.values() for name in transform.collections}
    assert filled == set(REGISTRY.collections)
    assert len(filled) == 5


@pytest.mark.parametrize("name", SHIPPED)
def test_a_document_without_any_field_is_derived(name: str) -> None:
    """What is missing is left out, it does not park the document."""
    derive(SHIPPED[name], {"_id": 1})


@pytest.mark.parametrize("name", SHIPPED)
def test_fields_that_are_null_are_derived(name: str) -> None:
    """A null counts as missing."""
    names = ("lines", "status", "email", "phone", "price", "name", "customer_id")
    derive(SHIPPED[name], {"_id": 1} | dict.fromkeys(names))


def test_the_whole_sample_is_derived_and_no_key_is_contested() -> None:
    """No document would be parked, and every record of every document is there."""
    raw = [(name, document) for name, documents in data_set(sizes_at(0.005)) for document in documents]
    database = apply(SHIPPED.values(), raw)
    stored = sum(database[name].count_documents({}) for name in REGISTRY.collections)
    yielded = [derive(SHIPPED[name], document) for name, document in raw]
    assert stored == sum(len(records) for each in yielded for records in each.values())


def test_customers_are_found_by_every_address() -> None:
    """An e-mail address is compared without regard to case and surrounding space."""
    name = {"given": "Ada", "family": "Wong"}
    raw = {"_id": "C1", "name": name, "email": " Ada@Example.com", "phone": "+1-202", "consent": True}
    who = {"customer_id": "C1", "name": name, "consent": True}
    email = {"value": "ada@example.com", "channel": "email"}
    phone = {"value": "+1-202", "channel": "phone"}
    assert derive(customers, raw)["customer_contacts"] == [
        (email | {"customer": "C1"}, email | who),
        (phone | {"customer": "C1"}, phone | who),
    ]


def test_a_changed_address_moves_the_record() -> None:
    """Nobody is found under an address that is no longer theirs."""
    changes = [{"_id": "C1", "email": "a@example.com"}, {"_id": "C1", "email": "b@example.com"}]
    contacts = apply(customers, changes)["customer_contacts"]
    assert [each["value"] for each in contacts.find()] == ["b@example.com"]


def test_customers_who_share_a_phone_do_not_contend() -> None:
    """The customer is part of the key, and one who leaves takes only their own record."""
    database = apply(customers, [{"_id": "C1", "phone": "+1"}, {"_id": "C2", "phone": "+1"}])
    assert database["customer_contacts"].count_documents({"value": "+1"}) == 2
    apply(customers, [Deleted("C1")], database)
    assert [each["customer_id"] for each in database["customer_contacts"].find()] == ["C2"]


def test_a_product_is_shown_with_its_exact_price() -> None:
    """The catalogue has what a shop window shows, and no stock."""
    shown = {"name": "Mug", "brand": "Dune", "category": "Kitchen", "price": Decimal128("5.90")}
    assert derive(products, {"_id": "P1", **shown, "stock": 3}) == {"product_catalogue": {"P1": shown}}


@pytest.mark.parametrize("change", [{"discontinued": True}, {"price": None}])
def test_a_product_that_cannot_be_bought_is_not_shown(change: dict[str, Any]) -> None:
    """It leaves the catalogue."""
    product = {"_id": "P1", "price": Decimal128("1")}
    assert derive(products, product | change) == {}
    assert apply(products, [product, product | change])["product_catalogue"].count_documents({}) == 0


def test_an_order_is_summed_up_exactly() -> None:
    """Money is added as decimals; dates keep their zone."""
    assert derive(orders, an_order())["orders_by_customer"][7] == {
        "customer_id": "C1",
        "ordered_at": NOON,
        "status": "placed",
        "lines": 2,
        "total": Decimal128("20.19"),
    }


def test_every_line_is_a_record() -> None:
    """Lines carry whose they are and what was bought."""
    lines = derive(orders, an_order())["order_lines"]
    assert list(lines) == [{"order": 7, "line": 1}, {"order": 7, "line": 2}]
    assert lines[{"order": 7, "line": 1}] == {
        "customer_id": "C1",
        "ordered_at": NOON,
        "sku": "P1",
        "quantity": 2,
        "price": Decimal128("0.10"),
    }


def test_a_cancelled_line_leaves_and_the_others_keep_their_keys() -> None:
    """The fan-out shrinks by that line only, and the total follows."""
    changed = an_order()
    changed["lines"][0]["cancelled"] = True
    database = apply(orders, [an_order(), changed])
    assert [each["_id"] for each in database["order_lines"].find()] == [{"order": 7, "line": 2}]
    assert database["orders_by_customer"].find_one({"total": Decimal128("19.99")})


def test_a_cancelled_order_has_no_lines() -> None:
    """It stays in the history of its customer and nowhere else."""
    after = derive(orders, an_order(status="cancelled"))
    assert set(after) == {"orders_by_customer"}
    assert after["orders_by_customer"][7]["total"] == Decimal128("0.00")


@pytest.mark.parametrize(
    ("status", "is_open"), [("placed", True), ("paid", True), ("shipped", False), (None, False)]
)
def test_only_what_is_to_be_shipped_is_open(status: str | None, is_open: bool) -> None:  # noqa: FBT001 - a table
    """An order leaves the open ones when it is shipped."""
    assert ("open_orders" in derive(orders, an_order(status=status))) is is_open
