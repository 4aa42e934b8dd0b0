"""What one document yields, without a server."""

import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from functools import cache
from itertools import count
from typing import Any

from bson import decode, encode
from bson.errors import BSONError

from distributary.change import CODEC, Identity, identity
from distributary.derive.plan import UNKNOWN_VERSION
from distributary.derive.purity import (
    CHANGES,
    CHANGES_CURE,
    UNSTABLE,
    UNSTABLE_CURE,
    Call,
    call,
    differ,
)
from distributary.derive.shared import Part, assembled, part_of
from distributary.derive.transform import Function, Transform, failure_of
from distributary.parts import is_parts, shared_of
from distributary.plugins import transform_of
from distributary.testing.order import in_order

#: Records that one document may yield, as in the default configuration (worker.max_records).
MAX_RECORDS = 10_000

#: Seconds between the two calls: MongoDB keeps dates to the millisecond, so that a clock shows.
BETWEEN_CALLS = 0.002

#: What a number that was read from a clock counts in a second: seconds, milli-, micro- and nanoseconds.
_CLOCK_UNITS = (1, 1_000, 1_000_000, 1_000_000_000)

#: A number so many seconds near the present was probably read from a clock.
_NEAR = 3600

#: `derive` is called often for one function, whose code is read each time otherwise.
transform_for = cache(transform_of)


class NotDerived(AssertionError):
    """A worker would park the document as a dead letter; `reason` is what the letter says."""

    def __init__(self, transform: str, key: Any, reason: str) -> None:
        super().__init__(f"{transform} does not derive {key!r:.80}, it would be a dead letter: {reason!s}")
        self.reason = reason


class NotPure(AssertionError):
    """A second call with the same document yields something else, or a call changes its document."""


class Records(Mapping[Any, dict[str, Any]]):
    """Records of one derived collection: fields by key, in the order in which they were yielded.

    Keys are looked up as MongoDB compares them: `1`, `1.0` and `Decimal128("1")` are one key, and a document
    (`records[{"order": 1, "line": 2}]`) needs its fields in the same order. Equal to a dict, or to a list of
    pairs of key and fields in any order, which may hold keys that a dict cannot.
    """

    def __init__(self, pairs: Iterable[tuple[Any, dict[str, Any]]] = ()) -> None:
        self._pairs = {identity(key): (key, fields) for key, fields in pairs}

    def __getitem__(self, key: Any) -> dict[str, Any]:
        try:
            return self._pairs[identity(key)][1]
        except KeyError:
            there = ", ".join(map(repr, self)) or "none"
            raise KeyError(f"no record has the key {key!r:.80}; there are: {there:.500}") from None

    def __iter__(self) -> Iterator[Any]:
        return (key for key, _ in self._pairs.values())

    def __len__(self) -> int:
        return len(self._pairs)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping | list):
            return NotImplemented
        theirs = _by_identity(other)
        return theirs is not None and theirs == {each: fields for each, (_, fields) in self._pairs.items()}

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{{{', '.join(f'{key!r}: {fields!r}' for key, fields in self.items())}}}"


class Collections(dict[str, Records]):
    """What a document yields: the records by derived collection, of those collections that got any.

    One that the transform names, and this document yields nothing for, is empty when it is asked for.
    """

    def __init__(self, records: Mapping[str, Records], named: Iterable[str]) -> None:
        super().__init__(records)
        self._named = frozenset(named)

    def __missing__(self, name: str) -> Records:
        if name in self._named:
            return Records()
        there = ", ".join(sorted(self._named)) or "none"
        raise KeyError(f"the transform names no derived collection {name!r}; it names: {there}")


def derive(function: Function, document: Mapping[str, Any], *, max_records: int = MAX_RECORDS) -> Collections:
    """Give what a transform yields for a document: `{collection: {key: fields}}`.

    Of shared records it gives what this document contributes: sections and lists. It is done as a worker does it: the
    function gets the document as MongoDB gives it, and the records are as they are stored (dates in UTC and to the
    millisecond, tuples as lists), without `_id` and `_src`. Raises `NotDerived` for a document that a worker would
    park, from the transform's own exception, and `NotPure`.
    The function is called twice, with a document of its own each time. A clock that is read to the second goes
    unnoticed here; `distributary check` finds it.
    """
    transform, raw = transform_for(function), in_bson(document)
    first = _called(transform, raw, max_records)
    time.sleep(BETWEEN_CALLS)
    second = call(transform, raw, max_records)
    if differ(first.output, second.output):
        message = f"{transform.name} {UNSTABLE}: {_difference(first, second)} {UNSTABLE_CURE}"
        raise NotPure(message) from second.error
    return _collections(first, transform)


def derivable(transform: Transform, document: bytes, max_records: int) -> None:
    """Raise `NotDerived` for a document, given in BSON, that the transform does not derive."""
    _called(transform, document, max_records)


def in_bson(document: Mapping[str, Any]) -> bytes:
    """Give a document as MongoDB would keep it; raises `ValueError` when it could not."""
    try:
        return encode(document, codec_options=CODEC)
    except (BSONError, TypeError, UnicodeError, OverflowError) as error:
        raise ValueError(f"MongoDB cannot hold this document: {error}") from error


def _called(transform: Transform, document: bytes, max_records: int) -> Call:
    called = call(transform, document, max_records)
    if called.error is not None:
        key = decode(document, CODEC).get("_id")
        raise NotDerived(transform.name, key, failure_of(called.error).reason) from called.error
    if called.changed:
        raise NotPure(f"{transform.name} {CHANGES} {CHANGES_CURE}")
    return called


def _collections(called: Call, transform: Transform) -> Collections:
    pairs: dict[str, list[tuple[Any, dict[str, Any]]]] = {}
    parts: dict[str, list[Part]] = {}
    for record in called.records:
        if is_parts(record.collection):
            parts.setdefault(shared_of(record.collection), []).append(part_of(record.key, record.document))
        else:
            fields = decode(record.body, CODEC)
            pairs.setdefault(record.collection, []).append((fields.pop("_id"), fields))
    pairs |= {name: list(whole(some)) for name, some in parts.items()}
    return Collections({name: Records(some) for name, some in pairs.items()}, transform.collections)


def whole(parts: Iterable[Part]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Give the shared records of which these are all parts, as a worker shows them."""
    ordered = sorted(parts, key=lambda part: tuple(map(in_order, (part.key, part.name, part.item))))
    for key, fields, _ in assembled((part, UNKNOWN_VERSION) for part in ordered):
        yield key, decode(encode(fields, codec_options=CODEC), CODEC)


def _by_identity(records: Mapping[Any, Any] | list[Any]) -> dict[Identity, Any] | None:
    """Give fields by the identity of their key; None when these are no pairs, or two of one key."""
    pairs = list(records.items()) if isinstance(records, Mapping) else records
    try:
        found = {identity(key): fields for key, fields in pairs}
    except (TypeError, ValueError):
        return None
    return found if len(found) == len(pairs) else None


# --- what differs -------------------------------------------------------------------------------------------


def _difference(first: Call, second: Call) -> str:
    """Say where two outputs differ first, and what that looks like."""
    if second.error is not None:
        return f"it fails with {failure_of(second.error).reason!s}."
    ours, theirs = first.output, second.output
    assert isinstance(ours, dict)
    assert isinstance(theirs, dict)
    for record in [*first.records, *second.records]:
        place = f"{record.collection}[{record.key!r:.80}]"
        if record.place not in theirs or record.place not in ours:
            return f"{place} comes one time and not the other. {_culprit(record.key)}"
        a, b = (decode(output[record.place], CODEC) for output in (ours, theirs))
        if path := _path(a, b):
            names, one, other = path
            return f"{place}{names} is {_shown(one)}, and then {_shown(other)}. {_culprit(one)}"
    raise AssertionError("the outputs are equal")


def _path(one: Any, other: Any) -> tuple[str, Any, Any] | None:
    """Give the way to the first values that differ, and both; None when there are none."""
    if isinstance(one, dict) and isinstance(other, dict) and list(one) == list(other):
        parts = [(f".{name}", one[name], other[name]) for name in one]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        parts = [(f"[{index}]", a, b) for index, a, b in zip(count(), one, other, strict=False)]
    else:
        return None if _same(one, other) else ("", one, other)
    deeper = ((name, _path(a, b)) for name, a, b in parts)
    return next(((f"{name}{below[0]}", *below[1:]) for name, below in deeper if below), None)


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(identity(one) == identity(other))


def _shown(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else f"{value!r:.80}"


def _culprit(value: Any) -> str:
    if isinstance(value, datetime) or _is_near_present(value):
        return "It looks like a clock."
    return "It looks like chance (random, uuid4, ObjectId()), or like state that is kept between calls."


def _is_near_present(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return any(abs(value / unit - time.time()) < _NEAR for unit in _CLOCK_UNITS)
