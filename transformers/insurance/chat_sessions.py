"""Conversations with the chatbot.

customer: an item in the list `chats`, short, so that an agent who takes over sees at once what was talked
about.
customer_timeline: a record with the details, which chatbot_profile is counted over: how often somebody chats,
about what, how content they were. No single conversation knows that, so it is no section but a rollup.
"""

from collections.abc import Iterator
from typing import Any

from distributary import Item, Record, transform

from ._values import known
from .derived import customer, moment


@transform("chat_sessions")
def chat_sessions(chat: dict[str, Any]) -> Iterator[Record | Item]:
    """Give the conversation of a customer; one with somebody unknown is nobody's."""
    if chat.get("customer_id") is not None:
        shown = known({name: chat.get(name) for name in ("started_at", "channel", "topic", "sentiment")})
        yield customer.item(chat["customer_id"], "chats", chat["_id"], shown)
    names = ("channel", "topic", "language", "rating", "messages")
    detail = known({name: chat.get(name) for name in names})
    detail["handed_to_agent"] = bool(chat.get("handed_to_agent"))
    yield from moment("chat_sessions", chat, "customer_id", "started_at", kind="chat", detail=detail)
