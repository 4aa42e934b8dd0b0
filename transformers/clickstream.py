"""Clicks, put in their place.

session_events: what happened in this session, and what did this customer look at last? A record per click, next
to the session's orders: clicks have no end, so they are no items of a customer.
customer: when was this customer here, and where from? The click that starts a session is an item in the list
`sessions`, one for many clicks. It is keyed by the click: a session that was started twice is listed twice, and
no document contests another's item.
"""

from collections.abc import Iterator
from typing import Any

from distributary import Item, Record, transform

from ._values import whole
from .derived import customer, session_events


@transform("clickstream")
def clickstream(click: dict[str, Any]) -> Iterator[Record | Item]:
    """Give the click on the timeline of its session; one that is of no session is of no use."""
    session, whose = click.get("gaSessionId"), click.get("userId")
    if not session:
        return
    yield session_events.record({"source": "clickstream", "id": click["_id"]}, on_timeline(click))
    if click.get("eventName") == "session_start" and whose is not None:
        yield customer.item(whose, "sessions", click["_id"], in_short(click))


def on_timeline(click: dict[str, Any]) -> dict[str, Any]:
    """Give what is kept of a click; nobody has signed in when there is no customer."""
    return {
        "session_id": click["gaSessionId"],
        "customer_id": click.get("userId"),
        "at": click.get("eventTimestamp"),
        "event": click.get("eventName"),
        "product_id": click.get("productId"),
        "engagement_msec": whole(click.get("engagementTimeMsec")),
    }


def in_short(click: dict[str, Any]) -> dict[str, Any]:
    """Give what is shown of a session; how it went on is asked of session_events."""
    shown = {"session_id": "gaSessionId", "started_at": "eventTimestamp", "came_from": "trafficSource"}
    return {name: click.get(field) for name, field in shown.items()}
