"""What the loader collects in transform modules."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from distributary.derive.fingerprint import Code
from distributary.derive.records import DerivedCollection
from distributary.derive.rollup import Rollup
from distributary.derive.transform import Function, Mark
from distributary.derive.trigger import TriggerMark


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


#: What the rules for functions are about.
MarkedFunction = Marked | MarkedTrigger


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
