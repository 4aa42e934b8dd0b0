"""The values that flow: keys and their identity, positions, changes."""

import re
from collections.abc import Hashable
from dataclasses import dataclass
from enum import StrEnum
from math import isnan
from typing import Any, NamedTuple

from bson import DBRef, Decimal128, ObjectId, Timestamp, decode
from bson.binary import Binary, UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.datetime_ms import DatetimeMS
from bson.errors import InvalidBSON
from bson.raw_bson import RawBSONDocument

from distributary.errors import PositionLost

#: How documents are decoded and records encoded. Dates outside Python's range stay `DatetimeMS`; invalid
#: UTF-8 decodes to lone surrogates, which nothing encodes again, so it ends in a dead letter, not a crash.
CODEC: CodecOptions[dict[str, Any]] = CodecOptions(
    tz_aware=True,
    uuid_representation=UuidRepresentation.STANDARD,
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
    unicode_decode_error_handler="surrogateescape",
)

#: The same for documents with a UUID that is none: those stay `Binary`, all of the document's.
LENIENT = CODEC.with_options(uuid_representation=UuidRepresentation.UNSPECIFIED)

#: The same, with the fields decoded only when they are asked for.
RAW: CodecOptions[RawBSONDocument] = CODEC.with_options(document_class=RawBSONDocument)

#: A key in the form in which two keys are equal exactly when MongoDB says so; see `identity`.
Identity = Hashable

#: Makes a named tuple of a tuple, in a third of the time that its class takes; for what is made for every record.
new_tuple = tuple.__new__

_TOKEN = re.compile(r"82(?:[0-9A-Fa-f]{2}){8,}")

_ITSELF = frozenset({str, int, Timestamp, type(None)})


def decoded(raw: bytes) -> dict[str, Any]:
    """Decode a document; one with binary of subtype 4 that has not 16 bytes keeps all such as `Binary`."""
    try:
        return decode(raw, CODEC)
    except InvalidBSON:
        return decode(raw, LENIENT)


def identity(key: Any) -> Identity:  # noqa: PLR0911 - one line per type
    """Give the hashable form of a BSON value under which equality is MongoDB's.

    `1 == 1.0 == Decimal128("1")`, `True != 1`, `NaN == NaN`, embedded documents by field order.
    Source: "Comparison/Sort Order" of the MongoDB manual.
    """
    kind = key.__class__
    if kind in _ITSELF:
        return key  # type: ignore[no-any-return]
    if kind is ObjectId:
        return key.binary  # type: ignore[no-any-return]
    if kind is dict:
        return (dict, *[(name, v if v.__class__ in _ITSELF else identity(v)) for name, v in key.items()])
    if isinstance(key, bool):
        return (bool, key)
    if isinstance(key, int):  # Int64
        return int(key)
    if isinstance(key, float):
        return (float, "nan") if isnan(key) else key
    if isinstance(key, Decimal128):
        number = key.to_decimal()
        return (float, "nan") if number.is_nan() else number
    return _compound_identity(key)


def _compound_identity(key: Any) -> Identity:  # noqa: PLR0911 - one line per type
    if isinstance(key, dict):
        return (dict, *[(name, identity(value)) for name, value in key.items()])
    if isinstance(key, list | tuple):
        return (list, tuple(map(identity, key)))
    if isinstance(key, DBRef):
        return identity(dict(key.as_doc()))
    if isinstance(key, Binary):
        return (bytes, key.subtype, bytes(key))
    if isinstance(key, bytes):
        return (bytes, 0, key)
    if isinstance(key, DatetimeMS):
        return (DatetimeMS, int(key))
    if hasattr(key, "utcoffset"):
        return (DatetimeMS, int(DatetimeMS(key)))
    if hasattr(key, "hex") and hasattr(key, "bytes"):  # uuid.UUID, stored as binary subtype 4
        return (bytes, 4, key.bytes)
    return (type(key).__name__, repr(key))


class Operation(StrEnum):
    """How the source came to be as the change says; a scanned document is a change too."""

    INSERT = "insert"
    UPDATE = "update"
    REPLACE = "replace"
    DELETE = "delete"
    SCAN = "scan"


@dataclass(frozen=True, slots=True, order=False)
class Position:
    """Where in the source's history: a resume token (its `_data` hex string) and the cluster time in it."""

    token: str
    time: Timestamp

    @classmethod
    def of_token(cls, token: str) -> "Position":
        """Read the cluster time out of a resume token, offline.

        A token is a KeyString in hex; its first component is the cluster time: the type byte 0x82, then
        seconds and increment, four bytes each, big-endian.
        """
        raw = bytes.fromhex(token) if _TOKEN.fullmatch(token) else b""
        if not raw:
            raise PositionLost(
                f"{token[:40]!r} is not a resume token.",
                "Give the hex string in the `_data` field of a token.",
            )
        return cls(token, Timestamp(int.from_bytes(raw[1:5]), int.from_bytes(raw[5:9])))


class Version(NamedTuple):
    """Which state of the source a record shows: the source's epoch, then the cluster time in it."""

    epoch: int
    time: Timestamp


class Change(NamedTuple):
    """A document is now like this.

    `document` is None when the change did not carry it (an update, a large document) and for a delete.
    `token` is the change's own resume token, empty for a scanned document.
    """

    collection: str
    key: Any
    time: Timestamp
    operation: Operation
    document: dict[str, Any] | None
    token: str = ""


class CollectionChange(NamedTuple):
    """A whole collection was dropped, renamed away (both `gone`) or replaced by a rename onto its name."""

    collection: str
    time: Timestamp
    gone: bool
