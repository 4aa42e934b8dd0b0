"""Which names a piece of code reads from outside of itself, and which ones a statement binds."""

import ast
from collections.abc import Iterable, Iterator
from typing import Any, get_args

_Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
_Hidden = frozenset[str]
_Part = tuple[ast.AST, _Hidden]
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, *get_args(_Comprehension))
_COMPOUND = (
    ast.If,
    ast.For,
    ast.While,
    ast.With,
    ast.Try,
    ast.TryStar,
    ast.Match,
    ast.ExceptHandler,
    ast.match_case,
)


def dotted(node: ast.expr) -> str:
    """Give `a.b.c` for such an expression, and an empty string for any other."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := dotted(node.value)):
        return f"{base}.{node.attr}"
    return ""


def root(node: ast.expr) -> str:
    """Give the name at the left end of attributes, subscripts and calls: `a` for `a.b[0].c()`."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Starred | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def used(statement: ast.stmt) -> frozenset[str]:
    """Give the names, dotted where attributes are read, that a module-level statement reads globally.

    Names that are bound in an enclosing function are left out. A class body is no scope here, so a name
    that is bound in it counts too: rather one too many than one too few.
    """
    found: set[str] = set()
    parts: list[_Part] = [(statement, frozenset())]
    while parts:
        node, hidden = parts.pop()
        found.update(name for name in _reads(node) if name.partition(".")[0] not in hidden)
        parts.extend(_parts(node, hidden))
    return frozenset(found)


def bound(statement: ast.stmt) -> frozenset[str]:
    """Give the names that a module-level statement binds: `a` for `a = 1`, `def a`, `import a`.

    A compound statement binds what any statement in it binds.
    """
    return _bindings([statement])


def changed(statement: ast.stmt) -> frozenset[str]:
    """Give the names whose objects a module-level statement may change.

    `a` for `a.b = 1`, `a[0] = 1`, `a.update(...)` and `register(a)`; a compound statement changes what any
    statement in it changes.
    """
    names: set[str] = set()
    return frozenset(names.union(*map(_changed, _simple(statement))) - {""})


def is_main_guard(statement: ast.stmt) -> bool:
    """Tell whether this is `if __name__ == "__main__":`, which never runs in a loaded module."""
    return (
        isinstance(statement, ast.If)
        and isinstance(statement.test, ast.Compare)
        and dotted(statement.test.left) == "__name__"
    )


def imported_as(alias: ast.alias) -> str:
    """Give the name that `import a.b` (`a`) or `from m import a as b` (`b`) binds."""
    return alias.asname or alias.name.partition(".")[0]


def _simple(statement: ast.stmt) -> Iterator[ast.stmt]:
    """Walk the statements in compound ones, but not those in functions and classes."""
    nodes: list[ast.AST] = [statement]
    while nodes:
        node = nodes.pop()
        if isinstance(node, _COMPOUND):
            nodes.extend(ast.iter_child_nodes(node))
        elif isinstance(node, ast.stmt):
            yield node


def _changed(statement: ast.stmt) -> set[str]:
    match statement:
        case ast.Expr(value=ast.Call(func=function, args=arguments, keywords=keywords)):
            receiver = [function] if isinstance(function, ast.Attribute) else []
            return set(map(root, [*receiver, *arguments, *(keyword.value for keyword in keywords)]))
        case ast.Assign(targets=targets) | ast.Delete(targets=targets):
            return set(map(root, targets))
        case ast.AugAssign(target=target) | ast.AnnAssign(target=target):
            return {root(target)}
    return set()


def _bindings(nodes: Iterable[ast.AST]) -> _Hidden:
    """Give the names that are bound in one scope, not in the scopes within it."""
    parts = [part for node in nodes for part in _same_scope(node)]
    elsewhere = {name for part in parts if isinstance(part, ast.Global | ast.Nonlocal) for name in part.names}
    return frozenset(name for part in parts for name in _binds(part)) - elsewhere


def _same_scope(node: ast.AST) -> Iterator[ast.AST]:
    nodes = [node]
    while nodes:
        yield (node := nodes.pop())
        if not isinstance(node, _SCOPES):
            nodes.extend(ast.iter_child_nodes(node))


def _binds(node: ast.AST) -> list[str]:
    match node:
        case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
            return [name]
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case (
            ast.ExceptHandler(name=str(name))
            | ast.MatchAs(name=str(name))
            | ast.MatchStar(name=str(name))
            | ast.MatchMapping(rest=str(name))
        ):
            return [name]
        case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
            return [imported_as(alias) for alias in aliases]
        case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
            return [part.target.id for part in ast.walk(node) if isinstance(part, ast.NamedExpr)]
    return []


def _reads(node: ast.AST) -> list[str]:
    match node:
        case ast.Name(id=name, ctx=ast.Load()):
            return [name]
        case ast.Attribute() if name := dotted(node):
            return [name]
        case ast.Global(names=names):
            return names
    return []


def _parts(node: ast.AST, hidden: _Hidden) -> list[_Part]:
    """Give the parts of a node that are still to be read, each with the names that its scopes hide."""
    match node:
        case ast.Attribute() if dotted(node):
            return []
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            return _function_parts(node, hidden)
        case ast.Lambda(args=arguments, body=body):
            inner = hidden | _parameters(arguments) | _bindings([body])
            return [(arguments, hidden), (body, inner)]
        case ast.ClassDef():
            return _class_parts(node, hidden)
        case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
            return _comprehension_parts(node, hidden)
    return [(child, hidden) for child in ast.iter_child_nodes(node)]


def _function_parts(node: ast.FunctionDef | ast.AsyncFunctionDef, hidden: _Hidden) -> list[_Part]:
    types, variables = _type_parameters(node)
    head = [node.args, *types, *([node.returns] if node.returns else [])]
    inner = hidden | variables | _parameters(node.args) | _bindings(node.body)
    return [
        *((decorator, hidden) for decorator in node.decorator_list),
        *((part, hidden | variables) for part in head),
        *((statement, inner) for statement in node.body),
    ]


def _class_parts(node: ast.ClassDef, hidden: _Hidden) -> list[_Part]:
    types, variables = _type_parameters(node)
    return [
        *((decorator, hidden) for decorator in node.decorator_list),
        *((part, hidden | variables) for part in [*types, *node.bases, *node.keywords, *node.body]),
    ]


def _comprehension_parts(node: _Comprehension, hidden: _Hidden) -> list[_Part]:
    first, *others = node.generators
    results = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
    inner = hidden | _bindings(generator.target for generator in node.generators)
    parts = [first.target, *first.ifs, *others, *results]
    return [(first.iter, hidden), *((part, inner) for part in parts)]


def _parameters(arguments: ast.arguments) -> _Hidden:
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    rest = [argument for argument in (arguments.vararg, arguments.kwarg) if argument]
    return frozenset(argument.arg for argument in [*named, *rest])


def _type_parameters(node: ast.AST) -> tuple[list[Any], _Hidden]:
    """Give `T` of `def f[T]` and `class C[T]`, a syntax of Python 3.12 and later."""
    nodes = getattr(node, "type_params", [])
    return nodes, frozenset(parameter.name for parameter in nodes)
