"""Proposers, who ask for a policy: some are members already, most are not yet.

customer: an item in the list `proposals`, since somebody may propose several times. Who is no member has a
customer document all the same, made of these items; the sections join it with the membership.
customer_timeline: when it was proposed.
campaign_audience: who began a proposal and may be reminded of it. The key names the proposer, so that it is no
member's.
"""

from collections.abc import Iterator
from typing import Any

from distributary import Item, Record, transform

from ._values import known
from .derived import audience, customer, moment
from .members import allowed

#: As long as a proposal is in one of these states, a reminder is of use.
UNFINISHED = ("started", "waiting for documents")


@transform("proposers")
def proposers(proposer: dict[str, Any]) -> Iterator[Record | Item]:
    """Give the proposal where it is looked for."""
    whose = proposer.get("customer_id")
    if whose is not None:
        yield customer.item(whose, "proposals", proposer["_id"], proposal(proposer))
    about = {"product_id": proposer.get("product_id"), "detail": {"state": proposer.get("state")}}
    yield from moment("proposers", proposer, "customer_id", "proposed_at", kind="proposal", **about)
    if proposer.get("state") in UNFINISHED:
        yield from reminded(proposer)


def proposal(proposer: dict[str, Any]) -> dict[str, Any]:
    """Give what is shown of a proposal; the name is the one that was given in it."""
    names = ("name", "product_id", "product_name", "state", "agent_id", "proposed_at")
    return known({name: proposer.get(name) for name in names})


def reminded(proposer: dict[str, Any]) -> Iterator[Record]:
    """Give one record for each channel on which the proposer may be reminded."""
    for channel, reached in allowed(proposer).items():
        key = {"proposer": proposer["_id"], "channel": channel}
        whom = {"customer_id": proposer.get("customer_id"), "stage": "prospect"}
        what = {"product_id": proposer.get("product_id"), "channel": channel}
        yield audience.record(key, {**whom, **what, **reached})
