"""The derived collections that several modules fill, and what is counted over them.

A derived collection is declared once and imported by whoever yields to it. Several source collections meet in
these: each contribution has one owner, the document that it came from, and leaves with it.
"""

from collections.abc import Iterator
from typing import Any

from distributary import DerivedCollection, Record, Rollup

#: The 360-degree view, by customer: what an agent, a portal or a chatbot knows of somebody after one read.
#: Sections `profile`, `contact`, `health`, `demography`, `lifecycle` come from the member; lists `policies`,
#: `proposals`, `intents` and `chats` from as many documents as they have items.
customer = DerivedCollection("customer", indexes=["contact.email", "contact.phone", "policies.next_due_at"])

#: Everything that happened with a customer. Records, since it has no end; keys name the source, so that none collide.
timeline = DerivedCollection("customer_timeline", indexes=[["customer_id", "-at"], ["policy_id", "-at"]])

#: Who may be addressed with what, and how: one record per person, product and channel, only while they consent.
audience = DerivedCollection("campaign_audience", indexes=[["stage", "product_id", "channel"], "customer_id"])

#: When was this customer last active, and with what? The newest one, and among equals the one with the highest key.
customer_activity = Rollup(
    "customer_activity",
    over=timeline,
    by="customer_id",
    compute={
        "events": {"$sum": 1},
        "first_at": {"$min": "$at"},
        "last_at": {"$max": "$at"},
        "last_kind": {"$top": {"output": "$kind", "sortBy": {"at": -1, "_id": -1}}},
    },
    indexes=["last_at"],
)

#: What the chatbot knows before somebody says a word: how often they chat, about what, in which language.
chatbot_profile = Rollup(
    "chatbot_profile",
    over=timeline,
    by="customer_id",
    match={"kind": "chat"},
    compute={
        "chats": {"$sum": 1},
        "handed_to_agent": {"$sum": {"$cond": ["$detail.handed_to_agent", 1, 0]}},
        "rating": {"$avg": "$detail.rating"},
        "topics": {"$addToSet": "$detail.topic"},
        "language": {"$top": {"output": "$detail.language", "sortBy": {"at": -1, "_id": -1}}},
        "last_at": {"$max": "$at"},
    },
)

#: How many would a campaign reach?
audience_size = Rollup(
    "audience_size",
    over=audience,
    by=["stage", "product_id", "channel"],
    compute={"people": {"$sum": 1}},
)


def moment(source: str, document: dict[str, Any], whose: str, when: str, **fields: Any) -> Iterator[Record]:
    """Give a document's record on the timeline of a customer; `whose` and `when` are its fields that tell.

    What is nobody's, or of no time, has no place there.
    """
    customer_id, at = document.get(whose), document.get(when)
    if customer_id is not None and at is not None:
        place = {"customer_id": customer_id, "at": at}
        yield timeline.record({"source": source, "id": document["_id"]}, {**place, **fields})
