"""Orders, taken apart for three questions.

orders_by_customer: what did this customer order, newest first, and for how much?
order_lines: who bought this product, how many, and at which price?
open_orders: what is still to be shipped, and which of it waits longest?
"""

from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any

from bson import Decimal128

from distributary import DerivedCollection, Record, transform

by_customer = DerivedCollection("orders_by_customer", indexes=[["customer_id", "-ordered_at"]])
lines = DerivedCollection("order_lines", indexes=["sku", ["customer_id", "sku"]])
to_ship = DerivedCollection("open_orders", indexes=["ordered_at"])


@transform("orders")
def orders(order: dict[str, Any]) -> Iterator[Record]:
    """Give the order, an entry for as long as it is open, and one record per line that was not cancelled."""
    key, status, bought = order["_id"], order.get("status"), bought_lines(order)
    whose = {"customer_id": order.get("customer_id"), "ordered_at": order.get("ordered_at")}
    summary = {**whose, "status": status, "lines": len(bought), "total": total(bought.values())}

    yield by_customer.record(key, summary)
    if status in ("placed", "paid"):
        yield to_ship.record(key, {**summary, "skus": [line.get("sku") for line in bought.values()]})
    for number, line in bought.items():
        what = {name: line.get(name) for name in ("sku", "quantity", "price")}
        yield lines.record({"order": key, "line": number}, {**whose, **what})


def bought_lines(order: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Give the lines that count, by their number in the order; a cancelled order has none."""
    if order.get("status") == "cancelled":
        return {}
    numbered = enumerate(order.get("lines") or (), start=1)
    return {number: line for number, line in numbered if not line.get("cancelled")}


def total(bought: Iterable[dict[str, Any]]) -> Decimal128:
    """Add up exactly: money is never a float."""
    return Decimal128(sum((cost(line) for line in bought), Decimal("0.00")))


def cost(line: dict[str, Any]) -> Decimal:
    """Give what a line costs; one without a price is free."""
    return Decimal(str(line.get("price") or 0)) * (line.get("quantity") or 0)
