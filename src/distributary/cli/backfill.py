"""`distributary backfill`: derive existing documents again."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from distributary.assemble import Assembled, connect, registry
from distributary.cli.common import config_option, emit_json, json_option, open_config, progress
from distributary.operate.backfill import backfills
from distributary.operate.jobs import carry_out
from distributary.state import Job


@click.command("backfill")
@config_option
@json_option
@click.option("--transform", "names", metavar="NAME", multiple=True, help="Only this transform; repeatable.")
def command(config_path: Path | None, names: tuple[str, ...], *, as_json: bool) -> int:
    """Derive all existing documents, and remove derived records whose source is gone.

    The running worker does it between its batches, as a job that survives crashes and restarts; without one this
    process takes the lease and does it. Ctrl-C leaves the job to the worker. Exits with 1 when a job was cancelled.
    """
    config = open_config(config_path)
    plugged = registry(config)
    chosen = plugged.only(names, "--transform").transforms
    with connect(config) as databases:
        assembled = Assembled(config, databases, plugged)
        jobs = backfills(chosen, assembled.checkpoint())
        with progress("Deriving", as_json=as_json) as bar:
            done = carry_out(assembled, jobs, bar.update)
    if as_json:
        emit_json({"jobs": [_answer(each) for each in done]})
    else:
        click.echo("\n".join(_lines(done)))
    return 1 if any(each.cancelled for each in done) else 0


def _answer(job: Job) -> dict[str, Any]:
    counts = {"documents": job.documents, "written": job.written, "removed": job.removed}
    return {"source": job.source, "transforms": list(job.transforms), **counts, "cancelled": job.cancelled}


def _lines(done: Iterable[Job]) -> Iterable[str]:
    for job in done:
        names = ", ".join(job.transforms)
        counts = f"{job.documents:,} documents, {job.written:,} records written, {job.removed:,} removed"
        yield f"{job.source} through {names}: {counts}{', then cancelled' if job.cancelled else ''}"
