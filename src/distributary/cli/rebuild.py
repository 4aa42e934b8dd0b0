"""`distributary rebuild`: build derived collections anew beside the live ones, and swap."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from distributary.assemble import Assembled, connect, registry
from distributary.cli.common import (
    config_option,
    emit_json,
    json_option,
    one_line,
    open_config,
)
from distributary.cli.following import follow
from distributary.config import Config
from distributary.operate.backfill import refuse_unknown
from distributary.operate.jobs import refuse_other_code
from distributary.operate.publishing import published_by, refuse_unpublished
from distributary.operate.rebuild import drop, rebuild
from distributary.state import Job

#: How a new collection differs from the old one, in the order in which it is told.
_KINDS = ("changed", "added", "removed", "equal")


@click.command("rebuild")
@config_option
@json_option
@click.argument("names", metavar="NAME...", nargs=-1)
@click.option(
    "--keep-previous", "keep", is_flag=True, help="Copy the old collections aside first, for --undo."
)
@click.option(
    "--undo", is_flag=True, help="Bring back what --keep-previous kept, caught up with the present code."
)
@click.option(
    "--drop-left-behind",
    "left_behind",
    is_flag=True,
    help="Drop collections that no transform names any more.",
)
@click.option(
    "--publish", is_flag=True, help="Publish the records that differ from the old ones or are gone."
)
def command(
    config_path: Path | None,
    names: tuple[str, ...],
    *,
    publish: bool,
    keep: bool,
    undo: bool,
    left_behind: bool,
    as_json: bool,
) -> int:
    """Build all derived collections of these transforms anew beside the live ones, verify them, and swap.

    Readers see the old collections, whole, until each new one takes its place in one step. The running worker does
    it between its batches, as a job that survives crashes and restarts; without one this process takes the lease and
    does it. With --publish, subscribers are told of each record that differs or is gone, behind the swap; without it
    of none, and the answer counts what they have otherwise. Ctrl-C leaves the job to the worker, `distributary jobs
    cancel` ends it and leaves the live collections as they are. Exits with 1 when it was cancelled or cannot be done.
    """
    if left_behind == bool(names) or (left_behind and (keep or undo or publish)) or (keep and undo):
        raise click.UsageError(
            "Give transforms, with --keep-previous or --undo, or --drop-left-behind alone."
        )
    config = open_config(config_path)
    if left_behind:
        return _drop(config, as_json=as_json)
    plugged = registry(config)
    chosen = plugged.only_transforms(names, "NAME").transforms
    if publish:
        refuse_unpublished(config, plugged, chosen)
    with connect(config) as databases:
        assembled = Assembled(config, databases, plugged)
        job = rebuild(plugged, chosen, keep=keep, undo=undo, publish=publish)
        refuse_unknown(chosen, assembled.checkpoint())
        refuse_other_code(assembled, chosen)
        done, *_ = follow(assembled, [job], "Rebuilding", as_json=as_json)
    subscribed = published_by(plugged, chosen) if config.pubsub else ()
    differing = {name: count for name, count in _differing(done).items() if name in subscribed and count}
    if as_json:
        emit_json(_answer(done, differing))
    else:
        click.echo("\n".join([*_lines(done), *_told(done, differing)]))
    return 1 if done.cancelled else 0


def _drop(config: Config, *, as_json: bool) -> int:
    plugged = registry(config)
    with connect(config) as databases:
        assembled = Assembled(config, databases, plugged)
        checkpoint = assembled.checkpoint()
        job = checkpoint and drop(checkpoint, plugged.declared)
        done = follow(assembled, [job], "Dropping", "collections", as_json=as_json) if job else []
    dropped = [name for each in done for name in each.report.get("dropped", ())]
    if as_json:
        emit_json({"dropped": dropped})
    else:
        click.echo(f"Dropped {', '.join(dropped)}." if dropped else "No collection is left behind.")
    return 0


def _differing(job: Job) -> Mapping[str, int]:
    """Give how many records of each collection are others than before."""
    found = {} if job.cancelled else job.report.get("collections", {})
    return {name: sum(each[kind] for kind in ("changed", "added", "removed")) for name, each in found.items()}


def _told(job: Job, differing: Mapping[str, int]) -> Iterator[str]:
    """Say what subscribers are told of, or what they have otherwise from now on, and what helps."""
    for name, count in sorted(differing.items()):
        if job.publish:
            yield f"{name}: {count:,} records to be published"
        else:
            yield f"{name}: subscribers were told of none of the {count:,} records that differ."
    if differing and not job.publish:
        names = " ".join(f"--transform {name}" for name in job.transforms)
        yield f"Let them empty what they keep, then run `distributary backfill {names} --publish`; next time --publish."


def _answer(job: Job, differing: Mapping[str, int]) -> dict[str, Any]:
    return {
        "transforms": list(job.transforms),
        "written": job.written,
        "verified": job.report.get("verified", 0),
        "differing": job.report.get("differing", 0),
        "collections": job.report.get("collections", {}),
        "cancelled": job.cancelled,
        "told": differing if job.publish else {},
        "untold": {} if job.publish else differing,
    }


def _lines(job: Job) -> Iterator[str]:
    if job.cancelled:
        yield "Cancelled; the live collections are as they were."
        return
    verified, differing = job.report.get("verified", 0), job.report.get("differing", 0)
    outcome = "equal" if not differing else f"{differing:,} records differed and were made good"
    yield f"Rebuilt {', '.join(job.transforms)}: {job.written:,} records; {verified:,} documents verified, {outcome}"
    for name, found in sorted(job.report.get("collections", {}).items()):
        told = ", ".join(f"{found[kind]:,} {kind}" for kind in _KINDS if found[kind]) or "empty"
        yield f"  {name}: {told}"
        for each in found["samples"]:
            fields = f": {', '.join(each['fields'])}" if each["fields"] else ""
            yield f"    {each['kind']} {one_line(each['key'])}{fields}"
