"""What a resume token says of itself, read offline.

Source: `src/mongo/db/pipeline/resume_token.cpp` in the server. Tokens of version 0 (MongoDB 4.0), 1 (from 4.0.7 on) and
2 (from 7.0 on) are read.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any
from uuid import UUID

from bson import Timestamp

from distributary.errors import ConfigurationError, Fault
from distributary.source.keystring import Unreadable, values

#: How a shell or a program prints a token: the hex string alone, or in a document.
_DOCUMENT = re.compile(r"""\{.*["']?\b_data["']?\s*:\s*["']([0-9A-Fa-f]*)["'].*\}""", re.DOTALL)

#: The least that a token begins with: the type of a cluster time, and eight bytes.
_TOKEN = re.compile(r"82(?:[0-9A-Fa-f]{2}){8,}")

#: Characters of a text that a refusal repeats.
_SHOWN = 40


class TokenKind(StrEnum):
    """`change`: the position behind a change. `high-water mark`: one before whatever happens at its time."""

    CHANGE = "change"
    HIGH_WATER_MARK = "high-water mark"


#: The number by which a token names its kind.
_KINDS = {128: TokenKind.CHANGE, 0: TokenKind.HIGH_WATER_MARK}

_HEAD = ("time", "version", "kind", "index", "invalidate")

#: The values of a token, by its version: those that it must have, and those that may follow.
_LAYOUTS: Mapping[int, tuple[tuple[str, ...], tuple[str, ...]]] = {
    0: (("time", "version", "index"), ("collection", "key")),
    1: (_HEAD, ("collection", "key")),
    2: (_HEAD, ("collection", "key", "fragment")),
}

#: The version from which on every key comes with the name of the operation.
_NAMED = 2

_FITS: Mapping[str, Callable[[Any], bool]] = {
    "time": lambda value: isinstance(value, Timestamp),
    "version": lambda value: type(value) is int,
    "kind": lambda value: type(value) is int and value in _KINDS,
    "index": lambda value: type(value) is int,
    "invalidate": lambda value: isinstance(value, bool),
    "collection": lambda value: value is None or isinstance(value, UUID),
    "key": lambda value: isinstance(value, dict),
    "fragment": lambda value: type(value) is int,
}


@dataclass(frozen=True, slots=True)
class Token:
    """What a token says of itself; what it does not say, or what is not readable, is None.

    `index` is the place within its transaction, `invalidate` whether it is that of an `invalidate`, which only
    `startAfter` opens, `collection` the id of the change's collection, `key` its whole document key, `operation` and
    `description` what newer servers add, `fragment` the part of a change that was split. `unreadable` says what is
    behind the cluster time and cannot be read, and why; empty when all is.
    """

    time: Timestamp
    version: int | None = None
    kind: TokenKind | None = None
    index: int | None = None
    invalidate: bool | None = None
    collection: UUID | None = None
    key: dict[str, Any] | None = None
    operation: str | None = None
    description: dict[str, Any] | None = None
    fragment: int | None = None
    unreadable: str = ""


def token_of(text: str) -> Token:
    """Decode a token from its hex string, or from the document `{"_data": "…"}` around it.

    Raises `ConfigurationError` for what is no token. Nothing is guessed: what cannot be read is left out, and
    `unreadable` says so. Numbers in a key are read by their value, whatever their type.
    """
    found: list[Any] = []
    fault = ""
    try:
        for value in values(bytes.fromhex(_hex(text))):
            found.append(value)  # noqa: PERF402 - what was read before a fault is kept
    except Unreadable as error:
        fault = str(error)
    return _token(found, fault)


def _hex(text: str) -> str:
    """Give the hex string; raises `ConfigurationError` when there is none."""
    text = text.strip()
    within = _DOCUMENT.fullmatch(text)
    data = within[1] if within else text
    if not _TOKEN.fullmatch(data):
        shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
        like = "826B027E9A000000012B022C0100296E5A1004…"
        cure = (
            f"Give the hex string in the `_data` field of a token, such as {like}, or the document with it."
        )
        raise ConfigurationError([Fault(repr(shown), "is no resume token.", cure)])
    return data


def _token(found: Sequence[Any], fault: str) -> Token:
    """Name the values that were found; the first one is a cluster time, since a token begins like one."""
    version = found[1] if len(found) > 1 and _FITS["version"](found[1]) else None
    if version is None or version not in _LAYOUTS:
        why = "it has no version" if version is None else f"version {version} is not known to this release"
        return Token(found[0], version, unreadable=fault or why)
    needed, more = _LAYOUTS[version]
    names = (*needed, *more)
    read: dict[str, Any] = {}
    for name, value in zip(names, found, strict=False):
        if not _FITS[name](value):
            return _named(read, f"its {name} is of an unexpected type")
        read[name] = value
    if len(found) > len(names):
        fault = fault or "it has more values than are known"
    return _named(read, fault or ("" if len(read) >= len(needed) else "it has too few values"))


def _named(read: Mapping[str, Any], fault: str) -> Token:
    """Give a token from its values; the key may come in a document that names the operation, too."""
    kind = _KINDS[read["kind"]] if "kind" in read else TokenKind.CHANGE if read["version"] == 0 else None
    token = Token(**{**read, "kind": kind}, unreadable=fault)
    key = token.key
    if key is None or not (token.version == _NAMED or ("_id" not in key and "operationDescription" in key)):
        return token
    token = replace(token, key=key.get("documentKey"), description=key.get("operationDescription"))
    return replace(token, operation=key.get("operationType"))
