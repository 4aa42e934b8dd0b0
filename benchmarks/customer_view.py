"""`python benchmarks/customer_view.py`: what the unified customer view costs, and what it gives.

A shop is derived by the shipped retail modules, once with the view (`customer`) and once without it, on one server.
Both catch up with changes of orders in turns, so that the difference is the view's. Then customers are read from the
view and, for the same answer, from the raw collections. With `--long-list`, one item is changed in long lists instead.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import click
from pymongo import MongoClient

from benchmarks import long_list, process, reads
from benchmarks.contenders import DISTRIBUTARY
from benchmarks.long_list import SHORT, Cost
from benchmarks.process import ROOT
from benchmarks.reads import Reads
from benchmarks.report import Stolen, keep, machine, rates_row, ratio_row, table, verdict
from benchmarks.server import Server, serve
from benchmarks.shop import Shop
from benchmarks.sides import VIEW, Side, Verified, both, verify
from benchmarks.workload import FAST, RAW, Document, apply

#: Megabytes of history: all of what both workers write, so that nobody loses the position.
HISTORY_MB = 49_000

#: Raw collections and derived ones whose sizes are told, with the name of the database.
SIZED = ((RAW, "users"), (RAW, "orders"), ("derived", VIEW), ("state", f"parts/{VIEW}"))

Client = MongoClient[Document]


@dataclass(frozen=True)
class Backfill:
    """A worker's first run, from start to end."""

    side: str
    documents: int
    seconds: float
    peak_mb: float


@dataclass(frozen=True)
class CatchUp:
    """A worker's catch-up: seconds from the start of tailing to the last commit, CPU seconds of whole lives."""

    side: str
    round: int
    changes: int
    touched: int
    seconds: float
    client_cpu: float
    server_cpu: float
    peak_mb: float

    @property
    def rate(self) -> float:
        """Changes per second."""
        return self.changes / self.seconds

    @property
    def per_customer(self) -> float:
        """Microseconds per touched customer."""
        return 1e6 * self.seconds / self.touched

    @property
    def cpu_per_customer(self) -> float:
        """Microseconds of CPU time, of worker and server, per touched customer."""
        return 1e6 * (self.client_cpu + self.server_cpu) / self.touched


@dataclass(frozen=True)
class Size:
    """What a collection takes, in bytes."""

    collection: str
    documents: int
    average: int
    largest: int
    size: int
    stored: int
    indexes: int


@dataclass(frozen=True)
class Plan:
    """How much is measured, and how often."""

    modules: Path
    customers: int
    orders: int
    changes: int
    rounds: int
    reads: int
    sample: int
    commits: int


@dataclass
class Results:
    """Every run."""

    backfills: list[Backfill] = field(default_factory=list)
    catchups: list[CatchUp] = field(default_factory=list)
    sizes: list[Size] = field(default_factory=list)
    read: Reads | None = None
    costs: list[Cost] = field(default_factory=list)
    verified: list[Verified] = field(default_factory=list)

    @property
    def wrong(self) -> int:
        """How much was wrong: what a verification complains of, and answers that are not the same."""
        return sum(each.wrong for each in self.verified) + (self.read.wrong if self.read else 0)


# --- measuring ----------------------------------------------------------------------------------------------


def measure_view(plan: Plan, folder: Path) -> Results:
    """Load the shop and measure all but long lists."""
    results, shop = Results(), Shop(plan.customers)
    sides = both(plan.modules, folder / "without")
    with _serving(folder) as server, MongoClient[Document](server.uri) as client:
        shop.load(client[RAW], plan.orders)
        _say("loaded")
        results.backfills = [_backfill(side, client, server) for side in sides]
        for number in range(1, plan.rounds + 1):
            for side in sides if number % 2 else sides[::-1]:
                results.catchups.append(_catch_up(side, number, plan.changes, shop, client, server))
        for side in sides:
            side.catch_up(server.uri)
        results.sizes = _sizes(client)
        results.read = reads.measure(client[RAW], client["derived"], shop.customers, plan.reads)
        _say("read")
        results.verified = [verify(side, server.uri, plan.sample) for side in sides]
    return results


def measure_long_list(plan: Plan, folder: Path) -> Results:
    """Measure what one more item costs in long lists."""
    results = Results()
    side, _ = both(plan.modules, folder / "without")
    with _serving(folder) as server, MongoClient[Document](server.uri) as client:
        for cost in long_list.measure(client, server.uri, side, plan.commits):
            _say(f"{cost.act}, {cost.items:,} items: {cost.milliseconds:,.0f} ms")
            results.costs.append(cost)
        results.verified = [verify(side, server.uri, 0)]
    return results


def _serving(folder: Path) -> Any:
    return serve(folder / "data", ["--oplogSize", str(HISTORY_MB)])


def _backfill(side: Side, client: Client, server: Server) -> Backfill:
    documents = sum(client[RAW][name].estimated_document_count() for name in ("users", "products", "orders"))
    finished = side.catch_up(server.uri)
    found = Backfill(side.name, documents, finished.ended - finished.started, finished.peak_mb)
    _say(f"backfill {side.name}: {found.documents / found.seconds:,.0f} documents/s")
    return found


def _catch_up(side: Side, number: int, changes: int, shop: Shop, client: Client, server: Server) -> CatchUp:
    """Write changes for this side; what was written for the other one, and by it, is passed before that."""
    side.catch_up(server.uri)
    block = shop.changes(changes)
    apply(block.operations, client[RAW]["orders"].with_options(write_concern=FAST))
    before = process.cpu_seconds(server.pid)
    finished = side.catch_up(server.uri)
    used = process.cpu_seconds(server.pid) - before
    seconds, touched = DISTRIBUTARY.tailing(finished), len(block.touched)
    found = CatchUp(side.name, number, changes, touched, seconds, finished.cpu, used, finished.peak_mb)
    _say(f"catch-up, round {number}, {side.name}: {found.rate:,.0f} changes/s")
    return found


def _sizes(client: Client) -> list[Size]:
    client.admin.command("fsync")
    return [_size(client, database, name) for database, name in SIZED]


def _size(client: Client, database: str, name: str) -> Size:
    stats = client[database].command("collStats", name)
    most: list[Document] = [{"$group": {"_id": None, "bytes": {"$max": {"$bsonSize": "$$ROOT"}}}}]
    largest = sum(int(each["bytes"]) for each in client[database][name].aggregate(most))
    figures = (int(stats[key]) for key in ("size", "storageSize", "totalIndexSize"))
    return Size(f"{database}.{name}", int(stats["count"]), int(stats.get("avgObjSize", 0)), largest, *figures)


# --- telling ------------------------------------------------------------------------------------------------


def shown(about: Mapping[str, str], results: Results) -> str:
    """Give the whole result as Markdown."""
    parts = ["\n".join(f"- {name}: {value}" for name, value in about.items())]
    if results.catchups:
        parts += ["## Backfill", _backfills(results.backfills)]
        parts += ["## Catch-up", _catchups(results.catchups), _view(results.catchups)]
        parts += ["## Size", _sized(results.sizes)]
    if results.read:
        parts += ["## Reading one customer", _reads(results.read)]
    if results.costs:
        parts += ["## One item in a long list", _long_list(results.costs)]
    parts += ["## Verification", _verified(results.verified)]
    return "\n\n".join(parts) + "\n"


def _backfills(runs: Sequence[Backfill]) -> str:
    header = ("modules", "documents", "seconds", "documents/s", "peak MB")
    rows = [
        (
            run.side,
            f"{run.documents:,}",
            f"{run.seconds:,.0f}",
            f"{run.documents / run.seconds:,.0f}",
            f"{run.peak_mb:,.0f}",
        )
        for run in runs
    ]
    return table(header, rows)


def _catchups(runs: Sequence[CatchUp]) -> str:
    header = (
        "modules",
        "changes",
        "rounds",
        "changes/s",
        "min..max",
        "client µs/change",
        "server µs/change",
        "touched customers",
        "µs/touched customer",
        "peak MB",
    )
    names = dict.fromkeys(run.side for run in runs)
    return table(header, [_catchup_row(name, [run for run in runs if run.side == name]) for name in names])


def _catchup_row(name: str, runs: Sequence[CatchUp]) -> Sequence[str]:
    def middle(figure: Callable[[CatchUp], float]) -> str:
        return f"{median(map(figure, runs)):,.0f}"

    return (
        *rates_row(name, runs[0].changes, [run.rate for run in runs]),
        middle(lambda run: 1e6 * run.client_cpu / run.changes),
        middle(lambda run: 1e6 * run.server_cpu / run.changes),
        middle(lambda run: run.touched),
        middle(lambda run: run.per_customer),
        f"{max(run.peak_mb for run in runs):,.0f}",
    )


def _view(runs: Sequence[CatchUp]) -> str:
    """Give what the view alone costs, round by round."""
    name, bare = dict.fromkeys(run.side for run in runs)
    of = {(run.side, run.round): run for run in runs}
    rounds = sorted({run.round for run in runs})
    ratios = [of[name, each].rate / of[bare, each].rate for each in rounds]
    header = ("the view alone", *(f"round {each}" for each in rounds), "median")

    def added(figure: Callable[[CatchUp], float]) -> Sequence[str]:
        differences = [figure(of[name, each]) - figure(of[bare, each]) for each in rounds]
        return [f"{each:,.0f}" for each in (*differences, median(differences))]

    rows = [
        ratio_row(f"changes/s, {name} / {bare}", ratios),
        ("µs/touched customer, added", *added(lambda run: run.per_customer)),
        ("CPU µs/touched customer, added", *added(lambda run: run.cpu_per_customer)),
    ]
    return table(header, rows)


def _sized(sizes: Sequence[Size]) -> str:
    header = ("collection", "documents", "average B", "largest B", "data MB", "on disk MB", "indexes MB")
    rows = [
        (
            each.collection,
            *(f"{figure:,}" for figure in (each.documents, each.average, each.largest)),
            *(f"{figure / 1e6:,.1f}" for figure in (each.size, each.stored, each.indexes)),
        )
        for each in sizes
    ]
    return table(header, rows)


def _reads(found: Reads) -> str:
    header = ("read", "customers", "p50 ms", "p99 ms", "max ms", "p50 / that of the view", "final state")
    first = found.ways[0]
    rows = [
        (
            each.name,
            f"{each.reads:,}",
            *(f"{figure:.2f}" for figure in (each.p50, each.p99, each.worst, each.p50 / first.p50)),
            verdict(found.wrong),
        )
        for each in found.ways
    ]
    return table(header, rows)


def _long_list(costs: Sequence[Cost]) -> str:
    header = (
        "commit",
        "of items",
        "ms",
        f"ms with {SHORT} items",
        "ratio",
        "document KB",
        "history KB/commit",
        "peak MB",
    )
    rows = [
        (
            each.act,
            f"{each.items:,}",
            *(f"{figure:.1f}" for figure in (each.milliseconds, each.beside)),
            f"{each.milliseconds / each.beside:.2f}",
            *(f"{figure / 1000:,.1f}" for figure in (each.document, each.history)),
            f"{each.peak_mb:,.0f}",
        )
        for each in costs
    ]
    return table(header, rows)


def _verified(found: Sequence[Verified]) -> str:
    header = ("modules", "documents", "records", "compared", "final state")
    rows = [
        (
            each.side,
            f"{each.documents:,}",
            f"{each.records:,}",
            "a sample" if each.sampled else "all",
            verdict(each.wrong),
        )
        for each in found
    ]
    return table(header, rows)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@click.command(context_settings={"show_default": True})
@click.option("--transformers", default=ROOT / "transformers", type=click.Path(path_type=Path, exists=True))
@click.option("--customers", default=100_000)
@click.option("--orders", default=1_000_000)
@click.option("--changes", default=50_000, help="Changes to catch up with, in each round for each side.")
@click.option("--rounds", default=3, help="Catch-up rounds; the sides alternate within a round.")
@click.option("--reads", "read", default=2_000, help="Customers that are read.")
@click.option(
    "--sample", default=20_000, help="Documents and records of each collection to verify; 0: all of them."
)
@click.option("--long-list", "long", is_flag=True, help="Measure changes of one item in a long list instead.")
@click.option("--commits", default=30, help="Commits of each kind with --long-list.")
@click.option("--save", "kept", is_flag=True, help="Keep the result in benchmarks/results.")
def main(
    *,
    transformers: Path,
    customers: int,
    orders: int,
    changes: int,
    rounds: int,
    read: int,
    sample: int,
    long: bool,
    commits: int,
    kept: bool,
) -> None:
    """Measure the unified customer view of the retail domain; ends with 1 when anything was wrong."""
    plan = Plan(transformers, customers, orders, changes, rounds, read, sample, commits)
    about, since = machine(), Stolen()
    with tempfile.TemporaryDirectory(prefix="distributary-bench-") as folder:
        results = (measure_long_list if long else measure_view)(plan, Path(folder))
    about["stolen meanwhile"] = f"{since.percent():.0f}% of the CPU time"
    if not long:
        about["shop"] = f"{customers:,} customers, {orders:,} orders"
    text = shown(about, results)
    print(text)
    if kept:
        name = "long-list" if long else "customer-view"
        print(f"Saved as {keep(about, text, asdict(results), name)}")
    sys.exit(1 if results.wrong else 0)


if __name__ == "__main__":
    main()
