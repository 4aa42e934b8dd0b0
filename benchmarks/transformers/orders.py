"""The workload's fan-out as a transform module; `workload.fan_out` does the same without distributary."""

from collections.abc import Iterator
from typing import Any

from distributary import DerivedCollection, transform
from distributary.derive.records import Record

by_customer = DerivedCollection("orders_by_customer")
order_lines = DerivedCollection("order_lines")
by_status = DerivedCollection("order_status")


@transform("orders")
def orders(order: dict[str, Any]) -> Iterator[Record]:
    """Fan an order out: itself for its customer, a record per line, and one that moves with its status."""
    number, customer, sent = order["_id"], order["customer"], order["sent"]
    yield by_customer.record(
        number,
        {
            "customer": customer,
            "ordered_at": order["ordered_at"],
            "status": order["status"],
            "total": order["total"],
            "lines": len(order["lines"]),
            "sent": sent,
        },
    )
    for place, line in enumerate(order["lines"], start=1):
        yield order_lines.record(
            {"order": number, "line": place},
            {
                "order": number,
                "customer": customer,
                "sku": line["sku"],
                "quantity": line["quantity"],
                "amount": line["quantity"] * line["price"],
                "sent": sent,
            },
        )
    yield by_status.record(
        {"status": order["status"], "order": number},
        {"order": number, "customer": customer, "since": order["updated_at"], "sent": sent},
    )
