"""Visits to the web site, one document each, with the field names of an Adobe Analytics data feed.

customer_timeline: a record per visit of somebody who has signed in (the feed's `post_evar5` is the customer).
customer: an item in the list `intents` for a visit in which a form or a payment was begun and not ended. Most
visits are none: an item is what somebody should act upon. It leaves when the form is sent or the premium is paid.
drop-offs: an event at the moment in which a form or a payment is abandoned. A trigger, since it is about the
change itself: whoever calls back wants to know once, now, and not find a state. It carries keys and no personal
data; whether the customer may be called is asked of campaign_audience.
"""

from collections.abc import Iterator
from typing import Any

from distributary import Item, Publish, Record, transform, trigger

from ._values import known
from .derived import customer, moment

Document = dict[str, Any]

#: What can be begun in a visit, and the states in which nothing is left to do.
BEGUN = ("form", "payment")
DONE = ("submitted", "paid")


@transform("web_visits")
def web_visits(visit: Document) -> Iterator[Record | Item]:
    """Give the visit on the customer's timeline, and what they began in it and did not end."""
    detail = {
        "pages": visit.get("visit_page_num"),
        "page": visit.get("post_pagename"),
        "campaign": visit.get("post_campaign"),
    }
    product = (visit.get("form") or {}).get("product_id")
    about = {"product_id": product, "detail": known(detail)}
    yield from moment("web_visits", visit, "post_evar5", "visit_start_time_gmt", kind="visit", **about)
    yield from intents(visit)


def intents(visit: Document) -> Iterator[Item]:
    """Give what is open of a visit, one item for each form and payment."""
    whose = visit.get("post_evar5")
    for what in BEGUN:
        begun = visit.get(what) or {}
        if whose is not None and begun and begun.get("state") not in DONE:
            shown = {"what": what, "at": visit.get("visit_start_time_gmt"), **begun}
            yield customer.item(whose, "intents", {"visit": visit["_id"], "what": what}, shown)


@trigger(
    "web_visits",
    operations=["insert", "update", "replace"],
    match={
        "$or": [{"fullDocument.form.state": "abandoned"}, {"fullDocument.payment.state": "abandoned"}],
    },
)
def drop_offs(change: Any) -> Iterator[Publish]:
    """Tell of each form and payment that this change abandons, in order per customer, or per visitor unknown."""
    visit = change.document
    for what in BEGUN:
        begun = visit.get(what) or {}
        if begun.get("state") == "abandoned" and is_news(change, what):
            whose = {"customer_id": visit.get("post_evar5"), "visitor_id": visit.get("mcvisid")}
            told = {**whose, "visit_id": visit["_id"], "what": what, "at": change.at, **begun}
            yield Publish("drop-offs", told, ordering_key=str(whose["customer_id"] or whose["visitor_id"]))


def is_news(change: Any, what: str) -> bool:
    """Tell whether the change set the state, rather than another field of a visit that was abandoned before.

    A visit that is replaced counts anew: what it was before would take pre-images of every visit.
    """
    return change.operation != "update" or not change.updated.keys().isdisjoint({what, f"{what}.state"})
