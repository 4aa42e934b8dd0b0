"""`distributary jobs`: the work that the holder of the lease was asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich import box
from rich.table import Table

from distributary.assemble import connect_known
from distributary.cli.common import config_option, console, emit_json, json_option, open_config
from distributary.errors import Failed
from distributary.operate.jobs import known
from distributary.operate.status import JobStatus, job_answer
from distributary.state import Job, JobKind
from distributary.store.jobs import Jobs


@click.group("jobs")
def command() -> None:
    """Show the work that the worker was asked for, and halt it."""


@command.command("list")
@config_option
@json_option
def list_(config_path: Path | None, *, as_json: bool) -> None:
    """List open jobs in the order in which they are done, with the id that the other commands take."""
    with _jobs(config_path) as jobs:
        found = jobs.open()
    if as_json:
        emit_json({"jobs": [job_answer(JobStatus(each, each.total or None)) for each in found]})
    elif found:
        _print(found)
    else:
        click.echo("No open jobs.")


@command.command("pause")
@config_option
@click.argument("id")
def pause(config_path: Path | None, id: str) -> None:  # noqa: A002 - click names it after the argument
    """Let a job wait, behind the slice that is under way; others go on."""
    with _jobs(config_path) as jobs:
        jobs.pause(known(jobs, id), paused=True)
    click.echo(f"{id} waits until `distributary jobs resume {id}`.")


@command.command("resume")
@config_option
@click.argument("id")
def resume(config_path: Path | None, id: str) -> None:  # noqa: A002 - click names it after the argument
    """Let a job go on where it was paused."""
    with _jobs(config_path) as jobs:
        jobs.pause(known(jobs, id), paused=False)
    click.echo(f"{id} goes on with the worker.")


@command.command("cancel")
@config_option
@click.argument("id")
def cancel(config_path: Path | None, id: str) -> None:  # noqa: A002 - click names it after the argument
    """End a job behind the slice that is under way; what it has written stays."""
    with _jobs(config_path) as jobs:
        job_id = known(jobs, id)
        job = jobs.get(job_id)
        if not jobs.cancel(job_id):
            raise Failed(f"The job {id} can no longer be cancelled.", "It is done in a moment.")
    builds = job is not None and job.kind in {JobKind.REBUILD, JobKind.UNDO}
    effect = "the live collections are as they were" if builds else "what it has written stays"
    click.echo(f"{id} is cancelled; {effect}.")
    if job is not None and job.kind is JobKind.BACKFILL:
        names = " ".join(f"--transform {name}" for name in job.transforms)
        click.echo(f"What was not built before stays so until `distributary backfill {names}`.")


@contextmanager
def _jobs(config_path: Path | None) -> Iterator[Jobs]:
    config = open_config(config_path)
    with connect_known(config) as databases:
        yield Jobs(databases.state, config.worker.name)


def _print(found: list[Job]) -> None:
    out = console()
    table = Table(box=box.SIMPLE_HEAD if out.is_terminal else None, padding=(0, 1))
    for header in ("id", "kind", "source", "transforms", "reason", "state", "documents"):
        table.add_column(header)
    for job in found:
        of = f" of about {job.total:,}" if job.total else ""
        state = "paused" if job.paused else "waiting" if not job.documents and not job.stage else "under way"
        place = (str(job.id), job.kind.value, job.source, ", ".join(job.transforms), job.reason)
        table.add_row(*place, state, f"{job.documents:,}{of}")
    out.print(table)
