"""`distributary replay`: derive again what changed in a part of the history."""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from distributary.assemble import Assembled, connect, registry
from distributary.cli.common import (
    config_option,
    emit_json,
    json_option,
    named,
    one_line,
    open_config,
    progress,
    publish_option,
)
from distributary.cli.following import follow
from distributary.derive.transform import Transform
from distributary.errors import ConfigurationError, Fault
from distributary.operate.backfill import refuse_unknown
from distributary.operate.comparison import Difference
from distributary.operate.jobs import refuse_other_code
from distributary.operate.positions import POSITIONS, Mark, mark_of
from distributary.operate.publishing import refuse_unpublished
from distributary.operate.replay import EFFECTS, DryRun, Forecast, replay
from distributary.operate.status import iso
from distributary.parts import told
from distributary.state import Job

_UNIT = "seconds of history"


@click.command("replay")
@config_option
@json_option
@click.option("--from", "since", metavar="POSITION", required=True, help=f"Where to begin: {POSITIONS}.")
@click.option("--to", "until", metavar="POSITION", default="now", show_default=True, help="Where to end.")
@click.option("--transform", "names", metavar="NAME", multiple=True, help="Only this transform; repeatable.")
@click.option("--dry-run", is_flag=True, help="Only tell what would be written, changed and removed.")
@publish_option
def command(
    config_path: Path | None,
    since: str,
    until: str,
    names: tuple[str, ...],
    *,
    dry_run: bool,
    publish: bool,
    as_json: bool,
) -> int:
    """Read a part of the history again, and derive every document that changed in it from its current state.

    The running worker does it between its batches, as a job that survives crashes and restarts; without one this
    process takes the lease and does it. The worker's own position stays where it is, nothing goes back to an older
    state, and nothing that was deleted comes back. Nothing is published unless it is asked for; then every record is
    that the replay comes to, under the id that it was published with before. Exits with 1 when the job was cancelled,
    and with 4 when the history no longer reaches back so far.
    """
    config = open_config(config_path)
    plugged = registry(config)
    chosen = plugged.only_transforms(names).transforms
    if publish:
        refuse_unpublished(config, plugged, chosen)
    with connect(config) as databases:
        assembled = Assembled(config, databases, plugged)
        checkpoint = assembled.checkpoint()
        refuse_unknown(chosen, checkpoint)
        span = _span(mark_of(since, databases.raw), mark_of(until, databases.raw))
        if dry_run:
            return _forecast(assembled, chosen, span, as_json=as_json)
        refuse_other_code(assembled, chosen)
        job = replay(databases.raw, chosen, *span, publish=publish)
        (done,) = follow(assembled, [job], "Replaying", _UNIT, as_json=as_json)
    if as_json:
        emit_json(_answer(done))
    else:
        click.echo(_line(done))
    return 1 if done.cancelled else 0


def _span(since: Mark, until: Mark) -> tuple[Mark, Mark]:
    if until.time < since.time:
        raise ConfigurationError(
            [Fault("--to", f"{iso(until.time)} lies before --from, {iso(since.time)}.", "Exchange them.")]
        )
    return since, until


def _forecast(
    assembled: Assembled, chosen: Mapping[str, Transform], span: tuple[Mark, Mark], *, as_json: bool
) -> int:
    sides = assembled.sides()
    with progress("Reading", span[1].time.time - span[0].time.time, _UNIT, as_json=as_json) as bar:
        forecast = DryRun(sides, chosen, sides.checked()).run(*span, bar.update)
    if as_json:
        emit_json(_forecast_answer(forecast, span))
    else:
        click.echo("\n".join(_forecast_lines(forecast, span)))
    return 0


def _answer(job: Job) -> dict[str, Any]:
    assert job.span is not None
    since, until = job.span
    counts = {"documents": job.documents, "written": job.written, "removed": job.removed}
    place = {"transforms": list(job.transforms), "from": iso(since), "to": iso(until)}
    return {**place, **counts, "cancelled": job.cancelled}


def _line(job: Job) -> str:
    assert job.span is not None
    since, until = job.span
    counts = f"{job.documents:,} documents, {job.written:,} records written, {job.removed:,} removed"
    ending = ", then cancelled" if job.cancelled else ""
    return f"{iso(since)} to {iso(until)} through {', '.join(job.transforms)}: {counts}{ending}"


def _forecast_answer(forecast: Forecast, span: tuple[Mark, Mark]) -> dict[str, Any]:
    return {
        "from": iso(span[0].time),
        "to": iso(span[1].time),
        "changes": forecast.changes,
        "documents": forecast.documents,
        "unchanged": forecast.unchanged,
        "failing": forecast.failing,
        "collections": {
            name: {effect: found[effect] for effect in EFFECTS.values()}
            for name, found in sorted(forecast.effects.items())
        },
        "samples": [
            {
                "effect": EFFECTS.get(each.kind, each.kind.value),
                **told(each.collection, each.key),
                "transform": each.transform,
                "source_key": each.source_key,
                "fields": list(each.fields),
            }
            for each in forecast.samples
        ],
    }


def _forecast_lines(forecast: Forecast, span: tuple[Mark, Mark]) -> Iterator[str]:
    length = timedelta(seconds=span[1].time.time - span[0].time.time)
    yield (
        f"{iso(span[0].time)} to {iso(span[1].time)} ({length}): {forecast.changes:,} changes of"
        f" {forecast.documents:,} documents"
    )
    for name, found in sorted(forecast.effects.items()):
        counts = ", ".join(f"{found[effect]:,} to {effect}" for effect in EFFECTS.values() if found[effect])
        yield f"  {name}: {counts}"
    yield f"  {forecast.unchanged:,} records are as they should be"
    if forecast.failing:
        yield f"  {forecast.failing:,} documents cannot be derived and would be parked"
    yield from (f"  {_sample(each)}" for each in forecast.samples)
    yield "Nothing was written."


def _sample(each: Difference) -> str:
    owner = f"from {each.transform} {one_line(each.source_key)}"
    if not each.collection:
        return f"park {owner}"
    fields = f": {', '.join(each.fields)}" if each.fields else ""
    return f"{EFFECTS[each.kind]} {named(each.collection, each.key)} {owner}{fields}"
