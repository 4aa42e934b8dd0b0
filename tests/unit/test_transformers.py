"""The shipped transform modules for retail, each against the raw documents that matter to it."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from bson import Decimal128

from distributary.plugins import load as loaded
from distributary.sample.retail import SIZES, data_set, sizes_at
from distributary.testing import NotDerived, derive, load
from tests.recompute import Functions, recompute

FOLDER = Path(__file__).parents[2] / "transformers"
NOON = datetime(2025, 3, 4, 12, tzinfo=UTC)

REGISTRY = loaded([FOLDER], entry_points=False)

MODULES = {name: load(FOLDER / f"{name}.py") for name in SIZES}
SHIPPED: Functions = {name: getattr(module, name) for name, module in MODULES.items()}
users, products, orders, clickstream = (SHIPPED[name] for name in SIZES)

FIELDS = (
    *(
        "name",
        "email",
        "phone",
        "consent",
        "geo",
        "device",
        "createdAt",
        "productName",
        "price",
        "discontinued",
    ),
    *("userId", "orderDate", "status", "lineItems", "gaSessionId", "eventName", "eventTimestamp"),
    *("engagementTimeMsec", "productId"),
)


def an_order(**fields: Any) -> dict[str, Any]:
    """Give an order of two lines, with some fields changed."""
    lines = [
        {"productId": "P1", "productName": "Mug", "quantity": 2, "price": Decimal128("0.10")},
        {"productId": "P2", "productName": "Pan", "quantity": "1", "price": Decimal128("19.99")},
    ]
    return {"_id": 7, "userId": "U1", "orderDate": NOON, "status": "placed", "lineItems": lines} | fields


def a_click(**fields: Any) -> dict[str, Any]:
    """Give the click that starts a session, with some fields changed."""
    start = {"eventName": "session_start", "trafficSource": "search", "engagementTimeMsec": 0}
    return {"_id": "S1-0", "userId": "U1", "gaSessionId": "S1", "eventTimestamp": NOON, **start} | fields


def test_modules_are_named_after_their_source_collections() -> None:
    """Users find a transform by the name of the collection that it reads."""
    assert set(REGISTRY.sources) == set(SHIPPED)
    for name in SHIPPED:
        (transform,) = REGISTRY.by_source[name]
        assert transform.name == name
        assert f"{name}.py:" in transform.place


def test_every_declared_collection_is_filled() -> None:
    """Every collection that is declared is named by a transform, and no rollup has the name of one."""
    filled = {name for transform in REGISTRY.transforms.values() for name in transform.collections}
    assert set(REGISTRY.collections) == filled
    assert len(filled | set(REGISTRY.rollups)) == len(filled) + len(REGISTRY.rollups) == 12


def test_rollups_count_records_that_have_their_groups() -> None:
    """The collection that a rollup is over is filled, with the fields that it groups by."""
    derived = recompute(SHIPPED, sample())
    for rollup in REGISTRY.rollups.values():
        assert any(
            all(fields.get(name) is not None for name in rollup.paths)
            for fields in derived[rollup.over.name].values()
        )


def sample() -> list[tuple[str, dict[str, Any]]]:
    """Give a small shop."""
    return [(name, document) for name, documents in data_set(sizes_at(0.005)) for document in documents]


def test_the_whole_sample_is_derived_and_no_key_is_contested() -> None:
    """No document would be parked; every user is a customer, with every order and every visit of theirs."""
    raw = sample()
    derived = recompute(SHIPPED, raw)
    customers = derived["customer"]
    assert {document["_id"] for name, document in raw if name == "users"} == set(customers)
    for name, list_ in (("orders", "orders"), ("session_start", "sessions")):
        mine = [
            document
            for collection, document in raw
            if "userId" in document and name in (collection, document.get("eventName"))
        ]
        assert sum(len(each.get(list_, ())) for each in customers.values()) == len(mine) > 0


@pytest.mark.parametrize("name", SHIPPED)
def test_a_document_without_any_field_is_derived(name: str) -> None:
    """What is missing is left out, it does not park the document."""
    derive(SHIPPED[name], {"_id": 1})


@pytest.mark.parametrize("name", SHIPPED)
def test_fields_that_are_null_are_derived(name: str) -> None:
    """A null counts as missing."""
    derive(SHIPPED[name], {"_id": 1} | dict.fromkeys(FIELDS))


@pytest.mark.parametrize("missing", FIELDS)
def test_any_field_may_be_missing(missing: str) -> None:
    """Whatever a system forgot to fill in, the rest is derived."""
    documents = (
        ("orders", an_order()),
        ("clickstream", a_click()),
        ("users", {"_id": "U1", "email": "a@example.com", "geo": {}}),
    )
    for name, document in documents:
        derive(SHIPPED[name], {field: value for field, value in document.items() if field != missing})


# --- customer -----------------------------------------------------------------------------------------------


def test_one_customer_is_made_of_three_collections() -> None:
    """A section from the user, items from orders and from the clicks that start a session."""
    user = {"_id": "U1", "name": {"given": "Ada"}, "email": " Ada@Example.com", "consent": True}
    raw = [("users", user), ("orders", an_order()), ("clickstream", a_click())]
    assert recompute(SHIPPED, raw)["customer"] == {
        "U1": {
            "profile": {"name": {"given": "Ada"}, "email": "ada@example.com", "consent": True},
            "orders": [
                {
                    "_id": 7,
                    "ordered_at": NOON,
                    "status": "placed",
                    "items": 3,
                    "total": Decimal128("20.19"),
                    "products": ["Mug", "Pan"],
                }
            ],
            "sessions": [{"_id": "S1-0", "session_id": "S1", "started_at": NOON, "came_from": "search"}],
        }
    }


def test_a_customer_who_left_is_known_by_their_orders() -> None:
    """The shared record exists as long as one contribution does."""
    found = recompute(SHIPPED, [("orders", an_order())])["customer"]["U1"]
    assert list(found) == ["orders"]


def test_an_order_that_is_taken_over_leaves_the_old_customer() -> None:
    """Its item is under the new one and nowhere else."""
    user = ("users", {"_id": "U1", "email": "ada@example.com"})
    before, after = (
        recompute(SHIPPED, [user, ("orders", an_order(userId=whose))])["customer"] for whose in ("U1", "U2")
    )
    assert {key: set(fields) for key, fields in before.items()} == {"U1": {"profile", "orders"}}
    assert {key: set(fields) for key, fields in after.items()} == {"U1": {"profile"}, "U2": {"orders"}}


def test_an_order_of_a_guest_is_no_customers() -> None:
    """Its lines and its total count all the same."""
    found = derive(orders, an_order(userId=None))
    assert "customer" not in found
    assert len(found["order_lines"]) == 2


# --- users --------------------------------------------------------------------------------------------------


def test_customers_are_found_by_every_address() -> None:
    """An e-mail address is compared without regard to case and surrounding space."""
    name = {"given": "Ada", "family": "Wong"}
    raw = {"_id": "U1", "name": name, "email": " Ada@Example.com", "phone": "+1-202", "consent": True}
    who = {"customer_id": "U1", "name": name, "consent": True}
    email = {"value": "ada@example.com", "channel": "email"}
    phone = {"value": "+1202", "channel": "phone"}
    assert derive(users, raw)["customer_contacts"] == [
        (email | {"customer": "U1"}, email | who),
        (phone | {"customer": "U1"}, phone | who),
    ]


def test_customers_who_share_a_phone_do_not_contend() -> None:
    """The customer is part of the key."""
    raw = [("users", {"_id": key, "phone": "+1"}) for key in ("U1", "U2")]
    assert len(recompute(SHIPPED, raw)["customer_contacts"]) == 2


# --- products -----------------------------------------------------------------------------------------------


def test_a_product_is_shown_with_its_exact_price() -> None:
    """The catalogue has what a shop window shows, and no stock."""
    shown = {"brand": "Dune", "category": "Kitchen", "price": Decimal128("5.90")}
    found = derive(products, {"_id": "P1", "productName": "Mug", **shown, "stock": 3})
    assert found == {"product_catalogue": {"P1": {"name": "Mug", **shown}}}


@pytest.mark.parametrize("change", [{"discontinued": True}, {"price": None}])
def test_a_product_that_cannot_be_bought_is_not_shown(change: dict[str, Any]) -> None:
    """It leaves the catalogue."""
    assert derive(products, {"_id": "P1", "price": Decimal128("1")} | change) == {}


# --- orders -------------------------------------------------------------------------------------------------


def test_an_order_is_summed_up_exactly() -> None:
    """Money is added as decimals, quantities may be text; dates keep their zone."""
    assert derive(orders, an_order())["orders_by_customer"][7] == {
        "customer_id": "U1",
        "ordered_at": NOON,
        "status": "placed",
        "items": 3,
        "total": Decimal128("20.19"),
    }


def test_every_line_is_a_record() -> None:
    """Lines carry whose they are, what was bought, and what it came to."""
    lines = derive(orders, an_order())["order_lines"]
    assert list(lines) == [{"order": 7, "line": 1}, {"order": 7, "line": 2}]
    assert lines[{"order": 7, "line": 1}] == {
        "customer_id": "U1",
        "ordered_at": NOON,
        "product_id": "P1",
        "category": None,
        "quantity": 2,
        "price": Decimal128("0.10"),
        "amount": Decimal128("0.20"),
    }


@pytest.mark.parametrize("quantity", ["2", 2, 2.0, Decimal128("2")])
def test_a_quantity_may_be_of_any_type_that_says_a_whole_number(quantity: object) -> None:
    """The shell writes doubles, and the click stream text."""
    line = {"productId": "P1", "quantity": quantity, "price": 0.1}
    found = derive(orders, an_order(lineItems=[line]))["orders_by_customer"][7]
    assert (found["items"], found["total"]) == (2, Decimal128("0.20"))


@pytest.mark.parametrize("line", [{"price": "a lot", "quantity": 1}, {"price": 1, "quantity": "many"}])
def test_a_price_that_cannot_be_read_parks_the_order(line: dict[str, Any]) -> None:
    """A guess would be a wrong total; the dead letter says which document to correct."""
    with pytest.raises(NotDerived, match="InvalidOperation"):
        derive(orders, an_order(lineItems=[line]))


def test_half_a_piece_parks_the_order() -> None:
    """It is not cut to a whole number in silence."""
    with pytest.raises(NotDerived, match="ValueError"):
        derive(orders, an_order(lineItems=[{"price": 1, "quantity": 2.5}]))


def test_a_cancelled_line_leaves_and_the_others_keep_their_keys() -> None:
    """The fan-out shrinks by that line only, and the total follows."""
    changed = an_order()
    changed["lineItems"][0]["cancelled"] = True
    found = derive(orders, changed)
    assert list(found["order_lines"]) == [{"order": 7, "line": 2}]
    assert found["orders_by_customer"][7]["total"] == Decimal128("19.99")


def test_a_cancelled_order_has_no_lines() -> None:
    """It stays in the history of its customer and nowhere else, and is worth nothing."""
    after = derive(orders, an_order(status="cancelled"))
    assert set(after) == {"orders_by_customer", "customer"}
    assert after["orders_by_customer"][7]["total"] == Decimal128("0.00")
    assert after["customer"]["U1"]["orders"][0]["status"] == "cancelled"


@pytest.mark.parametrize(
    ("status", "is_open"), [("placed", True), ("paid", True), ("shipped", False), (None, False)]
)
def test_only_what_is_to_be_shipped_is_open(status: str | None, is_open: bool) -> None:  # noqa: FBT001 - a table
    """An order leaves the open ones when it is shipped."""
    assert ("open_orders" in derive(orders, an_order(status=status))) is is_open


def test_products_are_paired_once_whatever_their_order() -> None:
    """Two lines of one product are no pair, and a pair has one direction."""
    lines = [{"productId": key, "quantity": 1} for key in ("P3", "P1", "P3", "P2")]
    pairs = derive(orders, an_order(lineItems=lines))["bought_together"]
    expected = [("P1", "P2"), ("P1", "P3"), ("P2", "P3")]
    assert sorted((each["first"], each["second"]) for each in pairs.values()) == expected
    assert {"order": 7, "first": "P1", "second": "P2"} in pairs


def test_a_wholesale_order_has_no_pairs() -> None:
    """So that no order yields thousands of records."""
    lines = [{"productId": f"P{number}", "quantity": 1} for number in range(21)]
    assert len(derive(orders, an_order(lineItems=lines[:20]))["bought_together"]) == 190
    assert "bought_together" not in derive(orders, an_order(lineItems=lines))


# --- sessions -----------------------------------------------------------------------------------------------


def test_orders_and_clicks_of_a_session_are_on_one_timeline() -> None:
    """A click and an order with the same `_id` do not collide."""
    raw = [
        ("clickstream", a_click(_id=7, eventName="view_item", productId="P1", engagementTimeMsec="500")),
        ("orders", an_order(gaSessionId="S1")),
    ]
    events = recompute(SHIPPED, raw)["session_events"]
    assert {fields["event"] for fields in events.values()} == {"view_item", "order"}
    assert {fields["session_id"] for fields in events.values()} == {"S1"}
    assert events[{"source": "clickstream", "id": 7}]["engagement_msec"] == 500
    assert events[{"source": "orders", "id": 7}]["total"] == Decimal128("20.19")


def test_an_order_outside_of_a_session_is_on_no_timeline() -> None:
    """As one that was placed by phone."""
    assert "session_events" not in derive(orders, an_order())


def test_a_session_that_was_started_twice_is_not_contested() -> None:
    """The item belongs to the click."""
    raw = [("clickstream", a_click()), ("clickstream", a_click(_id="S1-1"))]
    assert len(recompute(SHIPPED, raw)["customer"]["U1"]["sessions"]) == 2


def test_who_has_not_signed_in_is_no_customer() -> None:
    """Their clicks are on the timeline of the session, without a customer."""
    found = derive(clickstream, a_click(userId=None))
    assert set(found) == {"session_events"}
