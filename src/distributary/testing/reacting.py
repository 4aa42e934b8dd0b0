"""Testing a trigger without a server: what it yields for one change."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import count
from typing import Any

from bson import Timestamp, decode

from distributary.change import CODEC
from distributary.derive.collect import reachable
from distributary.derive.records import DerivedCollection, Record
from distributary.derive.transform import Failure
from distributary.derive.trigger import OPERATIONS, Event, Publish, Reacted, Seen
from distributary.derive.trigger import react as react_to
from distributary.plugins import trigger_of
from distributary.testing.deriving import MAX_RECORDS, NotDerived, in_bson

_numbers = count(1)


def react(
    function: Callable[[Any], Any],
    *,
    operation: str,
    key: Any = None,
    document: Mapping[str, Any] | None = None,
    before: Mapping[str, Any] | None = None,
    updated: Mapping[str, Any] | None = None,
    removed: Sequence[str] = (),
    at: datetime | None = None,
    position: str = "",
    max_records: int = MAX_RECORDS,
) -> list[Publish | Record]:
    """Give what a trigger yields for a change: records first, then events, each kind in its order.

    It is done as a worker does it: the function gets the change as MongoDB gives it, and the effects are as they are
    stored. Neither `match` nor `project` is applied: those are MongoDB's. `key` is by default that of the document;
    without `position` every change has one of its own. Raises `NotDerived` for a change that a worker would park.
    """
    if operation not in OPERATIONS:
        raise ValueError(f"{operation!r} is no operation; there are {', '.join(OPERATIONS)}")
    if key is None:
        key = next((each["_id"] for each in (document, before) if each and "_id" in each), None)
    number = next(_numbers)
    time = Timestamp(int(at.timestamp()), 1) if at else Timestamp(number, 1)
    trigger = trigger_of(function)
    content = in_bson(
        {
            "operation": operation,
            "key": key,
            "document": document,
            "before": before,
            "updated": updated or {},
            "removed": list(removed),
            "left_out": [],
        }
    )
    seen = Seen(trigger.name, trigger.source, key, time, position or f"82{number:032X}", content)
    collections = {each.name: each for each in reachable(function)}
    return _given(react_to(trigger, seen, 1, max_records), collections)


def _given(reacted: Reacted, collections: Mapping[str, DerivedCollection]) -> list[Publish | Record]:
    """Give effects with the collections that the trigger's module holds, so that they equal what it yields."""
    if isinstance(reacted.result, Failure):
        raise NotDerived(reacted.seen.trigger, reacted.seen.key, reacted.result.reason)
    records = [_record(collections[each.collection], each.body) for each in reacted.result.desired.records]
    return [*records, *map(_published, reacted.result.events)]


def _record(collection: DerivedCollection, body: bytes) -> Record:
    fields = decode(body, CODEC)
    return collection.record(fields.pop("_id"), fields)


def _published(event: Event) -> Publish:
    data: dict[str, Any] = decode(event.data, CODEC)
    return Publish(event.topic, data, event.ordering_key, dict(event.attributes))
