"""The topics that are published to, as far as they are known before anything is published."""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from distributary.derive.fingerprint import value_of
from distributary.derive.names import dotted
from distributary.derive.trigger import Publish

#: What Pub/Sub keeps for itself, at the beginning of an attribute's name and of a topic's.
RESERVED = "goog"

_TOPIC = re.compile(r"[A-Za-z][A-Za-z0-9._~+%-]{2,254}")
_PATH = re.compile(r"projects/[^/]+/topics/([^/]+)")


def is_topic(name: str) -> bool:
    """Whether Pub/Sub can have a topic of this name (its documentation, "Resource names")."""
    whole = _PATH.fullmatch(name)
    short = whole[1] if whole else name
    return bool(_TOPIC.fullmatch(short)) and not short.startswith(RESERVED)


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
