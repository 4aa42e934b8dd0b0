"""MongoDB's order of values of all types, for what is sorted without a server."""

import re
from datetime import datetime
from decimal import Decimal
from math import isnan
from typing import Any
from uuid import UUID

from bson import Code, DBRef, Decimal128, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.binary import Binary
from bson.datetime_ms import DatetimeMS

Ranked = tuple[int, Any]


def in_order(value: Any) -> Ranked:
    """Give what sorts as MongoDB sorts the value.

    Source: "Comparison/Sort Order" of the MongoDB manual.
    """
    for kinds, rank, comparable in _RANKS:
        if isinstance(value, kinds):
            return rank, comparable(value)
    raise TypeError(f"{value!r:.80} is no value of BSON")


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


def _regex(value: Regex[Any]) -> tuple[bytes, str]:
    """Compare the pattern, then the options as the letters that BSON has for them."""
    pattern = value.pattern if isinstance(value.pattern, bytes) else value.pattern.encode()
    return pattern, "".join(letter for letter, flag in _OPTIONS.items() if value.flags & flag)


def _code(value: Code) -> tuple[bool, bytes, tuple[Any, ...]]:
    """Code with a scope is a type of its own, which comes next."""
    return value.scope is not None, value.encode(), _document(dict(value.scope or {}))


#: In the order of their letters, as BSON writes them.
_OPTIONS = {
    "i": re.IGNORECASE,
    "l": re.LOCALE,
    "m": re.MULTILINE,
    "s": re.DOTALL,
    "u": re.UNICODE,
    "x": re.VERBOSE,
}

#: Types with their place in the order, and what is compared within; `bool` stands in front, as it is an `int`, too,
#: and code in front of `str`.
_RANKS: tuple[tuple[Any, int, Any], ...] = (
    (bool, 8, int),
    (Code, 12, _code),
    (MinKey, 0, lambda _: 0),
    (type(None), 1, lambda _: 0),
    ((int, float, Decimal128), 2, _number),
    (str, 3, lambda value: value.encode(errors="surrogatepass")),
    (dict, 4, _document),
    (DBRef, 4, lambda value: _document(value.as_doc())),
    ((list, tuple), 5, lambda value: tuple(map(in_order, value))),
    ((bytes, UUID), 6, _binary),
    (ObjectId, 7, lambda value: value.binary),
    (datetime, 9, lambda value: int(DatetimeMS(value))),
    (DatetimeMS, 9, int),
    (Timestamp, 10, lambda value: (value.time, value.inc)),
    (Regex, 11, _regex),
    (MaxKey, 13, lambda _: 0),
)
