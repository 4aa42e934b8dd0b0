"""`distributary backfill`: derive existing documents again."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from bson import json_util

from distributary.assemble import Assembled, connect, registry
from distributary.cli.common import config_option, emit_json, json_option, open_config, publish_option
from distributary.cli.following import follow
from distributary.operate.backfill import backfills, part
from distributary.operate.jobs import refuse_other_code
from distributary.operate.publishing import refuse_unpublished, told_of
from distributary.state import Job, JobKind


@click.command("backfill")
@config_option
@json_option
@click.option("--transform", "names", metavar="NAME", multiple=True, help="Only this transform; repeatable.")
@click.option(
    "--filter",
    "only",
    metavar="JSON",
    help="Only documents that match this query, in Extended JSON; then nothing is removed whose source is gone.",
)
@publish_option
def command(
    config_path: Path | None, names: tuple[str, ...], only: str | None, *, publish: bool, as_json: bool
) -> int:
    """Derive all existing documents, and remove derived records whose source is gone.

    The running worker does it between its batches, as a job that survives crashes and restarts; without one this
    process takes the lease and does it. What changes is published, with --publish all records are.
    Ctrl-C leaves the job to the worker. Exits with 1 when a job was cancelled.
    """
    query = None if only is None else _query(only)
    config = open_config(config_path)
    plugged = registry(config)
    chosen = plugged.only_transforms(names).transforms
    if publish:
        refuse_unpublished(config, plugged, chosen)
    with connect(config) as databases:
        assembled = Assembled(config, databases, plugged)
        jobs = backfills(chosen, assembled.checkpoint())
        refuse_other_code(assembled, chosen)
        if query is not None:
            jobs = [part(databases.raw, _single(jobs), query)]
        if publish:
            jobs = told_of(plugged, chosen, jobs)
        done = follow(assembled, jobs, "Deriving", as_json=as_json)
    if as_json:
        emit_json({"jobs": [_answer(each) for each in done]})
    else:
        click.echo("\n".join(_lines(done)))
    return 1 if any(each.cancelled for each in done) else 0


def _query(text: str) -> dict[str, Any]:
    try:
        query = json_util.loads(text)
    except (ValueError, TypeError) as error:
        raise click.BadParameter(f"{text!r} is no JSON: {error}", param_hint="--filter") from error
    if not isinstance(query, dict):
        raise click.BadParameter(f"{text!r} is no query: give a JSON object.", param_hint="--filter")
    return query


def _single(jobs: list[Job]) -> Job:
    if len(jobs) > 1:
        sources = ", ".join(job.source for job in jobs)
        raise click.UsageError(
            f"--filter needs transforms of one source collection, and these read {sources}: name them by --transform."
        )
    return jobs[0]


def _answer(job: Job) -> dict[str, Any]:
    counts = {"documents": job.documents, "written": job.written, "removed": job.removed}
    return {"source": job.source, "transforms": list(job.transforms), **counts, "cancelled": job.cancelled}


def _lines(done: Iterable[Job]) -> Iterable[str]:
    for job in done:
        if job.kind is JobKind.PUBLISH:
            yield f"{job.source}: {job.documents:,} records to be published"
            continue
        names = ", ".join(job.transforms)
        counts = f"{job.documents:,} documents, {job.written:,} records written, {job.removed:,} removed"
        yield f"{job.source} through {names}: {counts}{', then cancelled' if job.cancelled else ''}"
