"""What Pub/Sub takes: names of topics, and messages (its documentation, "Quotas and limits")."""

from distributary.derive.topics import RESERVED, is_topic
from distributary.events.envelope import Message

#: Of a request to publish, and so of a message with all that belongs to it. Google's library refuses more itself.
MAX_BYTES = 10_000_000
MAX_ORDERING_KEY_BYTES = 1024
MAX_ATTRIBUTES = 100
MAX_ATTRIBUTE_NAME_BYTES = 256
MAX_ATTRIBUTE_BYTES = 1024

#: Bytes that a message, or an attribute of it, takes beside what is in it, at most.
_FRAME = 32


def path_of(project: str, topic: str) -> str:
    """Give the whole name of a topic of the project; one of another project is given whole."""
    return topic if "/" in topic else f"projects/{project}/topics/{topic}"


def size_of(message: Message, project: str) -> int:
    """Give the bytes of a message in a request, and a few more rather than less."""
    attributes = sum(_bytes(name) + _bytes(value) + _FRAME for name, value in message.attributes.items())
    named = _bytes(path_of(project, message.topic)) + _bytes(message.ordering_key)
    return len(message.data) + attributes + named + _FRAME


def refusal(message: Message, project: str) -> str:
    """Say why Pub/Sub never takes a message; empty if it does."""
    if not is_topic(message.topic):
        return f"{message.topic!r:.80} can be no topic, which has 3 to 255 letters, digits and -._~+%, a letter first"
    if size_of(message, project) > MAX_BYTES:
        return f"the message has {size_of(message, project):,} bytes; Pub/Sub takes {MAX_BYTES:,}"
    if not message.data and not message.attributes:
        return "the message is empty"
    if _bytes(message.ordering_key) > MAX_ORDERING_KEY_BYTES:
        return f"the ordering key has more than {MAX_ORDERING_KEY_BYTES:,} bytes"
    if len(message.attributes) > MAX_ATTRIBUTES:
        return f"the message has {len(message.attributes):,} attributes; Pub/Sub takes {MAX_ATTRIBUTES}"
    return next(filter(None, (_attribute(*each) for each in message.attributes.items())), "")


def _attribute(name: str, value: str) -> str:
    if not name or name.startswith(RESERVED):
        return f"the attribute {name!r:.80} has no name, or one that begins with {RESERVED}"
    if _bytes(name) > MAX_ATTRIBUTE_NAME_BYTES:
        return f"the name of attribute {name!r:.80} has more than {MAX_ATTRIBUTE_NAME_BYTES} bytes"
    if _bytes(value) > MAX_ATTRIBUTE_BYTES:
        return f"the attribute {name!r:.80} has more than {MAX_ATTRIBUTE_BYTES:,} bytes"
    return ""


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
