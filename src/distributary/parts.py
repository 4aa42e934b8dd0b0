"""Where the parts of shared records lie, and how they are named: those of `customer` in `parts/customer`."""

from collections.abc import Mapping
from typing import Any

#: What stands in front of a derived collection's name; no author may give such a name.
PARTS = "parts/"


def parts_of(collection: str) -> str:
    """Give the collection in which the parts of a derived collection's shared records lie, each with its owner."""
    return PARTS + collection


def shared_of(collection: str) -> str:
    """Give the derived collection that parts belong to; another one is its own."""
    return collection.removeprefix(PARTS)


def is_parts(collection: str) -> bool:
    """Whether this collection holds parts."""
    return collection.startswith(PARTS)


def names_part(key: Any) -> bool:
    """Whether a key is one that parts have; a hand may have added documents with others."""
    return isinstance(key, Mapping) and "k" in key and isinstance(key.get("s"), str)


def called(collection: str, key: Any) -> str:
    """Name a record for people, or a part as it is seen in its shared record."""
    if not is_parts(collection) or not names_part(key):
        return f"{collection}[{key!r:.80}]"
    item = f"[{key['i']!r:.80}]" if "i" in key else ""
    return f"{shared_of(collection)}[{key['k']!r:.80}].{key['s']}{item}"


def told(collection: str, key: Any) -> dict[str, Any]:
    """Name a record as JSON answers do; for a part, the shared record and in `part` what of it.

    Without a collection no record is named, and the key is whatever it is.
    """
    if not is_parts(collection):
        return {"collection": collection or None, "key": key}
    if not names_part(key):
        return {"collection": shared_of(collection), "key": key}
    part = {"list": key["s"], "item": key["i"]} if "i" in key else {"section": key["s"]}
    return {"collection": shared_of(collection), "key": key["k"], "part": part}
