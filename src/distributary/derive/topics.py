"""The topics that are published to, as far as they are known before anything is published."""

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from distributary.derive.fingerprint import value_of
from distributary.derive.names import dotted
from distributary.derive.trigger import Publish


def topics_in(statements: Iterable[ast.stmt], values: Mapping[str, Any]) -> Iterator[str]:
    """Give the topics that a module's statements publish to by text, or by the name of a text in the module."""
    for statement in statements:
        for node in ast.walk(statement):
            if isinstance(node, ast.Call) and _value(node.func, values) is Publish:
                yield from filter(None, (_topic(each, values) for each in _given(node)))


def _given(call: ast.Call) -> Sequence[ast.expr]:
    return [*call.args[:1], *(each.value for each in call.keywords if each.arg == "topic")]


def _topic(node: ast.expr, values: Mapping[str, Any]) -> str:
    value = node.value if isinstance(node, ast.Constant) else _value(node, values)
    return value if isinstance(value, str) else ""


def _value(node: ast.expr, values: Mapping[str, Any]) -> object:
    name = dotted(node)
    return value_of(values, name.split(".")) if name else None
