"""The derived collections that several modules fill, and what is counted over them.

A derived collection is declared once and imported by whoever yields to it. `customer` is the unified view: one
document answers what a channel asks first about somebody. It holds what is shown whole and stays short; figures
are rollups beside it, under the same key, and what grows without an end (clicks) has a collection of its own.
"""

from distributary import DerivedCollection, Rollup

#: The unified view, by user: section `profile` from users, lists `orders` from orders and `sessions` from clicks.
customer = DerivedCollection("customer", indexes=["profile.email"])

#: What happened in a session, orders and clicks on one timeline. Keys name their source, so that no two collide.
session_events = DerivedCollection("session_events", indexes=[["session_id", "at"], ["customer_id", "-at"]])

#: What a customer did on the web: a rollup, since no single click knows how many others there are.
customer_sessions = Rollup(
    "customer_sessions",
    over=session_events,
    by="customer_id",
    compute={
        "session_count": {"$sum": {"$cond": [{"$eq": ["$event", "session_start"]}, 1, 0]}},
        "total_time_spend_by_user_in_msec": {"$sum": "$engagement_msec"},
        "events": {"$sum": 1},
        "first_seen_at": {"$min": "$at"},
        "last_seen_at": {"$max": "$at"},
    },
)
