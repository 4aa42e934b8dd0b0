"""Keys of documents and records on the command line."""

import re
from collections.abc import Iterator
from typing import Any

import click
from bson import ObjectId, Regex, encode, json_util
from bson.binary import UuidRepresentation
from bson.codec_options import DatetimeConversion
from bson.errors import BSONError

from distributary.change import CODEC

#: What the help of an option or argument says of a key.
KEY_FORMS = (
    'relaxed Extended JSON (42, "a", {"order": 1}, {"$oid": "…"}), the 24 hex digits of an ObjectId, or the text'
    " itself; what exists of these is taken, in this order"
)

_EXTENDED = json_util.JSONOptions(
    uuid_representation=UuidRepresentation.STANDARD,
    tz_aware=True,
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
)

_OBJECT_ID = re.compile(r"[0-9a-fA-F]{24}")


def parse_key(text: str) -> list[Any]:
    """Give what a text may mean as a key, likeliest first; raises `BadParameter` for one that is no key at all.

    Text that is a string or a document in Extended JSON means only that.
    """
    candidates = [each for each in _candidates(text) if _is_key(each)]
    if not candidates:
        raise click.BadParameter(f"{text!r} is no key.", param_hint="the key")
    return candidates


def _candidates(text: str) -> Iterator[Any]:
    try:
        value = json_util.loads(text, json_options=_EXTENDED)
    except (ValueError, TypeError, OverflowError, RecursionError, BSONError):
        pass
    else:
        yield value
        if not isinstance(value, bool | int | float | list | None):
            return
    if _OBJECT_ID.fullmatch(text):
        yield ObjectId(text)
    yield text


def _is_key(value: Any) -> bool:
    """Whether a document may have this key: it can be encoded, and is no list and no regular expression."""
    if isinstance(value, list | Regex):
        return False
    try:
        encode({"_id": value}, codec_options=CODEC)
    except (BSONError, ValueError, OverflowError, RecursionError):
        return False
    return True
