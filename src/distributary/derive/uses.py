"""What transform modules make of their derived collections, as far as their code says it without being run."""

import ast
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from distributary.derive.fingerprint import Module, parsed, value_of
from distributary.derive.names import dotted
from distributary.derive.records import DerivedCollection, part_name_problem
from distributary.errors import Fault

#: What the methods of a derived collection make of it.
_MAKES = {"record": "records", "section": "shared records", "item": "shared records"}

#: What they make of a name in its shared records.
_NAMES = {"section": "a section", "item": "a list of items"}


class Use(NamedTuple):
    """One call of a method of a derived collection; `name` is that of a section or list where it is written out."""

    collection: DerivedCollection
    method: str
    name: object
    place: str


def misuses(modules: Iterable[Module]) -> Iterator[Fault]:
    """Give a fault for each use that contradicts another one, or names what no shared record can have."""
    first: dict[tuple[int, object], tuple[str, Use]] = {}
    for use in (use for module in modules for use in _uses(module)):
        if use.name is not None and (problem := part_name_problem(use.name)):
            yield Fault(
                use.place,
                f"a section or list of {use.collection.name!r} has a name that {problem}.",
                "Give it a plain name, such as 'profile'.",
            )
        made: list[tuple[object, str, str]] = [(None, use.collection.name, _MAKES[use.method])]
        if use.name is not None:
            made.append((use.name, f"{use.collection.name}.{use.name}", _NAMES[use.method]))
        for name, what, kind in made:
            known, other = first.setdefault((id(use.collection), name), (kind, use))
            if known != kind:
                yield _both(use, what, kind, known, other)


def _both(use: Use, what: str, kind: str, known: str, other: Use) -> Fault:
    return Fault(
        use.place,
        f"{what!r} is {kind} here, and {known} at {other.place}.",
        "A collection holds records or shared records, and a name in those is that of a section or of a list: "
        "give one of them another name.",
    )


def _uses(module: Module) -> Iterator[Use]:
    for node in ast.walk(parsed(module.source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _MAKES:
            names = dotted(node.func.value).split(".")
            collection = value_of(module.values, names) if names[0] else None
            if isinstance(collection, DerivedCollection):
                place = f"{module.file}:{node.lineno}"
                yield Use(collection, node.func.attr, _name(node), place)


def _name(call: ast.Call) -> object:
    """Give the name of a section or list where it is a constant; a record has none."""
    given = [*call.args[1:2], *(each.value for each in call.keywords if each.arg == "name")]
    if _NAMES.get(getattr(call.func, "attr", "")) and given and isinstance(given[0], ast.Constant):
        return given[0].value
    return None
