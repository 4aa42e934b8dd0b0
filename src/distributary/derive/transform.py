"""Transforms: how authors mark them, and how one is applied to one document."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from types import GeneratorType, MappingProxyType, TracebackType
from typing import Any, NamedTuple, TypeVar

from distributary.derive.records import (
    NO_ORIGIN,
    BadRecord,
    EncodedRecord,
    Item,
    RawDocument,
    Record,
    Section,
    encode_record,
    tail_of,
)
from distributary.derive.rollup import Rollup, unsuitable
from distributary.parts import called, is_parts, shared_of
from distributary.quoting import of_error

Yielded = Record | Section | Item
Function = Callable[[dict[str, Any]], Iterable[Yielded] | Yielded | None]
F = TypeVar("F", bound=Callable[..., Any])

#: The modules whose frames a traceback does not show.
_OWN = frozenset({__name__, "distributary.derive.trigger"})

#: The attribute that `@transform` leaves on a function for the loader to find.
MARK = "__distributary__"


class Mark(NamedTuple):
    """What the decorator was told."""

    source: str
    name: str


#: What is said of a collection of shared records.
SHARED = "shared records"


class Shapes:
    """What derived collections are made of, as far as transforms of one registry have yielded it.

    A collection holds records or shared records, and a name in those is that of a section or of a list. What is stored
    already or was yielded first holds for the process; who yields the other one has a fault in the code.
    """

    def __init__(self) -> None:
        self._shapes: dict[tuple[str, str], str] = {}
        self._shared: dict[str, set[str]] = {}

    def of(self, transform: str) -> frozenset[str]:
        """Give the collections of whose shared records a transform has yielded parts."""
        return frozenset(self._shared.get(transform, ()))

    def know(self, shared: Iterable[str]) -> None:
        """Learn which collections hold shared records from what is stored."""
        for collection in shared:
            self._shapes[collection, ""] = SHARED

    def note(self, transform: str, records: Iterable[EncodedRecord], collections: Iterable[str]) -> None:
        """Learn from what one document yields, or raise `BadRecord`."""
        parts = False
        for collection in collections:
            kind = SHARED if is_parts(collection) else "records"
            self._check((shared_of(collection), ""), kind, shared_of(collection))
            if is_parts(collection):
                parts = True
                if shared_of(collection) not in self._shared.get(transform, ()):
                    self._shared[transform] = {*self._shared.get(transform, ()), shared_of(collection)}
        for place, key, _, _ in records if parts else ():
            if is_parts(place[0]):
                kind = "a list of items" if "i" in key else "a section"
                self._check((place[0], key["s"]), kind, f"{shared_of(place[0])}.{key['s']}")

    def _check(self, thing: tuple[str, str], kind: str, name: str) -> None:
        known = self._shapes.setdefault(thing, kind)
        if known != kind:
            raise BadRecord(
                f"{name!r} is {known} elsewhere, and here it is {kind}; give one of them another name"
            )


@dataclass(frozen=True, slots=True)
class Transform:
    """A pure function from one document of `source` to records, found in a transform module.

    `collections` are the derived collections that its code names; `place` is `file:line`. `rollups` are those over
    them, by the collection's name. `shapes` is common to all transforms of a registry. `pseudonyms` tells whether its
    code makes pseudonyms, which depend on a key.
    """

    name: str
    source: str
    function: Function
    fingerprint: str
    collections: frozenset[str]
    place: str
    rollups: Mapping[str, Sequence[Rollup]] = field(
        default_factory=lambda: MappingProxyType({}), compare=False
    )
    shapes: Shapes = field(default_factory=Shapes, compare=False, repr=False)
    pseudonyms: bool = False

    @property
    def shared(self) -> frozenset[str]:
        """The collections of shared records to which it has contributed in this process."""
        return self.shapes.of(self.name)


class Failure(NamedTuple):
    """Why a document could not be derived; both texts are `Quoting` where they may quote it."""

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
        return Failure(error.args[0], "")
    return Failure(*of_error(error, _trace(error)))


def _encoded(transform: Transform, output: object, limit: int, source: RawDocument) -> list[EncodedRecord]:
    tail = tail_of(source)
    if transform.rollups:
        output = _grouped(output, transform.rollups)
    records = [encode_record(item, source, tail) for item in islice(_items(output), limit + 1)]
    if len(records) > limit:
        raise BadRecord(f"more than {limit:,} records from one document (worker.max_records)")
    places = {record[0] for record in records}
    if len(places) < len(records):
        raise BadRecord(_repeated(records))
    collections = {place[0] for place in places}
    for collection in collections:
        if shared_of(collection) not in transform.collections:
            raise BadRecord(
                f"yielded a record of {shared_of(collection)!r}, which the transform's code does not name; "
                "declare it at the module's top level and use it by its name"
            )
    transform.shapes.note(transform.name, records, collections)
    return records


def _grouped(output: object, rollups: Mapping[str, Sequence[Rollup]]) -> Iterator[object]:
    """Give what was yielded; raises `BadRecord` for a record that cannot be put into a group."""
    for item in _items(output):
        if isinstance(item, Record | Section | Item) and isinstance(item.fields, Mapping):
            for rollup in rollups.get(item.collection.name, ()):
                if reason := unsuitable(rollup, _seen(item)):
                    raise BadRecord(f"record {item.collection.name}[{item.key!r:.80}]: {reason}")
        yield item


def _seen(item: Record | Section | Item) -> dict[str, Any]:
    """Give what is yielded as the record shows it, or the shared record that has nothing else."""
    if isinstance(item, Record):
        return {"_id": item.key, **item.fields}
    return {"_id": item.key, item.name: [item.fields] if isinstance(item, Item) else item.fields}


def _items(output: object) -> Iterable[object]:
    if output is None:
        return ()
    if output.__class__ is GeneratorType or output.__class__ is list:
        return output
    if isinstance(output, Record | Section | Item | str | bytes | dict) or not isinstance(output, Iterable):
        return (output,)
    return output


def _repeated(records: list[EncodedRecord]) -> str:
    seen = set()
    for place, key, _, _ in records:
        if place in seen:
            return f"yielded {called(place[0], key)} twice from one document"
        seen.add(place)
    raise AssertionError("no key is repeated")


def _trace(error: BaseException) -> TracebackType | None:
    """Give the traceback from the transform inwards, without the engine's own frames."""
    tail = error.__traceback__
    while tail and tail.tb_frame.f_globals.get("__name__") in _OWN:
        tail = tail.tb_next
    return tail
