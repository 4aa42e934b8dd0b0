"""Reads values in MongoDB's KeyString encoding, version 1, in ascending order: what a resume token is made of.

Source: `src/mongo/db/storage/key_string` in the server. What is not stored beside the encoding (its type bits) is
not known here, so that numbers of one value are not told apart: `1`, `1.0` and `Decimal128("1")` are all read as 1.
"""

import struct
from collections.abc import Callable, Iterator, Mapping
from decimal import ROUND_DOWN, ROUND_UP, Context, Decimal, DecimalException
from math import inf, ldexp, nan
from typing import Any

from bson import Code, Decimal128, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.binary import UUID_SUBTYPE, Binary
from bson.datetime_ms import DatetimeMS

from distributary.change import CODEC

#: Types, and the end of the values; types up to `_ZERO` and down from it are numbers, by magnitude.
_END = 4
_NAN, _ZERO, _LARGEST = 30, 41, 51
_OBJECT, _ARRAY = 70, 80

#: How far from `_ZERO` a number's type is: below 1, 1 to 8 bytes of integer part, or from 2**63 on.
_SMALL, _LARGE = 1, 10

_WORD = 8
_TOP = 1 << 63
_INFINITE = (1 << 64) - 1

#: Larger doubles have no fraction; smaller ones are subnormal.
_MAX_FRACTIONAL = 1 << 53
_MIN_NORMAL = 2.0**-1022

#: Small doubles are stored 2**256 times as large; the factor is cut to a decimal's digits.
_SHIFT = 256
_DIGITS = 34
_SHORT_DIGITS = 15
_UP = Context(prec=_DIGITS, rounding=ROUND_UP)
_DOWN = Context(prec=_DIGITS, rounding=ROUND_DOWN)
_SHORT_UP = Context(prec=_SHORT_DIGITS, rounding=ROUND_UP)
_WIDE = Context(prec=2 * _DIGITS)
_DOWNSHIFT = _DOWN.create_decimal(Decimal(2.0**-_SHIFT))

#: The smallest exponent of a Decimal128.
_MIN_EXPONENT = -6176

#: How a fraction that is stored as a double goes on to a decimal.
_AS_DOUBLE, _AS_SHORT_DECIMAL = 0, 2

#: MongoDB's limit for nested documents. Source: "MongoDB Limits" of the manual, with room for the token's own levels.
_DEPTH = 220

_UUID_BYTES = 16

#: In place of a length: that four bytes of length follow.
_LONG = 0xFF


class Unreadable(Exception):
    """The bytes are no value that this release can read; the message says why."""


def values(data: bytes) -> Iterator[Any]:
    """Give one value after the other, as `CODEC` decodes them from BSON, up to the end that the encoding marks.

    Raises `Unreadable` where a value cannot be read, after those before it were given.
    """
    reader = _Reader(data)
    while (kind := reader.byte()) != _END:
        yield _value(kind, reader, 0)
    if reader.rest:
        raise Unreadable("more follows behind its end")


class _Reader:
    """Bytes, read one after the other; inverted while `flipped`, as negative numbers are."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self.flipped = False

    @property
    def rest(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        if count > self.rest:
            raise Unreadable("it is cut short")
        taken = self._data[self._at : self._at + count]
        self._at += count
        return bytes(0xFF - each for each in taken) if self.flipped else taken

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self, count: int = _WORD) -> int:
        return int.from_bytes(self.take(count))

    def name(self) -> str:
        """Read text up to a NUL."""
        end = self._data.find(b"\0", self._at)
        if end < 0:
            raise Unreadable("it is cut short")
        return self.take(end + 1 - self._at)[:-1].decode(errors="surrogateescape")

    def text(self) -> str:
        """Read text up to a NUL; one within it is followed by 0xFF."""
        parts = [self.name()]
        while self._data[self._at : self._at + 1] == b"\xff":
            self.take(1)
            parts.append(self.name())
        return "\0".join(parts)


def _value(kind: int, reader: _Reader, depth: int) -> Any:
    if depth > _DEPTH:
        raise Unreadable("it is nested too deeply")
    if kind == _OBJECT:
        return _object(reader, depth + 1)
    if kind == _ARRAY:
        return list(_items(reader, depth + 1))
    if _NAN <= kind <= _LARGEST:
        return _number(kind, reader)
    read = _SCALARS.get(kind)
    if read is None:
        raise Unreadable(f"it has a value of the unknown type {kind}")
    return read(reader)


def _object(reader: _Reader, depth: int) -> dict[str, Any]:
    """Read fields up to a NUL; each begins with its general type, for the order, and its name."""
    fields = {}
    while reader.byte():
        name = reader.name()
        fields[name] = _value(reader.byte(), reader, depth)
    return fields


def _items(reader: _Reader, depth: int) -> Iterator[Any]:
    while kind := reader.byte():
        yield _value(kind, reader, depth)


def _binary(reader: _Reader) -> Any:
    """Read binary data, as the driver decodes it."""
    size = reader.byte()
    if size == _LONG:
        size = reader.number(4)
    subtype = reader.byte()
    data = Binary(reader.take(size), subtype)
    if subtype == UUID_SUBTYPE and size == _UUID_BYTES:
        return data.as_uuid()
    return bytes(data) if subtype == 0 else data


def _date(reader: _Reader) -> Any:
    return DatetimeMS(reader.number() - _TOP).as_datetime(CODEC)


_SCALARS: Mapping[int, Callable[[_Reader], Any]] = {
    10: lambda _: MinKey(),
    15: lambda _: None,  # undefined, which the driver decodes so, too
    20: lambda _: None,
    60: _Reader.text,
    90: _binary,
    100: lambda reader: ObjectId(reader.take(12)),
    110: lambda _: False,
    111: lambda _: True,
    120: _date,
    130: lambda reader: Timestamp(reader.number(4), reader.number(4)),
    140: lambda reader: Regex(reader.name(), reader.name()),
    160: lambda reader: Code(reader.text()),
    240: lambda _: MaxKey(),
}

# --- numbers --------------------------------------------------------------------------------------------


def _number(kind: int, reader: _Reader) -> Any:
    """Read a number; negative ones are stored as their magnitude, with all bits inverted."""
    if kind in {_NAN, _ZERO}:
        return nan if kind == _NAN else 0
    negative = reader.flipped = kind < _ZERO
    try:
        magnitude = _magnitude(abs(kind - _ZERO), reader)
        reader.flipped = False
        if isinstance(magnitude, Decimal):
            short = magnitude.normalize(_WIDE)
            return Decimal128(short.copy_negate() if negative else short)
    except DecimalException:
        raise Unreadable("it has a decimal that cannot be") from None
    return -magnitude if negative else magnitude


def _magnitude(size: int, reader: _Reader) -> int | float | Decimal:
    if size == _SMALL:
        return _small(reader)
    return _large(reader) if size == _LARGE else _middle(reader, size - _SMALL)


def _small(reader: _Reader) -> float | Decimal:
    """Read a magnitude below 1; the first two bits say how it is stored."""
    word = reader.number()
    if word >> 62 == 0:
        return _decimal(word, reader.number())
    if word >> 62 == 3:  # noqa: PLR2004 - both bits
        return _fraction(_double(word >> 2), word & 3, reader)
    shifted = _double((word - (1 << 62)) >> 1)
    if not word & 1:
        return ldexp(shifted, -_SHIFT)
    if shifted < ldexp(_MIN_NORMAL, _SHIFT):
        return _continued(_DOWN.multiply(_DOWN.create_decimal(Decimal(shifted)), _DOWNSHIFT), reader)
    return _continued(_UP.create_decimal(Decimal(ldexp(shifted, -_SHIFT))), reader)


def _middle(reader: _Reader, size: int) -> int | float | Decimal:
    """Read a magnitude from 1 to 2**63, whose integer part has `size` bytes; its last bit announces a fraction."""
    number = reader.number(size)
    whole = number >> 1
    if not number & 1:
        return whole
    more = _WORD - size
    bits = (whole << 8 * more) | reader.number(more)
    if whole > _MAX_FRACTIONAL:
        return _continued(Decimal(whole), reader)
    return _fraction(ldexp(bits & ~3, -8 * more), bits & 3, reader)


def _large(reader: _Reader) -> int | float | Decimal:
    """Read a magnitude of 2**63 or more."""
    word = reader.number()
    if word == _INFINITE:
        return inf
    if word & _TOP:
        return _decimal(word & ~_TOP, reader.number())
    number = _double((word >> 1) | 1 << 62)
    if word & 1:
        return _continued(_UP.create_decimal(Decimal(number)), reader)
    return _TOP if number == _TOP else number


def _fraction(number: float, marker: int, reader: _Reader) -> float | Decimal:
    """Give what a double stands for: itself, its first digits as a decimal, or a decimal that goes on."""
    if marker == _AS_DOUBLE:
        return number
    if marker == _AS_SHORT_DECIMAL:
        return _SHORT_UP.create_decimal(Decimal(number))
    return _continued(_UP.create_decimal(Decimal(number)), reader)


def _continued(stored: Decimal, reader: _Reader) -> Decimal:
    """Read what a decimal is more than what is stored of it, in units of its 34th digit."""
    exponent = max(stored.adjusted() - _DIGITS + 1, _MIN_EXPONENT)
    return _WIDE.add(stored, Decimal(reader.number()).scaleb(exponent, _WIDE))


def _decimal(high: int, low: int) -> Decimal:
    """Read a decimal that is stored as it is in BSON."""
    return Decimal128.from_bid(struct.pack("<QQ", low, high)).to_decimal()


def _double(bits: int) -> float:
    number: float = struct.unpack(">d", bits.to_bytes(_WORD))[0]
    return number
