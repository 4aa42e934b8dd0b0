"""The retail data set: the same every time, of the promised size, and coherent."""

from itertools import chain
from typing import Any

import pytest
from bson import encode

from distributary.change import CODEC
from distributary.sample import SIZES, data_set, sizes_at

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


def test_a_customer_is_the_same_at_every_scale(shop: Data) -> None:
    """Customers and products do not change when there are more of them."""
    larger = made(0.1)
    for name in ("customers", "products"):
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


def test_orders_name_customers_and_products_that_exist(shop: Data) -> None:
    """Nothing in an order points nowhere."""
    customers, products = ({document["_id"] for document in shop[name]} for name in ("customers", "products"))
    lines = chain.from_iterable(order["lines"] for order in shop["orders"])
    assert {order["customer_id"] for order in shop["orders"]} <= customers
    assert {line["sku"] for line in lines} <= products


def test_an_order_costs_what_its_lines_cost(shop: Data) -> None:
    """Totals are exact."""
    for order in shop["orders"]:
        costs = [line["price"].to_decimal() * line["quantity"] for line in order["lines"]]
        assert order["total"].to_decimal() == sum(costs)


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
