"""Messages: the envelope of CloudEvents in both modes, ids, sources, tombstones, references, triggers' events."""

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from bson import ObjectId, Timestamp, encode
from hypothesis import given
from hypothesis import strategies as st

from distributary import DerivedCollection
from distributary.change import CODEC
from distributary.derive.trigger import Event
from distributary.events.envelope import (
    DELETED,
    EVENT,
    MAX_ATTRIBUTE,
    REFERENCED,
    UPSERTED,
    Envelope,
    Message,
    RecordChange,
    tables_of,
)

TOKEN = "8265D0A1B2000000012B0229296E1404"
TIME = Timestamp(1767225600, 7)  # 2026-01-01
STRUCTURED = "application/cloudevents+json; charset=utf-8"
OID = ObjectId("0123456789abcdef01234567")


def change(record: dict[str, Any] | None = None, **others: Any) -> RecordChange:
    """Give the change of a record as it is stored; of none, a tombstone."""
    document = (
        None if record is None else encode({**record, "_src": {"by": "t", "at": TIME}}, codec_options=CODEC)
    )
    known = {"key": record["_id"] if record else "C1", "time": TIME, "position": TOKEN, "sequence": (5, 2)}
    return RecordChange(**{"collection": "customer", "document": document, **known, **others})


def event(**others: Any) -> Event:
    """Give what a trigger yielded."""
    data = encode({"customer": OID, "total": 1.5})
    known = {"trigger": "drop_off", "position": TOKEN, "number": 0, "at": TIME, "topic": "drop-offs"}
    return Event(**{**known, "data": data, "ordering_key": "C1", "attributes": {"shop": "de"}, **others})


def opened(message: Message) -> tuple[dict[str, Any], Any]:
    """Give the envelope and the data of a message, as a receiver tells the modes apart by the binding."""
    kind = message.attributes.get("content-type", "")
    if kind.startswith("application/cloudevents"):
        envelope = json.loads(message.data)
        return envelope, envelope.pop("data", None)
    envelope = {name[3:]: value for name, value in message.attributes.items() if name.startswith("ce-")}
    if kind:
        envelope["datacontenttype"] = kind
    return envelope, json.loads(message.data) if message.data else None


MODES = pytest.mark.parametrize("binary", [False, True], ids=["structured", "binary"])


@MODES
def test_an_upsert_has_the_whole_record_and_where_it_comes_from(binary: bool) -> None:  # noqa: FBT001
    """Both modes have the same envelope; the data is the record without the engine's field."""
    record = {"_id": "C1", "name": "Ann", "orders": [{"_id": 1}]}
    message = Envelope("w 1", binary=binary).of_record(change(record), "customer-view")
    envelope, data = opened(message)
    assert data == record
    assert re.fullmatch("[0-9a-f]{32}", envelope.pop("id"))
    assert envelope == {
        "specversion": "1.0",
        "source": "/distributary/w%201/customer",
        "type": UPSERTED,
        "subject": "C1",
        "time": "2026-01-01T00:00:00Z",
        "position": TOKEN,
        "sequence": "0000000000000005-00000002",
        "recordkey": '"C1"',
        "datacontenttype": "application/json",
    }
    assert (message.topic, message.ordering_key) == ("customer-view", "C1")
    assert (message.attributes["content-type"] == STRUCTURED) != binary
    assert message.attributes["ce-type"] == UPSERTED


@MODES
def test_a_tombstone_has_no_data(binary: bool) -> None:  # noqa: FBT001
    """Structured it has no member `data`; binary it has attributes only, which Pub/Sub accepts."""
    message = Envelope("w", binary=binary).of_record(change(), "t")
    envelope, data = opened(message)
    assert data is None
    assert envelope["type"] == DELETED
    assert "datacontenttype" not in envelope
    assert message.data == b"" if binary else b'"data"' not in message.data
    assert message.attributes
    assert message.ordering_key == "C1"


def test_a_record_as_it_is_stored_has_one_id() -> None:
    """Whenever and wherever it is published again, as a replay does: with another time, position and sequence."""
    first = change({"_id": 1, "a": 1})
    again = first._replace(time=Timestamp(1, 1), position="", sequence=(9, 9))
    assert ids(Envelope("w"), [first, again])[0] == ids(Envelope("w", binary=True, plain=True), [again])[0]


def ids(envelope: Envelope, changes: Iterable[RecordChange]) -> list[str]:
    """Give the ids of changes."""
    return [opened(envelope.of_record(each, "t"))[0]["id"] for each in changes]


def test_other_things_have_other_ids() -> None:
    """Other content, key, collection, worker or kind; of tombstones, every one."""
    record = change({"_id": 1, "a": 1})
    changes = [
        record,
        change({"_id": 1, "a": 2}),
        change({"_id": 2, "a": 1}),
        record._replace(collection="customers"),
        change(),
        change(sequence=(5, 3)),
        change(key=1),
        change(key="1"),
    ]
    found = ids(Envelope("w"), changes) + ids(Envelope("w2"), changes)
    found.append(opened(Envelope("w").reference(record, "t"))[0]["id"])
    found += [
        opened(Envelope("w").of_event(each))[0]["id"]
        for each in (event(), event(number=1), event(trigger="x"))
    ]
    assert len(set(found)) == len(found)


def test_names_do_not_run_into_one_another() -> None:
    """A worker `a` with the collection `bc` is another than `ab` with `c`."""
    record = change({"_id": 1})
    one = ids(Envelope("a"), [record._replace(collection="bc")])
    assert one != ids(Envelope("ab"), [record._replace(collection="c")])


@given(st.lists(st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 2**32 - 1)), min_size=2))
def test_sequences_sort_as_text(sequences: list[tuple[int, int]]) -> None:
    """As the extension demands: a subscriber compares the texts."""
    envelope = Envelope("w")
    texts = [opened(envelope.of_record(change(sequence=each), "t"))[0]["sequence"] for each in sequences]
    assert sorted(texts) == [text for _, text in sorted(zip(sequences, texts, strict=True))]


@pytest.mark.parametrize("length", [10, MAX_ATTRIBUTE, MAX_ATTRIBUTE + 1, 5000])
@pytest.mark.parametrize("form", ["cloudevents", "bigquery"])
def test_no_attribute_is_longer_than_pubsub_takes(length: int, form: str) -> None:
    """An envelope that does not fit into attributes is in the data in any mode; a row goes without what is long."""
    message = Envelope("w", binary=True).of_record(change(key="é" * length), "t", form)
    assert all(0 < len(value.encode()) <= MAX_ATTRIBUTE for value in message.attributes.values())
    assert "ce-id" in message.attributes or opened(message)[0]["subject"] == "é" * length


def test_an_empty_key_is_ordered_all_the_same() -> None:
    """An empty ordering key would mean none, and CloudEvents forbid an empty subject."""
    message = Envelope("w").of_record(change(key=""), "t")
    assert message.ordering_key.startswith("sha256:")
    assert "subject" not in opened(message)[0]
    assert opened(message)[0]["recordkey"] == '""'


def test_a_commit_without_a_position_has_no_such_attribute() -> None:
    """No attribute of an event is ever empty."""
    assert "position" not in opened(Envelope("w").of_record(change(position=""), "t"))[0]


@pytest.mark.parametrize(("plain", "written"), [(False, {"$oid": str(OID)}), (True, str(OID))])
def test_data_is_written_in_the_form_that_is_configured(plain: bool, written: Any) -> None:  # noqa: FBT001
    """Relaxed Extended JSON or plain JSON, for records and for events."""
    envelope = Envelope("w", plain=plain)
    assert opened(envelope.of_record(change({"_id": 1, "of": OID}), "t"))[1]["of"] == written
    assert opened(envelope.of_event(event()))[1] == {"customer": written, "total": 1.5}


def test_a_reference_says_what_was_too_large_and_where_it_is() -> None:
    """It has the record's key and ordering key, so that it takes its place in the order."""
    large = change({"_id": OID, "text": "x" * 1000})
    message = Envelope("w").reference(large, "t")
    envelope, data = opened(message)
    assert envelope["type"] == REFERENCED
    assert large.document
    assert data == {"collection": "customer", "_id": {"$oid": str(OID)}, "bytes": len(large.document)}
    assert message.ordering_key == str(OID)


@MODES
def test_a_triggers_event_has_its_attributes_and_its_order(binary: bool) -> None:  # noqa: FBT001
    """Its topic, data, ordering key and attributes are what the trigger yielded."""
    message = Envelope("w", binary=binary).of_event(event())
    envelope, _ = opened(message)
    assert (envelope["type"], envelope["source"], envelope["subject"]) == (
        EVENT,
        "/distributary/w/drop_off",
        "C1",
    )
    assert (message.topic, message.ordering_key, message.attributes["shop"]) == ("drop-offs", "C1", "de")
    assert (envelope["position"], envelope["time"]) == (TOKEN, "2026-01-01T00:00:00Z")


def test_an_event_without_an_ordering_key_has_none() -> None:
    """Its order does not matter, and it has no subject."""
    message = Envelope("w").of_event(event(ordering_key=None))
    assert message.ordering_key == ""
    assert "subject" not in opened(message)[0]


@MODES
def test_a_triggers_attributes_do_not_hide_the_envelope(binary: bool) -> None:  # noqa: FBT001
    """The attribute that tells the modes apart is never an author's."""
    told = event(attributes={"content-type": "text/plain", "ce-type": "mine"})
    envelope, data = opened(Envelope("w", binary=binary).of_event(told))
    assert envelope["type"] == EVENT
    assert data


def test_equal_keys_have_one_order() -> None:
    """A record whose key becomes 1.0 where it was 1 is told of behind the one that it was."""
    envelope = Envelope("w")
    keys = [envelope.of_record(change(key=each), "t").ordering_key for each in (1, 1.0)]
    assert keys[0] == keys[1]


def made(envelope: Envelope, record: dict[str, Any] | None) -> dict[str, Any]:
    """Give the row of a record; of none, of one that is gone."""
    row: dict[str, Any] = json.loads(envelope.of_record(change(record), "t", "bigquery").data)
    return row


def test_a_row_for_bigquery_is_all_of_the_data() -> None:
    """The envelope is in the attributes, in either mode, since a subscription with table schema takes columns only."""
    message = Envelope("w").of_record(change({"_id": "C1", "total": 5}), "t", "bigquery")
    assert json.loads(message.data) == {
        "_id": "C1",
        "_id_type": "string",
        "total": 5,
        "_CHANGE_TYPE": "UPSERT",
        "_CHANGE_SEQUENCE_NUMBER": "5/2",
    }
    assert message.attributes["content-type"] == "application/json"
    assert opened(message)[0]["recordkey"] == '"C1"'
    assert message.ordering_key == "C1"


def test_what_is_gone_is_a_row_with_its_key_alone() -> None:
    """And a record without any field is none that is gone."""
    key = {"_id": "C1", "_id_type": "string"}
    assert made(Envelope("w"), None) == {**key, "_CHANGE_TYPE": "DELETE", "_CHANGE_SEQUENCE_NUMBER": "5/2"}
    assert made(Envelope("w"), {"_id": "C1"})["_CHANGE_TYPE"] == "UPSERT"


class Customer:
    """The fields of a customer."""

    total: str


def test_rows_fit_the_model_that_a_collection_declares() -> None:
    """Of collections that are published to BigQuery."""
    declared = [
        DerivedCollection("customer", publish="t", format="bigquery", model=Customer),
        DerivedCollection("other", publish="t", model=Customer),
        DerivedCollection("silent", format="bigquery", model=Customer),
    ]
    tables = tables_of(declared)
    assert list(tables) == ["customer"]
    row = made(Envelope("w", tables=tables), {"_id": "C1", "total": 5, "more": 1})
    assert (row["total"], row["_rest"]) == ("5", '{"more":1}')


@pytest.mark.parametrize(
    "make",
    [
        lambda envelope: envelope.of_record(change({"_id": 1, "a": [OID]}), "t"),
        lambda envelope: envelope.of_record(change(), "t"),
        lambda envelope: envelope.of_event(event()),
    ],
)
def test_the_same_gives_the_same_bytes(make: Callable[[Envelope], Message]) -> None:
    """So that an event that is encoded again overwrites itself in the outbox."""
    assert make(Envelope("w")) == make(Envelope("w"))
