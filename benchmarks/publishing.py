"""`python benchmarks/publishing.py`: what it costs to publish every derived record, and what an outage costs.

The same backlog of changes is caught up with in turns, with the transform module as it is and with a copy of it that
publishes every derived collection to Google's emulator. Then a worker follows a steady load while Pub/Sub is there,
while it is away, and while it is away for so long that the outbox is full.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from statistics import median

import click
from pymongo import MongoClient

from benchmarks import catchup, latency, outage, process, sides
from benchmarks.contenders import logged
from benchmarks.emulator import Emulator, emulating
from benchmarks.latency import Load
from benchmarks.outage import Case
from benchmarks.process import ROOT, Finished
from benchmarks.report import Stolen, keep, machine, rates_row, ratio_row, table, verdict
from benchmarks.server import Server, fresh
from benchmarks.sides import Side
from benchmarks.subscriber import PROJECT, Subscriber, subscribing
from benchmarks.workload import DERIVED, Document

JOBS = ("catchup", "outage")
MODULES = ROOT / "benchmarks" / "transformers"
STATE = "distributary"

SILENT, PUBLISHING = "as they are", "publishing"


@dataclass(frozen=True)
class CatchUp:
    """A catch-up: seconds since the start of tailing, CPU seconds of whole lives.

    `committed` is when the last derived record was committed, `seconds` when all was published, too. `wrong` is what
    the verification complains of, and `wrong_events` counts the records that who applies the events has otherwise.
    """

    side: str
    round: int
    changes: int
    committed: float
    seconds: float
    events: int
    repeated: int
    waited: int
    client_cpu: float
    server_cpu: float
    emulator_cpu: float
    peak_mb: float
    wrong: int
    wrong_events: int

    @property
    def rate(self) -> float:
        """Changes per second, everything published."""
        return self.changes / self.seconds


@dataclass(frozen=True)
class Plan:
    """How much is measured, and how often."""

    jobs: Sequence[str]
    changes: int
    rounds: int
    sample: int
    load: Load
    settings: Mapping[str, str]


@dataclass
class Results:
    """Every run."""

    catchups: list[CatchUp] = field(default_factory=list)
    outages: list[outage.Run] = field(default_factory=list)

    @property
    def wrong(self) -> int:
        """How much was wrong, in derived collections and with who applies the events."""
        runs: list[CatchUp | outage.Run] = [*self.catchups, *self.outages]
        return sum(run.wrong + run.wrong_events for run in runs)


# --- measuring ----------------------------------------------------------------------------------------------


def measure(plan: Plan, folder: Path) -> Results:
    """Run every job that is planned."""
    results = Results()
    modules = sides.publishing(MODULES, folder / "modules")
    silent = Side(SILENT, MODULES, DERIVED, STATE)
    publishing = Side(PUBLISHING, modules, DERIVED, STATE, {"DISTRIBUTARY_PUBSUB__PROJECT": PROJECT})
    if "catchup" in plan.jobs:
        results.catchups = list(_catch_ups(plan, (silent, publishing), folder))
    if "outage" in plan.jobs:
        results.outages = list(_outages(plan, publishing, folder))
    return results


def _catch_ups(plan: Plan, both: Sequence[Side], folder: Path) -> Iterator[CatchUp]:
    backlog = catchup.load(folder / "backlog", plan.changes)
    _say("loaded")
    for number in range(1, plan.rounds + 1):
        for side in both if number % 2 else both[::-1]:
            run = _catch_up(side, number, backlog, plan.sample, folder)
            _say(f"catch-up, round {number}, {side.name}: {run.rate:,.0f} changes/s")
            yield run


def _catch_up(side: Side, number: int, backlog: catchup.Backlog, sample: int, folder: Path) -> CatchUp:
    """Let a worker catch up on a copy of the backlog; it starts where the backlog begins."""
    settings = {**side.settings, "DISTRIBUTARY_WORKER__START": backlog.template.token}
    with fresh(backlog.template, folder / "data") as server, _pubsub(side, folder) as pubsub:
        if pubsub is not None:
            settings["PUBSUB_EMULATOR_HOST"] = pubsub.emulator.host
        return _caught_up(replace(side, settings=settings), number, backlog.changes, sample, server, pubsub)


@dataclass(frozen=True)
class PubSub:
    """An emulator, and who gets what is published there."""

    emulator: Emulator
    subscriber: Subscriber


@contextmanager
def _pubsub(side: Side, folder: Path) -> Iterator[PubSub | None]:
    """Run an emulator for a side that publishes."""
    if side.name == SILENT:
        yield None
        return
    with emulating(folder / "emulator") as emulator, subscribing(emulator.host) as subscriber:
        yield PubSub(emulator, subscriber)


def _caught_up(
    side: Side, number: int, changes: int, sample: int, server: Server, pubsub: PubSub | None
) -> CatchUp:
    pids = [server.pid, *([pubsub.emulator.pid] if pubsub else [])]
    before = [process.cpu_seconds(pid) for pid in pids]
    finished = side.catch_up(server.uri)
    used = [process.cpu_seconds(pid) - was for pid, was in zip(pids, before, strict=True)]
    events, repeated, wrong_events = _told(server, pubsub) if pubsub else (0, 0, 0)
    committed, seconds = _times(finished, server)
    return CatchUp(
        side=side.name,
        round=number,
        changes=changes,
        committed=committed,
        seconds=seconds,
        events=events,
        repeated=repeated,
        waited=len(logged(finished.output).get("waiting for publishing", ())),
        client_cpu=finished.cpu,
        server_cpu=used[0],
        emulator_cpu=sum(used[1:]),
        peak_mb=finished.peak_mb,
        wrong=sides.verify(side, server.uri, sample, built=False).wrong,
        wrong_events=wrong_events,
    )


def _told(server: Server, pubsub: PubSub) -> tuple[int, int, int]:
    """Give how many events were published, how often one again, and how many records they tell wrong."""
    subscriber = pubsub.subscriber
    subscriber.drain()
    with MongoClient[Document](server.uri) as client:
        return subscriber.messages, subscriber.repeated, subscriber.wrong(client[DERIVED])


def _times(finished: Finished, server: Server) -> tuple[float, float]:
    """Give the seconds from the start of tailing until the last record was committed, and until all was done."""
    at = logged(finished.output)
    start = at["tailing"][-1]
    return (_last_commit(server) - start).total_seconds(), (at["caught up"][-1] - start).total_seconds()


def _last_commit(server: Server) -> datetime:
    """Give the time of the last transaction that wrote a derived record, from the server's oplog."""
    with MongoClient[Document](server.uri, tz_aware=True) as client:
        query = {"o.applyOps.ns": {"$regex": rf"^{DERIVED}\."}}
        last = client["local"]["oplog.rs"].find(query, {"wall": 1}).sort("$natural", -1).limit(1)
        found: datetime = last.next()["wall"]
        return found


def _outages(plan: Plan, side: Side, folder: Path) -> Iterator[outage.Run]:
    template = latency.empty(folder / "empty")
    cases = (
        Case("there", away=False, settings={}),
        Case("away", away=True, settings={}),
        Case("away, small outbox", away=True, settings=plan.settings),
    )
    for number, case in enumerate(cases):
        place = folder / f"outage-{number}"
        place.mkdir()
        run = outage.measure(case, side, template, plan.load, place)
        _say(f"Pub/Sub {case.name}: {run.waiting:,} events waiting, peak {run.peak_mb:,.0f} MB")
        yield run


# --- telling ------------------------------------------------------------------------------------------------


def shown(about: Mapping[str, str], results: Results) -> str:
    """Give the whole result as Markdown."""
    parts = ["\n".join(f"- {name}: {value}" for name, value in about.items())]
    if results.catchups:
        parts += ["## Catch-up", _catchups(results.catchups), _ratios(results.catchups)]
        parts += [_events(results.catchups)]
    if results.outages:
        parts += ["## Outage", _loads(results.outages), _recoveries(results.outages)]
    return "\n\n".join(parts) + "\n"


def _catchups(runs: Sequence[CatchUp]) -> str:
    header = (
        "modules",
        "changes",
        "rounds",
        "changes/s",
        "min..max",
        "to the last commit",
        "client µs/change",
        "server µs/change",
        "emulator µs/change",
        "peak MB",
        "final state",
    )
    return table(header, [_catchup_row(name, _of(name, runs)) for name in (SILENT, PUBLISHING)])


def _catchup_row(name: str, runs: Sequence[CatchUp]) -> Sequence[str]:
    def middle(figure: Callable[[CatchUp], float]) -> str:
        return f"{median(map(figure, runs)):,.0f}"

    return (
        *rates_row(name, runs[0].changes, [run.rate for run in runs]),
        middle(lambda run: run.changes / run.committed),
        middle(lambda run: 1e6 * run.client_cpu / run.changes),
        middle(lambda run: 1e6 * run.server_cpu / run.changes),
        middle(lambda run: 1e6 * run.emulator_cpu / run.changes),
        f"{max(run.peak_mb for run in runs):,.0f}",
        verdict(sum(run.wrong for run in runs)),
    )


def _ratios(runs: Sequence[CatchUp]) -> str:
    """Give how many times as long it takes with publishing, round by round."""
    pairs = list(zip(_of(SILENT, runs), _of(PUBLISHING, runs), strict=True))
    header = ("publishing / as they are", *(f"round {silent.round}" for silent, _ in pairs), "median")

    def row(name: str, figure: Callable[[CatchUp], float]) -> Sequence[str]:
        return ratio_row(name, [figure(publishing) / figure(silent) for silent, publishing in pairs])

    rows = [
        row("time until all is published", lambda run: run.seconds),
        row("time to the last commit", lambda run: run.committed),
        row("client CPU", lambda run: run.client_cpu),
        row("server CPU", lambda run: run.server_cpu),
    ]
    return table(header, rows)


def _events(runs: Sequence[CatchUp]) -> str:
    header = (
        "events",
        "per change",
        "events/s",
        "min..max",
        "repeated",
        "times waited",
        "emulator µs/event",
        "subscriber",
    )
    of = _of(PUBLISHING, runs)
    rates = [run.events / run.seconds for run in of]
    row = (
        f"{median(run.events for run in of):,.0f}",
        f"{median(run.events / run.changes for run in of):.2f}",
        f"{median(rates):,.0f}",
        f"{min(rates):,.0f}..{max(rates):,.0f}",
        f"{sum(run.repeated for run in of):,}",
        f"{sum(run.waited for run in of):,}",
        f"{median(1e6 * run.emulator_cpu / max(1, run.events) for run in of):,.0f}",
        verdict(sum(run.wrong_events for run in of)),
    )
    return table(header, [row])


def _of(name: str, runs: Sequence[CatchUp]) -> list[CatchUp]:
    return sorted((run for run in runs if run.side == name), key=lambda run: run.round)


def _loads(runs: Sequence[outage.Run]) -> str:
    header = (
        "Pub/Sub is",
        "seconds",
        "writes",
        "derived meanwhile",
        "p50 ms",
        "p99 ms",
        "outbox events",
        "outbox MB",
        "full after s",
        "peak MB",
    )
    rows = [
        (
            run.case,
            f"{run.seconds:,.0f}",
            f"{run.writes:,}",
            f"{100 * run.derived / run.writes:.1f}%",
            f"{run.p50:,.0f}",
            f"{run.p99:,.0f}",
            f"{run.waiting:,}",
            f"{run.waiting_mb:,.1f}",
            _seconds(run.full),
            f"{run.peak_mb:,.0f}",
        )
        for run in runs
    ]
    return table(header, rows)


def _recoveries(runs: Sequence[outage.Run]) -> str:
    header = (
        "Pub/Sub was",
        "first confirmed after s",
        "all published after s",
        "events",
        "repeated",
        "peak MB",
        "final state",
        "subscriber",
    )
    rows = [
        (
            run.case,
            _seconds(run.first),
            f"{run.published:,.1f}",
            f"{run.events:,}",
            f"{run.repeated:,}",
            f"{run.peak_after_mb:,.0f}",
            verdict(run.wrong),
            verdict(run.wrong_events),
        )
        for run in runs
    ]
    return table(header, rows)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@click.command(context_settings={"show_default": True})
@click.option("--job", "jobs", multiple=True, type=click.Choice(JOBS), default=JOBS, help="Repeatable.")
@click.option("--changes", default=100_000, help="Changes to catch up with.")
@click.option("--rounds", default=3, help="Catch-up rounds; the two alternate within a round.")
@click.option(
    "--sample", default=0, help="Documents and records of each collection to verify; 0: all of them."
)
@click.option("--rate", default=200, help="Writes per second while Pub/Sub is away.")
@click.option("--outage", "seconds", default=60, help="Seconds for which Pub/Sub is away.")
@click.option("--outbox-events", default=25_000, help="pubsub.outbox_events of the small outbox.")
@click.option("--outbox-bytes", default="1GiB", help="pubsub.outbox_bytes of the small outbox.")
@click.option("--save", "kept", is_flag=True, help="Keep the result in benchmarks/results.")
def main(
    *,
    jobs: Sequence[str],
    changes: int,
    rounds: int,
    sample: int,
    rate: int,
    seconds: int,
    outbox_events: int,
    outbox_bytes: str,
    kept: bool,
) -> None:
    """Measure what publishing every derived record costs; ends with 1 when anything was wrong."""
    settings = {
        "DISTRIBUTARY_PUBSUB__OUTBOX_EVENTS": str(outbox_events),
        "DISTRIBUTARY_PUBSUB__OUTBOX_BYTES": outbox_bytes,
    }
    plan = Plan(jobs, changes, rounds, sample, Load(rate, seconds), settings)
    about, since = machine(), Stolen()
    with tempfile.TemporaryDirectory(prefix="distributary-bench-") as folder:
        results = measure(plan, Path(folder))
    about["stolen meanwhile"] = f"{since.percent():.0f}% of the CPU time"
    about["small outbox"] = f"{outbox_events:,} events, {outbox_bytes}"
    text = shown(about, results)
    print(text)
    if kept:
        print(f"Saved as {keep(about, text, asdict(results), 'publishing')}")
    sys.exit(1 if results.wrong else 0)


if __name__ == "__main__":
    main()
