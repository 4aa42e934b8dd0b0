"""Keys of records as text: for an event's subject, for the order of messages, for a table's primary key."""

from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Context, Decimal
from hashlib import sha256
from typing import Any

from bson import Binary, Decimal128, Int64, ObjectId, encode
from bson.datetime_ms import DatetimeMS

from distributary.change import CODEC
from distributary.events.jsons import PLAIN, RELAXED, canonical, decimal_of, decoded, dumps, is_uuid

#: Pub/Sub's limit on an ordering key, in bytes of UTF-8.
MAX_ORDERING_KEY = 1024

#: A double has at most 767 digits, a decimal 34: nothing is rounded.
_EXACT = Context(prec=800, Emin=-9999, Emax=9999)

#: Whole numbers up to here are written with all their digits.
_MOST_WHOLE = 10**40


def plain_key(key: Any) -> Any:
    """Give a key, as the project's codec has it, as `jsons.dumps` takes it."""
    return key if key.__class__ in _AS_THEY_ARE else decoded(encode({"_id": key}, codec_options=CODEC))["_id"]


_AS_THEY_ARE = frozenset({str, int, ObjectId})


def key_text(key: Any) -> str:
    """Write a key as text: keys that MongoDB takes for equal give the same.

    Text, ObjectIds, UUIDs and dates are as they are, numbers exact and without zeros at the end, and anything else is
    relaxed Extended JSON. Keys of different types may give the same text: 1 and "1".
    """
    write = _TEXTS.get(key.__class__)
    return write(key) if write else dumps(_with_one_number(key), RELAXED).decode()


def record_key(key: Any) -> str:
    """Write a key as canonical Extended JSON: the same for keys that MongoDB takes for equal, and only for those."""
    write = _RECORD_KEYS.get(key.__class__)
    return write(key) if write else canonical(_with_one_number(key))


def _whole_key(value: int) -> str:
    kind = "$numberInt" if -(2**31) <= value < 2**31 else "$numberLong"
    return f'{{"{kind}":"{value}"}}'


#: The kinds of keys that are most frequent, for which the driver's own way takes many times as long.
_RECORD_KEYS: Mapping[type, Callable[[Any], str]] = {
    ObjectId: lambda key: f'{{"$oid":"{key}"}}',
    int: _whole_key,
    Int64: _whole_key,
}


def key_kind(key: Any) -> str:
    """Name a key's type: of different keys with the same text, each has another."""
    if key.__class__ is Binary:
        return "uuid" if is_uuid(key) else "json"
    return _KINDS.get(key.__class__, "json")


def ordering_key(text: str) -> str:
    """Give the text as Pub/Sub takes it as an ordering key, where empty text would mean that order does not matter."""
    encoded = text.encode()
    if 0 < len(encoded) <= MAX_ORDERING_KEY:
        return text
    return f"sha256:{sha256(encoded).hexdigest()}"


def number_text(value: float | Decimal128) -> str:
    """Write a number exactly; numbers that are equal give the same, whatever their types."""
    number = _exact(value)
    if not number.is_finite():
        return "NaN" if number.is_nan() else "Infinity" if number > 0 else "-Infinity"
    if number == number.to_integral_value() and abs(number) < _MOST_WHOLE:
        return str(int(number))
    return str(number.normalize(_EXACT))


def _exact(value: float | Decimal128) -> Decimal:
    return decimal_of(value) if isinstance(value, Decimal128) else Decimal(value)


def _binary_text(value: Binary) -> str:
    return dumps(value, PLAIN if is_uuid(value) else RELAXED).decode().strip('"')


def _plain_text(value: Any) -> str:
    return dumps(value, PLAIN).decode().strip('"')


_TEXTS: Mapping[type, Callable[[Any], str]] = {
    str: str,
    int: str,
    Int64: str,
    float: number_text,
    Decimal128: number_text,
    ObjectId: str,
    datetime: _plain_text,
    DatetimeMS: _plain_text,
    Binary: _binary_text,
}

_KINDS: Mapping[type, str] = (
    {str: "string", ObjectId: "objectId"}
    | dict.fromkeys((int, Int64, float, Decimal128), "number")
    | dict.fromkeys((datetime, DatetimeMS), "date")
)


def _with_one_number(value: Any) -> Any:
    """Give a value in which numbers that MongoDB takes for equal are the same."""
    if isinstance(value, Mapping):
        return {name: _with_one_number(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_with_one_number(each) for each in value]
    if value.__class__ in (float, Decimal128):
        return _one_number(value)
    return int(value) if value.__class__ is Int64 else value


def _one_number(value: float | Decimal128) -> Any:
    number = _exact(value)
    if not number.is_finite():
        return float("nan") if number.is_nan() else float(number)
    if number == number.to_integral_value() and abs(number) < 2**63:
        return int(number)
    nearest = float(number)
    return nearest if Decimal(nearest) == number else Decimal128(number.normalize(_EXACT))
