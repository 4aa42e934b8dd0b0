"""What is published: messages that wait, and where they go."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, Protocol

from bson import Timestamp
from pymongo.client_session import ClientSession

from distributary.change import Position
from distributary.derive.trigger import Event
from distributary.events.envelope import Message
from distributary.ports.records import RecordState


class Sent(NamedTuple):
    """What became of a message: confirmed, or `error`; `lasting` when sending the same again is of no use."""

    error: str = ""
    lasting: bool = False


class Commit(NamedTuple):
    """What the events of one commit share: position and revision of its checkpoint, and the newest time.

    `trace` is the W3C `traceparent` that they carry on; empty where nobody traces.
    """

    position: Position
    revision: int
    time: Timestamp
    trace: str = ""


class Held(NamedTuple):
    """How many events there are, and their bytes."""

    events: int = 0
    bytes: int = 0


class Put(NamedTuple):
    """What was put into the outbox, and the events that never could be published, each with the reason."""

    held: Held = Held()
    refused: Sequence[tuple[Event, str]] = ()


class Waiting(NamedTuple):
    """A message that waits to be published; ids rise in the order of the commits.

    `of` is the trigger or derived collection, `size` what it counts for in the bounds, in bytes, and `trace` the
    `traceparent` in the message, if it has one.
    """

    id: Any
    of: str
    message: Message
    size: int
    trace: str = ""


class Outbox(Protocol):
    """Where events lie that were committed with what they tell of, until they are published."""

    def put(
        self, events: Sequence[Event], states: Sequence[RecordState], commit: Commit, session: ClientSession
    ) -> Put:
        """Add events, and those of records that changed, in the session's transaction; they come in this order.

        A record that is too large for a message is kept as refused, or is told by a reference. What was refused of
        these records before is removed.
        """

    def topics(self) -> Sequence[str]:
        """Give the topics that messages wait for; of some all may have been refused."""

    def next(self, topic: str, limit: int, size: int) -> Sequence[Waiting]:
        """Give a topic's oldest messages, at most so many and, beyond the first one, so many bytes."""

    def remove(self, topic: str, first: Any, last: Any, left: Collection[Any] = ()) -> None:
        """Remove a topic's messages with these ids and all that `next` gave between them that were not refused.

        Those with the ids that are `left` stay. What was refused of their records before is removed, too.
        """

    def refuse(self, id: Any, reason: str) -> None:  # noqa: A002 - as the field is called
        """Take a message out of the order and keep it as refused, in the place of what was refused of its record.

        A reason that is a `Quoting` is kept without what it quotes, unless values are asked for.
        """

    def readmit(self, ids: Sequence[str], session: ClientSession) -> Held:
        """Let refused events of triggers be sent again in their places; gives what waits then that did not."""

    def tells(self, collection: str) -> bool:
        """Whether changes of a derived collection are published."""

    def held(self) -> Held:
        """Count what waits, without what open transactions put; called from any thread, at any time."""


class UntoldChunk(NamedTuple):
    """Keys of records that are to be told of, and behind what the next ones are."""

    behind: tuple[Any, ...]
    keys: Sequence[Any]


class Untold(Protocol):
    """Where the keys of records lie that differ in a shadow from its collection, until they are told of.

    They are those of one shadow; the shadow's name is drawn, so that no other rebuild has any under it.
    """

    def note(self, shadow: str, keys: Sequence[Any], session: ClientSession) -> None:
        """Keep keys of a shadow, of which there is one at least, in the session's transaction."""

    def next(self, shadow: str, after: tuple[Any, ...]) -> UntoldChunk | None:
        """Give the next keys of a shadow; None at the end."""

    def forget(self, shadow: str, session: ClientSession) -> None:
        """Forget the keys of a shadow, in the session's transaction."""

    def others(self, shadows: Collection[str]) -> bool:
        """Whether there are keys of other shadows than these."""

    def keep(self, shadows: Collection[str], session: ClientSession) -> None:
        """Forget the keys of other shadows than these, in the session's transaction."""


class Publisher(Protocol):
    """Publishes messages, where others read them."""

    def send(self, messages: Sequence[Message]) -> Sequence[Sent]:
        """Publish in order per topic and ordering key; returns once it is known of each message what became of it.

        Behind one that fails, those of its ordering key fail as well, so that sending the failed ones again in their
        order keeps the order. It raises nothing for what a server says, and takes about ten seconds at most.
        """

    def close(self) -> None:
        """Give up what is open."""
