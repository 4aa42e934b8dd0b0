"""Customers, made ready for look-up.

customer_contacts: who is it that writes or calls, given an e-mail address or a phone number?
"""

from collections.abc import Iterator
from typing import Any

from distributary import DerivedCollection, Record, transform

contacts = DerivedCollection("customer_contacts", indexes=["value", "customer_id"])


@transform("customers")
def customers(customer: dict[str, Any]) -> Iterator[Record]:
    """Give one record per way to reach the customer; when an address changes, its record moves with it.

    Two customers may share a phone, so the customer is part of the key.
    """
    for channel in ("email", "phone"):
        value = str(customer.get(channel) or "").strip().lower()
        if value:
            fields = {"channel": channel, "value": value, "customer_id": customer["_id"]}
            yield contacts.record(
                {"value": value, "channel": channel, "customer": customer["_id"]},
                {**fields, "name": customer.get("name"), "consent": bool(customer.get("consent"))},
            )
