"""Triggers: what is about a change itself rather than about the state that it leads to."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from bson import Timestamp, encode
from bson.errors import BSONError

from distributary.change import CODEC, Identity, Version, decoded, identity
from distributary.derive.batch import is_storable
from distributary.derive.plan import Desired, Owner
from distributary.derive.records import (
    MAX_RECORD_BYTES,
    BadRecord,
    EncodedRecord,
    Record,
    encode_record,
    origin,
    tail_of,
)
from distributary.derive.transform import Failure, failure_of
from distributary.quoting import quoting

F = TypeVar("F", bound=Callable[..., Any])

#: The attribute that `@trigger` leaves on a function for the loader to find.
TRIGGER_MARK = "__distributary_trigger__"

OPERATIONS = ("insert", "update", "replace", "delete")


class Publish(NamedTuple):
    """An event for a topic, which a trigger yields; those with one `ordering_key` arrive in order."""

    topic: str
    data: Mapping[str, Any]
    ordering_key: str | None = None
    attributes: Mapping[str, str] = {}


class TriggerMark(NamedTuple):
    """What the decorator was told."""

    source: str
    name: str
    operations: tuple[str, ...]
    match: Mapping[str, Any] | None
    project: Mapping[str, Any] | None


def trigger(
    source: str,
    *,
    operations: Sequence[str] = OPERATIONS,
    match: Mapping[str, Any] | None = None,
    project: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> Callable[[F], F]:
    """Mark a function as a trigger on the changes of one source collection.

    The function gets a change and yields effects: `Publish`, and records that are keyed by the change. `operations` are
    those that it is called for; `match` and `project` are a query and a projection over the change as MongoDB reports
    it (`fullDocument.state`), which the server evaluates.
    """
    if not isinstance(source, str):
        raise TypeError('name the source collection: @trigger("forms", ...), not @trigger')

    def mark(function: F) -> F:
        own_name: str = getattr(function, "__name__", "")
        found = TriggerMark(source, name or own_name, tuple(operations), match, project)
        setattr(function, TRIGGER_MARK, found)
        return function

    return mark


@dataclass(frozen=True, slots=True)
class Trigger:
    """A function from one change of `source` to effects, found in a transform module.

    `operations`, `match` and `project` are as in the decorator, `collections` the derived collections that its code
    names, and `place` is `file:line`. `reads` has those of the attributes `before` and `document` that its code names.
    `pseudonyms` tells whether its code makes pseudonyms, which depend on a key. `topics` are those that its code names
    by a text; it may publish to others.
    """

    name: str
    source: str
    function: Callable[[Any], Any]
    fingerprint: str
    collections: frozenset[str]
    place: str
    operations: tuple[str, ...]
    match: Mapping[str, Any] | None
    project: Mapping[str, Any] | None
    reads: frozenset[str] = frozenset()
    pseudonyms: bool = False
    topics: frozenset[str] = frozenset()


class LeftOut(Exception):
    """What a trigger reads was too large for a change stream to report."""


@dataclass(frozen=True, slots=True)
class TriggerChange:
    """What a trigger's function gets; `Seen.content` holds the same in BSON.

    `operation` is insert, update, replace or delete, and `key` the document's `_id`. `updated` are the fields that an
    update set, by their paths, and `removed` the paths that it removed; both are empty for other operations. `at` is
    the cluster time, to the second; `position` the resume token, which no other change has. What was too large to be
    reported raises `LeftOut`.
    """

    operation: str
    key: Any
    at: datetime
    position: str
    _updated: Mapping[str, Any]
    _removed: Sequence[str]
    _document: dict[str, Any] | None = None
    _before: dict[str, Any] | None = None
    _left_out: frozenset[str] = frozenset()

    @property
    def updated(self) -> Mapping[str, Any]:
        """The fields that an update set."""
        self._require("updated")
        return self._updated

    @property
    def removed(self) -> Sequence[str]:
        """The fields that an update removed."""
        self._require("updated")
        return self._removed

    @property
    def document(self) -> dict[str, Any] | None:
        """The document behind the change where the server keeps it, else the latest; None when there is none."""
        self._require("document")
        return self._document

    @property
    def before(self) -> dict[str, Any] | None:
        """The document in front of the change; None where there was none or the server keeps none."""
        self._require("before")
        return self._before

    def _require(self, name: str) -> None:
        if name in self._left_out:
            raise LeftOut(
                f"change.{name} is not known: with it, the change is larger than a change stream may report"
            )


class Seen(NamedTuple):
    """A change that one trigger is called for, as it was read; `key` is the document's.

    `content` is the BSON of operation, key, document, before, updated, removed, and left_out: the names of those
    of them that were too large, and `match` where it is not known whether the trigger's applies.
    """

    trigger: str
    source: str
    key: Any
    time: Timestamp
    token: str
    content: bytes

    @property
    def of(self) -> dict[str, Any]:
        """What the change's effects and its dead letter are keyed by."""
        return {"key": self.key, "position": self.token}

    @property
    def queue(self) -> tuple[str, Identity]:
        """The trigger and the document: what is done for both is done in order."""
        return self.trigger, identity(self.key)

    @property
    def owner(self) -> Owner:
        """The owner of the change's records."""
        return Owner(self.trigger, identity(self.of))


class Event(NamedTuple):
    """An event in the outbox: the `number`-th one of a trigger for the change at a position; `data` in BSON."""

    trigger: str
    position: str
    number: int
    at: Timestamp
    topic: str
    data: bytes
    ordering_key: str | None
    attributes: Mapping[str, str]


class Effects(NamedTuple):
    """What a trigger yields for one change: records that it owns, and events."""

    desired: Desired
    events: list[Event]

    @property
    def size(self) -> int:
        """The size in bytes."""
        return self.desired.size + sum(len(each.data) for each in self.events)


class Reacted(NamedTuple):
    """What came of one change for one trigger."""

    seen: Seen
    result: Effects | Failure


def change_of(seen: Seen) -> TriggerChange:
    """Give what the function gets: a copy of its own; raises `LeftOut` when it is not known whether it is called."""
    content = decoded(seen.content)
    if "match" in content["left_out"]:
        raise LeftOut(
            "whether the trigger's match applies is not known: the change is too large to ask MongoDB"
        )
    return TriggerChange(
        content["operation"],
        content["key"],
        seen.time.as_datetime(),
        seen.token,
        content["updated"],
        content["removed"],
        content["document"],
        content["before"],
        frozenset(content["left_out"]),
    )


def react(trigger: Trigger, seen: Seen, epoch: int, limit: int) -> Reacted:
    """Apply a trigger to one change; what goes wrong comes back as a `Failure`, never as an exception.

    Every effect is encoded as soon as it is yielded. At most `limit` of them are taken. A record of a collection that
    the trigger's code does not name is a failure.
    """
    if not is_storable(seen.key):
        return Reacted(seen, Failure(f"the source key {seen.key!r} is not valid UTF-8", ""))
    try:
        return Reacted(seen, _effects(trigger, seen, epoch, limit))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code may raise anything
        return Reacted(seen, failure_of(error))


def _effects(trigger: Trigger, seen: Seen, epoch: int, limit: int) -> Effects:
    version = Version(epoch, seen.time)
    field = origin(trigger.name, seen.of, version)
    tail = tail_of(field)
    records: list[EncodedRecord] = []
    events: list[Event] = []
    for count, effect in enumerate(_items(trigger.function(change_of(seen)))):
        if count >= limit:
            raise BadRecord(f"more than {limit:,} effects of one change (worker.max_records)")
        if isinstance(effect, Publish):
            events.append(_event(effect, seen, len(events)))
        else:
            records.append(encode_record(_record(effect), field, tail))
    _refuse_places(trigger, records)
    size = sum(len(each.document) for each in records)
    return Effects(
        Desired(trigger.name, seen.of, seen.owner, version, records, fresh=True, size=size), events
    )


def _refuse_places(trigger: Trigger, records: Sequence[EncodedRecord]) -> None:
    for place, count in Counter(each.place for each in records).items():
        if count > 1:
            raise BadRecord(f"yielded {place[0]}[{place[1]!r:.80}] twice for one change")
        if place[0] not in trigger.collections:
            raise BadRecord(
                f"yielded a record of {place[0]!r}, which the trigger's code does not name; "
                "declare it at the module's top level and use it by its name"
            )


def _record(effect: object) -> Record:
    if isinstance(effect, Record):
        return effect
    raise BadRecord(
        quoting(
            f"yielded {type(effect).__name__} ",
            f"{effect!r:.80}",
            ", which is no effect; use Publish(...) or collection.record(...), keyed by the change: change.position"
            " is its own",
        )
    )


def _event(effect: Publish, seen: Seen, number: int) -> Event:
    data = _encoded(effect)
    attributes = dict(effect.attributes)
    return Event(
        seen.trigger, seen.token, number, seen.time, effect.topic, data, effect.ordering_key, attributes
    )


def _encoded(effect: Publish) -> bytes:
    """Check an event, and give its data in BSON."""
    topic, data, ordering_key, attributes = _fields(effect)
    if not (topic and _is_text(topic)):
        raise BadRecord(quoting("published to ", f"{topic!r:.80}", ": a topic is a string that is not empty"))
    if not isinstance(data, Mapping):
        what = type(data).__name__
        raise BadRecord(quoting(f"published {what} ", f"{data!r:.80}", f" to {topic!r}: data is a dict"))
    if ordering_key is not None and not _is_text(ordering_key):
        raise BadRecord(
            quoting(
                f"published to {topic!r} with the ordering key ",
                f"{ordering_key!r:.80}",
                ": it is a string; use str(...)",
            )
        )
    if not isinstance(attributes, Mapping) or not all(
        _is_text(name) and _is_text(value) for name, value in attributes.items()
    ):
        raise BadRecord(f"published to {topic!r} with attributes that are no dict of strings")
    try:
        encoded = encode(data, codec_options=CODEC)
    except (BSONError, UnicodeError, TypeError, OverflowError, RecursionError) as error:
        raise BadRecord(
            quoting(f"what is published to {topic!r} cannot be stored as BSON: ", error)
        ) from error
    if len(encoded) > MAX_RECORD_BYTES // 2:
        raise BadRecord(f"what is published to {topic!r} has {len(encoded):,} bytes; the limit is 8 MB")
    return encoded


def _fields(effect: tuple[Any, ...]) -> tuple[Any, ...]:
    """Give an event's fields as what they are: anything, since a user's code gave them."""
    return effect


def _is_text(value: object) -> bool:
    """Whether a value is a string that UTF-8 can hold."""
    return isinstance(value, str) and is_storable(value)


def _items(output: object) -> Iterable[object]:
    if output is None:
        return ()
    if isinstance(output, Publish | Record | str | bytes | dict) or not isinstance(output, Iterable):
        return (output,)
    return output
