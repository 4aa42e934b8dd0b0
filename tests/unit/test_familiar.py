"""Stored records are told from their bytes as decoding tells them, or not at all."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from bson import Binary, Decimal128, Int64, ObjectId, Timestamp, decode, encode

from distributary.change import CODEC, Version, identity
from distributary.derive.plan import Desired, Owner, stored
from distributary.derive.records import DerivedCollection, encode_record, origin, tail_of
from distributary.sink.familiar import Familiar

LINES = DerivedCollection("lines")

KEYS: list[Any] = [
    ObjectId("65a000000000000000000001"),
    "text",
    "",
    7,
    Int64(2**40),
    1.5,
    datetime(2024, 5, 1, tzinfo=UTC),
    {"order": 7, "line": "a"},
    {},
    UUID("00000000-0000-4000-8000-000000000001"),
    b"bytes",
    Binary(b"bytes of a kind", 128),
]


def desired(key: Any, records: list[Any], version: Version) -> Desired:
    """Give what a document yields: records with these keys."""
    source = origin("orders", key, version)
    made = [encode_record(LINES.record(each, {"n": 1}), source, tail_of(source)) for each in records]
    return Desired("orders", key, Owner("orders", identity(key)), version, made)


OLD, NEW = Version(1, Timestamp(100, 7)), Version(2, Timestamp(2**31 + 9, 2**20))


@pytest.mark.parametrize("key", KEYS, ids=lambda key: f"{type(key).__name__} {key!r:.20}")
@pytest.mark.parametrize("record", KEYS, ids=lambda key: f"at {type(key).__name__}")
def test_what_the_engine_stored_is_told_as_decoding_tells_it(key: Any, record: Any) -> None:
    """Records that are yielded again and those that are not, whatever the types of both keys."""
    again, gone = desired(key, [record, "gone"], OLD).records
    familiar = Familiar([desired(key, [record], NEW)])
    for each in (again, gone):
        expected = stored("lines", decode(each.document, CODEC), each.document)
        assert familiar.stored("lines", each.document) == expected


@pytest.mark.parametrize(
    "document",
    [
        {"_id": 1, "n": 1},
        {"_id": 1, "_src": {"by": "orders", "key": 5}},
        {"_id": 1, "_src": {"by": "other", "key": 5, "at": Timestamp(1, 1), "epoch": 1}},
        {"_id": 1, "_src": {"by": "orders", "key": 6, "at": Timestamp(1, 1), "epoch": 1}},
        {"_id": 1, "_src": {"by": "orders", "key": 5.0, "at": Timestamp(1, 1), "epoch": 1}},
        {"_id": 1, "_src": {"by": "orders", "key": 5, "at": Timestamp(1, 1), "epoch": Int64(1)}},
        {"_id": 1, "_src": {"by": "orders", "key": 5, "epoch": 1, "at": Timestamp(1, 1)}},
        {"_id": 1, "_src": {"by": "orders", "key": 5, "at": Timestamp(1, 1), "epoch": 1}, "behind": 1},
        {"_id": 1, "in": {"_src": {"by": "orders", "key": 5, "at": Timestamp(1, 1), "epoch": 1}}},
        {"_id": True, "_src": {"by": "orders", "key": 5, "at": Timestamp(1, 1), "epoch": 1}},
        {"_id": Decimal128("1"), "_src": {"by": "orders", "key": 5, "at": Timestamp(1, 1), "epoch": 1}},
    ],
    ids=repr,
)
def test_what_has_another_shape_is_left_to_decoding(document: dict[str, Any]) -> None:
    """A hand's work, another owner, another type of the same number, and keys of rare types are not guessed at."""
    assert Familiar([desired(5, [], NEW)]).stored("lines", encode(document, codec_options=CODEC)) is None


def test_a_key_of_another_numeric_type_lies_in_the_same_place() -> None:
    """`1` and `1.0` are one key, so a record under either is the one that is yielded."""
    before = desired(5, [1.0], OLD).records[0]
    told = Familiar([desired(5, [1], NEW)]).stored("lines", before.document)
    assert told is not None
    assert told.place == ("lines", 1)
