"""The same worker with the customer view and without it, side by side on one server."""

import ast
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import process
from benchmarks.process import ROOT
from benchmarks.workload import RAW
from distributary.errors import Failed

RUN_SECONDS = 4 * 3600.0

#: The shared record that is measured: a derived collection, and what the modules call it.
VIEW = "customer"

#: What a verification counts that must not be.
WRONG = ("missing", "stale", "orphaned", "failing", "unsettled", "parked", "contested")


@dataclass(frozen=True)
class Side:
    """Transform modules, and the databases of a worker with them; `settings` are more of its environment."""

    name: str
    modules: Path
    derived: str
    state: str
    settings: Mapping[str, str] = field(default_factory=dict)

    def environment(self, uri: str) -> Mapping[str, str]:
        """Give the worker's configuration."""
        return {
            "DISTRIBUTARY_SOURCE__URI": uri,
            "DISTRIBUTARY_SOURCE__DATABASE": RAW,
            "DISTRIBUTARY_DERIVED__DATABASE": self.derived,
            "DISTRIBUTARY_STATE__DATABASE": self.state,
            "DISTRIBUTARY_WORKER__TRANSFORMERS": json.dumps([str(self.modules)]),
            "DISTRIBUTARY_HTTP__PORT": "0",
            "DISTRIBUTARY_LOG__FORMAT": "json",
            **self.settings,
        }

    def catch_up(self, uri: str) -> process.Finished:
        """Let a worker derive what exists, or what has changed, to the end."""
        return process.run(_command("run", "--until-caught-up"), self.environment(uri), RUN_SECONDS)


@dataclass(frozen=True)
class Verified:
    """What a verification compared, how much of it was wrong, and whether it drew a sample."""

    side: str
    documents: int
    records: int
    sampled: bool
    wrong: int


def both(modules: Path, folder: Path) -> tuple[Side, Side]:
    """Give the modules as they are, and a copy of them without the view; `folder` is where that is made."""
    with_view = Side("with customer", modules.absolute(), "derived", "state")
    return with_view, Side("without", without(VIEW, modules, folder), "derived_without", "state_without")


def without(name: str, modules: Path, folder: Path) -> Path:
    """Copy modules in such a way that nothing is yielded to a derived collection; `name` is its variable's."""
    folder.mkdir()
    for path in modules.glob("*.py"):
        tree = ast.fix_missing_locations(_Without(name).visit(ast.parse(path.read_text())))
        if name in {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}:
            raise Failed(
                f"{path} uses {name} for more than to yield to it.",
                "Teach benchmarks/sides.py how to leave it out.",
            )
        (folder / path.name).write_text(ast.unparse(tree) + "\n")
    return folder


class _Without(ast.NodeTransformer):
    """Leaves out the declaration of a derived collection, its imports, and what is yielded to it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def visit_Yield(self, node: ast.Yield) -> ast.AST:
        call = node.value
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and self._is(call.func.value):
            return ast.YieldFrom(ast.Tuple([], ast.Load()))
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.AST | None:
        return None if self._is(node.targets[0]) else self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        node.names = [alias for alias in node.names if alias.name != self._name]
        return node if node.names else None

    def _is(self, node: ast.AST) -> bool:
        return isinstance(node, ast.Name) and node.id == self._name


def publishing(modules: Path, folder: Path) -> Path:
    """Copy modules in such a way that every derived collection is published to a topic of its name."""
    folder.mkdir()
    for path in modules.glob("*.py"):
        tree = ast.fix_missing_locations(_Publishing().visit(ast.parse(path.read_text())))
        (folder / path.name).write_text(ast.unparse(tree) + "\n")
    return folder


class _Publishing(ast.NodeTransformer):
    """Adds a topic to the declaration of every derived collection."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Name) and node.func.id == "DerivedCollection":
            node.keywords.append(ast.keyword("publish", node.args[0]))
        return node


def verify(side: Side, uri: str, sample: int, *, built: bool = True) -> Verified:
    """Compare what a worker left with a recomputation: so many documents and records of each collection, 0 for all.

    Where the worker began at a position, its transforms are not `built` and need not be.
    """
    some = ("--sample", str(sample)) if sample else ()
    answer = _answer(_command("verify", "--json", *some), side.environment(uri))
    unbuilt = answer["not_built"] if built else ()
    wrong = sum(answer[name] for name in WRONG) + len(unbuilt) + len(answer["outdated"])
    return Verified(side.name, answer["documents"], answer["records"], answer["sampled"], wrong)


def _answer(command: list[str], environment: Mapping[str, str]) -> dict[str, Any]:
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=process.surroundings(environment),
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    if done.returncode not in {0, 1} or not done.stdout.strip():
        raise process.ContenderFailed(f"{command} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _command(*arguments: str) -> list[str]:
    return process.python("-m", "distributary", *arguments)
