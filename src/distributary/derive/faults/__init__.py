"""Everything that is wrong with what the loader collected: with each thing, and with them together."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from distributary.derive.faults.collections import collection_faults, rollup_faults
from distributary.derive.faults.functions import transform_faults, trigger_faults
from distributary.derive.found import (
    Declared,
    DeclaredRollup,
    Found,
    Marked,
    MarkedFunction,
    MarkedTrigger,
    all_declared,
    all_rollups,
)
from distributary.derive.naming import is_text
from distributary.derive.records import DerivedCollection
from distributary.errors import Fault

T = TypeVar("T")


def faults(found: Sequence[Found]) -> list[Fault]:
    """Give everything that is wrong with what the loader collected, each with its place and cure."""
    transforms = [marked for module in found for marked in module.transforms]
    triggers = [marked for module in found for marked in module.triggers]
    marked: list[MarkedFunction] = sorted([*transforms, *triggers], key=_place_of)
    declared = all_declared(found)
    rollups = all_rollups(found)
    return [
        *_each(transform_faults, transforms),
        *_each(trigger_faults, triggers),
        *_one_name(marked),
        *_written_by_both(transforms, triggers),
        *_each(collection_faults, declared),
        *_collections_of_one_name([item for item in declared if is_text(item.collection.name)]),
        *_tables_of_one_topic(declared),
        *_undeclared(marked, declared),
        *_each(rollup_faults, rollups),
        *_rollups_of_one_name(rollups, declared),
        *_over_undeclared(rollups, declared),
    ]


def _place_of(marked: MarkedFunction) -> tuple[str, int]:
    file, _, line = marked.place.rpartition(":")
    return file, int(line)


def _each(check: Callable[[T], Iterator[Fault]], items: Iterable[T]) -> Iterator[Fault]:
    for item in items:
        yield from check(item)


def _kind(marked: MarkedFunction) -> str:
    return "trigger" if isinstance(marked, MarkedTrigger) else "transform"


def _one_name(functions: Sequence[MarkedFunction]) -> Iterator[Fault]:
    """Give a fault for each transform or trigger whose name another one has."""
    first: dict[str, MarkedFunction] = {}
    for marked in functions:
        name, kind = marked.mark.name, _kind(marked)
        if first.setdefault(name, marked) is not marked:
            alike = kind == _kind(first[name])
            both = f"a second {kind} is" if alike else "a transform and a trigger are both"
            other = "first" if alike else "other"
            yield Fault(
                marked.place,
                f"{both} called {name!r}; the {other} is at {first[name].place}.",
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


def _undeclared(functions: Sequence[MarkedFunction], declared: Sequence[Declared]) -> Iterator[Fault]:
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


def _rollups_of_one_name(rollups: Sequence[DeclaredRollup], declared: Sequence[Declared]) -> Iterator[Fault]:
    names = [(item.collection.name, item.place, "derived collection") for item in declared]
    first = {name: (place, kind) for name, place, kind in reversed(names) if is_text(name)}
    for item in rollups:
        name = item.rollup.name
        if not is_text(name):
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
