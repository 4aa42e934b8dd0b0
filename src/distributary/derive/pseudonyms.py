"""Which code makes pseudonyms, and what their key has to do with its fingerprint."""

import ast
from hashlib import sha256

from distributary.errors import Fault
from distributary.personal import KEY_CURE, pseudonym

_MODULE = pseudonym.__module__
_PACKAGE, _, _NAME = _MODULE.rpartition(".")

_DIGITS = 16


def imported_in(statement: ast.stmt) -> bool:
    """Tell whether a statement imports `pseudonym` within a function and names it."""
    nodes = list(ast.walk(statement))
    return any(map(_imports_module, nodes)) and any(map(_names, nodes))


def _imports_module(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom):
        named = {alias.name for alias in node.names}
        return node.module == _MODULE or (node.module == _PACKAGE and _NAME in named)
    return isinstance(node, ast.Import) and _MODULE in {alias.name for alias in node.names}


def _names(node: ast.AST) -> bool:
    name = pseudonym.__name__
    if isinstance(node, ast.ImportFrom):
        return name in {alias.name for alias in node.names}
    return isinstance(node, ast.Attribute) and node.attr == name


def under(fingerprint: str, digest: str) -> str:
    """Give the fingerprint of code whose pseudonyms are made with the key of this digest."""
    return sha256(f"{fingerprint}\0{digest}".encode()).hexdigest()[:_DIGITS]


def without_key(name: str, place: str) -> Fault:
    """Tell of a transform or trigger that makes pseudonyms where there is no key."""
    return Fault(place, f"{name!r} names pseudonym, and there is no key for it.", KEY_CURE)
