"""The outbox: events that were committed with what they tell of, and wait to be published."""

from collections.abc import Sequence
from typing import Any

from pymongo import ReplaceOne
from pymongo.client_session import ClientSession
from pymongo.database import Database

from distributary.change import CODEC
from distributary.derive.records import RawDocument
from distributary.derive.trigger import Event

OUTBOX = "outbox"


class MongoOutbox:
    """The events of one worker in a state database; their ids rise in the source's order."""

    def __init__(self, state: Database[Any], worker: str) -> None:
        self._collection = state.get_collection(OUTBOX, CODEC)
        self._worker = worker

    def prepare(self) -> None:
        """Create the collection, which a transaction that writes to it finds faster."""
        self._collection.create_index([("worker", 1), ("ordering_key", 1)], name="ordering_key")

    def put(self, events: Sequence[Event], session: ClientSession) -> None:
        """Add events in the session's transaction; an event that is there already takes its own place."""
        writes = [ReplaceOne({"_id": each["_id"]}, each, upsert=True) for each in map(self._document, events)]
        if writes:
            self._collection.bulk_write(writes, session=session)

    def _document(self, event: Event) -> dict[str, Any]:
        number = {"position": event.position, "trigger": event.trigger, "number": event.number}
        return {
            "_id": {"worker": self._worker, **number},
            "worker": self._worker,
            "trigger": event.trigger,
            "topic": event.topic,
            "data": RawDocument(event.data),
            "ordering_key": event.ordering_key,
            "attributes": dict(event.attributes),
            "at": event.at,
            "position": event.position,
        }


def waiting(state: Database[Any]) -> dict[str, int]:
    """Count the events that are not published yet, by worker."""
    found = state[OUTBOX].aggregate([{"$group": {"_id": "$worker", "count": {"$sum": 1}}}])
    return {each["_id"]: each["count"] for each in found}
