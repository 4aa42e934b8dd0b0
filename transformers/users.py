"""Users, as the customers that they are.

customer: who is this? The section `profile`, since a user is one document and has one profile.
customer_contacts: who is it that writes or calls, given an e-mail address or a phone number? Records of their
own, since the question begins with the address and not with the customer.
"""

from collections.abc import Iterator
from typing import Any

from distributary import DerivedCollection, Record, Section, transform
from distributary.personal import plain_email, plain_phone, plain_place

from .derived import customer

contacts = DerivedCollection("customer_contacts", indexes=["value", "customer_id"])


@transform("users")
def users(user: dict[str, Any]) -> Iterator[Record | Section]:
    """Give the user's profile, and one record per way to reach them."""
    yield customer.section(user["_id"], "profile", profile(user))
    for channel, plain in (("email", plain_email), ("phone", plain_phone)):
        if value := plain(user.get(channel)):
            yield contact(user, channel, value)


def profile(user: dict[str, Any]) -> dict[str, Any]:
    """Give what is shown of a user; what is not known is left out."""
    where, device = user.get("geo") or {}, user.get("device") or {}
    known = {
        "name": user.get("name"),
        "email": plain_email(user.get("email")),
        "phone": plain_phone(user.get("phone")),
        "city": plain_place(where.get("city")),
        "country": where.get("country"),
        "device": device.get("category"),
        "since": user.get("createdAt"),
    }
    return {name: value for name, value in known.items() if value} | {"consent": bool(user.get("consent"))}


def contact(user: dict[str, Any], channel: str, value: str) -> Record:
    """Give a way to reach the user; two users may share a phone, so the user is part of the key."""
    fields = {"channel": channel, "value": value, "customer_id": user["_id"]}
    return contacts.record(
        {"value": value, "channel": channel, "customer": user["_id"]},
        {**fields, "name": user.get("name"), "consent": bool(user.get("consent"))},
    )
