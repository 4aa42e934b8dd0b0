"""What the loader collects from transform modules, and everything that can be wrong with it."""

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from bson import encode
from bson.errors import BSONError

from distributary.change import CODEC
from distributary.derive.fingerprint import Code
from distributary.derive.records import ENGINE_FIELD, FORMATS, DerivedCollection
from distributary.derive.rollup import Rollup, problems
from distributary.derive.topics import is_topic
from distributary.derive.transform import Function, Mark
from distributary.derive.trigger import OPERATIONS, TriggerMark
from distributary.errors import Fault
from distributary.parts import PARTS

#: MongoDB's limit on `database.collection` is 255 bytes, and a database name takes up to 63 of them.
MAX_DERIVED_NAME_BYTES = 255 - 63 - 1 - len(PARTS)
MAX_SOURCE_NAME_BYTES = 255 - 1 - 1

#: MongoDB's limit on the fields of one index.
MAX_INDEX_FIELDS = 32

#: MongoDB allows 64 indexes on a collection; the one on `_id` and the engine's own are among them.
MAX_INDEXES = 60

_TRANSFORM_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Marked:
    """A marked function as the loader found it; `place` is `file:line`."""

    mark: Mark
    function: Function
    place: str
    code: Code


@dataclass(frozen=True, slots=True)
class MarkedTrigger:
    """A function that is marked as a trigger; `reads` and `topics` are as in `Trigger`."""

    mark: TriggerMark
    function: Callable[[Any], Any]
    place: str
    code: Code
    reads: frozenset[str]
    topics: frozenset[str] = frozenset()


class _Named(Protocol):
    """What the marks of transforms and triggers have in common."""

    @property
    def source(self) -> str: ...

    @property
    def name(self) -> str: ...


class _Function(Protocol):
    """What is common to marked transforms and triggers."""

    @property
    def mark(self) -> _Named: ...

    @property
    def function(self) -> Callable[[Any], Any]: ...

    @property
    def place(self) -> str: ...

    @property
    def code(self) -> Code: ...


@dataclass(frozen=True, slots=True)
class Declared:
    """A derived collection as the loader found it at module level; `place` is `file:line`."""

    collection: DerivedCollection
    place: str


@dataclass(frozen=True, slots=True)
class DeclaredRollup:
    """A rollup as the loader found it at module level; `place` is `file:line`."""

    rollup: Rollup
    place: str


@dataclass(frozen=True, slots=True)
class Found:
    """What the loader collected in one module, in the order of its source."""

    module: str
    transforms: tuple[Marked, ...] = ()
    collections: tuple[Declared, ...] = ()
    rollups: tuple[DeclaredRollup, ...] = ()
    triggers: tuple[MarkedTrigger, ...] = ()


def faults(found: Sequence[Found]) -> list[Fault]:
    """Give everything that is wrong with what the loader collected, each with its place and cure."""
    transforms = [marked for module in found for marked in module.transforms]
    triggers = [marked for module in found for marked in module.triggers]
    marked: list[_Function] = sorted([*transforms, *triggers], key=_place_of)
    declared = all_declared(found)
    rollups = all_rollups(found)
    return [
        *_each(_transform_faults, transforms),
        *_each(_trigger_faults, triggers),
        *_one_name(marked),
        *_written_by_both(transforms, triggers),
        *_each(_collection_faults, declared),
        *_collections_of_one_name([item for item in declared if _is_text(item.collection.name)]),
        *_tables_of_one_topic(declared),
        *_undeclared(marked, declared),
        *_each(_rollup_faults, rollups),
        *_rollups_of_one_name(rollups, declared),
        *_over_undeclared(rollups, declared),
    ]


def _place_of(marked: _Function) -> tuple[str, int]:
    file, _, line = marked.place.rpartition(":")
    return file, int(line)


def index_keys(spec: str | Sequence[str]) -> list[tuple[str, int]]:
    """Give an index specification as MongoDB's driver takes it: `["a", "-b"]` is `[("a", 1), ("b", -1)]`.

    Raises `ValueError` that says what is wrong with it.
    """
    fields = [spec] if isinstance(spec, str) else spec
    if not isinstance(fields, list | tuple) or not all(isinstance(field, str) for field in fields):
        raise ValueError(f"{spec!r:.80} is neither a field name nor a list of field names")
    keys = [(field[1:], -1) if field.startswith("-") else (field, 1) for field in fields]
    if problem := next(_index_problems([name for name, _ in keys]), ""):
        raise ValueError(f"{spec!r:.80} {problem}")
    return keys


def _index_problems(names: list[str]) -> Iterator[str]:
    if not names:
        yield "has no fields"
    if len(names) > MAX_INDEX_FIELDS:
        yield f"has {len(names)} fields; MongoDB's limit is {MAX_INDEX_FIELDS}"
    for name in names:
        yield from _field_problems(name)
    if len(set(names)) < len(names):
        yield "names a field twice"
    if names == ["_id"]:
        yield "is the index on the key, which MongoDB keeps by itself"


def _field_problems(name: str) -> Iterator[str]:
    parts = name.split(".")
    if not all(parts):
        yield "has an empty field name"
    if any(part.startswith("$") for part in parts):
        yield f"has the field {name!r}, and no field may start with a dollar sign"
    if "\0" in name:
        yield "has a field name with a null character"
    if parts[0] == ENGINE_FIELD:
        yield f"has the field {ENGINE_FIELD!r}, which is the engine's and indexed by it"


def all_declared(found: Sequence[Found]) -> list[Declared]:
    """Give one per object, as modules may share one by import; the first place counts."""
    by_object: dict[int, Declared] = {}
    for module in found:
        for declared in module.collections:
            by_object.setdefault(id(declared.collection), declared)
    return list(by_object.values())


def all_rollups(found: Sequence[Found]) -> list[DeclaredRollup]:
    """Give one per object, as with derived collections."""
    by_object: dict[int, DeclaredRollup] = {}
    for module in found:
        for declared in module.rollups:
            by_object.setdefault(id(declared.rollup), declared)
    return list(by_object.values())


def _each(check: Callable[[T], Iterator[Fault]], items: Iterable[T]) -> Iterator[Fault]:
    for item in items:
        yield from check(item)


def _transform_faults(marked: Marked) -> Iterator[Fault]:
    yield from _function_faults(marked, "transform", "document")


def _function_faults(marked: _Function, kind: str, argument: str) -> Iterator[Fault]:
    """Give what is wrong with a marked function, whose kind is transform or trigger."""
    name, place = marked.mark.name, marked.place
    if not _is_text(name) or not _TRANSFORM_NAME.fullmatch(name):
        yield Fault(
            place,
            f"{name!r:.80} cannot name a {kind}.",
            f"Use letters, digits, `_` and `-`, with a letter or `_` first: @{kind}(..., name=...).",
        )
    if problem := _name_problem(marked.mark.source, MAX_SOURCE_NAME_BYTES):
        yield Fault(
            place,
            f"{kind} {name!r:.80}: {marked.mark.source!r:.80} cannot name a source collection: {problem}.",
            "Write the name of a collection of the source database.",
        )
    yield from _signature_faults(marked, kind, argument)
    for line in marked.code.inline:
        yield Fault(
            f"{place.rpartition(':')[0]}:{line}",
            f"{kind} {name!r:.80} makes a derived collection while it derives.",
            "Declare the DerivedCollection at the module's top level and use it here by its name.",
        )


def _signature_faults(marked: _Function, kind: str, argument: str) -> Iterator[Fault]:
    function, name = marked.function, marked.mark.name
    inner = inspect.unwrap(function)
    if inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner):
        yield Fault(
            marked.place,
            f"{kind} {name!r:.80} is async.",
            f"Write it with a plain `def`: a {kind} is a pure function and has nothing to wait for.",
        )
    if isinstance(function, type) or not _takes_one_argument(function):
        yield Fault(
            marked.place,
            f"{kind} {name!r:.80} must be a function of exactly one positional argument, the {argument}.",
            f"Write it as `def name({argument}):`.",
        )


#: The fields of a change as MongoDB reports it.
_REPORTED = frozenset(
    {
        "_id",
        "operationType",
        "fullDocument",
        "fullDocumentBeforeChange",
        "updateDescription",
        "ns",
        "documentKey",
        "clusterTime",
        "wallTime",
        "lsid",
        "txnNumber",
    }
)


def _trigger_faults(marked: MarkedTrigger) -> Iterator[Fault]:
    yield from _function_faults(marked, "trigger", "change")
    place, name = marked.place, f"trigger {marked.mark.name!r:.80}"
    operations = marked.mark.operations
    unknown = [each for each in operations if each not in OPERATIONS]
    if unknown or not operations:
        named = f"{unknown[0]!r:.80} is no operation" if unknown else "it has no operations"
        yield Fault(place, f"{name}: {named}.", f"Name some of {', '.join(OPERATIONS)}, as a list.")
    for option in ("match", "project"):
        value = getattr(marked.mark, option)
        if value is not None and not (isinstance(value, Mapping) and value):
            yield Fault(
                place,
                f"{name}: {option} is {value!r:.80}, not a dict with something in it.",
                'Write it over the change as MongoDB reports it: {"fullDocument.state": ...}, or leave it out.',
            )
        elif value is not None and (problem := _encoding_problem(value)):
            yield Fault(
                place, f"{name}: {option} cannot be written as BSON: {problem}.", "Use BSON values only."
            )
    yield from _projection_faults(place, name, marked.mark.project)


def _encoding_problem(value: Mapping[str, Any]) -> str:
    """Say why this cannot be sent to a server; empty if it can."""
    try:
        encode(value, codec_options=CODEC)
    except (BSONError, UnicodeError, TypeError, OverflowError, RecursionError) as error:
        return str(error) or type(error).__name__
    return ""


def _projection_faults(place: str, name: str, project: object) -> Iterator[Fault]:
    fields = [each for each in project if isinstance(each, str)] if isinstance(project, Mapping) else []
    for field in fields:
        if field.split(".")[0] not in _REPORTED:
            yield Fault(
                place,
                f"{name}: project names {field!r:.80}, which is no field of a change.",
                f"A change has {', '.join(sorted(_REPORTED))}; what is made of them, the trigger makes.",
            )


def _takes_one_argument(function: Callable[[Any], Any]) -> bool:
    try:
        parameters = _parameters(function)
    except (ValueError, TypeError):
        return False
    positional = [
        item for item in parameters if item.kind in {item.POSITIONAL_ONLY, item.POSITIONAL_OR_KEYWORD}
    ]
    starred = any(item.kind is item.VAR_POSITIONAL for item in parameters)
    required = [item for item in parameters if item.kind is item.KEYWORD_ONLY and item.default is item.empty]
    return not required and (len(positional) == 1 or (starred and not positional))


def _parameters(function: Callable[[Any], Any]) -> list[inspect.Parameter]:
    """Give a function's parameters without evaluating its annotations, which Python 3.14 would do."""
    options: dict[str, Any] = {}
    if sys.version_info >= (3, 14):
        from annotationlib import Format  # noqa: PLC0415 - new in Python 3.14

        options["annotation_format"] = Format.FORWARDREF
    return list(inspect.signature(function, **options).parameters.values())


def _kind(marked: _Function) -> str:
    return "trigger" if isinstance(marked, MarkedTrigger) else "transform"


def _one_name(functions: Sequence[_Function]) -> Iterator[Fault]:
    """Give a fault for each transform or trigger whose name another one has."""
    first: dict[str, _Function] = {}
    for marked in functions:
        name, kind = marked.mark.name, _kind(marked)
        if first.setdefault(name, marked) is not marked:
            other = _kind(first[name])
            problem = f"a second {kind} is" if kind == other else f"a {kind} is, as a {other},"
            yield Fault(
                marked.place,
                f"{problem} called {name!r}; the first is at {first[name].place}.",
                f"Rename one of the functions, or give one a name: @{kind}(..., name=...).",
            )


def _written_by_both(transforms: Sequence[Marked], triggers: Sequence[MarkedTrigger]) -> Iterator[Fault]:
    """Give a fault for each derived collection that is named by a transform and by a trigger."""
    writers: dict[str, Marked] = {}
    for marked in transforms:
        for collection in marked.code.collections:
            writers.setdefault(collection.name, marked)
    for trigger in triggers:
        for name in sorted({each.name for each in trigger.code.collections} & writers.keys()):
            other = writers[name]
            yield Fault(
                trigger.place,
                f"trigger {trigger.mark.name!r} writes derived collection {name!r}, which transform "
                f"{other.mark.name!r} ({other.place}) writes, too.",
                "Give each its own: what transforms write is recomputed, and what triggers write cannot be.",
            )


def _collections_of_one_name(declared: Sequence[Declared]) -> Iterator[Fault]:
    first: dict[str, Declared] = {}
    for item in declared:
        name = item.collection.name
        if first.setdefault(name, item) is not item:
            yield Fault(
                item.place,
                f"derived collection {name!r} is declared twice; the first time at {first[name].place}.",
                "Declare it in one module and import it in the others: `from .that_module import ...`.",
            )


def _undeclared(functions: Sequence[_Function], declared: Sequence[Declared]) -> Iterator[Fault]:
    known = {id(item.collection) for item in declared}
    for marked in functions:
        unknown = {item.name for item in marked.code.collections if id(item) not in known}
        for name in sorted(unknown):
            yield Fault(
                marked.place,
                f"{_kind(marked)} {marked.mark.name!r} names derived collection {name!r}, "
                "which no transform module declares at its top level.",
                "Declare it there, or import it there by its name.",
            )


def _collection_faults(declared: Declared) -> Iterator[Fault]:
    collection, place = declared.collection, declared.place
    if problem := _name_problem(collection.name, MAX_DERIVED_NAME_BYTES):
        yield Fault(
            place,
            f"{collection.name!r:.80} cannot name a derived collection: {problem}.",
            "Choose a name that MongoDB takes.",
        )
    for problem in _indexes_problems(collection.indexes):
        yield Fault(
            place,
            f"derived collection {collection.name!r:.80} {problem}.",
            'Write indexes as a list, each a field name or a list of them: ["sku", ["customer_id", "-at"]].',
        )
    if collection.publish is not None and not (_is_text(collection.publish) and is_topic(collection.publish)):
        yield Fault(
            place,
            f"derived collection {collection.name!r:.80} is published to {collection.publish!r:.60}, no topic.",
            "Name one of 3 to 255 letters, digits and -._~+%, a letter first, that does not begin with goog.",
        )
    if collection.format not in FORMATS:
        yield Fault(
            place,
            f"derived collection {collection.name!r:.80} has the format {collection.format!r:.80}.",
            f"There are: {', '.join(FORMATS)}.",
        )


def _tables_of_one_topic(declared: Sequence[Declared]) -> Iterator[Fault]:
    """Refuse rows of two tables on one topic: a subscription writes all of them into its one table."""
    tables = [each for each in declared if each.collection.publish and each.collection.format == "bigquery"]
    first: dict[str, Declared] = {}
    for each in tables:
        other = first.setdefault(str(each.collection.publish), each)
        if other.collection.name != each.collection.name:
            yield Fault(
                each.place,
                f"{each.collection.name!r} is published to {each.collection.publish!r} for BigQuery, as"
                f" {other.collection.name!r} is ({other.place}).",
                "Give each its own topic.",
            )


def _rollup_faults(declared: DeclaredRollup) -> Iterator[Fault]:
    rollup, place = declared.rollup, declared.place
    if problem := _name_problem(rollup.name, MAX_DERIVED_NAME_BYTES):
        yield Fault(
            place,
            f"{rollup.name!r:.80} cannot name a rollup: {problem}.",
            "Choose a name that MongoDB takes.",
        )
    for problem, cure in problems(rollup):
        yield Fault(place, f"rollup {rollup.name!r:.80} {problem}.", cure)
    for problem in _indexes_problems(rollup.indexes):
        yield Fault(
            place,
            f"rollup {rollup.name!r:.80} {problem}.",
            'Write indexes as a list, each a field name or a list of them: ["orders", ["city", "-spent"]].',
        )


def _rollups_of_one_name(rollups: Sequence[DeclaredRollup], declared: Sequence[Declared]) -> Iterator[Fault]:
    names = [(item.collection.name, item.place, "derived collection") for item in declared]
    first = {name: (place, kind) for name, place, kind in reversed(names) if _is_text(name)}
    for item in rollups:
        name = item.rollup.name
        if not _is_text(name):
            continue
        if name in first:
            place, kind = first[name]
            yield Fault(
                item.place,
                f"rollup {name!r} has the name of a {kind} at {place}.",
                "Give it another name, or import the one that is there.",
            )
        first.setdefault(name, (item.place, "rollup"))


def _over_undeclared(rollups: Sequence[DeclaredRollup], declared: Sequence[Declared]) -> Iterator[Fault]:
    known = {id(item.collection) for item in declared}
    for item in rollups:
        over: object = item.rollup.over
        if isinstance(over, DerivedCollection) and id(over) in known:
            continue
        what = f"derived collection {over.name!r}" if isinstance(over, DerivedCollection) else f"{over!r:.80}"
        yield Fault(
            item.place,
            f"rollup {item.rollup.name!r:.80} is over {what}, which no transform module declares at its top level.",
            "Declare a DerivedCollection there and give that to `over`; a rollup cannot be over a rollup.",
        )


def _indexes_problems(indexes: object) -> Iterator[str]:
    if not isinstance(indexes, list | tuple):
        yield f"has indexes that are no list: {indexes!r:.80}"
        return
    if len(indexes) > MAX_INDEXES:
        yield f"has {len(indexes)} indexes; there is room for {MAX_INDEXES} beside the engine's"
    seen: list[list[tuple[str, int]]] = []
    for spec in indexes:
        try:
            keys = index_keys(spec)
        except ValueError as error:
            yield f"has a bad index: {error}"
            continue
        if keys in seen:
            yield f"has the index {spec!r:.80} twice"
        seen.append(keys)


def _name_problem(name: object, limit: int) -> str:
    """Say which of MongoDB's rules for collection names this one breaks; empty if it is fine."""
    if not isinstance(name, str):
        return "it is no string"
    rules = {
        "it is empty": not name,
        "it has a dollar sign": "$" in name,
        "it has a null character": "\0" in name,
        f"names with {PARTS!r} in front are the engine's": name.startswith(PARTS)
        and limit == MAX_DERIVED_NAME_BYTES,
        "it starts with 'system.'": name.startswith("system."),
        "it starts or ends with a dot, or has two in a row": "" in name.split("."),
        "it cannot be written as UTF-8": any("\ud800" <= letter <= "\udfff" for letter in name),
        f"it has more than {limit} bytes": len(name.encode(errors="replace")) > limit,
    }
    return next((rule for rule, broken in rules.items() if broken), "")


def _is_text(value: object) -> bool:
    return isinstance(value, str)
