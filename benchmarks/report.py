"""Tables of the runs, and the record of a whole benchmark that can be kept."""

import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TypeVar

from benchmarks.catchup import Run as CatchUp
from benchmarks.latency import Run as Latency
from benchmarks.process import ROOT
from distributary.embedded import find_mongod

OURS = "distributary"

RESULTS = ROOT / "benchmarks" / "results"

Row = Sequence[str]
R = TypeVar("R", CatchUp, Latency)


@dataclass
class Results:
    """Every run of a benchmark."""

    catchup: list[CatchUp] = field(default_factory=list)
    latency: list[Latency] = field(default_factory=list)

    @property
    def wrong(self) -> int:
        """How many documents were wrong, in all runs together."""
        return sum(run.wrong for run in self.catchup) + sum(run.wrong for run in self.latency)


def catchup_table(runs: Sequence[CatchUp]) -> str:
    """Give a row per contender: medians over the rounds, with the range of the rate."""
    header = (
        "contender",
        "changes",
        "rounds",
        "changes/s",
        "min..max",
        "with start-up",
        "client µs/change",
        "server µs/change",
        "peak MB",
        "final state",
    )
    return table(header, [_catchup_row(name, of) for name, of in _by_contender(runs)])


def _catchup_row(name: str, runs: Sequence[CatchUp]) -> Row:
    return (
        *rates_row(name, runs[0].changes, [run.rate for run in runs]),
        f"{median(run.whole_rate for run in runs):,.0f}",
        f"{median(run.client_cpu for run in runs):,.0f}",
        f"{median(run.server_cpu for run in runs):,.0f}",
        f"{max(run.peak_mb for run in runs):,.0f}",
        verdict(sum(run.wrong for run in runs)),
    )


def rates_row(name: str, changes: int, rates: Sequence[float]) -> Row:
    """Give how many changes per second were caught up with, round by round, as the beginning of a row."""
    return (
        name,
        f"{changes:,}",
        str(len(rates)),
        f"{median(rates):,.0f}",
        f"{min(rates):,.0f}..{max(rates):,.0f}",
    )


def ratio_table(runs: Sequence[CatchUp]) -> str:
    """Give how many times as fast as each other contender distributary is, round by round."""
    rounds = sorted({run.round for run in runs})
    rates = {(run.contender, run.round): run.rate for run in runs}
    others = [name for name, _ in _by_contender(runs) if name != OURS and (OURS, rounds[0]) in rates]
    rows = [
        ratio_row(f"{OURS} / {other}", [rates[OURS, number] / rates[other, number] for number in rounds])
        for other in others
    ]
    return table(("changes/s", *(f"round {number}" for number in rounds), "median"), rows) if rows else ""


def ratio_row(name: str, ratios: Sequence[float]) -> Row:
    """Give a ratio of each round, and their median."""
    return (name, *(f"{ratio:.2f}" for ratio in ratios), f"{median(ratios):.2f}")


def latency_table(runs: Sequence[Latency]) -> str:
    """Give a row per contender: medians over the rounds, the worst of all."""
    header = (
        "contender",
        "rounds",
        "offered/s",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "max ms",
        "client CPU %",
        "server CPU %",
        "peak MB",
        "unseen",
        "final state",
    )
    return table(header, [_latency_row(name, of) for name, of in _by_contender(runs)])


def _latency_row(name: str, runs: Sequence[Latency]) -> Row:
    def middle(figure: Callable[[Latency], float]) -> str:
        return f"{median(map(figure, runs)):,.0f}"

    return (
        name,
        str(len(runs)),
        middle(lambda run: run.offered),
        middle(lambda run: run.p50),
        middle(lambda run: run.p95),
        middle(lambda run: run.p99),
        f"{max(run.worst for run in runs):,.0f}",
        middle(lambda run: run.client_cpu),
        middle(lambda run: run.server_cpu),
        f"{max(run.peak_mb for run in runs):,.0f}",
        str(max(run.unseen for run in runs)),
        verdict(sum(run.wrong for run in runs)),
    )


def verdict(wrong: int) -> str:
    """Say whether the final state is right."""
    return f"WRONG: {wrong:,}" if wrong else "equal"


def _by_contender(runs: Sequence[R]) -> list[tuple[str, list[R]]]:
    names = dict.fromkeys(run.contender for run in runs)
    return [(name, [run for run in runs if run.contender == name]) for name in names]


def table(header: Row, rows: Sequence[Row]) -> str:
    """Lay a Markdown table out so that it also reads well on a terminal."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * width for width in widths]
    return "\n".join(_line(row, widths) for row in (header, rule, *rows))


def _line(row: Row, widths: Sequence[int]) -> str:
    cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
    return f"| {' | '.join([row[0].ljust(widths[0]), *cells[1:]])} |"


def machine() -> dict[str, str]:
    """Tell what the figures depend on: machine, versions, commit."""
    return {
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "distributary": version("distributary"),
        "Python": platform.python_version(),
        "pymongo": version("pymongo"),
        "mongod": _mongod_version(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": f"{os.cpu_count()} x {_first('/proc/cpuinfo', 'model name')}",
        "memory": _first("/proc/meminfo", "MemTotal"),
        "load average before": f"{os.getloadavg()[0]:.2f}",
    }


class Stolen:
    """The share of the CPU time that the host of a virtual machine has kept from it since then."""

    def __init__(self) -> None:
        self._before = self._fields()

    def percent(self) -> float:
        """Give it in percent of the time that was used or wanted."""
        idle, waiting, stolen = 3, 4, 7
        spent = [now - before for now, before in zip(self._fields(), self._before, strict=True)]
        return 100 * spent[stolen] / max(1, sum(spent) - spent[idle] - spent[waiting])

    @staticmethod
    def _fields() -> list[int]:
        return [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]


def _commit() -> str:
    answer = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.stdout.strip() or "none"


def _mongod_version() -> str:
    answer = subprocess.run([find_mongod(), "--version"], capture_output=True, text=True, check=True)
    return answer.stdout.split()[2]


def _first(path: str, name: str) -> str:
    lines = Path(path).read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "unknown")


def text(about: Mapping[str, str], results: Results) -> str:
    """Give the whole result as Markdown."""
    parts = ["\n".join(f"- {name}: {value}" for name, value in about.items())]
    if results.catchup:
        parts += ["## Catch-up", catchup_table(results.catchup), ratio_table(results.catchup)]
    if results.latency:
        parts += ["## Steady state", latency_table(results.latency)]
    return "\n\n".join(filter(None, parts)) + "\n"


def save(about: Mapping[str, str], results: Results) -> Path:
    """Write the result as JSON, every run in it, and as Markdown; gives the Markdown file."""
    return keep(about, text(about, results), asdict(results))


def keep(about: Mapping[str, str], shown: str, runs: Mapping[str, object], name: str = "") -> Path:
    """Write what is shown as Markdown and the runs as JSON; `name` is what was measured."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{about['taken'][:19].replace(':', '')}{name and f'-{name}'}.md"
    path.write_text(f"# Benchmark of {about['taken']}\n\n{shown}")
    path.with_suffix(".json").write_text(json.dumps({"about": about, **runs}, indent=1) + "\n")
    return path
