"""MongoDB's order of values of all types, for what is sorted without a server."""

from datetime import datetime
from decimal import Decimal
from math import isnan
from typing import Any
from uuid import UUID

from bson import Decimal128, MaxKey, MinKey, ObjectId, Timestamp
from bson.binary import Binary
from bson.datetime_ms import DatetimeMS

Ranked = tuple[int, Any]


def in_order(value: Any) -> Ranked:
    """Give what sorts as MongoDB sorts the value.

    Source: "Comparison/Sort Order" of the MongoDB manual.
    """
    return next(
        ((rank, comparable(value)) for kinds, rank, comparable in _RANKS if isinstance(value, kinds)),
        (_OTHERS, repr(value)),
    )


def _number(value: Any) -> tuple[int, Any]:
    number = value.to_decimal() if isinstance(value, Decimal128) else value
    is_nan = number.is_nan() if isinstance(number, Decimal) else isnan(number)
    return (0, 0) if is_nan else (1, number)


def _document(value: dict[str, Any]) -> tuple[Any, ...]:
    """Compare field by field: the types, then the names, then the values."""
    ranked = [(in_order(each), name.encode(errors="surrogatepass")) for name, each in value.items()]
    return tuple((rank, name, comparable) for (rank, comparable), name in ranked)


def _binary(value: Any) -> tuple[int, int, bytes]:
    if isinstance(value, UUID):
        return 16, 4, value.bytes
    return len(value), value.subtype if isinstance(value, Binary) else 0, bytes(value)


#: Types with their place in the order, and what is compared within; `bool` stands in front, as it is an `int`, too.
_RANKS: tuple[tuple[Any, int, Any], ...] = (
    (bool, 8, int),
    (MinKey, 0, lambda _: 0),
    (type(None), 1, lambda _: 0),
    ((int, float, Decimal128), 2, _number),
    (str, 3, lambda value: value.encode(errors="surrogatepass")),
    (dict, 4, _document),
    ((list, tuple), 5, lambda value: tuple(map(in_order, value))),
    ((bytes, UUID), 6, _binary),
    (ObjectId, 7, lambda value: value.binary),
    (datetime, 9, lambda value: int(DatetimeMS(value))),
    (DatetimeMS, 9, int),
    (Timestamp, 10, lambda value: (value.time, value.inc)),
    (MaxKey, 12, lambda _: 0),
)

#: Regular expressions and code.
_OTHERS = 11
