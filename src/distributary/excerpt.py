"""Some fields of a document in BSON, without making a dict of all of it, which takes many times the room.

Source of the layout: bsonspec.org. MongoDB stores the key as a document's first field.
"""

from collections.abc import Collection
from typing import Any

from bson.errors import InvalidBSON
from bson.raw_bson import RawBSONDocument

from distributary.change import RAW, decoded

#: Where the key's value starts: behind the document's length, the type byte and the name.
_NAME = slice(5, 9)
_VALUE = 9

#: How many bytes a value takes, by its type: double, ObjectId, date, 32 and 64 bit integer.
_FIXED = {1: 8, 7: 12, 9: 8, 16: 4, 18: 8}

#: Types whose value starts with a length, and what the value has beside it: string, document, binary.
_SIZED = {2: 4, 3: 0, 5: 5}


def excerpt(document: bytes, names: Collection[str]) -> dict[str, Any]:
    """Give the named top-level fields of a document, as far as it has them; what lies in others is not decoded."""
    lazily = RawBSONDocument(document, RAW)
    try:
        return {name: _decoded(lazily[name]) for name in names if name in lazily}
    except InvalidBSON:  # binary that is called a UUID and is none, in whatever field
        whole = decoded(document)
        return {name: whole[name] for name in names if name in whole}


def _decoded(value: Any) -> Any:
    return decoded(bytes(value.raw)) if isinstance(value, RawBSONDocument) else value


def key_element(document: bytes) -> bytes:
    """Give the key's type, name and value; nothing when it is not the first field or of a rare type."""
    kind = document[4]
    size = _FIXED.get(kind)
    if size is None:
        if kind not in _SIZED:
            return b""
        size = _SIZED[kind] + int.from_bytes(document[_VALUE : _VALUE + 4], "little")
    return document[4 : _VALUE + size] if document[_NAME] == b"_id\0" else b""


def key_of_element(element: bytes) -> Any:
    """Give the key of an element as `key_element` gives it."""
    size = 4 + len(element) + 1
    return decoded(size.to_bytes(4, "little") + element + b"\0")["_id"]


def key_of(document: bytes) -> Any:
    """Give the key of a document."""
    element = key_element(document)
    return key_of_element(element) if element else excerpt(document, ("_id",))["_id"]


def behind_key(document: bytes) -> bytes:
    """Give the document that is the value of the field behind the key, in BSON."""
    start = 4 + len(key_element(document))
    start = document.index(b"\0", start) + 1
    return document[start : start + int.from_bytes(document[start : start + 4], "little")]
