"""The outbox: messages that were committed with what they tell of, and wait to be published."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from bson import MaxKey, Timestamp
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.read_concern import ReadConcern

from distributary.change import LENIENT
from distributary.derive.plan import version_in
from distributary.derive.records import ENGINE_FIELD, DerivedCollection
from distributary.derive.trigger import Event
from distributary.events.envelope import Envelope, Message, RecordChange
from distributary.excerpt import excerpt
from distributary.ports import Commit, Held, Put, RecordState, Waiting
from distributary.store.refusals import BESIDE, IS_REFUSED, Order, Refusals, order, place

OUTBOX = "outbox"

#: Pub/Sub's limit on a message with its attributes, in bytes, less what a request takes besides.
MAX_MESSAGE_BYTES = 10_000_000 - 10_000

#: Messages in one command.
CHUNK = 5000

Document = dict[str, Any]


class MongoOutbox:
    """The messages of one worker in a state database; their ids rise in the order of the commits.

    `published` are the derived collections that have a topic, by name. With `reference`, a record that is too large for
    a message is told by one that says where it is.
    """

    def __init__(
        self,
        state: Database[Any],
        worker: str,
        envelope: Envelope,
        published: Mapping[str, DerivedCollection],
        *,
        reference: bool = False,
    ) -> None:
        self._collection = state.get_collection(OUTBOX, LENIENT, read_concern=ReadConcern("majority"))
        self._worker = worker
        self._envelope = envelope
        self._published = published
        self._reference = reference
        self._ahead: int | None = None
        self._refusals = Refusals(self._collection, worker)
        self._again: dict[Order, Any] = {}

    def prepare(self) -> None:
        """Create the collection, which a transaction that writes to it finds faster, and its indexes."""
        self._refusals.prepare()
        self._collection.create_index([("worker", 1), ("refused", 1), ("_id", 1)], name="order")

    def put(
        self, events: Sequence[Event], states: Sequence[RecordState], commit: Commit, session: ClientSession
    ) -> Put:
        """Add events, and those of records that changed, in the session's transaction; see `Outbox.put`."""
        if not (events or states):
            return Put()
        commit = commit._replace(revision=commit.revision + self._offset(commit.revision))
        refused: list[tuple[Event, str]] = []
        documents = [*self._of_events(events, commit, refused), *self._of_states(states, commit, len(events))]
        if not refused:
            self._refusals.resolve((place(each.collection, each.key) for each in states), session)
        for some in _chunks([] if refused else documents):
            self._collection.insert_many(some, session=session)
        waiting = [each["size"] for each in documents if "refused" not in each]
        return Put(Held(len(waiting), sum(waiting)), refused)

    def _offset(self, revision: int) -> int:
        """Give how far ids are ahead of the checkpoint's revisions: it may have been begun anew in front of them."""
        if self._ahead is None:
            mine = {"$gte": {"worker": self._worker}, "$lte": {"worker": self._worker, "revision": MaxKey()}}
            last = self._collection.find_one({"_id": mine}, {"_id": 1}, sort=[("_id", -1)])
            self._ahead = max(0, last["_id"]["revision"] + 1 - revision) if last else 0
        return self._ahead

    def _of_events(
        self, events: Sequence[Event], commit: Commit, refused: list[tuple[Event, str]]
    ) -> Iterator[Document]:
        for number, event in enumerate(events):
            message = self._envelope.of_event(event)
            if reason := _too_large(message):
                refused.append((event, f"what is published to {event.topic!r} {reason}"))
            where = {"at": event.at, "position": event.position}
            yield self._document(event.trigger, message, commit.revision, number) | where

    def _of_states(self, states: Sequence[RecordState], commit: Commit, start: int) -> Iterator[Document]:
        for number, state in enumerate(states, start):
            change = _change(state, commit, number)
            where = {"at": change.time, "position": change.position, "key": {"of": state.key}}
            yield self._of_record(change, commit.revision, number) | where

    def _of_record(self, change: RecordChange, revision: int, number: int) -> Document:
        declared = self._published[change.collection]
        topic = declared.publish or ""
        message = self._envelope.of_record(change, topic, declared.format)
        reason = _too_large(message)
        if reason and self._reference and declared.format != "bigquery":
            message, reason = self._envelope.reference(change, topic), ""
        document = self._document(change.collection, message, revision, number)
        if reason:
            where = place(change.collection, change.key)
            document |= self._refusals.refused(where, f"its message {reason}")
        return document

    def _document(self, of: str, message: Message, revision: int, number: int) -> Document:
        return {
            "_id": {"worker": self._worker, "revision": revision, "number": number},
            "worker": self._worker,
            "of": of,
            "topic": message.topic,
            "data": message.data.decode(),
            "ordering_key": message.ordering_key,
            "attributes": dict(message.attributes),
            "size": len(message.data) + BESIDE,
        }

    # --- draining -------------------------------------------------------------------------------------------

    def next(self, limit: int, size: int) -> list[Waiting]:
        """Give the oldest messages, at most so many and, beyond the first one, so many bytes."""
        query = {"worker": self._worker, "refused": None}
        found: list[Waiting] = []
        for each in self._collection.find(query, sort=[("_id", 1)], limit=limit):
            size -= each["size"]
            if size < 0 and found:
                break
            if "again" in each:
                self._again[order(each["_id"])] = each["_id"]
            found.append(_waiting(each))
        return found

    def remove(self, first: Any, last: Any) -> None:
        """Remove the messages with these ids and all between them that were not refused.

        What is sent again may have come between them since they were given: it is removed only if `next` gave it, too.
        """
        self._refusals.resolve_before(first, last)
        self._collection.delete_many({"_id": {"$gte": first, "$lte": last}, "refused": None, "again": None})
        given = [each for each in self._again if order(first) <= each <= order(last)]
        if given:
            ids = [self._again.pop(each) for each in given]
            self._collection.delete_many({"_id": {"$in": ids}, "refused": None})

    def refuse(self, id: Any, reason: str) -> None:  # noqa: A002 - as the field is called
        """Take a message out of the order and keep it as refused, in the place of what was refused of its record."""
        self._refusals.refuse(id, reason)
        self._again.pop(order(id), None)

    def readmit(self, ids: Sequence[str], session: ClientSession) -> Held:
        """Let refused events of triggers be sent again in their places; gives what waits then that did not."""
        return self._refusals.readmit(ids, session)

    def tells(self, collection: str) -> bool:
        """Whether changes of a derived collection are published."""
        return collection in self._published

    def held(self) -> Held:
        """Count what waits, at the beginning of a tenure."""
        self._refusals.look()
        mine = {"$match": {"worker": self._worker, "refused": None}}
        counted = {"$group": {"_id": None, "events": {"$sum": 1}, "bytes": {"$sum": "$size"}}}
        for each in self._collection.aggregate([mine, counted]):
            return Held(each["events"], each["bytes"])
        return Held()


class Unpublished(NamedTuple):
    """What a worker has in the outbox: messages that wait, their bytes, and those that were refused."""

    waiting: int = 0
    bytes: int = 0
    refused: int = 0
    since: Timestamp | None = None


def count_refused(state: Database[Any], worker: str) -> int:
    """Count the events of a worker that cannot be published, by the index of the order."""
    return state[OUTBOX].count_documents({"worker": worker, **IS_REFUSED})


def unpublished(state: Database[Any]) -> dict[str, Unpublished]:
    """Count what is not published, by worker."""
    refused = {"$ne": [{"$type": "$refused"}, "missing"]}
    group = {
        "_id": "$worker",
        "waiting": {"$sum": {"$cond": [refused, 0, 1]}},
        "bytes": {"$sum": {"$cond": [refused, 0, "$size"]}},
        "refused": {"$sum": {"$cond": [refused, 1, 0]}},
        "since": {"$min": {"$cond": [refused, None, "$at"]}},
    }
    return {each.pop("_id"): Unpublished(**each) for each in state[OUTBOX].aggregate([{"$group": group}])}


def _change(state: RecordState, commit: Commit, number: int) -> RecordChange:
    """Give a record's change; its time is that of the state of its source that it shows."""
    time = commit.time
    if state.document is not None:
        time = version_in(excerpt(state.document, (ENGINE_FIELD,)).get(ENGINE_FIELD)).time
    sequence = (commit.revision, number)
    return RecordChange(state.collection, state.key, state.document, time, commit.position.token, sequence)


def _too_large(message: Message) -> str:
    if len(message.data) <= MAX_MESSAGE_BYTES:
        return ""
    return f"has {len(message.data):,} bytes; Pub/Sub's limit is 10 MB"


def _waiting(document: Document) -> Waiting:
    data, attributes = document["data"].encode(), document["attributes"]
    message = Message(document["topic"], data, attributes, document["ordering_key"])
    return Waiting(document["_id"], document["of"], message, document["size"])


def _chunks(documents: Sequence[Document]) -> Iterable[Sequence[Document]]:
    for start in range(0, len(documents), CHUNK):
        yield documents[start : start + CHUNK]
