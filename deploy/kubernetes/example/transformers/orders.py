"""Orders by customer, and their lines: an example to replace."""

from collections.abc import Iterator
from typing import Any

from distributary import DerivedCollection, Record, transform

by_customer = DerivedCollection("orders_by_customer", indexes=[["customer_id", "-ordered_at"]])
lines = DerivedCollection("order_lines", indexes=["sku", ["customer_id", "sku"]])


@transform("orders")
def orders(order: dict[str, Any]) -> Iterator[Record]:
    """Yield the order without its lines, and each line."""
    yield by_customer.record(
        order["_id"],
        {"customer_id": order["customer_id"], "ordered_at": order["ts"], "total": order["total"]},
    )
    for number, line in enumerate(order["lines"], start=1):
        yield lines.record(
            {"order": order["_id"], "line": number},
            {"customer_id": order["customer_id"], "sku": line["sku"], "qty": line["qty"]},
        )
