"""`distributary status`: what the workers do, how far they are, and what was parked."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from distributary.assemble import connect, outbox_bounds, registry
from distributary.cli.common import config_option, console, emit_json, json_option, open_config
from distributary.config import Config
from distributary.derive.registry import Registry
from distributary.errors import ConfigurationError, Fault
from distributary.operate.condition import Condition
from distributary.operate.stages import stage_of
from distributary.operate.status import JobStatus, TriggersStatus, WorkerStatus, iso, workers
from distributary.state import JobKind
from distributary.store.outbox import Unpublished
from distributary.store.pending import PendingGroups
from distributary.store.processes import Process

#: Seconds between two looks of `--watch`.
WATCH_SECONDS = 2.0

_STYLES = {
    Condition.ACTIVE: "green",
    Condition.STUCK: "red",
    Condition.SILENT: "red",
    Condition.NEVER: "dim",
}


@click.command("status")
@config_option
@json_option
@click.option("--watch", is_flag=True, help="Look again every 2 seconds until Ctrl-C.")
def command(config_path: Path | None, as_json: bool, watch: bool) -> None:  # noqa: FBT001 - click passes flags
    """Show how each worker is, why, and what to do next; positions, lag, history headroom, transforms, jobs.

    A worker that has nothing to do saves its position only every `worker.idle_save_seconds`.
    """
    config = open_config(config_path)
    plugged, faults = _plugged(config)
    with connect(config) as databases:

        def look() -> list[WorkerStatus]:
            bounds = outbox_bounds(config.pubsub)
            return workers(databases.raw, databases.state, config.worker.name, plugged, bounds)

        looks = _repeated(look) if watch else iter([look()])
        with suppress(KeyboardInterrupt):
            _show(looks, faults, as_json=as_json, watch=watch)


def _plugged(config: Config) -> tuple[Registry | None, tuple[Fault, ...]]:
    """Load the transform modules, or say why they cannot be loaded."""
    try:
        return registry(config), ()
    except ConfigurationError as error:
        return None, error.faults


def _repeated(look: Callable[[], list[WorkerStatus]]) -> Iterator[list[WorkerStatus]]:
    while True:
        yield look()
        time.sleep(WATCH_SECONDS)


def _show(
    looks: Iterator[list[WorkerStatus]], faults: tuple[Fault, ...], *, as_json: bool, watch: bool
) -> None:
    """Show each look: as JSON, in place on a terminal, else one below the other."""
    out = console()
    if as_json:
        for found in looks:
            emit_json(_answer(found, faults))
    elif watch and out.is_terminal:
        with Live(console=out, auto_refresh=False) as live:
            for found in looks:
                live.update(_page(found, faults, out), refresh=True)
    else:
        for found in looks:
            out.print(_page(found, faults, out))


def _answer(found: Iterable[WorkerStatus], faults: Iterable[Fault]) -> dict[str, Any]:
    told = [{"place": each.place, "problem": each.problem, "cure": each.cure} for each in faults]
    return {"workers": [each.answer() for each in found], "module_faults": told}


# --- for people ---------------------------------------------------------------------------------------


def _page(found: Iterable[WorkerStatus], faults: tuple[Fault, ...], out: Console) -> RenderableType:
    lines: list[RenderableType] = []
    for each in found:
        lines += _worker(each, terminal=out.is_terminal)
    if faults:
        lines.append(Text("The transform modules cannot be loaded, so changed code is not seen:", "red"))
        lines += [Text(f"  {fault}") for fault in faults]
    return Group(*lines)


def _worker(status: WorkerStatus, *, terminal: bool) -> Iterator[RenderableType]:
    yield _headline(status)
    yield from _judgement(status)
    if status.position is not None and status.saved_at is not None:
        saved = f", saved {_ago(status.saved_at)}"
        yield Text(f"  position {iso(status.position.time)}{saved}; {_distance(status)}")
    if status.unknown:
        yield Text(f"  not known: {status.unknown}", "yellow")
    if status.transforms:
        yield _table(status, terminal=terminal)
    yield from (_job(each) for each in status.jobs)
    for each in status.slow:
        held = f"{each.transform} has been working on {each.source}[{each.key}] for {each.seconds:,.0f} s"
        yield Text(f"  held up: {held}", "red")
    if status.left_behind:
        named = ", ".join(status.left_behind)
        yield Text(
            f"  left behind: no transform names {named} any more; `distributary rebuild --drop-left-behind` drops"
            f" {'it' if len(status.left_behind) == 1 else 'them'}",
            "yellow",
        )
    if status.pending.groups:
        yield _pending(status.pending)
    yield from _triggers(status)
    for name, when in status.detached.items():
        yield Text(f"  source {name!r} is gone since {iso(when)}; its records are kept", "yellow")


def _pending(pending: PendingGroups) -> Text:
    failing = f", and {pending.failing:,} of them cannot be" if pending.failing else ""
    told = f"  rollups: groups that are still to be computed: {pending.groups:,}{failing}"
    return Text(told, "red" if failing else "")


def _triggers(status: WorkerStatus) -> Iterator[RenderableType]:
    """Tell how far triggers are, what they have not seen, and how many events wait."""
    if status.triggers is not None:
        names = ", ".join(status.triggers.names) or "none that is plugged in"
        at = iso(status.triggers.stream.position.time)
        yield Text(f"  triggers {names}: position {at}; {_distance(status.triggers)}")
        for gap in status.triggers.stream.gaps:
            yield Text(f"  unseen by triggers: changes from {iso(gap.since)} to {iso(gap.until)}", "red")
    yield from _outbox(status.outbox, waits=status.waits)


def _outbox(outbox: Unpublished, *, waits: bool) -> Iterator[Text]:
    if outbox.waiting:
        some = "event waits" if outbox.waiting == 1 else "events wait"
        since = f", the oldest since {iso(outbox.since)}" if outbox.since else ""
        full = "; the worker waits, too, until there is room" if waits else ""
        yield Text(
            f"  outbox: {outbox.waiting:,} {some} to be published{since}{full}", "red" if waits else ""
        )
        for topic, each in outbox.topics.items():
            if each.waiting:
                since = f", the oldest since {iso(each.since)}" if each.since else ""
                yield Text(f"    topic {topic}: {each.waiting:,}{since}")
    if outbox.refused:
        events = "event" if outbox.refused == 1 else "events"
        cure = "`distributary dead-letters list` shows them"
        yield Text(f"  outbox: {outbox.refused:,} {events} that cannot be published; {cure}", "red")


def _headline(status: WorkerStatus) -> Text:
    held = f", held by {status.holder}" if status.holder else ""
    text = Text(f"worker {status.name}: ", "bold")
    word = status.judgement.condition
    return text.append(word.value, _STYLES.get(word, "yellow")).append(held, "not bold")


def _judgement(status: WorkerStatus) -> Iterator[Text]:
    """Tell why the worker is as it is and what to do, and of the processes that do not hold the lease."""
    if status.judgement.why:
        yield Text(f"  why:  {status.judgement.why}", _STYLES.get(status.judgement.condition, "yellow"))
    if status.judgement.cure:
        yield Text(f"  next: {status.judgement.cure}")
    for each in status.processes:
        if each.name != status.holder:
            yield _process(each)


def _process(process: Process) -> Text:
    name = f"  process {process.name}".rstrip()
    if process.is_silent:
        return Text(f"{name}: silent for {timedelta(seconds=round(process.silent_seconds))}", "dim")
    answer = process.readyz if process.healthz["healthy"] else process.healthz
    return Text(f"{name}: {answer['reason']}")


def _distance(status: WorkerStatus | TriggersStatus) -> str:
    lag = "lag unknown" if status.lag_seconds is None else f"lag {timedelta(seconds=status.lag_seconds)}"
    if status.headroom_seconds is None:
        return f"{lag}, headroom unknown"
    if status.headroom_seconds < 0:
        return f"{lag}, position lost: the history no longer reaches it"
    return f"{lag}, headroom {timedelta(seconds=status.headroom_seconds)}"


def _ago(when: datetime) -> str:
    seconds = max(0, round((datetime.now(UTC) - when).total_seconds()))
    return f"{timedelta(seconds=seconds)} ago"


def _table(status: WorkerStatus, *, terminal: bool) -> Table:
    shape = box.SIMPLE_HEAD if terminal else None
    table = Table(box=shape, pad_edge=True, padding=(0, 1), header_style="bold" if terminal else "")
    for header in ("transform", "source", "state", "dead letters", "collections"):
        table.add_column(header)
    for name, each in status.transforms.items():
        parked = _parked(status.dead_letters.get(name, {}))
        table.add_row(name, each.source, each.state.value, parked, ", ".join(each.collections))
    for name in sorted(status.dead_letters.keys() - status.transforms.keys()):
        table.add_row(name, "", "", _parked(status.dead_letters[name]), "")
    return table


def _parked(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in kinds.items()) or "0"


def _job(status: JobStatus) -> Text:
    job = status.job
    of = "" if status.total is None else f" of about {status.total:,}"
    doing = stage_of(job)
    stage = f", now {doing}" if doing else ""
    paused = ", paused" if job.paused else ""
    dropped = job.kind is JobKind.DROP
    what, unit = (", ".join(map(str, job.keys)), "collections") if dropped else (job.source, "documents")
    return Text(f"  {job.kind.value} of {what} ({job.reason}): {job.documents:,}{of} {unit}{stage}{paused}")
