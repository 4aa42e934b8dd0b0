"""`python benchmarks/rolling.py`: how long nothing is derived while workers are replaced one by one under load.

As in Kubernetes: a new worker starts beside an active one and one that stands by, and once it stands by too, the
active one gets SIGTERM. See `README.md` here.
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import click
from pymongo import MongoClient

from benchmarks import latency, process
from benchmarks.contenders import logged
from benchmarks.latency import Reader, until
from benchmarks.process import ROOT
from benchmarks.report import Stolen, keep, machine, table, verdict
from benchmarks.server import serve
from benchmarks.sides import Side, verify
from benchmarks.workload import Document
from distributary.errors import Failed

#: How long a step of a replacement may take.
PATIENCE_SECONDS = 60.0

#: How long the load goes on between two replacements, and before the first, in seconds.
CALM_SECONDS = 3.0

#: Seconds that a replacement takes at most; the load goes on as long as all together, and ends with the last one.
MOST_SECONDS = 60

SIDE = Side("rolling", ROOT / "benchmarks" / "transformers", "derived", "distributary")


@dataclass(frozen=True)
class Run:
    """One replacement; times in milliseconds.

    `pause` is the longest time without a change of a derived collection, as who tails it sees it, `calm` the longest
    one in the seconds before. `left` is from SIGTERM to the end of the process, `tailing` until another one tails.
    """

    pause: float
    calm: float
    left: float
    tailing: float


@dataclass(frozen=True)
class Results:
    """Every replacement, and how many derived documents were wrong in the end."""

    runs: Sequence[Run]
    wrong: int


class Worker:
    """A worker as a process of its own."""

    def __init__(self, uri: str, log: Path) -> None:
        self._log = log
        with log.open("w") as output:
            self._process = subprocess.Popen(
                process.python("-m", "distributary", "run"),
                cwd=ROOT,
                env=process.surroundings(SIDE.environment(uri)),
                stdout=output,
                stderr=output,
            )

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def said(self, action: str) -> list[datetime]:
        """Give when it logged this; raises `ContenderFailed` when it has ended badly."""
        if self._process.poll():
            raise process.ContenderFailed(f"a worker ended:\n{self._log.read_text()[-4000:]}")
        return logged(self._log.read_text()).get(action, [])

    def await_said(self, action: str) -> datetime:
        """Wait until it logs this; gives when it first did."""
        if not until(lambda: bool(self.said(action)), PATIENCE_SECONDS):
            raise Failed(f"No worker said {action!r} within {PATIENCE_SECONDS:.0f} s.")
        return self.said(action)[0]

    def leave(self) -> float:
        """Send SIGTERM; gives the seconds until it has ended, with 0."""
        began = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(PATIENCE_SECONDS)
        if code:
            raise process.ContenderFailed(f"a worker ended with {code}:\n{self._log.read_text()[-4000:]}")
        return time.monotonic() - began

    def kill(self) -> None:
        """Kill it, if it still runs."""
        self._process.kill()
        self._process.wait()


class Crew:
    """The workers of one name: one is active, the others stand by."""

    def __init__(self, uri: str, client: MongoClient[Document], folder: Path, stack: ExitStack) -> None:
        self._uri = uri
        self._client = client
        self._folder = folder
        self._stack = stack
        self._workers: list[Worker] = []
        self._started = 0

    def start(self) -> Worker:
        """Start a worker, which ends with the stack at the latest."""
        self._started += 1
        worker = Worker(self._uri, self._folder / f"worker-{self._started}.log")
        self._stack.callback(worker.kill)
        self._workers.append(worker)
        return worker

    def replace(self, reader: Reader) -> Run:
        """Start one more, and stop the one that is active as soon as the new one stands by."""
        self.start().await_said("standing by")
        time.sleep(CALM_SECONDS)
        active = self._active()
        self._workers.remove(active)
        at, began = datetime.now(UTC), time.monotonic_ns()
        left = active.leave()
        tailing = min(worker.await_said("tailing") for worker in self._next())
        if not until(lambda: _shows(reader, began), PATIENCE_SECONDS):
            raise Failed("Nothing was derived behind a replacement.")
        seen = sorted(set(reader.seen.values()))
        calm = [each for each in seen if each < began]
        return Run(
            pause=_longest([each for each in seen if each >= calm[-1]]),
            calm=_longest([each for each in calm if each > began - CALM_SECONDS * 1e9]),
            left=1000 * left,
            tailing=1000 * (tailing - at).total_seconds(),
        )

    def _next(self) -> list[Worker]:
        """Give the worker that took over, once one did."""
        if not until(lambda: self._holder() in self._pids(), PATIENCE_SECONDS):
            raise Failed("No worker took over.")
        return [worker for worker in self._workers if worker.pid == self._holder()]

    def _active(self) -> Worker:
        return next(worker for worker in self._workers if worker.pid == self._holder())

    def _pids(self) -> set[int]:
        return {worker.pid for worker in self._workers}

    def _holder(self) -> int:
        lease = self._client[SIDE.state]["leases"].find_one({}) or {}
        return int((lease.get("holder") or ":0:").split(":")[1])


def _shows(reader: Reader, began: int) -> bool:
    """Whether changes were seen that were written a second behind the begin, so that the pause is over."""
    return any(sent > began + 1e9 for sent in list(reader.seen))


def _longest(times: Sequence[int]) -> float:
    """Give the longest time between two of these moments, in milliseconds."""
    return max(later - earlier for earlier, later in pairwise(times)) / 1e6


def measure(rounds: int, rate: int, folder: Path) -> Results:
    """Replace workers so often, under so many writes per second, and compare what is derived in the end."""
    producer = process.python("-m", "benchmarks.producer")
    with (
        serve(folder / "data") as server,
        MongoClient[Document](server.uri) as client,
        ExitStack() as stack,
    ):
        crew = Crew(server.uri, client, folder, stack)
        crew.start().await_said("tailing")
        crew.start().await_said("standing by")
        latency.await_tailing(SIDE.name, client)
        load = [*producer, server.uri, str(rate), str(rounds * MOST_SECONDS)]
        with Reader(client) as reader, process.running(load, {}):
            runs = [crew.replace(reader) for _ in range(rounds)]
        wrong = latency.differences_left(client)
        return Results(runs, wrong + verify(SIDE, server.uri, 0).wrong)


def shown(about: dict[str, str], results: Results) -> str:
    """Give the result as Markdown."""
    names = ("pause ms", "calm ms", "SIGTERM to end ms", "SIGTERM to tailing ms")
    columns = list(zip(*(asdict(run).values() for run in results.runs), strict=True))
    rows = [
        (name, *(f"{each:,.0f}" for each in column), f"{median(column):,.0f}")
        for name, column in zip(names, columns, strict=True)
    ]
    header = ("replacement", *(str(number) for number in range(1, len(results.runs) + 1)), "median")
    lines = "\n".join(f"- {name}: {value}" for name, value in about.items())
    return f"{lines}\n\n{table(header, rows)}\n\nfinal state: {verdict(results.wrong)}\n"


@click.command(context_settings={"show_default": True})
@click.option("--rounds", default=7, help="Replacements.")
@click.option("--rate", default=200, help="Writes per second.")
@click.option("--save", "kept", is_flag=True, help="Keep the result in benchmarks/results.")
def main(*, rounds: int, rate: int, kept: bool) -> None:
    """Measure the pause of a rolling replacement; ends with 1 when the final state was wrong."""
    about, since = machine(), Stolen()
    with tempfile.TemporaryDirectory(prefix="distributary-bench-") as folder:
        results = measure(rounds, rate, Path(folder))
    about |= {"stolen meanwhile": f"{since.percent():.0f}% of the CPU time", "writes per second": str(rate)}
    text = shown(about, results)
    print(text)
    if kept:
        print(f"Saved as {keep(about, text, json.loads(json.dumps(asdict(results))), 'rolling')}")
    sys.exit(1 if results.wrong else 0)


if __name__ == "__main__":
    main()
