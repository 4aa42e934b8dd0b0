"""The retail data set: the same every time, of the promised size, and coherent."""

from itertools import chain
from typing import Any

import pytest
from bson import encode

from distributary.change import CODEC
from distributary.sample.retail import SIZES, data_set, sizes_at

Data = dict[str, list[dict[str, Any]]]


def made(scale: float, **options: int) -> Data:
    """Make the whole data set in memory."""
    return {name: list(documents) for name, documents in data_set(sizes_at(scale), **options)}


@pytest.fixture(scope="module")
def shop() -> Data:
    """Give a small shop."""
    return made(0.05)


def test_two_runs_give_the_same_bytes(shop: Data) -> None:
    """The data set depends on nothing but its sizes and seed."""
    again = made(0.05)
    for name, documents in shop.items():
        assert [encode(document) for document in documents] == [encode(document) for document in again[name]]


def test_another_seed_gives_other_documents(shop: Data) -> None:
    """The seed is used in every collection."""
    other = made(0.05, seed=7)
    assert all(shop[name] != other[name] for name in SIZES)


def test_a_user_is_the_same_at_every_scale(shop: Data) -> None:
    """Users and products do not change when there are more of them."""
    larger = made(0.1)
    for name in ("users", "products"):
        assert larger[name][: len(shop[name])] == shop[name]


def test_there_are_at_least_20000_documents() -> None:
    """The whole data set is worth a demonstration."""
    assert sum(SIZES.values()) >= 20_000


def test_the_smallest_shop_still_works() -> None:
    """A tiny scale gives a few documents of each collection, never none."""
    assert {name: len(documents) for name, documents in made(0).items()} == dict.fromkeys(SIZES, 10)


def test_keys_are_unique(shop: Data) -> None:
    """No two documents of a collection share a key."""
    for name, documents in shop.items():
        assert len({document["_id"] for document in documents}) == len(documents) == sizes_at(0.05)[name]


def test_orders_and_clicks_name_users_and_products_that_exist(shop: Data) -> None:
    """Nothing in an order or a click points nowhere; a click may have no user and no product."""
    users, products = ({document["_id"] for document in shop[name]} for name in ("users", "products"))
    lines = chain.from_iterable(order["lineItems"] for order in shop["orders"])
    assert {order["userId"] for order in shop["orders"]} <= users
    assert {click["userId"] for click in shop["clickstream"] if "userId" in click} <= users
    seen = {click["productId"] for click in shop["clickstream"] if "productId" in click}
    assert seen | {line["productId"] for line in lines} <= products


def test_some_clicks_are_nobodys(shop: Data) -> None:
    """Not everybody signs in."""
    anonymous = [click for click in shop["clickstream"] if "userId" not in click]
    assert 0 < len(anonymous) < len(shop["clickstream"]) / 2


def test_a_session_is_one_users_and_starts_once(shop: Data) -> None:
    """The clicks of a session, and the order that it led to, belong together."""
    orders = {order["gaSessionId"]: order for order in shop["orders"] if "gaSessionId" in order}
    sessions: dict[str, list[dict[str, Any]]] = {}
    for click in shop["clickstream"]:
        sessions.setdefault(click["gaSessionId"], []).append(click)
    assert orders.keys() & sessions.keys()
    for key, clicks in sessions.items():
        assert [click["eventName"] for click in clicks].count("session_start") == 1
        users = {click.get("userId") for click in clicks}
        assert len(users) == 1
        if key in orders:
            assert users == {orders[key]["userId"]}
            assert clicks[0]["eventTimestamp"] < orders[key]["orderDate"]


def test_an_order_costs_what_its_lines_cost(shop: Data) -> None:
    """Totals are exact, also where a quantity came as text."""
    lines = [line for order in shop["orders"] for line in order["lineItems"]]
    assert {type(line["quantity"]) for line in lines} == {int, str}
    for order in shop["orders"]:
        costs = [line["price"].to_decimal() * int(line["quantity"]) for line in order["lineItems"]]
        assert order["orderTotal"].to_decimal() == sum(costs)


def test_orders_are_in_every_status(shop: Data) -> None:
    """There is something to ship, and most of it has arrived."""
    statuses = [order["status"] for order in shop["orders"]]
    assert set(statuses) == {"placed", "paid", "shipped", "delivered", "cancelled"}
    assert statuses.count("delivered") > len(statuses) / 2


def test_documents_are_stored_as_they_are_made(shop: Data) -> None:
    """Nothing is lost between Python and BSON: dates have a zone and no fraction that BSON cannot hold."""
    for document in chain.from_iterable(shop.values()):
        assert all(value.microsecond % 1000 == 0 and value.tzinfo for value in _dates(document))
        assert encode(document, codec_options=CODEC)


def _dates(document: dict[str, Any]) -> list[Any]:
    return [value for value in document.values() if hasattr(value, "microsecond")]
