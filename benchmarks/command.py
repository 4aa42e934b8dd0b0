"""The benchmark's command line: which jobs, which contenders, how much, how often."""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click

from benchmarks import catchup, latency
from benchmarks.contenders import CONTENDERS
from benchmarks.report import Results, Stolen, machine, save, text

JOBS = ("catchup", "latency")
NAIVE = "naive"


@dataclass(frozen=True)
class Plan:
    """What is to be measured; the naive loop gets fewer changes, and no steady load: it cannot keep up."""

    jobs: Sequence[str]
    contenders: Sequence[str]
    rounds: int
    latency_rounds: int
    changes: int
    naive_changes: int
    load: latency.Load

    def changes_of(self, contender: str) -> int:
        """Give how many changes a contender catches up with."""
        return self.naive_changes if contender == NAIVE else self.changes


@click.command(context_settings={"show_default": True})
@click.option("--job", "jobs", multiple=True, type=click.Choice(JOBS), default=JOBS, help="Repeatable.")
@click.option(
    "--contender",
    "contenders",
    multiple=True,
    type=click.Choice(list(CONTENDERS)),
    default=list(CONTENDERS),
    help="Repeatable.",
)
@click.option("--rounds", default=3, help="Catch-up rounds; contenders alternate within a round.")
@click.option("--latency-rounds", default=1, help="Steady-state rounds.")
@click.option("--changes", default=100_000, help="Changes to catch up with.")
@click.option("--naive-changes", default=2_000, help="The same for the naive loop.")
@click.option("--rate", default=1_000, help="Operations per second in the steady state.")
@click.option("--seconds", default=20, help="How long the steady state lasts.")
@click.option(
    "--quick", is_flag=True, help="A small run that shows whether everything works; not for figures."
)
@click.option("--save", "keep", is_flag=True, help="Keep the result in benchmarks/results.")
def main(
    *,
    jobs: Sequence[str],
    contenders: Sequence[str],
    rounds: int,
    latency_rounds: int,
    changes: int,
    naive_changes: int,
    rate: int,
    seconds: int,
    quick: bool,
    keep: bool,
) -> None:
    """Measure distributary against hand-written loops; ends with 1 when a final state is wrong."""
    plan = Plan(jobs, contenders, rounds, latency_rounds, changes, naive_changes, latency.Load(rate, seconds))
    if quick:
        plan = replace(plan, rounds=1, changes=5_000, naive_changes=200, load=latency.Load(rate, 5))
    about, since = machine(), Stolen()
    with tempfile.TemporaryDirectory(prefix="distributary-bench-") as folder:
        results = measure(plan, Path(folder))
    about["stolen meanwhile"] = f"{since.percent():.0f}% of the CPU time"
    print(text(about, results))
    if keep:
        print(f"Saved as {save(about, results)}")
    sys.exit(1 if results.wrong else 0)


def measure(plan: Plan, folder: Path) -> Results:
    """Run every job that is planned."""
    results = Results()
    if "catchup" in plan.jobs:
        results.catchup = _catch_up(plan, folder)
    if "latency" in plan.jobs:
        results.latency = _latency(plan, folder)
    return results


def _catch_up(plan: Plan, folder: Path) -> list[catchup.Run]:
    sizes = {plan.changes_of(name) for name in plan.contenders}
    backlogs = {size: catchup.load(folder / f"backlog-{size}", size) for size in sizes}
    runs = []
    for number in range(1, plan.rounds + 1):
        for name in plan.contenders:
            backlog = backlogs[plan.changes_of(name)]
            run = catchup.measure(CONTENDERS[name], backlog, folder / "run", number)
            _say(f"catch-up, round {number}, {name}: {run.rate:,.0f} changes/s")
            runs.append(run)
    return runs


def _latency(plan: Plan, folder: Path) -> list[latency.Run]:
    template = latency.empty(folder / "empty")
    runs = []
    for number in range(1, plan.latency_rounds + 1):
        for name in plan.contenders:
            if name != NAIVE:
                run = latency.measure(CONTENDERS[name], template, plan.load, folder / "run", number)
                _say(f"steady state, round {number}, {name}: p99 {run.p99:,.0f} ms")
                runs.append(run)
    return runs


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
