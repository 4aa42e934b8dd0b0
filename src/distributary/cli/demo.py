"""`distributary demo`: everything on this machine, from raw documents to a verified answer."""

import json
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from threading import Event
from typing import Any, NamedTuple

import click
from bson import Timestamp
from rich import box
from rich.console import Console
from rich.table import Table

from distributary.cli.common import console as console_of
from distributary.cli.common import emit_json, json_option, progress
from distributary.cli.play import PLAYS, Play, Query
from distributary.cli.stage import (
    DERIVED,
    LOOK_SECONDS,
    RAW,
    STATE,
    Stage,
    Worker,
    configuration,
    ending_on_sigterm,
    examples,
    open_stage,
    without_configuration,
)
from distributary.errors import Failed
from distributary.sample import retail
from distributary.sample.people import SEED
from distributary.state import BEGINNING
from distributary.store.outbox import OUTBOX


@click.command("demo")
@click.option(
    "--domain",
    type=click.Choice(list(PLAYS)),
    default="retail",
    show_default=True,
    help="Whose data: those of a shop, or those of an insurer.",
)
@click.option(
    "--scale",
    type=click.FloatRange(0, 100, min_open=True),
    default=1.0,
    show_default=True,
    help=f"Size of the data set; 1 is about {sum(retail.SIZES.values()):,} raw documents.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    default=5.0,
    show_default=True,
    help="How long to write while the worker follows.",
)
@click.option(
    "--rate", type=click.FloatRange(1), default=200.0, show_default=True, help="Live writes per second."
)
@click.option("--keep", is_flag=True, help="Keep everything running until Ctrl-C.")
@json_option
def command(*, domain: str, scale: float, seconds: float, rate: float, keep: bool, as_json: bool) -> None:
    """Show distributary at work on this machine, and leave nothing behind.

    Starts a private MongoDB and a worker, loads the raw documents of a shop or of an insurer, shows what is known
    about one customer before and after their day, writes for a few seconds, verifies the derived collections and asks
    them two questions.
    """
    console, play = console_of(stderr=as_json), PLAYS[domain]
    with ending_on_sigterm(), open_stage(console) as stage:
        worker = _started(stage, play, scale)
        result = _result(stage, play, worker, seconds, rate)
        if as_json:
            emit_json(result.as_json())
        else:
            _show(console, result)
        console.print(result.verdict)
        if keep:
            _keep(stage, worker)
    result.check()


# --- the play -----------------------------------------------------------------------------------------------


class Lag:
    """How long writes wait until the worker has committed them; `wrote` may be called in another thread."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Timestamp, float]] = deque()
        self.newest = BEGINNING
        self.writes = 0
        self.seconds: list[float] = []

    def wrote(self, _operation: str, at: Timestamp) -> None:
        """Note a write."""
        self._waiting.append((at, time.monotonic()))
        self.newest = at
        self.writes += 1

    def committed(self, position: Timestamp) -> float:
        """Note how far the worker is, and give the age in seconds of the oldest write still to come."""
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= position:
            self.seconds.append(now - self._waiting.popleft()[1])
        return now - self._waiting[0][1] if self._waiting else 0.0


class Day(NamedTuple):
    """A customer's day: what they did, the one document about them before it and after it, and events of it."""

    customer: str
    acts: list[str]
    before: dict[str, Any]
    after: dict[str, Any]
    events: Sequence[dict[str, Any]] = ()

    @property
    def shell(self) -> str:
        """The one read that gives all of it, as it is typed into mongosh."""
        return f"db.{VIEW}.findOne({json.dumps({'_id': self.customer})})"

    def as_json(self) -> dict[str, Any]:
        """Give its part of the answer to `--json`."""
        known = {"query": self.shell, "acts": self.acts, "before": self.before, "after": self.after}
        return {**known, "events": list(self.events)}

    @property
    def lines(self) -> Iterator[tuple[str, str, str]]:
        """Give what there is to see of the customer: its name, and what it was before and is after."""
        before, after = _flat(self.before), _flat(self.after)
        for name in after | before:
            yield name, before.get(name, ""), after.get(name, "")


#: The unified view of a customer.
VIEW = "customer"


@dataclass(frozen=True)
class Result:
    """What the demo has shown."""

    day: Day
    verification: dict[str, Any]
    collections: dict[str, int]
    live: dict[str, int]
    lag: list[float]
    answers: list[tuple[Query, list[dict[str, Any]]]]

    def as_json(self) -> dict[str, Any]:
        """Give the answer to `--json`."""
        return {
            "verification": self.verification,
            "collections": self.collections,
            "customer": self.day.as_json(),
            "live": self.live,
            "lag_seconds": {"median": median(self.lag), "max": max(self.lag)} if self.lag else None,
            "queries": [
                {"question": query.question, "query": query.shell, "answer": answer}
                for query, answer in self.answers
            ],
        }

    @property
    def verdict(self) -> str:
        """What was verified."""
        found = self.verification
        if not found["equal"]:
            kinds = ", ".join(f"{found[kind]:,} {kind}" for kind in ("missing", "stale", "orphaned"))
            return f"The derived collections differ from a recomputation: {kinds}."
        return (
            f"Verified: {found['records']:,} derived records in {len(self.collections)} collections"
            f" equal a recomputation from {found['documents']:,} raw documents."
        )

    def check(self) -> None:
        """Raise `Failed` when verification found differences."""
        if not self.verification["equal"]:
            cure = "That is a bug. Run the demo with --keep, and `verify` beside it names every difference."
            raise Failed(self.verdict, cure)


def _started(stage: Stage, play: Play, scale: float) -> Worker:
    """Give a worker that has derived the data set."""
    sizes = _load(stage, play, scale)
    text = configuration(stage.uri, examples() / play.folder, play.only)
    stage.config.write_text(text, encoding="utf-8")
    worker = Worker(stage)
    _backfill(stage, worker, sizes)
    return worker


def _result(stage: Stage, play: Play, worker: Worker, seconds: float, rate: float) -> Result:
    day = _day(stage, play, worker)
    live, lag = _live(stage, play, worker, seconds, rate)
    verification = _verify(stage)
    worker.check()
    answers = [(query, query.ask(stage.client)) for query in play.queries]
    return Result(day, verification, _counts(stage), live, lag.seconds, answers)


def _load(stage: Stage, play: Play, scale: float) -> dict[str, int]:
    started = time.monotonic()
    with progress("Loading raw data") as bar:
        sizes = play.sample.load(stage.client[RAW], scale, bar.update)
    parts = ", ".join(f"{size:,} {name}" for name, size in sizes.items())
    stage.console.print(f"Loaded {sum(sizes.values()):,} raw documents in {_since(started)}: {parts}")
    return sizes


def _backfill(stage: Stage, worker: Worker, sizes: Mapping[str, int]) -> None:
    started, whole = time.monotonic(), sum(sizes.values())
    with progress("Deriving from it", whole) as bar:
        for derived in worker.follow(lambda: worker.backfilled(sizes), lambda count: count == whole):
            bar.update(derived)
    records = sum(_counts(stage).values())
    stage.console.print(f"The worker started and derived {records:,} records from them in {_since(started)}")


def _day(stage: Stage, play: Play, worker: Worker) -> Day:
    """Let somebody have a day, and read what is known about them before it and once it was committed."""
    customer = play.sample.somebody(stage.client[RAW])
    before = _known(stage, customer)
    acts, times = zip(*play.sample.story(stage.client[RAW], customer), strict=True)
    written = time.monotonic()
    deque(worker.follow(lambda: worker.position, lambda position: position >= times[-1]), maxlen=0)
    seconds = time.monotonic() - written
    stage.console.print(
        f"Customer {customer} {', '.join(acts)}; {_milliseconds(seconds)} later it is derived"
    )
    events = _events(stage, play, worker, customer)
    return Day(customer, list(acts), before, _known(stage, customer), events)


def _events(stage: Stage, play: Play, worker: Worker, customer: str) -> list[dict[str, Any]]:
    """Give the events about a customer that wait to be published; in a domain that has events there is one soon."""

    def waiting() -> list[dict[str, Any]]:
        found = stage.client[STATE][OUTBOX].find({"topic": play.topic, "ordering_key": customer})
        return [{"topic": each["topic"], "data": json.loads(each["data"])["data"]} for each in found]

    if play.topic is None:
        return []
    *_, events = worker.follow(waiting, bool)
    for _ in events:
        stage.console.print(f"An event for {play.topic!r} waits in the outbox to be published")
    return events


def _known(stage: Stage, customer: str) -> dict[str, Any]:
    """Give the one document about a customer; empty if there is none."""
    return stage.client[DERIVED][VIEW].find_one({"_id": customer}, {"_src": False}) or {}


def _live(
    stage: Stage, play: Play, worker: Worker, seconds: float, rate: float
) -> tuple[dict[str, int], Lag]:
    """Write for a while, then wait until the worker has committed the last write."""
    lag, started = Lag(), time.monotonic()
    with _ticker(stage.console) as tell, _writing(stage, play, lag, rate) as (writes, stop):
        while (elapsed := time.monotonic() - started) < seconds and not writes.done():
            behind = _milliseconds(lag.committed(worker.position))
            tell(f"Writing: {lag.writes:,} changes, {lag.writes / (elapsed or 1):,.0f}/s, lag {behind}")
            worker.check()
            wait((writes,), LOOK_SECONDS)
        stop.set()
        counts = writes.result()
        for position in worker.follow(lambda: worker.position, lambda position: position >= lag.newest):
            tell(f"Catching up: lag {_milliseconds(lag.committed(position))}")
        lag.committed(worker.position)
    _tell_live(stage.console, counts, lag, elapsed)
    return counts, lag


@contextmanager
def _writing(
    stage: Stage, play: Play, lag: Lag, rate: float
) -> Iterator[tuple[Future[dict[str, int]], Event]]:
    """Give the live writes, in a thread of their own, and what stops them, on leaving at the latest."""
    stop = Event()
    with ThreadPoolExecutor(1, "live") as pool:
        try:
            yield pool.submit(play.sample.live, stage.client[RAW], SEED, stop, rate, lag.wrote), stop
        finally:
            stop.set()


def _tell_live(console: Console, counts: Mapping[str, int], lag: Lag, seconds: float) -> None:
    parts = ", ".join(f"{count:,} {operation}s" for operation, count in sorted(counts.items()))
    console.print(f"Wrote {lag.writes:,} changes in {seconds:.1f} s, {lag.writes / seconds:,.0f}/s: {parts}")
    if lag.seconds:
        middle, most = _milliseconds(median(lag.seconds)), _milliseconds(max(lag.seconds))
        console.print(f"The worker committed each of them within {middle} (median), {most} (longest)")


def _verify(stage: Stage) -> dict[str, Any]:
    """Give the answer of `verify --json`, which exits with 1 for differences and says which."""
    command_line = [sys.executable, "-m", "distributary", "verify", "--json", "--config", str(stage.config)]
    with stage.console.status("Verifying …"), without_configuration():
        done = subprocess.run(command_line, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        raise Failed(
            f"`verify` ended with exit status {done.returncode} and no answer: {done.stderr}"
        ) from error
    return found


def _counts(stage: Stage) -> dict[str, int]:
    derived = stage.client[DERIVED]
    return {name: derived[name].count_documents({}) for name in sorted(derived.list_collection_names())}


# --- what is shown ------------------------------------------------------------------------------------------


@contextmanager
def _ticker(console: Console) -> Iterator[Callable[[str], None]]:
    """Give what renews one line on a terminal, and prints a line a second elsewhere."""
    told = time.monotonic()

    def tell(line: str) -> None:
        nonlocal told
        status.update(line)
        if not console.is_terminal and time.monotonic() - told >= 1:
            console.print(line)
            told = time.monotonic()

    with console.status("") as status:
        yield tell


def _show(console: Console, result: Result) -> None:
    table = _table(console, "derived collection", "records")
    table.columns[1].justify = "right"
    for name, count in result.collections.items():
        table.add_row(name, f"{count:,}")
    console.print("", table, sep="\n")
    console.print("", "One customer in one read, before and after:", f"  {result.day.shell}", sep="\n")
    console.print(_before_and_after(console, result.day))
    for event in result.day.events:
        console.print("", f"An event for {event['topic']!r}:", _answer(console, [event["data"]]), sep="\n")
    for query, records in result.answers:
        console.print("", query.question, f"  {query.shell}", _answer(console, records), sep="\n")
    console.print()


def _answer(console: Console, records: list[dict[str, Any]]) -> Table:
    table = _table(console, *(records[0] if records else ["no record"]))
    for record in records:
        table.add_row(*map(_cell, record.values()))
    return table


def _before_and_after(console: Console, day: Day) -> Table:
    table = _table(console, "", "before", "after")
    for name, before, after in day.lines:
        table.add_row(name, before, after, style=None if before == after else "bold")
    return table


def _flat(document: Mapping[str, Any]) -> dict[str, str]:
    """Give a line for each field of a section, then for each item of a list, by a name that stays the same."""
    found: dict[str, str] = {}
    for name, value in sorted(document.items(), key=lambda each: isinstance(each[1], list)):
        if isinstance(value, dict):
            found |= {f"{name}.{field}": _cell(inner) for field, inner in value.items()}
        elif isinstance(value, list):
            found |= {f"{name} {_cell(item['_id'])}": _item(item) for item in value}
    return found


def _item(item: Mapping[str, Any]) -> str:
    return ", ".join(_cell(value) for name, value in item.items() if name != "_id")


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return _cell(list(value.values()))
    if isinstance(value, list):
        return " ".join(map(_cell, value))
    return f"{value:%Y-%m-%d %H:%M}" if isinstance(value, datetime) else str(value)


def _table(console: Console, *columns: str) -> Table:
    """Give an empty table, with lines in it on a terminal only."""
    return Table(*columns, box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False)


def _keep(stage: Stage, worker: Worker) -> None:
    """Tell what can be tried, and return on Ctrl-C."""
    name = click.get_current_context().find_root().command_path
    hints = [
        f"{name} status --config {stage.config}",
        f"{name} verify --config {stage.config}",
        f"mongosh '{stage.uri}'   (databases: {RAW}, {DERIVED}; state: {STATE})",
        f"tail -f {stage.log}",
    ]
    with suppress(KeyboardInterrupt):
        stage.console.print(
            f"MongoDB at {stage.uri} and the worker run until Ctrl-C. Try:", *hints, sep="\n  "
        )
        while True:
            worker.check()
            time.sleep(1)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms"


def _since(started: float) -> str:
    return f"{time.monotonic() - started:.1f} s"
