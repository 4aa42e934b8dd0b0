"""What a transform's code comes to: a fingerprint of it, and the derived collections that it names.

Two versions of a transform have the same fingerprint when the statements that can reach its result are the
same: its own, and those of everything that it uses from its module and from the modules beside it. Comments,
docstrings, formatting, unrelated code, and the indexes of derived collections do not count. Python 3.11 to
3.14 give the same fingerprint for the same source, so it is made of a form of the syntax tree that leaves out
what differs between them; bytecode and `ast.dump` would not do. What a module computes when it is imported
(a file that it reads, the environment) is not code and does not count.
"""

import ast
import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple, TypeVar

from distributary.derive.names import bound, changed, dotted, imported_as, is_main_guard, used
from distributary.derive.pseudonyms import imported_in
from distributary.derive.records import DerivedCollection
from distributary.derive.rollup import Rollup
from distributary.derive.transform import transform
from distributary.derive.trigger import trigger
from distributary.personal import pseudonym

#: Fields of the syntax tree that follow from others or are no code.
_IGNORED_FIELDS = frozenset({"ctx", "kind", "type_comment", "type_ignores"})

_DIGITS = 16

_IMPORT = (ast.Import, ast.ImportFrom)

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Module:
    """A module of the author's own: its source text and, when it is loaded, what its names stand for.

    `package` is what its relative imports start from; `file` is the path to show to people. There must be
    one object per module, see `Resolve`.
    """

    name: str
    package: str
    file: str
    source: str
    values: Mapping[str, Any]

    @cached_property
    def statements(self) -> list[ast.stmt]:
        """The module's statements without what does not count; raises `SyntaxError`."""
        return _essence(parsed(self.source), self.values)

    @cached_property
    def bindings(self) -> Mapping[str, Sequence[ast.stmt]]:
        """Per name, the statements that bind it or may change what it stands for, in order."""
        names = frozenset[str]().union(*map(bound, self.statements))
        found: dict[str, list[ast.stmt]] = {}
        for statement in self.statements:
            for name in bound(statement) | (changed(statement) & names):
                found.setdefault(name, []).append(statement)
        return found


#: Gives the module of a full name if it is the author's own and its source is known, always the same object.
Resolve = Callable[[str], Module | None]


class Code(NamedTuple):
    """What a transform's code comes to; `inline` are lines of its body that make a derived collection.

    `pseudonyms` tells whether it makes pseudonyms, which depend on a key.
    """

    fingerprint: str
    collections: frozenset[DerivedCollection]
    inline: tuple[int, ...] = ()
    pseudonyms: bool = False


def parsed(source: str) -> ast.Module:
    """Parse a module without the warnings that Python gave when it compiled it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source)


def code_of(module: Module, name: str, source: str, resolve: Resolve) -> Code:
    """Fingerprint the transform that a module-level name stands for, and find the collections it names.

    `source` is the collection that the transform is for.
    """
    closure = _Closure(resolve)
    if not closure.refer(module, (name,)):
        closure.refer_to_all(module)
    parts = closure.parts()
    digest = sha256("\0".join([ascii(source), *parts]).encode()).hexdigest()
    inline = tuple(_inline(module, name))
    return Code(digest[:_DIGITS], frozenset(closure.collections), inline, closure.pseudonyms)


def collections_in(value: object) -> Iterator[DerivedCollection]:
    """Give the derived collections that a module-level value is or holds.

    Looks into lists, tuples, sets, mappings, simple namespaces, dataclass instances and classes.
    """
    return _held_in(value, DerivedCollection)


def rollups_in(value: object) -> Iterator[Rollup]:
    """Give the rollups that a module-level value is or holds."""
    return _held_in(value, Rollup)


def _held_in(value: object, kind: type[T]) -> Iterator[T]:
    """Give what is of a kind; a rollup holds nothing: the collection that it is over is declared elsewhere."""
    seen: set[int] = set()
    values = [value]
    while values:
        item = values.pop()
        if isinstance(item, kind):
            yield item
        elif id(item) not in seen and not isinstance(item, Rollup):
            seen.add(id(item))
            values.extend(_held(item))


def _held(value: object) -> Iterable[object]:
    if isinstance(value, list | tuple | set | frozenset):
        return value
    if isinstance(value, dict):
        return [*dict.keys(value), *dict.values(value)]
    if isinstance(value, type | SimpleNamespace) or dataclasses.is_dataclass(value):
        return list(getattr(value, "__dict__", {}).values())
    return ()


def _inline(module: Module, name: str) -> Iterator[int]:
    for statement in module.bindings.get(name, ()):
        if isinstance(statement, ast.FunctionDef):
            nodes = (node for part in statement.body for node in ast.walk(part))
            calls = (node for node in nodes if isinstance(node, ast.Call))
            yield from (call.lineno for call in calls if _makes_collection(call, module.values))


class _Closure:
    """Everything that a transform's code reaches, numbered in the order in which it is met.

    Numbers rather than names of modules stand for what is referred to, so that a file may move.
    """

    def __init__(self, resolve: Resolve) -> None:
        self.resolve = resolve
        self.collections: set[DerivedCollection] = set()
        self.pseudonyms = False
        self._labels: dict[tuple[Module, str], str] = {}
        self._waiting: list[tuple[Module, str]] = []

    def parts(self) -> Iterator[str]:
        """Give the form of each part with what its names refer to; done when nothing new is met."""
        for module, name in self._waiting:
            yield self._all_of(module) if name == "*" else self._part(module, module.bindings[name])

    def refer(self, module: Module, names: Sequence[str]) -> str:
        """Give the label of what a dotted name stands for in a module; empty if the module does not say."""
        value = value_of(module.values, names)
        self.collections.update(collections_in(value))
        self.pseudonyms |= value is pseudonym
        if isinstance(value, DerivedCollection):
            return f"collection {value.name!a}"
        head, *rest = names
        statements = module.bindings.get(head)
        if statements is None:
            return self._starred(module, names)
        if all(isinstance(statement, _IMPORT) for statement in statements):
            return " ".join(
                sorted({self._imported(module, statement, head, rest) for statement in statements})
            )
        return self._label(module, head)

    def refer_to_all(self, module: Module) -> str:
        """Give the label of a module as a whole."""
        return self._label(module, "*")

    def _label(self, module: Module, name: str) -> str:
        key = (module, name)
        if key not in self._labels:
            self._labels[key] = f"#{len(self._labels)}"
            self._waiting.append(key)
        return self._labels[key]

    def _part(self, module: Module, statements: Sequence[ast.stmt]) -> str:
        names = sorted(frozenset[str]().union(*map(used, statements)))
        references = [(name, self.refer(module, name.split("."))) for name in names]
        imports = [self._import(module, node) for node in _imports(statements)]
        self.pseudonyms |= any(map(imported_in, statements))
        return " ".join(
            [*map(form, statements), *(f"{name}={to}" for name, to in references if to), *imports]
        )

    def _all_of(self, module: Module) -> str:
        return " ".join(f"{name}={self.refer(module, (name,))}" for name in sorted(module.bindings))

    def _import(self, module: Module, node: ast.Import | ast.ImportFrom) -> str:
        labels = [self._alias(module, node, alias, ()) for alias in node.names]
        return " ".join(sorted(labels))

    def _imported(self, module: Module, statement: ast.stmt, name: str, rest: Sequence[str]) -> str:
        assert isinstance(statement, _IMPORT)
        alias = next(alias for alias in statement.names if imported_as(alias) == name)
        if isinstance(statement, ast.Import) and not alias.asname:
            return self._inside(name, rest) or f"import {alias.name}"
        return self._alias(module, statement, alias, rest)

    def _alias(
        self, module: Module, node: ast.Import | ast.ImportFrom, alias: ast.alias, rest: Sequence[str]
    ) -> str:
        """Follow an import to the author's own code; what is not that counts by its import statement."""
        if isinstance(node, ast.Import):
            first, *path = alias.name.split(".")
            return self._inside(first, [*path, *rest]) or f"import {alias.name}"
        found = self._inside(_absolute(module.package, node), [alias.name, *rest])
        return found or f"import {'.' * node.level}{node.module or ''}:{alias.name}"

    def _inside(self, name: str, path: Sequence[str]) -> str:
        """Give the label of what a path means within a module of the author's own, else an empty string."""
        module = self.resolve(name)
        if not path or path[0] == "*":
            return self.refer_to_all(module) if module else ""
        if module and path[0] in module.bindings:
            return self.refer(module, path)
        return self._inside(f"{name}.{path[0]}", path[1:]) or (self._starred(module, path) if module else "")

    def _starred(self, module: Module, names: Sequence[str]) -> str:
        """Look a name up in what `from ... import *` brought."""
        if names[0] not in module.values or names[0].startswith("__"):
            return ""
        stars = (node for node in module.bindings.get("*", ()) if isinstance(node, ast.ImportFrom))
        return " ".join(self._star(_absolute(module.package, node), names) for node in stars)

    def _star(self, name: str, names: Sequence[str]) -> str:
        origin = self.resolve(name)
        if origin is None:
            return f"import {name}:*"
        return self.refer(origin, names) if names[0] in origin.bindings else self.refer_to_all(origin)


def _absolute(package: str, statement: ast.ImportFrom) -> str:
    if not statement.level:
        return statement.module or ""
    parts = package.split(".")
    base = parts[: len(parts) - statement.level + 1]
    return ".".join([*base, *([statement.module] if statement.module else [])])


def _imports(statements: Sequence[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    for statement in statements:
        for node in ast.walk(statement):
            if isinstance(node, ast.Import | ast.ImportFrom):
                yield node


def value_of(values: Mapping[str, Any], names: Sequence[str]) -> object:
    """Follow a dotted name through modules up to the first value that is none."""
    value = values.get(names[0])
    for name in names[1:]:
        if not isinstance(value, ModuleType):
            break
        value = vars(value).get(name)
    return value


def _essence(tree: ast.Module, values: Mapping[str, Any]) -> list[ast.stmt]:
    """Take out of a module, in place, what does not count although it has its place in the syntax tree."""
    for node in ast.walk(tree):
        for field, value in ast.iter_fields(node):
            if field in {"body", "orelse", "finalbody"} and isinstance(value, list):
                value[:] = [statement for statement in value if not _is_idle(statement)]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.decorator_list = [item for item in node.decorator_list if not marks(item, values)]
        elif isinstance(node, ast.Call) and _makes_collection(node, values):
            node.args = node.args[:1]
            node.keywords = [keyword for keyword in node.keywords if keyword.arg == "name"]
        else:
            _simplify_text(node)
    return [statement for statement in tree.body if not is_main_guard(statement)]


def marks(decorator: ast.expr, values: Mapping[str, Any]) -> str:
    """Say whether a decorator is that of a transform or a trigger, under whatever name it was imported; else empty."""
    kind = _named(decorator.func, values) if isinstance(decorator, ast.Call) else None
    return next((each.__name__ for each in (transform, trigger) if kind is each), "")


def _makes_collection(call: ast.Call, values: Mapping[str, Any]) -> bool:
    return _named(call.func, values) is DerivedCollection


def _named(node: ast.expr, values: Mapping[str, Any]) -> object:
    name = dotted(node)
    return value_of(values, name.split(".")) if name else None


def _is_idle(statement: ast.stmt) -> bool:
    """Docstrings, other bare constants and `pass`."""
    constant = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return constant or isinstance(statement, ast.Pass)


def _simplify_text(node: ast.AST) -> None:
    """Join the constants of an f-string, which Python versions split differently."""
    if isinstance(node, ast.JoinedStr):
        node.values = list(_joined(node.values))
    elif isinstance(node, ast.FormattedValue) and isinstance(node.format_spec, ast.JoinedStr):
        values = list(_joined(node.format_spec.values))
        node.format_spec = ast.JoinedStr(values) if values else None


def _joined(values: Iterable[ast.expr]) -> Iterator[ast.expr]:
    text = ""
    for value in values:
        if isinstance(value, ast.Constant):
            text += str(value.value)
            continue
        if text:
            yield ast.Constant(text)
        text = ""
        yield value
    if text:
        yield ast.Constant(text)


class _Token(str):
    """A piece of a form that is done."""

    __slots__ = ()


def form(node: ast.AST) -> str:
    """Write a syntax tree down in a way that is the same under every supported Python."""
    done: list[str] = []
    waiting: list[object] = [node]
    while waiting:
        item = waiting.pop()
        if isinstance(item, _Token):
            done.append(item)
        else:
            waiting.extend(reversed(_pieces(item)))
    return "".join(done)


def _pieces(item: object) -> list[object]:
    if isinstance(item, list):
        separated = [piece for element in item for piece in (element, _Token(","))]
        return [_Token("["), *separated, _Token("]")]
    if not isinstance(item, ast.AST):
        return [_Token(_constant(item))]
    fields = sorted((name, value) for name, value in ast.iter_fields(item) if _counts(name, value))
    pieces = [piece for name, value in fields for piece in (_Token(f"{name}="), value, _Token(","))]
    return [_Token(f"{type(item).__name__}("), *pieces, _Token(")")]


def _counts(field: str, value: object) -> bool:
    return field not in _IGNORED_FIELDS and value is not None and value != []


def _constant(value: object) -> str:
    """`ascii`, as `repr` depends on the Unicode tables; `hex`, as decimal digits are limited in number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return hex(value)
    return ascii(value)
