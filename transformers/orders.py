"""Orders, taken apart for the questions that are asked about them.

customer: what did this customer order? An item in the list `orders`: few per customer, and shown together.
orders_by_customer: the same, newest first, page by page, and what customer_spend is counted over.
order_lines: who bought this product, how many, and at which price? Counted by product_sales.
open_orders: what is still to be shipped, and which of it waits longest?
bought_together: which products were in one order? Counted by product_affinity, from which a model learns.
session_events: what led to this order? The order among the clicks of its session.
"""

from collections.abc import Collection, Iterator
from decimal import Decimal
from itertools import combinations
from typing import Any

from bson import Decimal128

from distributary import DerivedCollection, Item, Record, Rollup, transform

from ._values import amount, whole
from .derived import customer, session_events

Document = dict[str, Any]

by_customer = DerivedCollection("orders_by_customer", indexes=[["customer_id", "-ordered_at"]])
lines = DerivedCollection("order_lines", indexes=["product_id", ["customer_id", "product_id"]])
to_ship = DerivedCollection("open_orders", indexes=["ordered_at"])
together = DerivedCollection("bought_together", indexes=["first", "second"])

#: What a customer is worth. Cancelled orders do not count; who has no other has no figures.
customer_spend = Rollup(
    "customer_spend",
    over=by_customer,
    by="customer_id",
    match={"status": {"$ne": "cancelled"}},
    compute={
        "no_of_orders": {"$sum": 1},
        "items": {"$sum": "$items"},
        "lifetime_value": {"$sum": "$total"},
        "average_order_value": {"$avg": "$total"},
        "first_order_at": {"$min": "$ordered_at"},
        "last_order_at": {"$max": "$ordered_at"},
    },
    indexes=["-lifetime_value"],
)

#: What sells. Lines of cancelled orders are no records, so nothing is left to exclude.
product_sales = Rollup(
    "product_sales",
    over=lines,
    by="product_id",
    compute={
        "lines": {"$sum": 1},
        "quantity": {"$sum": "$quantity"},
        "revenue": {"$sum": "$amount"},
        "last_sold_at": {"$max": "$ordered_at"},
    },
    indexes=["-revenue"],
)

#: How often two products were bought together.
product_affinity = Rollup(
    "product_affinity",
    over=together,
    by=["first", "second"],
    compute={"orders": {"$sum": 1}, "last_ordered_at": {"$max": "$ordered_at"}},
    indexes=[["_id.first", "-orders"], ["_id.second", "-orders"]],
)

#: An order of more products than this tells nothing about which of them go together, and its pairs are many.
MOST_PRODUCTS = 20


@transform("orders")
def orders(order: Document) -> Iterator[Record | Item]:
    """Give the order where it is looked for; a cancelled one stays in its customer's history and session."""
    bought = bought_lines(order)
    summary = summed_up(order, bought.values())
    yield by_customer.record(order["_id"], summary)
    yield from _of_customer(order, summary, bought)
    yield from _to_ship(order, summary, bought)
    yield from _lines(order, bought)
    yield from _pairs(order, bought)
    yield from _in_session(order, summary)


def bought_lines(order: Document) -> dict[int, Document]:
    """Give the lines that count, by their number in the order; a cancelled order has none."""
    if order.get("status") == "cancelled":
        return {}
    numbered = enumerate(order.get("lineItems") or (), start=1)
    return {number: line for number, line in numbered if not line.get("cancelled")}


def summed_up(order: Document, bought: Collection[Document]) -> Document:
    """Give the order in short. Money is added up exactly, as decimals: a float is never right to the cent."""
    return {
        "customer_id": order.get("userId"),
        "ordered_at": order.get("orderDate"),
        "status": order.get("status"),
        "items": sum(whole(line.get("quantity")) for line in bought),
        "total": Decimal128(sum(map(cost, bought), Decimal("0.00"))),
    }


def cost(line: Document) -> Decimal:
    """Give what a line costs; one without a price is free."""
    return amount(line.get("price")) * whole(line.get("quantity"))


def _of_customer(order: Document, summary: Document, bought: dict[int, Document]) -> Iterator[Item]:
    """Give the item, which follows its order to another customer; a guest's order belongs to none."""
    if (whose := summary["customer_id"]) is not None:
        shown = {name: value for name, value in summary.items() if name != "customer_id"}
        products = [line.get("productName") for line in bought.values()]
        yield customer.item(whose, "orders", order["_id"], {**shown, "products": products})


def _to_ship(order: Document, summary: Document, bought: dict[int, Document]) -> Iterator[Record]:
    if summary["status"] in ("placed", "paid"):
        products = [line.get("productId") for line in bought.values()]
        yield to_ship.record(order["_id"], {**summary, "products": products})


def _lines(order: Document, bought: dict[int, Document]) -> Iterator[Record]:
    """Give the lines, by their numbers in the order: a line that is cancelled changes no other line's key."""
    for number, line in bought.items():
        fields = {
            "customer_id": order.get("userId"),
            "ordered_at": order.get("orderDate"),
            "product_id": line.get("productId"),
            "category": line.get("category"),
            "quantity": whole(line.get("quantity")),
            "price": line.get("price"),
            "amount": Decimal128(cost(line)),
        }
        yield lines.record({"order": order["_id"], "line": number}, fields)


def _pairs(order: Document, bought: dict[int, Document]) -> Iterator[Record]:
    """Give every two products of the order, each pair once and always in the same direction."""
    products = sorted({line.get("productId") for line in bought.values()} - {None}, key=str)
    if len(products) > MOST_PRODUCTS:
        return
    for first, second in combinations(products, 2):
        fields = {"customer_id": order.get("userId"), "ordered_at": order.get("orderDate")}
        key = {"order": order["_id"], "first": first, "second": second}
        yield together.record(key, {"first": first, "second": second, **fields})


def _in_session(order: Document, summary: Document) -> Iterator[Record]:
    if session := order.get("gaSessionId"):
        fields = {
            "session_id": session,
            "customer_id": summary["customer_id"],
            "at": summary["ordered_at"],
            "event": "order",
            "order_id": order["_id"],
            "status": summary["status"],
            "total": summary["total"],
        }
        yield session_events.record({"source": "orders", "id": order["_id"]}, fields)
