"""What authors yield: derived collections, the records in them, and their encoded form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

from bson import ObjectId, Regex, encode
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument

from distributary.change import CODEC, Identity, Version, identity, new_tuple
from distributary.parts import called, parts_of
from distributary.quoting import quoting

#: The one top-level field of a derived document that belongs to distributary.
ENGINE_FIELD = "_src"

#: MongoDB's limit on a stored document, in bytes.
MAX_RECORD_BYTES = 16 * 1024 * 1024

IndexSpec = str | Sequence[str]

Format = Literal["cloudevents", "bigquery"]

#: What is published of a record: an event, or a row of a table.
FORMATS: tuple[str, ...] = get_args(Format)


class BadRecord(ValueError):
    """A transform yielded what cannot be stored; the message, a `Quoting` if it quotes a field, says what and where."""


class Record(NamedTuple):
    """One record for one key of one derived collection; made by `DerivedCollection.record`."""

    collection: "DerivedCollection"
    key: Any
    fields: Mapping[str, Any]


class Section(NamedTuple):
    """One section of a shared record; made by `DerivedCollection.section`."""

    collection: "DerivedCollection"
    key: Any
    name: str
    fields: Mapping[str, Any]


class Item(NamedTuple):
    """One item in a list of a shared record; made by `DerivedCollection.item`."""

    collection: "DerivedCollection"
    key: Any
    name: str
    item_key: Any
    fields: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class DerivedCollection:
    """A collection of the derived database that transforms fill.

    `indexes`: each a field name or a list of them; a leading `-` means descending. A collection holds either records,
    or shared records that are made of sections and items.

    `publish` is the topic that learns of every change of a record: "customer-view", or with its project as
    "projects/shop/topics/customer-view". `format` is what is published, an event (CloudEvents) or a row for BigQuery;
    `model` is a class whose annotations are the table's columns then.
    """

    name: str
    indexes: Sequence[IndexSpec] = field(default=())
    publish: str | None = None
    format: Format = "cloudevents"
    model: type | None = None

    def record(self, key: Any, fields: Mapping[str, Any]) -> Record:
        """Give a record of its own, stored as `{_id: key, **fields}`."""
        return new_tuple(Record, (self, key, fields))

    def section(self, key: Any, name: str, fields: Mapping[str, Any]) -> Section:
        """Give a section of the shared record under `key`, stored as `{_id: key, name: fields}`.

        Other transforms may have other sections and items of the same record; it exists as long as one of them does.
        """
        return new_tuple(Section, (self, key, name, fields))

    def item(self, key: Any, name: str, item_key: Any, fields: Mapping[str, Any]) -> Item:
        """Give an item in a list of the shared record under `key`: `{_id: key, name: [{_id: item_key, **fields}]}`.

        The list is sorted by the items' keys in BSON order; a list without items is absent.
        """
        return new_tuple(Item, (self, key, name, item_key, fields))


Place = tuple[str, Identity]  # derived collection, identity of the record's key


class EncodedRecord(NamedTuple):
    """A record as bytes: `document` is the BSON of `{_id: key, **fields, _src: …}`, as it is stored.

    `tail` is what the engine's field takes at its end.
    """

    place: Place
    key: Any
    document: bytes
    tail: int

    @property
    def body(self) -> bytes:
        """The record without the engine's field, to be compared."""
        size = len(self.document) - self.tail
        return size.to_bytes(4, "little") + self.document[4 : size - 1] + b"\0"

    @property
    def collection(self) -> str:
        """The derived collection."""
        return self.place[0]

    @property
    def identity(self) -> Identity:
        """The identity of the key."""
        return self.place[1]


#: Types of keys that need no further look.
_PLAIN_KEYS = frozenset({str, int, ObjectId, dict})


class RawDocument(RawBSONDocument):
    """A document as its bytes, for an encoder to copy; they come from an encoder and are not looked at again."""

    __slots__ = ("raw",)

    raw: bytes

    def __init__(self, document: bytes) -> None:
        self.raw = document


class _FieldNames:
    """Tells good lists of field names; it remembers some, since records of one kind have the same."""

    MOST = 1000

    def __init__(self) -> None:
        self._good: set[tuple[str, ...]] = set()

    def are_good(self, names: tuple[str, ...]) -> bool:
        """Whether a record may have these fields."""
        if names in self._good:
            return True
        if "_id" in names or ENGINE_FIELD in names or any(name[:1] == "$" for name in names):
            return False
        if len(self._good) < self.MOST:
            self._good.add(names)
        return True


_names_are_good = _FieldNames().are_good


def origin(transform: str, key: Any, version: Version) -> RawDocument:
    """Give the engine's field: who derived the record, from which source key, as of which cluster time."""
    value = {"by": transform, "key": key, "at": version.time, "epoch": version.epoch}
    return RawDocument(encode(value, False, CODEC))  # noqa: FBT003 - keywords cost


#: The engine's field of records that are derived to be looked at and not to be stored.
NO_ORIGIN = RawDocument(encode({}))

#: The type byte and the name of the engine's field, as an element of a BSON document.
_ELEMENT = 1 + len(ENGINE_FIELD) + 1


def tail_of(source: RawDocument) -> int:
    """Give the bytes that the engine's field takes in a document."""
    return len(source.raw) + _ELEMENT


def encode_record(item: object, source: RawDocument, tail: int) -> EncodedRecord:
    """Check and encode what a transform yielded, with `source` as the engine's field; raises `BadRecord`.

    On the path of every record: what is right passes few checks, what is wrong is looked at again to say why.
    """
    if item.__class__ is not Record:
        return _encode_part(item, source, tail)
    collection, key, fields = item
    if key.__class__ not in _PLAIN_KEYS:
        _check_key(collection, key)
    try:
        if not _names_are_good(tuple(fields)):
            raise _bad_fields(collection, key, fields)
        document = encode({"_id": key, **fields, ENGINE_FIELD: source}, False, CODEC)  # noqa: FBT003 - keywords cost
    except (BSONError, UnicodeError, TypeError, OverflowError, RecursionError) as error:
        raise _not_bson(collection, key, fields, error) from error
    if len(document) > MAX_RECORD_BYTES:
        raise BadRecord(
            f"record {_name(collection, key)} has {len(document):,} bytes; MongoDB's limit is 16 MB"
        )
    return new_tuple(EncodedRecord, ((collection.name, identity(key)), key, document, tail))


def _encode_part(item: object, source: RawDocument, tail: int) -> EncodedRecord:
    """Encode a section or an item as a part: `{_id: {k: key, s: name, i: item key}, f: fields, _src: …}`.

    `f` is what the shared record shows, so that an item has its key in there, too.
    """
    if not isinstance(item, Section | Item):
        raise BadRecord(
            quoting(
                f"yielded {type(item).__name__} ",
                f"{item!r:.80}",
                ", not a record; use collection.record(...)",
            )
        )
    collection, shown = item.collection, dict(_mapping(item))
    _check_key(collection, item.key)
    key, name = (
        {"k": item.key, "s": item.name},
        called(parts_of(collection.name), {"k": item.key, "s": item.name}),
    )
    if problem := part_name_problem(item.name):
        raise BadRecord(f"{name}: the name of a section or list {problem}")
    if bad := next((each for each in shown if str(each)[:1] == "$"), None):
        raise BadRecord(f"{name}: field {bad!r} starts with a dollar sign")
    if isinstance(item, Item):
        _check_item(name, item.item_key, shown)
        key["i"] = item.item_key
        shown = {"_id": item.item_key, **shown}
    try:
        document = encode({"_id": key, "f": shown, ENGINE_FIELD: source}, codec_options=CODEC)
    except (BSONError, UnicodeError, TypeError, OverflowError, RecursionError) as error:
        raise BadRecord(quoting(f"{name} cannot be stored as BSON: ", error)) from error
    if len(document) > MAX_RECORD_BYTES:
        raise BadRecord(f"{name} has {len(document):,} bytes; MongoDB's limit is 16 MB")
    return EncodedRecord((parts_of(collection.name), identity(key)), key, document, tail)


def _mapping(item: Section | Item) -> Mapping[str, Any]:
    fields: object = item.fields
    if not isinstance(fields, Mapping):
        name = called(parts_of(item.collection.name), {"k": item.key, "s": item.name})
        raise BadRecord(f"{name}: fields must be a dict, not {type(fields).__name__}")
    return fields


def part_name_problem(name: object) -> str:
    """Say why this cannot name a section or a list; empty if it can."""
    if not isinstance(name, str):
        return f"must be a string, not {type(name).__name__}"
    rules = {
        "is empty": not name,
        "has a dot, which MongoDB takes for a path": "." in name,
        "starts with a dollar sign": name[:1] == "$",
        "has a null character": "\0" in name,
        f"is {name!r}, which is not the author's": name in {"_id", ENGINE_FIELD},
    }
    return next((rule for rule, broken in rules.items() if broken), "")


def _check_item(name: str, key: Any, fields: Mapping[str, Any]) -> None:
    if key is None:
        raise BadRecord(f"an item of {name} has no key (None)")
    if isinstance(key, list | tuple | Regex) or hasattr(key, "pattern"):
        raise BadRecord(f"an item of {name} has the key {key!r:.80}: it can be no list and no regex")
    if "_id" in fields:
        raise BadRecord(f"{name}[{key!r:.80}] has a field '_id'; the key is given to item(...)")


def _check_key(collection: DerivedCollection, key: Any) -> None:
    if key is None:
        raise BadRecord(f"a record of {collection.name!r} has no key (None)")
    if isinstance(key, list | tuple | Regex) or hasattr(key, "pattern"):
        raise BadRecord(f"record {_name(collection, key)}: MongoDB takes no list and no regex as _id")


def _bad_fields(collection: DerivedCollection, key: Any, fields: Mapping[str, Any]) -> BadRecord:
    record = f"record {_name(collection, key)}"
    if ENGINE_FIELD in fields:
        return BadRecord(f"{record} has a field {ENGINE_FIELD!r}, which is the engine's")
    if "_id" in fields:
        return BadRecord(f"{record} has a field '_id'; the key is given to record(...)")
    name = next(name for name in fields if name[:1] == "$")
    return BadRecord(f"{record}: field {name!r} starts with a dollar sign")


def _not_bson(collection: DerivedCollection, key: Any, fields: object, error: Exception) -> BadRecord:
    record = f"record {_name(collection, key)}"
    if not isinstance(fields, Mapping):
        return BadRecord(f"{record}: fields must be a dict, not {type(fields).__name__}")
    return BadRecord(quoting(f"{record} cannot be stored as BSON: ", error))


def _name(collection: DerivedCollection, key: Any) -> str:
    return f"{collection.name}[{key!r:.80}]"
