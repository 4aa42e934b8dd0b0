"""Hold the list of log lines in operations.md against the code: what `docs/generate.py --check` does.

Every line that the code can log has a row, and every row a line in the code; an action is a text that never varies.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "operations.md"
CODE = ROOT / "src" / "distributary"

_LOGGERS = {"log", "logger"}
_LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}
_ROW = re.compile(r"^\| ((?:`[^`]+`(?:, )?)+) \|", re.MULTILINE)


def faults() -> Iterator[str]:
    """Give what is wrong with the list."""
    logged: dict[str, str] = {}
    for file in sorted(CODE.rglob("*.py")):
        for call in _calls(file):
            action = call.args[0] if call.args else None
            if isinstance(action, ast.Constant) and isinstance(action.value, str):
                logged[action.value] = f"{file.relative_to(ROOT)}:{call.lineno}"
            else:
                yield f"{file.relative_to(ROOT)}:{call.lineno}: the action of a log line is a text that never varies"
    told = set(listed())
    yield from (
        f"{place}: {action!r} is missing under 'Log' in {PAGE.name}"
        for action, place in logged.items()
        if action not in told
    )
    yield from (f"{PAGE.name}: no code logs {action!r}" for action in sorted(told - logged.keys()))


def listed() -> Iterator[str]:
    """Give the actions that the page lists."""
    section = PAGE.read_text("utf-8").partition("\n## Log\n")[2].partition("\n## ")[0]
    for row in _ROW.finditer(section):
        yield from re.findall(r"`([^`]+)`", row[1])


def _calls(file: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Call) and isinstance(function := node.func, ast.Attribute):
            logger = function.value
            if isinstance(logger, ast.Name) and logger.id in _LOGGERS and function.attr in _LEVELS:
                yield node
