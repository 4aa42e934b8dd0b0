"""Transforms: how authors mark them, and how one is applied to one document."""

import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from types import GeneratorType
from typing import Any, NamedTuple, TypeVar

from distributary.derive.records import (
    NO_ORIGIN,
    BadRecord,
    EncodedRecord,
    RawDocument,
    Record,
    encode_record,
    tail_of,
)

Function = Callable[[dict[str, Any]], Iterable[Record] | Record | None]
F = TypeVar("F", bound=Callable[..., Any])

#: The modules whose frames a traceback does not show.
_OWN = frozenset({__name__, "distributary.derive.trigger"})

#: The attribute that `@transform` leaves on a function for the loader to find.
MARK = "__distributary__"


class Mark(NamedTuple):
    """What the decorator was told."""

    source: str
    name: str


@dataclass(frozen=True, slots=True)
class Transform:
    """A pure function from one document of `source` to records, found in a transform module.

    `collections` are the derived collections that its code names; `place` is `file:line`.
    """

    name: str
    source: str
    function: Function
    fingerprint: str
    collections: frozenset[str]
    place: str


class Failure(NamedTuple):
    """Why a document could not be derived."""

    reason: str
    traceback: str


def transform(source: str, *, name: str | None = None) -> Callable[[F], F]:
    """Mark a function as the transform of the documents of one source collection.

    The function gets a document as a dict, must not change it, and yields or returns records. Marking
    registers nothing: the registry is built from the modules that the configuration names.
    """
    if not isinstance(source, str):
        raise TypeError('name the source collection: @transform("orders"), not @transform')

    def mark(function: F) -> F:
        own_name: str = getattr(function, "__name__", "")
        setattr(function, MARK, Mark(source, name or own_name))
        return function

    return mark


def derive(
    transform: Transform, document: dict[str, Any], limit: int, source: RawDocument = NO_ORIGIN
) -> list[EncodedRecord] | Failure:
    """Apply a transform to one document; what goes wrong comes back as a `Failure`, never as an exception.

    Every record is encoded as soon as it is yielded, so what the function does to its document later
    cannot reach it. At most `limit` records are taken; `source` is their engine's field.
    A record of a collection that the transform's code does not name is a failure: what it stored before could
    not be found again.
    """
    try:
        return _encoded(transform, transform.function(document), limit, source)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code may raise anything
        return failure_of(error)


def derive_or_raise(transform: Transform, document: dict[str, Any], limit: int) -> list[EncodedRecord]:
    """Do what `derive` does for records that are looked at and not stored; raises what went wrong."""
    return _encoded(transform, transform.function(document), limit, NO_ORIGIN)


def failure_of(error: Exception | SystemExit) -> Failure:
    """Give what is told of an error that a document was derived with."""
    if isinstance(error, BadRecord):
        return Failure(str(error), "")
    return Failure(f"{type(error).__name__}: {error}", _trace(error))


def _encoded(transform: Transform, output: object, limit: int, source: RawDocument) -> list[EncodedRecord]:
    tail = tail_of(source)
    records = [encode_record(item, source, tail) for item in islice(_items(output), limit + 1)]
    if len(records) > limit:
        raise BadRecord(f"more than {limit:,} records from one document (worker.max_records)")
    places = {record[0] for record in records}
    if len(places) < len(records):
        raise BadRecord(_repeated(records))
    for collection in {place[0] for place in places}:
        if collection not in transform.collections:
            raise BadRecord(
                f"yielded a record of {collection!r}, which the transform's code does not name; "
                "declare it at the module's top level and use it by its name"
            )
    return records


def _items(output: object) -> Iterable[object]:
    if output is None:
        return ()
    if output.__class__ is GeneratorType or output.__class__ is list:
        return output
    if isinstance(output, Record | str | bytes | dict) or not isinstance(output, Iterable):
        return (output,)
    return output


def _repeated(records: list[EncodedRecord]) -> str:
    seen = set()
    for place, key, _, _ in records:
        if place in seen:
            return f"yielded {place[0]}[{key!r:.80}] twice from one document"
        seen.add(place)
    raise AssertionError("no key is repeated")


def _trace(error: BaseException) -> str:
    """Give the traceback from the transform inwards, without the engine's own frames."""
    tail = error.__traceback__
    while tail and tail.tb_frame.f_globals.get("__name__") in _OWN:
        tail = tail.tb_next
    return "".join(traceback.format_exception(type(error), error, tail))
