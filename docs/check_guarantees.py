"""Holds the pages against the tests, both ways.

Each row of the guarantees names a test, each test that is named exists, and each test of a fault is named by a row.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent

#: The page whose tables have a test in every row.
GUARANTEES = DOCS / "guarantees.md"

#: The tests that each belong into one of its rows.
FAULTS = ROOT / "tests" / "fault"

#: What names a test, or tries to: a path in `tests/`, and behind two colons the name.
_NAMED = re.compile(r"`(tests/[^`:]+)::([^`]*)`")


def faults() -> Iterator[str]:
    """Give what is wrong: rows without a test, and tests that are named and do not exist."""
    for page in sorted([*DOCS.rglob("*.md"), ROOT / "README.md"]):
        for number, line in enumerate(page.read_text("utf-8").splitlines(), start=1):
            place = f"{page.relative_to(ROOT)}:{number}"
            named = _NAMED.findall(line)
            yield from (f"{place}: there is no {file}::{name}" for file, name in named if not _is(file, name))
            if page == GUARANTEES and _is_row(line) and not named:
                yield f"{place}: the row names no test"
    yield from _untold()


def _untold() -> Iterator[str]:
    """Give the tests of faults that no row names."""
    told = set(_NAMED.findall(GUARANTEES.read_text("utf-8")))
    for path in sorted(FAULTS.glob("test_*.py")):
        file = path.relative_to(ROOT).as_posix()
        yield from (
            f"{file}::{name} is in no row" for name in sorted(_tests(path)) if (file, name) not in told
        )


def _is_row(line: str) -> bool:
    """Tell a table's row from its head and the line below that."""
    return line.startswith("|") and not line.startswith(("| fault |", "|---"))


def _is(file: str, name: str) -> bool:
    return name in _tests(ROOT / file)


@cache
def _tests(file: Path) -> frozenset[str]:
    """Give the names of a file's tests: functions, those of classes, and test cases of state machines."""
    if not file.is_file():
        return frozenset()
    tree = ast.parse(file.read_text("utf-8"), str(file))
    functions = (node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    assigned = (target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets)
    cases = (target.id for target in assigned if isinstance(target, ast.Name))
    return frozenset([*_beginning("test_", functions), *_beginning("Test", cases)])


def _beginning(start: str, names: Iterator[str]) -> Iterator[str]:
    return (name for name in names if name.startswith(start))
