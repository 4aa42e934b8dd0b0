"""What authors yield: derived collections, the records in them, and their encoded form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bson import Regex, encode
from bson.errors import BSONError

from distributary.change import CODEC, Identity, identity

#: The one top-level field of a derived document that belongs to distributary.
ENGINE_FIELD = "_src"

#: MongoDB's limit on a stored document, in bytes, less room for the engine's field.
MAX_RECORD_BYTES = 16 * 1024 * 1024 - 64 * 1024

IndexSpec = str | Sequence[str]


class BadRecord(ValueError):
    """A transform yielded what cannot be stored; the message says what and where."""


class Record(NamedTuple):
    """One record for one key of one derived collection; made by `DerivedCollection.record`."""

    collection: "DerivedCollection"
    key: Any
    fields: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class DerivedCollection:
    """A collection of the derived database that transforms fill.

    `indexes`: each a field name or a list of them; a leading `-` means descending.
    """

    name: str
    indexes: Sequence[IndexSpec] = field(default=())

    def record(self, key: Any, fields: Mapping[str, Any]) -> Record:
        """Give a record of its own, stored as `{_id: key, **fields}`."""
        return Record(self, key, fields)


class EncodedRecord(NamedTuple):
    """A record as bytes: `body` is the BSON of `{_id: key, **fields}` without the engine's field."""

    collection: str
    key: Any
    identity: Identity
    body: bytes


def encode_record(item: object) -> EncodedRecord:
    """Check and encode what a transform yielded; raises `BadRecord`."""
    if not isinstance(item, Record):
        raise BadRecord(
            f"yielded {type(item).__name__} {item!r:.80}, not a record; use collection.record(...)"
        )
    collection, key, fields = item
    _check_key(collection, key)
    _check_fields(collection, key, fields)
    try:
        body = encode({"_id": key, **fields}, codec_options=CODEC)
    except (BSONError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise BadRecord(f"record {_name(collection, key)} cannot be stored as BSON: {error}") from error
    if len(body) > MAX_RECORD_BYTES:
        raise BadRecord(f"record {_name(collection, key)} has {len(body):,} bytes; MongoDB's limit is 16 MB")
    return EncodedRecord(collection.name, key, identity(key), body)


def _check_key(collection: DerivedCollection, key: Any) -> None:
    if key is None:
        raise BadRecord(f"a record of {collection.name!r} has no key (None)")
    if isinstance(key, list | tuple | Regex) or hasattr(key, "pattern"):
        raise BadRecord(f"record {_name(collection, key)}: MongoDB takes no list and no regex as _id")


def _check_fields(collection: DerivedCollection, key: Any, fields: object) -> None:
    if not isinstance(fields, Mapping):
        raise BadRecord(
            f"record {_name(collection, key)}: fields must be a dict, not {type(fields).__name__}"
        )
    if ENGINE_FIELD in fields:
        raise BadRecord(
            f"record {_name(collection, key)} has a field {ENGINE_FIELD!r}, which is the engine's"
        )
    if "_id" in fields:
        raise BadRecord(f"record {_name(collection, key)} has a field '_id'; the key is given to record(...)")
    for name in fields:
        if isinstance(name, str) and name.startswith("$"):
            raise BadRecord(f"record {_name(collection, key)}: field {name!r} starts with a dollar sign")


def _name(collection: DerivedCollection, key: Any) -> str:
    return f"{collection.name}[{key!r:.80}]"


def seal(body: bytes, origin: bytes) -> bytes:
    """Give the BSON of a derived document: the record's fields, then the engine's field.

    Both are BSON documents; their elements are joined as they are (bsonspec.org, "document").
    """
    size = len(body) + len(origin) - 5
    return size.to_bytes(4, "little") + body[4:-1] + origin[4:]
