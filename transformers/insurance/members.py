"""Members, the persons that the insurer knows: what the CRM keeps of them.

customer: sections, since a member is one document and each of these is there once. They are apart from each
other so that a reader can be given some and not others: `health` is for few eyes, and is there only with the
member's consent.
campaign_audience: records, one per product and channel, since they are searched by stage and product and not by
person. They are gone in the transaction in which consent is withdrawn. The CRM says in the member what was
chosen to be offered (`offers`) and what is held already (`holds`): a transform sees no other document. What is shown
of an address is masked; its pseudonym leads partners who have the key to the same person, and nobody else.
"""

from collections.abc import Iterator
from typing import Any

from distributary import Record, Section, transform
from distributary.personal import mask_email, mask_phone, plain_email, plain_phone, plain_place, pseudonym

from ._values import known
from .derived import audience, customer

Document = dict[str, Any]

#: How an address of a channel is compared, and how it is shown.
CHANNELS = {"email": (plain_email, mask_email), "phone": (plain_phone, mask_phone)}


@transform("members")
def members(member: Document) -> Iterator[Record | Section]:
    """Give the member's sections of the customer, and what they may be addressed with."""
    for name, fields in sections(member).items():
        if fields:
            yield customer.section(member["_id"], name, fields)
    yield from addressed(member)


def sections(member: Document) -> dict[str, Document]:
    """Give what is shown of a member, by section; of an empty one nothing is shown."""
    consent = member.get("consent") or {}
    return {
        "profile": _picked(member, "name", "language", "joined_at"),
        "contact": _contact(member),
        "health": dict(member.get("health") or {}) if consent.get("health") is True else {},
        "demography": _picked(
            member, "birth_date", "gender", "marital_status", "dependants", "occupation", "income_band"
        ),
        "lifecycle": dict(member.get("lifecycle") or {}),
    }


def _picked(member: Document, *names: str) -> Document:
    return known({name: member.get(name) for name in names})


def _contact(member: Document) -> Document:
    reached = {channel: plain(member.get(channel)) for channel, (plain, _) in CHANNELS.items()}
    where = member.get("address")
    if where and "city" in where:
        where = {**where, "city": plain_place(where["city"])}
    return known({**reached, "address": where})


def addressed(member: Document) -> Iterator[Record]:
    """Give one record for each product that may be offered, on each channel that the member consents to."""
    stage = (member.get("lifecycle") or {}).get("stage")
    wanted = [offer for offer in member.get("offers") or () if offer not in (member.get("holds") or ())]
    for channel, reached in allowed(member).items():
        for product in dict.fromkeys(wanted):
            key = {"member": member["_id"], "product": product, "channel": channel}
            whom = {"customer_id": member["_id"], "stage": stage, "language": member.get("language")}
            yield audience.record(key, {**whom, "product_id": product, "channel": channel, **reached})


def allowed(person: Document) -> dict[str, Document]:
    """Give the channels that a person consents to and can be reached on; only `true` is consent."""
    consent = person.get("consent") or {}
    return {
        channel: {"address": mask(value), "pseudonym": pseudonym(value)}
        for channel, (plain, mask) in CHANNELS.items()
        if consent.get(channel) is True and (value := plain(person.get(channel)))
    }
