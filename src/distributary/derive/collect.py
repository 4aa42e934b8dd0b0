"""Finds what is marked and declared in loaded modules."""

import ast
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import CellType
from typing import TypeVar

from distributary.derive.fingerprint import (
    Module,
    Resolve,
    code_of,
    collections_in,
    marks,
    parsed,
    rollups_in,
)
from distributary.derive.found import Declared, DeclaredRollup, Found, Marked, MarkedTrigger
from distributary.derive.records import DerivedCollection
from distributary.derive.rollup import Rollup
from distributary.derive.topics import topics_in
from distributary.derive.transform import MARK, Mark
from distributary.derive.trigger import TRIGGER_MARK, TriggerMark
from distributary.errors import Fault

_IMPORT = (ast.Import, ast.ImportFrom)

T = TypeVar("T")


def collect(modules: Sequence[Module], helpers: Iterable[Module], resolve: Resolve) -> list[Found]:
    """Give what the transform modules hold, and what they use of the modules beside them (`helpers`).

    A transform or derived collection that is imported belongs to the module that defines it. A derived
    collection whose module is none of these belongs to the transform module that imports it. A module beside has the
    rollups over collections that are used.
    """
    helpers = list(helpers)
    own = [
        Found(
            module.name,
            tuple(_marked(module, resolve)),
            tuple(_declared(module)),
            tuple(_rollups(module)),
            tuple(_triggers(module, resolve)),
        )
        for module in modules
    ]
    codes = [marked.code for found in own for marked in found.transforms]
    codes += [marked.code for found in own for marked in found.triggers]
    named = {id(item) for code in codes for item in code.collections}
    beside = [
        Found(module.name, (), tuple(item for item in _declared(module) if id(item.collection) in named))
        for module in helpers
    ]
    known = {id(item.collection) for found in [*own, *beside] for item in found.collections}
    foreign = [Found(module.name, (), tuple(_imported(module, known))) for module in modules]
    used = known | {id(item.collection) for found in foreign for item in found.collections}
    over = [Found(module.name, rollups=tuple(_over(module, used))) for module in helpers]
    there = {id(item.rollup) for found in [*own, *over] for item in found.rollups}
    others = [Found(module.name, rollups=tuple(_imported_rollups(module, there))) for module in modules]
    return [*own, *beside, *foreign, *over, *others]


def hidden(module: Module) -> Iterator[Fault]:
    """Give a fault for each transform or trigger that a later function of the same name in its module hides."""
    last: dict[str, int] = {}
    for statement in reversed(parsed(module.source).body):
        if isinstance(statement, ast.FunctionDef):
            later = last.setdefault(statement.name, statement.lineno)
            if later != statement.lineno and (kind := _kind(statement, module)):
                yield _hidden(f"{module.file}:{statement.lineno}", kind, statement.name, later)


def _hidden(place: str, kind: str, name: str, line: int) -> Fault:
    return Fault(
        place,
        f"{kind} {name!r} is hidden by the function {name!r} in line {line}.",
        "Rename one.",
    )


def _kind(statement: ast.FunctionDef, module: Module) -> str:
    """Say whether a function is marked as a transform or a trigger; empty if it is neither."""
    kinds = (marks(decorator, module.values) for decorator in statement.decorator_list)
    return next(filter(None, kinds), "")


def has_marks(values: Iterable[object]) -> bool:
    """Tell whether any of a module's values is marked as a transform or a trigger."""
    return any(mark_of(value) or trigger_mark_of(value) for value in values)


def reachable(function: object) -> Iterator[DerivedCollection]:
    """Give the derived collections that a function can reach: those of its module and of its closure."""
    inner = inspect.unwrap(function) if callable(function) else function
    cells = [cell for cell in getattr(inner, "__closure__", None) or () if cell != CellType()]
    values = [*getattr(inner, "__globals__", {}).values(), *(cell.cell_contents for cell in cells)]
    for value in values:
        yield from collections_in(value)


def rollups_beside(function: object) -> Iterator[Rollup]:
    """Give the rollups that stand beside a function: those of its module."""
    inner = inspect.unwrap(function) if callable(function) else function
    for value in getattr(inner, "__globals__", {}).values():
        yield from rollups_in(value)


def mark_of(value: object) -> Mark | None:
    """Give what `@transform` left on a value, None where it left nothing."""
    mark = inspect.getattr_static(value, MARK, None)
    return mark if isinstance(mark, Mark) else None


def trigger_mark_of(value: object) -> TriggerMark | None:
    """Give what `@trigger` left on a value, None where it left nothing."""
    mark = inspect.getattr_static(value, TRIGGER_MARK, None)
    return mark if isinstance(mark, TriggerMark) else None


def _triggers(module: Module, resolve: Resolve) -> Iterator[MarkedTrigger]:
    seen: set[int] = set()
    for line, name in _lines(
        module, [name for name, value in module.values.items() if trigger_mark_of(value)]
    ):
        value = module.values[name]
        mark = trigger_mark_of(value)
        if mark and id(value) not in seen and _defines(module, name):
            seen.add(id(value))
            code = code_of(module, name, mark.source, resolve)
            statements = module.bindings.get(name, ())
            reads = frozenset[str]().union(*map(_reads, statements))
            topics = frozenset(topics_in(statements, module.values))
            yield MarkedTrigger(mark, value, f"{module.file}:{line}", code, reads, topics)


def _reads(statement: ast.stmt) -> frozenset[str]:
    """Give those of the attributes with a change's images that a statement names."""
    named = {node.attr for node in ast.walk(statement) if isinstance(node, ast.Attribute)}
    return frozenset(named & {"before", "document"})


def _marked(module: Module, resolve: Resolve) -> Iterator[Marked]:
    seen: set[int] = set()
    for line, name in _lines(module, [name for name, value in module.values.items() if mark_of(value)]):
        value = module.values[name]
        mark = mark_of(value)
        if mark and id(value) not in seen and _defines(module, name):
            seen.add(id(value))
            yield Marked(mark, value, f"{module.file}:{line}", code_of(module, name, mark.source, resolve))


def _defines(module: Module, name: str) -> bool:
    """Tell a definition from an import or an alias of one.

    What a decorator or a factory of another module made counts as defined where it was applied.
    """
    if getattr(module.values[name], "__module__", None) == module.name:
        return True
    return any(
        isinstance(statement, ast.FunctionDef)
        or (isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(statement.value, ast.Call))
        for statement in module.bindings.get(name, ())
    )


def _lines(module: Module, names: Iterable[str]) -> list[tuple[int, str]]:
    """Give the lines that define module-level names, and the names, in the order of the lines."""
    return sorted((_line(module, name), name) for name in names)


def _line(module: Module, name: str) -> int:
    statements = module.bindings.get(name, ())
    nodes = (node for statement in statements for node in ast.walk(statement))
    if lines := [node.lineno for node in nodes if isinstance(node, ast.FunctionDef) and node.name == name]:
        return lines[-1]
    code = getattr(inspect.unwrap(module.values[name]), "__code__", None)
    return statements[0].lineno if statements else getattr(code, "co_firstlineno", 1)


def _declared(module: Module) -> Iterator[Declared]:
    for place, collection in _held(module, collections_in, imported=False):
        yield Declared(collection, place)


def _rollups(module: Module) -> Iterator[DeclaredRollup]:
    for place, rollup in _held(module, rollups_in, imported=False):
        yield DeclaredRollup(rollup, place)


def _over(module: Module, used: set[int]) -> Iterator[DeclaredRollup]:
    """Give the rollups of a module that are over collections in use."""
    return (item for item in _rollups(module) if id(item.rollup.over) in used)


def _imported_rollups(module: Module, known: set[int]) -> Iterator[DeclaredRollup]:
    for place, rollup in _held(module, rollups_in, imported=True):
        if id(rollup) not in known:
            yield DeclaredRollup(rollup, place)


def _imported(module: Module, known: set[int]) -> Iterator[Declared]:
    for place, collection in _held(module, collections_in, imported=True):
        if id(collection) not in known:
            yield Declared(collection, place)


def _held(
    module: Module, find: Callable[[object], Iterator[T]], *, imported: bool
) -> Iterator[tuple[str, T]]:
    """Give what a module's names hold, each with its place."""
    held = {name: [*find(value)] for name, value in list(module.values.items())}
    names = [name for name, found in held.items() if found and _is_imported(module, name) is imported]
    for line, name in _lines(module, names):
        for item in held[name]:
            yield f"{module.file}:{line}", item


def _is_imported(module: Module, name: str) -> bool:
    statements = module.bindings.get(name, ())
    return all(isinstance(statement, _IMPORT) for statement in statements)
