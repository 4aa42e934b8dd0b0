"""Takes what was published of derived collections and holds it against them."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import grpc
from bson import json_util
from google.api_core.exceptions import DeadlineExceeded
from google.cloud.pubsub_v1 import PublisherClient, SubscriberClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport
from pymongo.database import Database

from benchmarks.workload import OWNERS, Document

PROJECT = "benchmark"

#: Messages in one reply.
PULL = 1000

#: How long an empty subscription is asked before nothing more is expected of it.
QUIET_SECONDS = 3.0

#: The form of an event's key and of its data.
_KEY = json_util.CANONICAL_JSON_OPTIONS
_DATA = json_util.RELAXED_JSON_OPTIONS


class Newest(NamedTuple):
    """The newest event of a record: its place in the order, and a digest of the record, None if it is gone."""

    sequence: str
    record: int | None


class Subscriber:
    """Has a subscription of one topic per derived collection, of the same name, from its construction on.

    Messages come in any order: of each record, the event with the highest sequence counts.
    """

    def __init__(self, host: str, collections: Sequence[str]) -> None:
        self.messages = 0
        self._ids: set[str] = set()
        self._newest: dict[str, dict[str, Newest]] = {name: {} for name in collections}
        self._topics = PublisherClient(transport=PublisherGrpcTransport(channel=grpc.insecure_channel(host)))
        self._client = SubscriberClient(
            transport=SubscriberGrpcTransport(channel=grpc.insecure_channel(host))
        )
        for name in collections:
            topic = f"projects/{PROJECT}/topics/{name}"
            self._topics.create_topic(name=topic)
            self._client.create_subscription(name=_subscription(name), topic=topic)

    @property
    def repeated(self) -> int:
        """How many messages had an id that was seen before."""
        return self.messages - len(self._ids)

    def drain(self) -> None:
        """Take everything that lies there."""
        for name in self._newest:
            while self._pull(name):
                continue

    def close(self) -> None:
        """Close the connections."""
        self._topics.stop()
        self._topics.transport.close()
        self._client.close()

    def wrong(self, derived: Database[Document]) -> int:
        """Count the records that who applies the events has otherwise than they are stored, or not at all."""
        return sum(self._differences(name, derived) for name in self._newest)

    def _pull(self, name: str) -> int:
        subscription = _subscription(name)
        try:
            reply = self._client.pull(
                subscription=subscription, max_messages=PULL, retry=None, timeout=QUIET_SECONDS
            )
        except DeadlineExceeded:
            return 0
        received = type(reply).pb(reply).received_messages  # a hundred thousand wrappers would take longer
        for each in received:
            self._take(self._newest[name], json.loads(each.message.data))
        if received:
            ids = [each.ack_id for each in received]
            self._client.acknowledge(subscription=subscription, ack_ids=ids)
        return len(received)

    def _take(self, newest: dict[str, Newest], event: dict[str, Any]) -> None:
        self.messages += 1
        self._ids.add(event["id"])
        key, sequence = event["recordkey"], event["sequence"]
        if key not in newest or newest[key].sequence < sequence:
            newest[key] = Newest(sequence, _digest(event["data"]) if "data" in event else None)

    def _differences(self, name: str, derived: Database[Document]) -> int:
        told = {key: each.record for key, each in self._newest[name].items() if each.record is not None}
        wrong = 0
        for record in derived[name].find({}, {"_src": 0}):
            key = json_util.dumps(record["_id"], json_options=_KEY, separators=(",", ":"))
            wrong += told.pop(key, None) != _digest(json.loads(json_util.dumps(record, json_options=_DATA)))
        return wrong + len(told)


@contextmanager
def subscribing(host: str) -> Iterator[Subscriber]:
    """Subscribe to the topics of the workload's derived collections."""
    subscriber = Subscriber(host, list(OWNERS))
    try:
        yield subscriber
    finally:
        subscriber.close()


def _subscription(name: str) -> str:
    return f"projects/{PROJECT}/subscriptions/{name}"


def _digest(record: Any) -> int:
    return hash(json.dumps(record, sort_keys=True))
