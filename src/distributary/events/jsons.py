"""BSON values as JSON, by orjson: relaxed Extended JSON, or plain JSON that loses types and reads well.

Source of the relaxed form: "MongoDB Extended JSON (v2)" of the MongoDB manual, as `bson.json_util` writes it.
"""

import math
from base64 import b64encode
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Context, Decimal
from typing import Any, NamedTuple

import orjson
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
    json_util,
)
from bson.binary import UUID_SUBTYPE, UuidRepresentation
from bson.datetime_ms import DatetimeMS

from distributary.change import CODEC

#: How documents are decoded to be written as JSON: orjson would write a UUID in its own way, and takes no text that is
#: not valid UTF-8, of which nothing is left but the mark of what cannot be read.
_CODEC = CODEC.with_options(
    uuid_representation=UuidRepresentation.UNSPECIFIED, unicode_decode_error_handler="replace"
)

#: The engine's types that are subclasses of `str` and `int`, and dates, are for `_Form.default` to write.
_OPTIONS = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATETIME

_UUID_BYTES = 16


class Form(NamedTuple):
    """One way to write values: `default` is for what JSON has no type for, `odd` for NaN and infinity."""

    default: Callable[[Any], Any]
    odd: Callable[[float], Any]


def decoded(document: bytes) -> dict[str, Any]:
    """Decode a document for `dumps`; invalid UTF-8 is replaced by U+FFFD."""
    return decode(document, _CODEC)


def dumps(value: Any, form: Form) -> bytes:
    """Write a value of `decoded` as compact JSON in UTF-8.

    orjson writes NaN and infinity as null without asking, so only a text with a null in it is looked at again.
    """
    text = orjson.dumps(value, form.default, _OPTIONS)
    if b"null" in text and _holds_odd(value):
        return orjson.dumps(_with_odd(value, form.odd), form.default, _OPTIONS)
    return text


def canonical(value: Any) -> str:
    """Write a value as canonical Extended JSON, which keeps every type."""
    if value.__class__ is str:
        return orjson.dumps(value).decode()
    return json_util.dumps(value, json_options=_CANONICAL, separators=(",", ":"))


def _holds_odd(value: Any) -> bool:
    if value.__class__ is float:
        return not math.isfinite(value)
    if isinstance(value, Mapping):
        return any(map(_holds_odd, value.values()))
    return isinstance(value, list) and any(map(_holds_odd, value))


def _with_odd(value: Any, odd: Callable[[float], Any]) -> Any:
    """Give the value with NaN and infinity as they are written."""
    if isinstance(value, Mapping):
        return {name: _with_odd(each, odd) for name, each in value.items()}
    if isinstance(value, list):
        return [_with_odd(each, odd) for each in value]
    return odd(value) if value.__class__ is float and not math.isfinite(value) else value


#: A decimal128 in its binary integer form: sign, 14 bits of exponent, 113 bits of coefficient; where the two bits below
#: the sign are set it is another form, NaN or infinity. Source: IEEE 754-2008, 3.5.2.
_COEFFICIENT_BITS, _EXPONENT_MASK, _BIAS = 113, 0x3FFF, 6176
_COEFFICIENT_MASK = (1 << _COEFFICIENT_BITS) - 1
_ROOMY = Context(prec=40, Emin=-9999, Emax=9999)


def decimal_of(value: Decimal128) -> Decimal:
    """Give a decimal as the driver does, in a fifth of the time."""
    bits = int.from_bytes(value.bid, "little")
    coefficient = bits & _COEFFICIENT_MASK
    if bits >> 125 & 3 == 3 or coefficient >= 10**34:  # noqa: PLR2004 - see above
        return value.to_decimal()
    number = Decimal(coefficient).scaleb((bits >> _COEFFICIENT_BITS & _EXPONENT_MASK) - _BIAS, _ROOMY)
    return number.copy_negate() if bits >> 127 else number


def decimal_text(value: Decimal128) -> str:
    """Write a decimal as `str` does."""
    number = decimal_of(value)
    return "NaN" if number.is_nan() else str(number)


# --- relaxed Extended JSON ------------------------------------------------------------------------------------

_RELAXED = json_util.RELAXED_JSON_OPTIONS.with_options(uuid_representation=UuidRepresentation.UNSPECIFIED)
_CANONICAL = json_util.CANONICAL_JSON_OPTIONS.with_options(uuid_representation=UuidRepresentation.STANDARD)


def _rare(value: Any) -> Any:
    """Write what is seldom seen as the driver does."""
    return json_util.default(value, _RELAXED)


def _relaxed_date(value: datetime) -> Any:
    if value.year < 1970:  # noqa: PLR2004 - the epoch, before which relaxed dates are numbers
        return {"$date": {"$numberLong": str(int(DatetimeMS(value)))}}
    return {"$date": rfc3339(value, "milliseconds" if value.microsecond >= 1000 else "seconds")}  # noqa: PLR2004


def rfc3339(value: datetime, timespec: str) -> str:
    """Write a date, which the driver decodes with UTC as its zone."""
    return value.isoformat(timespec=timespec).removesuffix("+00:00") + "Z"


def spelt(value: float) -> str:
    """Spell what JSON has no number for."""
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _relaxed_odd(value: float) -> Any:
    return {"$numberDouble": spelt(value)}


_RARE: dict[type, Callable[[Any], Any]] = dict.fromkeys(
    (Binary, bytes, Code, DBRef, DatetimeMS, MaxKey, MinKey, Regex, Timestamp), _rare
)

_RELAXED_TYPES: dict[type, Callable[[Any], Any]] = _RARE | {
    Int64: int,
    ObjectId: lambda value: {"$oid": str(value)},
    datetime: _relaxed_date,
    Decimal128: lambda value: {"$numberDecimal": decimal_text(value)},
}

RELAXED = Form(lambda value: _RELAXED_TYPES[value.__class__](value), _relaxed_odd)


# --- plain JSON -----------------------------------------------------------------------------------------------


def base64(value: bytes) -> str:
    """Write bytes as text."""
    return b64encode(value).decode()


def plain_date(value: datetime) -> str:
    """Write a date in UTC as RFC 3339 with milliseconds."""
    return rfc3339(value, "milliseconds")


def is_uuid(value: Binary) -> bool:
    """Whether this is a UUID; of subtype 4 there may be values of any length."""
    return value.subtype == UUID_SUBTYPE and len(value) == _UUID_BYTES


def plain_binary(value: Binary) -> str:
    """Write a UUID as its text, and other bytes in base64."""
    return str(value.as_uuid(UuidRepresentation.STANDARD)) if is_uuid(value) else base64(value)


_PLAIN_TYPES: dict[type, Callable[[Any], Any]] = _RARE | {
    Int64: int,
    ObjectId: str,
    datetime: plain_date,
    DatetimeMS: int,
    Decimal128: decimal_text,
    bytes: base64,
    Binary: plain_binary,
}

PLAIN = Form(lambda value: _PLAIN_TYPES[value.__class__](value), spelt)
