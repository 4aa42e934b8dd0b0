"""The order of values without a server, held against that of a real MongoDB."""

from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from uuid import UUID

from bson import (
    Binary,
    Code,
    DatetimeMS,
    DBRef,
    Decimal128,
    Int64,
    MaxKey,
    MinKey,
    ObjectId,
    Regex,
    Timestamp,
)

from distributary.testing.order import in_order
from tests.conftest import Databases

NUMBERS: list[Any] = [
    float("nan"), Decimal128("NaN"), float("-inf"), Decimal128("-Infinity"), -1, -0.0, 0, 0.0, Decimal128("0.00"),
    0.1, Decimal128("0.1"), 1, 1.0, Decimal128("1.0"), Int64(2), 2**53, 2.0**53, 2**53 + 1, 2**63 - 1, 2.0**63,
    1e300, Decimal128("1E+310"), float("inf"), Decimal128("Infinity"),
]  # fmt: skip

BYTES: list[Any] = [
    b"", b"a", b"aa", b"b", b"x" * 16, Binary(b"a", 1), Binary(b"a", 128), UUID(int=0), UUID(int=2**128 - 1),
]  # fmt: skip

TIMES: list[Any] = [
    datetime(1969, 12, 31, tzinfo=UTC), datetime(2025, 3, 4, 12, 0, 0, 1000, tzinfo=UTC),
    DatetimeMS(-(2**60)), DatetimeMS(2**60), Timestamp(1, 2), Timestamp(2, 1), Timestamp(2**32 - 1, 1),
]  # fmt: skip

CODE: list[Any] = [
    Regex("a"), Regex("a", "i"), Regex("a", "im"), Regex("a", "m"), Regex("b"),
    Code("a"), Code("b"), Code("a", {}), Code("a", {"x": 1}),
]  # fmt: skip

#: Documents, whose fields are compared one by one, and lists.
NESTED: list[Any] = [
    {}, {"a": 1}, {"a": 1, "b": 1}, {"a": 2}, {"b": 1}, {"a": "x"}, {"b": 0, "a": 1}, {"a": 1.0}, {"a": {}},
    {"a": [1, 2]}, {"a": [1]}, {"A": "x"}, {"é": 1}, DBRef("c", 1), DBRef("c", 1, "d"), {"$ref": "c"},
    [], [1], [1, 2], [2], [[]], [{}], ["a"], [None], [1.0, {"a": 1}],
]  # fmt: skip

#: Some of every type; some are equal.
VALUES: list[Any] = [
    *(MinKey(), None, False, True, ObjectId("0" * 24), ObjectId("f" * 24), MaxKey()),
    *("", "\0", "A", "a", "a\0", "aa", "b", "é", "\ud7ff", "\uffff", "😀"),
    *(*NUMBERS, *BYTES, *TIMES, *CODE, *NESTED),
]


def test_values_sort_as_in_mongodb(databases: Databases) -> None:
    """Values of every type come in the server's order, and are equal where it takes them for equal.

    They lie within a document, since of a list that is a field itself the server takes one element.
    """
    databases.derived["values"].insert_many([{"v": {"of": each}} for each in VALUES])
    rank = {"$setWindowFields": {"sortBy": {"v": 1}, "output": {"rank": {"$denseRank": {}}}}}
    found = list(databases.derived["values"].aggregate([rank, {"$sort": {"rank": 1}}]))
    ranked = [(in_order(each["v"]["of"]), each["rank"]) for each in found]
    assert len(ranked) == len(VALUES)
    for (one, lower), (other, higher) in pairwise(ranked):
        assert one <= other, f"{other} sorts before {one} in MongoDB"
        assert (one == other) is (lower == higher), f"{one} and {other} have the ranks {lower} and {higher}"
    assert sorted(map(in_order, VALUES)) == [order for order, _ in ranked]
