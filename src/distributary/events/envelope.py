"""Messages: what is published of a record's change and of a trigger's event, as a CloudEvent.

Sources: "CloudEvents" and "JSON Event Format for CloudEvents", version 1.0.2, with the extension "Distributed Tracing";
"Google Cloud Pub/Sub Protocol Binding for CloudEvents", version 1.0 (googleapis/google-cloudevents,
docs/spec/pubsub.md); "Quotas and limits" of Pub/Sub.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple
from urllib.parse import quote

import orjson
from bson import Timestamp

from distributary.derive.records import ENGINE_FIELD, DerivedCollection
from distributary.derive.trigger import Event
from distributary.events import bigquery
from distributary.events.columns import table_of_model
from distributary.events.jsons import PLAIN, RELAXED, decoded, dumps, rfc3339
from distributary.events.keys import key_text, ordering_key, plain_key, record_key
from distributary.excerpt import key_of

UPSERTED = "distributary.record.upserted"
DELETED = "distributary.record.deleted"
REFERENCED = "distributary.record.referenced"
EVENT = "distributary.event"

#: Pub/Sub's limit on the value of an attribute, in bytes of UTF-8.
MAX_ATTRIBUTE = 1024

#: What the data of an event is.
_JSON = "application/json"

#: What tells structured from binary mode.
_STRUCTURED = "application/cloudevents+json; charset=utf-8"

_ID_BYTES = 16


class Message(NamedTuple):
    """One message for a topic; an empty ordering key means that its order does not matter. `data` is JSON."""

    topic: str
    data: bytes
    attributes: Mapping[str, str]
    ordering_key: str = ""


class RecordChange(NamedTuple):
    """A derived record as it is stored behind a commit (`document`: its BSON with `_src`), or None: it is gone.

    `time` is the cluster time of the state that the commit shows, `position` its resume token, empty if it has none.
    `sequence` is the commit's revision and the number in it: it rises with every event of a worker. `trace` is the
    commit's `traceparent`, empty where nobody traces.
    """

    collection: str
    key: Any
    document: bytes | None
    time: Timestamp
    position: str
    sequence: tuple[int, int]
    trace: str = ""


class Envelope:
    """Makes the messages of one worker; made of the same, they are the same to the last byte.

    `binary` puts the envelope into attributes and leaves the record alone in the data; an envelope that does not fit
    there is in the data all the same. `plain` writes plain instead of relaxed Extended JSON. `tables` are those that
    rows for BigQuery have to fit, by derived collection; others have the columns that their values suggest.
    """

    def __init__(
        self,
        worker: str,
        *,
        binary: bool = False,
        plain: bool = False,
        tables: Mapping[str, bigquery.Table] | None = None,
    ) -> None:
        self._worker = worker
        self._binary = binary
        self._form = PLAIN if plain else RELAXED
        self._tables = tables or {}

    def of_record(self, change: RecordChange, topic: str, form: str = "cloudevents") -> Message:
        """Give the message of a record: the whole of it, or for one that is gone a tombstone without data.

        With `form` "bigquery", a row as a BigQuery subscription with table schema takes it.
        """
        record = None if change.document is None else _record(change.document)
        key = plain_key(change.key) if record is None else record["_id"]
        envelope = self._of_record(change, key, DELETED if record is None else UPSERTED)
        if form == "bigquery":
            return _row(topic, envelope, self._columns(change, key, record))
        data = b"" if record is None else dumps(record, self._form)
        return self._message(topic, envelope, data, ordering_key(envelope.get("subject", "")))

    def reference(self, change: RecordChange, topic: str) -> Message:
        """Give what is published instead of a record that is too large: where it is, and how many bytes it has."""
        document = change.document or b""
        key = decoded_key(document) if document else plain_key(change.key)
        envelope = self._of_record(change, key, REFERENCED)
        data = dumps({"collection": change.collection, "_id": key, "bytes": len(document)}, self._form)
        return self._message(topic, envelope, data, ordering_key(envelope.get("subject", "")))

    def of_event(self, event: Event, trace: str = "") -> Message:
        """Give the message of what a trigger yielded, with its attributes; the envelope's own come first."""
        subject = event.ordering_key or ""
        envelope = _envelope(
            id=_ended(_begun(EVENT, self._worker, event.trigger).copy(), event.position, str(event.number)),
            source=_source(self._worker, event.trigger),
            type=EVENT,
            subject=subject,
            time=_time(event.at),
            position=event.position,
            traceparent=trace,
        )
        data = dumps(decoded(event.data), self._form)
        message = self._message(event.topic, envelope, data, ordering_key(subject) if subject else "")
        return message._replace(attributes={**event.attributes, **message.attributes})

    # --- the envelope -----------------------------------------------------------------------------------------

    def _of_record(self, change: RecordChange, key: Any, kind: str) -> dict[str, str]:
        revision, number = change.sequence
        return _envelope(
            id=self._record_id(change, key, kind),
            source=_source(self._worker, change.collection),
            type=kind,
            subject=key_text(key),
            time=_time(change.time),
            position=change.position,
            sequence=f"{revision:016x}-{number:08x}",
            recordkey=record_key(key),
            traceparent=change.trace,
        )

    def _record_id(self, change: RecordChange, key: Any, kind: str) -> str:
        """Give the id: of a record as it is stored always the same, of a tombstone one of its own."""
        named = _begun(kind, self._worker, change.collection).copy()
        if change.document is None:
            return _ended(named, record_key(key), *map(str, change.sequence))
        named.update(change.document)
        return named.hexdigest()

    # --- the message ------------------------------------------------------------------------------------------

    def _message(self, topic: str, envelope: dict[str, str], data: bytes, key: str) -> Message:
        if data:
            envelope["datacontenttype"] = _JSON
        attributes = _attributes(envelope)
        if self._binary and _fit(attributes.values()):
            return Message(topic, data, attributes, key)
        kept = {"content-type": _STRUCTURED, "ce-type": envelope["type"], "ce-source": envelope["source"]}
        return Message(topic, _structured(envelope, data), {k: v for k, v in kept.items() if _fits(v)}, key)

    def _columns(self, change: RecordChange, key: Any, record: Mapping[str, Any] | None) -> dict[str, Any]:
        if record is None:
            return bigquery.deletion(key, change.sequence)
        return bigquery.upsert(record, self._tables.get(change.collection), change.sequence)


def _row(topic: str, envelope: Mapping[str, str], columns: Mapping[str, Any]) -> Message:
    """Give a row with as much of the envelope as attributes can hold."""
    attributes = _attributes({**envelope, "datacontenttype": _JSON})
    attributes = {name: value for name, value in attributes.items() if _fits(value)}
    return Message(topic, orjson.dumps(columns), attributes, ordering_key(envelope.get("subject", "")))


def _record(document: bytes) -> dict[str, Any]:
    record = decoded(document)
    record.pop(ENGINE_FIELD, None)
    return record


def decoded_key(document: bytes) -> Any:
    """Give the key of a record without decoding the rest of it, which is large."""
    return plain_key(key_of(document))


def tables_of(collections: Iterable[DerivedCollection]) -> dict[str, bigquery.Table]:
    """Give the tables of the collections that are published to BigQuery and have a model."""
    return {
        each.name: table_of_model(each.model)
        for each in collections
        if each.publish and each.format == "bigquery" and each.model is not None
    }


def _envelope(**attributes: str) -> dict[str, str]:
    """Give the attributes of an event that are not empty; none of them may be."""
    return {"specversion": "1.0"} | {name: value for name, value in attributes.items() if value}


def _structured(envelope: Mapping[str, str], data: bytes) -> bytes:
    head = orjson.dumps(envelope)
    return head[:-1] + b',"data":' + data + b"}" if data else head


def _attributes(envelope: Mapping[str, str]) -> dict[str, str]:
    """Give an envelope as attributes of a message; the media type of the data has a name of its own."""
    attributes = {f"ce-{name}": value for name, value in envelope.items() if name != "datacontenttype"}
    return attributes | ({"content-type": _JSON} if "datacontenttype" in envelope else {})


def _fit(values: Iterable[str]) -> bool:
    return all(map(_fits, values))


def _fits(value: str) -> bool:
    return len(value) * 4 <= MAX_ATTRIBUTE or len(value.encode()) <= MAX_ATTRIBUTE


@lru_cache(maxsize=256)
def _source(worker: str, name: str) -> str:
    return f"/distributary/{quote(worker, safe='')}/{quote(name, safe='')}"


@lru_cache(maxsize=256)
def _begun(*parts: str) -> blake2b:
    """Begin a digest of what many ids have in common; it is copied before it goes on."""
    digest = blake2b(digest_size=_ID_BYTES)
    _add(digest, parts)
    return digest


def _ended(digest: blake2b, *parts: str) -> str:
    _add(digest, parts)
    return digest.hexdigest()


def _add(digest: blake2b, parts: Iterable[str]) -> None:
    """Add parts, each of which is told from the next by its length."""
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(4, "little") + encoded)


@lru_cache(maxsize=64)
def _time(time: Timestamp) -> str:
    """Write a cluster time, which has seconds only; many events have the same."""
    return rfc3339(time.as_datetime(), "seconds")
