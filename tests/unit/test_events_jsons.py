"""BSON values as JSON: relaxed Extended JSON is what the driver writes, plain JSON follows the documented rules."""

import json
import math
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from bson import (
    Binary,
    Code,
    DBRef,
    Decimal128,
    Int64,
    MaxKey,
    MinKey,
    ObjectId,
    Regex,
    Timestamp,
    decode,
    encode,
    json_util,
)
from bson.binary import UuidRepresentation
from bson.datetime_ms import DatetimeMS
from hypothesis import given
from hypothesis import strategies as st

from distributary.change import CODEC, identity
from distributary.events.jsons import PLAIN, RELAXED, Form, canonical, decimal_text, decoded, dumps
from distributary.events.keys import MAX_ORDERING_KEY, key_kind, key_text, ordering_key, plain_key, record_key

#: What the driver decodes a document to, with UUIDs as the binary that they are.
_AS_STORED = CODEC.with_options(uuid_representation=UuidRepresentation.UNSPECIFIED)

OID = ObjectId("0123456789abcdef01234567")

INT64 = st.integers(-(2**63), 2**63 - 1)
DECIMALS = st.binary(min_size=16, max_size=16).map(Decimal128.from_bid)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    INT64,
    INT64.map(Int64),
    st.floats(),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.binary(max_size=20),
    st.builds(Binary, st.binary(max_size=20), st.sampled_from([1, 3, 5, 9, 0x80])),
    st.uuids(),
    st.binary(min_size=12, max_size=12).map(ObjectId),
    DECIMALS,
    st.datetimes(timezones=st.just(UTC)),
    INT64.map(DatetimeMS),
    st.builds(Timestamp, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    st.builds(Regex, st.sampled_from(["a", "^b$", ""]), st.sampled_from(["", "i", "imsx"])),
    st.sampled_from([MinKey(), MaxKey(), Code("f()"), Code("f()", {"x": math.nan}), DBRef("c", OID, "d")]),
)
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)
VALUES = st.recursive(
    SCALARS, lambda some: st.lists(some, max_size=4) | st.dictionaries(NAMES, some, max_size=4), max_leaves=12
)
DOCUMENTS = st.dictionaries(NAMES, VALUES, max_size=5)


def read(text: bytes | str) -> Any:
    """Read JSON, and nothing that is no JSON."""

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def plain(value: Any) -> Any:
    """Write a value as plain JSON and read it."""
    return read(dumps(decoded(encode({"x": value}, codec_options=CODEC)), PLAIN))["x"]


@given(DOCUMENTS)
def test_relaxed_json_is_the_drivers(document: dict[str, Any]) -> None:
    """Every BSON type, however deep, is written as `json_util` writes it with RELAXED_JSON_OPTIONS."""
    raw = encode(document, codec_options=CODEC)
    wanted = json_util.dumps(decode(raw, _AS_STORED), json_options=json_util.RELAXED_JSON_OPTIONS)
    assert read(dumps(decoded(raw), RELAXED)) == read(wanted)


@pytest.mark.parametrize(
    ("key", "written"),
    [
        ("1", '"1"'),
        (1, '{"$numberInt":"1"}'),
        (Int64(1), '{"$numberLong":"1"}'),
        (1.0, '{"$numberDouble":"1.0"}'),
        (Decimal128("1"), '{"$numberDecimal":"1"}'),
        ({"a": OID, "b": True}, '{"a":{"$oid":"0123456789abcdef01234567"},"b":true}'),
        (UUID(int=5), '{"$binary":{"base64":"AAAAAAAAAAAAAAAAAAAABQ==","subType":"04"}}'),
    ],
)
def test_canonical_json_keeps_every_type(key: Any, written: str) -> None:
    """Numbers that are equal are told apart by their types."""
    assert canonical(plain_key(key)) == written


@given(
    INT64 | INT64.map(Int64) | st.binary(min_size=12, max_size=12).map(ObjectId) | st.text(alphabet='aé"\\\n')
)
def test_frequent_keys_are_written_as_the_driver_writes_them(key: Any) -> None:
    """In a shorter way; a 64 bit integer that fits into 32 bits is as one of these."""
    same = int(key) if isinstance(key, int) else key
    assert read(record_key(key)) == read(json_util.dumps(same, json_options=json_util.CANONICAL_JSON_OPTIONS))


@given(DOCUMENTS, st.sampled_from([RELAXED, PLAIN]))
def test_whatever_can_be_stored_can_be_written(document: dict[str, Any], form: Form) -> None:
    """No value fails, and what is written is JSON in UTF-8 on one line."""
    text = dumps(decoded(encode(document, codec_options=CODEC)), form)
    assert isinstance(read(text), dict)
    assert b"\n" not in text


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (OID, "0123456789abcdef01234567"),
        (Decimal128("1.50"), "1.50"),
        (Decimal128("NaN"), "NaN"),
        (datetime(2026, 1, 2, 3, 4, 5, 6000, UTC), "2026-01-02T03:04:05.006Z"),
        (datetime(1, 1, 1, tzinfo=UTC), "0001-01-01T00:00:00.000Z"),
        (DatetimeMS(2**50), 2**50),
        (DatetimeMS(-(2**50)), -(2**50)),
        (b"\x00\xff", "AP8="),
        (Binary(b"\x00\xff", 5), "AP8="),
        (Binary(b"\x00\xff", 4), "AP8="),
        (UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (math.nan, "NaN"),
        (math.inf, "Infinity"),
        ([None, -math.inf], [None, "-Infinity"]),
        (Int64(2**53 + 1), 2**53 + 1),
        (Timestamp(1, 2), {"$timestamp": {"t": 1, "i": 2}}),
        (Regex("a", "i"), {"$regularExpression": {"pattern": "a", "options": "i"}}),
        (MinKey(), {"$minKey": 1}),
        (Code("f"), {"$code": "f"}),
        ({"a": {"b": [OID]}}, {"a": {"b": ["0123456789abcdef01234567"]}}),
    ],
)
def test_plain_json_follows_its_rules(value: Any, written: Any) -> None:
    """Types are lost where they read well, and kept where JSON has nothing like them."""
    assert plain(value) == written


def test_text_that_is_no_utf8_is_written_all_the_same() -> None:
    """Bytes in text that are no UTF-8, which no driver encodes, become the mark of what cannot be read."""
    raw = encode({"x": "ab"}).replace(b"ab\0", b"\xffb\0")
    assert read(dumps(decoded(raw), RELAXED)) == {"x": "\ufffdb"}


def test_what_is_as_deep_as_mongodb_allows_is_written() -> None:
    """The deepest document that a server stores has 180 levels; each value may take two more in JSON."""
    document: Any = OID
    for _ in range(180):
        document = {"x": document}
    assert dumps(decoded(encode(document)), RELAXED).count(b'{"x"') == 180


@given(DECIMALS)
def test_decimals_are_written_as_the_driver_writes_them(value: Decimal128) -> None:
    """Every bit pattern: other forms of numbers, NaN and infinities included."""
    assert decimal_text(value) == str(value)


# --- keys -----------------------------------------------------------------------------------------------------

NUMBERS = st.one_of(
    st.integers(-5, 5), st.integers(-5, 5).map(float), st.floats(), INT64, DECIMALS
) | st.sampled_from(
    [
        1.5,
        Decimal128("1.50"),
        Decimal128("15E-1"),
        Decimal128("-0"),
        0.1,
        Decimal128("0.1"),
        Decimal128("1E+3"),
        1000,
    ]
)
KEYS = st.one_of(
    NUMBERS,
    NUMBERS.map(str),
    SCALARS.filter(lambda value: value is not None),
    st.dictionaries(st.sampled_from("ab"), NUMBERS | st.sampled_from(["1", OID, True]), max_size=2),
)


def named(key: Any) -> tuple[str, str]:
    """Give the kind and the text of a key."""
    known = plain_key(key)
    return key_kind(known), key_text(known)


@given(st.lists(KEYS, min_size=2, max_size=6))
def test_keys_have_one_name_exactly_when_mongodb_takes_them_for_equal(keys: list[Any]) -> None:
    """Kind and text together tell keys apart as an index on `_id` does: 1 is 1.0, and not "1"."""
    stored = [decode(encode({"_id": key}, codec_options=CODEC), CODEC)["_id"] for key in keys]
    for one in stored:
        for other in stored:
            equal = identity(one) == identity(other)
            assert (named(one) == named(other)) == equal
            assert (record_key(plain_key(one)) == record_key(plain_key(other))) == equal


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("U000057", "U000057"),
        (7, "7"),
        (Int64(7), "7"),
        (7.0, "7"),
        (Decimal128("7.00"), "7"),
        (Decimal128("1.50"), "1.5"),
        (OID, "0123456789abcdef01234567"),
        (UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00.000Z"),
        ({"order": 1.0, "line": 2}, '{"order":1,"line":2}'),
        ({"id": OID}, '{"id":{"$oid":"0123456789abcdef01234567"}}'),
        (True, "true"),
    ],
)
def test_keys_are_written_so_that_people_know_them(key: Any, text: str) -> None:
    """The subject of an event."""
    assert key_text(plain_key(key)) == text


@pytest.mark.parametrize(
    ("text", "whole"),
    [("a", True), ("é" * 512, True), ("é" * 513, False), ("x" * 1025, False), ("", False)],
)
def test_an_ordering_key_is_the_text_where_pubsub_takes_it(text: str, whole: bool) -> None:  # noqa: FBT001
    """Longer ones and the empty one, which would mean no order, are hashed; the limit counts bytes."""
    key = ordering_key(text)
    assert (key == text) == whole
    assert 0 < len(key.encode()) <= MAX_ORDERING_KEY
    assert whole or (key.startswith("sha256:") and key != ordering_key(text + "y"))
