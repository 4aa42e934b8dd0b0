"""The outbox: messages that were committed with what they tell of, and wait to be published."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from bson import MaxKey, Timestamp
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.read_concern import ReadConcern

from distributary.change import LENIENT
from distributary.chunks import chunks
from distributary.derive.plan import version_in
from distributary.derive.records import ENGINE_FIELD, DerivedCollection
from distributary.derive.trigger import Event
from distributary.events.envelope import Envelope, Message, RecordChange
from distributary.excerpt import excerpt
from distributary.ports.events import Commit, Held, Put, Waiting
from distributary.ports.records import RecordState
from distributary.quoting import bare
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
    a message is told by one that says where it is. Why a message was refused is kept with what is quoted in it only if
    `values` is set.
    """

    def __init__(
        self,
        state: Database[Any],
        worker: str,
        envelope: Envelope,
        published: Mapping[str, DerivedCollection],
        *,
        reference: bool = False,
        values: bool = False,
    ) -> None:
        self._collection = state.get_collection(OUTBOX, LENIENT, read_concern=ReadConcern("majority"))
        self._worker = worker
        self._envelope = envelope
        self._published = published
        self._reference = reference
        self._told: Callable[[str], str] = str if values else bare
        self._ahead: int | None = None
        self._refusals = Refusals(self._collection, worker)
        self._again: dict[Order, Document] = {}

    def prepare(self) -> None:
        """Create the collection, which a transaction that writes to it finds faster, and its indexes."""
        self._refusals.prepare()
        self._collection.create_index([("worker", 1), ("topic", 1), ("refused", 1), ("_id", 1)], name="topic")

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
        for some in chunks([] if refused else documents, CHUNK):
            self._collection.insert_many(some, session=session)
        waiting = [each["size"] for each in documents if "refused" not in each]
        return Put(Held(len(waiting), sum(waiting)), refused)

    def _offset(self, revision: int) -> int:
        """Give how far ids are ahead of the checkpoint's revisions: it may have been begun anew in front of them."""
        if self._ahead is None:
            last = self._collection.find_one({"_id": ids_of(self._worker)}, {"_id": 1}, sort=[("_id", -1)])
            self._ahead = max(0, last["_id"]["revision"] + 1 - revision) if last else 0
        return self._ahead

    def _of_events(
        self, events: Sequence[Event], commit: Commit, refused: list[tuple[Event, str]]
    ) -> Iterator[Document]:
        for number, event in enumerate(events):
            message = self._envelope.of_event(event, commit.trace)
            if reason := _too_large(message):
                refused.append((event, f"what is published to {event.topic!r} {reason}"))
            where = {"at": event.at, "position": event.position}
            yield self._document(event.trigger, message, commit, number) | where

    def _of_states(self, states: Sequence[RecordState], commit: Commit, start: int) -> Iterator[Document]:
        for number, state in enumerate(states, start):
            change = _change(state, commit, number)
            where = {"at": change.time, "position": change.position, "key": {"of": state.key}}
            yield self._of_record(change, commit, number) | where

    def _of_record(self, change: RecordChange, commit: Commit, number: int) -> Document:
        declared = self._published[change.collection]
        topic = declared.publish or ""
        message = self._envelope.of_record(change, topic, declared.format)
        reason = _too_large(message)
        if reason and self._reference and declared.format != "bigquery":
            message, reason = self._envelope.reference(change, topic), ""
        document = self._document(change.collection, message, commit, number)
        if reason:
            where = place(change.collection, change.key)
            document |= self._refusals.refused(where, f"its message {reason}")
        return document

    def _document(self, of: str, message: Message, commit: Commit, number: int) -> Document:
        traced = {"trace": commit.trace} if commit.trace else {}
        return {
            "_id": {"worker": self._worker, "revision": commit.revision, "number": number},
            "worker": self._worker,
            "of": of,
            "topic": message.topic,
            "data": message.data.decode(),
            "ordering_key": message.ordering_key,
            "attributes": dict(message.attributes),
            "size": len(message.data) + BESIDE,
        } | traced

    # --- draining -------------------------------------------------------------------------------------------

    def topics(self) -> list[str]:
        """Give the topics that messages wait for, by one look at the index for each; of some all may be refused."""
        return self._collection.distinct("topic", {"worker": self._worker})

    def next(self, topic: str, limit: int, size: int) -> list[Waiting]:
        """Give a topic's oldest messages, at most so many and, beyond the first one, so many bytes."""
        query = {"worker": self._worker, "topic": topic, "refused": None}
        found: list[Waiting] = []
        for each in self._collection.find(query, sort=[("_id", 1)], limit=limit):
            size -= each["size"]
            if size < 0 and found:
                break
            if "again" in each:
                self._again[order(each["_id"])] = {"_id": each["_id"], "topic": topic}
            found.append(_waiting(each))
        return found

    def remove(self, topic: str, first: Any, last: Any, left: Collection[Any] = ()) -> None:
        """Remove a topic's messages with these ids and all between them that were not refused, nor are `left`.

        What is sent again may have come between them since they were given: it is removed only if `next` gave it, too.
        """
        between: dict[str, Any] = {"$gte": first, "$lte": last}
        if left:
            between["$nin"] = list(left)
        query = {"worker": self._worker, "topic": topic, "refused": None, "_id": between}
        self._refusals.resolve_before(query)
        self._collection.delete_many({**query, "again": None})
        given = [
            place
            for place, each in self._again.items()
            if order(first) <= place <= order(last) and each["topic"] == topic and each["_id"] not in left
        ]
        if given:
            ids = [self._again.pop(place)["_id"] for place in given]
            self._collection.delete_many({"_id": {"$in": ids}, "refused": None})

    def refuse(self, id: Any, reason: str) -> None:  # noqa: A002 - as the field is called
        """Take a message out of the order and keep it as refused, in the place of what was refused of its record."""
        self._refusals.refuse(id, self._told(reason))
        self._again.pop(order(id), None)

    def readmit(self, ids: Sequence[str], session: ClientSession) -> Held:
        """Let refused events of triggers be sent again in their places; gives what waits then that did not."""
        return self._refusals.readmit(ids, session)

    def tells(self, collection: str) -> bool:
        """Whether changes of a derived collection are published."""
        return collection in self._published

    def held(self) -> Held:
        """Count what waits, and see whether there is something refused that may be resolved."""
        self._refusals.look()
        mine = {"$match": {"worker": self._worker, "refused": None}}
        counted = {"$group": {"_id": None, "events": {"$sum": 1}, "bytes": {"$sum": "$size"}}}
        for each in self._collection.aggregate([mine, counted]):
            return Held(each["events"], each["bytes"])
        return Held()


def ids_of(worker: str) -> Document:
    """Give what the ids of a worker's messages lie between."""
    return {"$gte": {"worker": worker}, "$lte": {"worker": worker, "revision": MaxKey()}}


class Unpublished(NamedTuple):
    """What a worker has in the outbox: messages that wait, their bytes, those that were refused; and by topic."""

    waiting: int = 0
    bytes: int = 0
    refused: int = 0
    since: Timestamp | None = None
    topics: Mapping[str, "Unpublished"] = MappingProxyType({})

    @staticmethod
    def over(topics: Mapping[str, "Unpublished"]) -> "Unpublished":
        """Give what topics come to."""
        some = topics.values()
        return Unpublished(
            sum(each.waiting for each in some),
            sum(each.bytes for each in some),
            sum(each.refused for each in some),
            min((each.since for each in some if each.since), default=None),
            topics,
        )


def count_refused(state: Database[Any], worker: str) -> int:
    """Count the events of a worker that cannot be published, by the index."""
    return state[OUTBOX].count_documents({"worker": worker, **IS_REFUSED})


def unpublished(state: Database[Any]) -> dict[str, Unpublished]:
    """Count what is not published, by worker and topic."""
    refused = {"$ne": [{"$type": "$refused"}, "missing"]}
    group = {
        "_id": {"worker": "$worker", "topic": "$topic"},
        "waiting": {"$sum": {"$cond": [refused, 0, 1]}},
        "bytes": {"$sum": {"$cond": [refused, 0, "$size"]}},
        "refused": {"$sum": {"$cond": [refused, 1, 0]}},
        "since": {"$min": {"$cond": [refused, None, "$at"]}},
    }
    found: dict[str, dict[str, Unpublished]] = {}
    for each in state[OUTBOX].aggregate([{"$group": group}, {"$sort": {"_id": 1}}]):
        place = each.pop("_id")
        found.setdefault(place["worker"], {})[place["topic"]] = Unpublished(**each)
    return {worker: Unpublished.over(topics) for worker, topics in found.items()}


def _change(state: RecordState, commit: Commit, number: int) -> RecordChange:
    """Give a record's change; its time is that of the state of its source that it shows."""
    time = commit.time
    if state.document is not None:
        time = version_in(excerpt(state.document, (ENGINE_FIELD,)).get(ENGINE_FIELD)).time
    sequence = (commit.revision, number)
    token = commit.position.token
    return RecordChange(state.collection, state.key, state.document, time, token, sequence, commit.trace)


def _too_large(message: Message) -> str:
    if len(message.data) <= MAX_MESSAGE_BYTES:
        return ""
    return f"has {len(message.data):,} bytes; Pub/Sub's limit is 10 MB"


def _waiting(document: Document) -> Waiting:
    data, attributes = document["data"].encode(), document["attributes"]
    message = Message(document["topic"], data, attributes, document["ordering_key"])
    return Waiting(document["_id"], document["of"], message, document["size"], document.get("trace", ""))
