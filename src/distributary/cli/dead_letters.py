"""`distributary dead-letters`: the documents that could not be derived."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click
from rich import box
from rich.table import Table

from distributary.assemble import Assembled, connect, registry
from distributary.cli.common import (
    config_option,
    console,
    emit_json,
    json_option,
    one_line,
    open_config,
    progress,
)
from distributary.operate.dead_letters import Listing, answer, chosen, cure, listing, one, remaining, retries
from distributary.operate.jobs import carry_out
from distributary.operate.status import iso
from distributary.state import LetterKind
from distributary.store.letters import StoredLetter

#: Columns that a key or a transform's name takes at most in the list.
KEY_COLUMNS = 30

#: Documents that are named that are still parked after a retry.
SHOWN = 20


@click.group("dead-letters")
def command() -> None:
    """Show the documents that could not be derived, and why, and derive them again."""


@command.command("list")
@config_option
@json_option
@click.option("--transform", metavar="NAME", help="Only those of this transform.")
@click.option(
    "--kind", type=click.Choice([kind.value for kind in LetterKind]), help="Only those of this kind."
)
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Show at most N.")
def list_(
    config_path: Path | None, transform: str | None, kind: str | None, limit: int, *, as_json: bool
) -> None:
    """List parked documents, those that failed last first, with the id that `show` takes."""
    with connect(open_config(config_path)) as databases:
        found = listing(databases.state, transform, LetterKind(kind) if kind else None, limit)
    if as_json:
        emit_json({"letters": [answer(each) for each in found.letters], "total": found.total})
    else:
        _print(found)


@command.command("show")
@config_option
@json_option
@click.argument("id")
def show(config_path: Path | None, id: str, *, as_json: bool) -> None:  # noqa: A002 - click names it after the argument
    """Show everything that is known of one parked document, and what to do about it."""
    config = open_config(config_path)
    with connect(config) as databases:
        stored = one(databases.state, id)
    if as_json:
        emit_json({"letter": answer(stored)})
        return
    for name, value in _lines(stored):
        click.echo(f"{name + ':':<12} {value}")
    if stored.letter.traceback:
        click.echo(f"\n{stored.letter.traceback.rstrip()}")
    click.echo(f"\n{cure(stored.letter)}")


@command.command("retry")
@config_option
@json_option
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--transform", metavar="NAME", help="All of this transform.")
@click.option("--kind", type=click.Choice([kind.value for kind in LetterKind]), help="All of this kind.")
@click.option("--all", "everything", is_flag=True, help="All of this worker.")
def retry(
    config_path: Path | None,
    ids: tuple[str, ...],
    transform: str | None,
    kind: str | None,
    *,
    everything: bool,
    as_json: bool,
) -> int:
    """Derive parked documents again, each from its current state.

    The running worker does it as a job; without one this process takes the lease and does it. Exits with 0 when none
    of them is parked any more, with 1 when some still are.
    """
    if sum([bool(ids), bool(transform or kind), everything]) != 1:
        raise click.UsageError("Give the ids, or --transform and --kind, or --all.")
    config = open_config(config_path)
    plugged = registry(config)
    plugged.only([transform] if transform else [], "--transform")  # refuses a name that nothing has
    with connect(config) as databases:
        assembled = Assembled(config, databases, plugged)
        kinds = LetterKind(kind) if kind else None
        letters = chosen(databases.state, config.worker.name, ids, transform, kinds)
        if letters:
            with progress("Deriving", as_json=as_json) as bar:
                carry_out(assembled, retries(letters), bar.update)
        left = remaining(databases.state, letters)
    if as_json:
        emit_json({"tried": len(letters), "parked": [answer(each) for each in left]})
    else:
        click.echo(
            f"{len(letters):,} tried, {len(letters) - len(left):,} resolved, {len(left):,} still parked"
        )
        for each in left[:SHOWN]:
            letter = each.letter
            reason = letter.reason.partition("\n")[0]
            click.echo(f"  {each.id} {letter.transform} {one_line(letter.key)}: {reason}")
        if len(left) > SHOWN:
            click.echo(f"  … and {len(left) - SHOWN:,} more")
    return 1 if left else 0


def _print(found: Listing) -> None:
    out = console()
    if not found.total:
        out.print("No dead letters.")
        return
    table = Table(box=box.SIMPLE_HEAD if out.is_terminal else None, padding=(0, 1), expand=True)
    for header in ("id", "transform", "key", "kind", "attempts", "last"):
        table.add_column(header, overflow="fold", no_wrap=header != "key", max_width=KEY_COLUMNS)
    table.add_column("reason", overflow="ellipsis", no_wrap=True, ratio=1)
    for each in found.letters:
        letter = each.letter
        place = (letter.transform, one_line(letter.key), letter.kind.value)
        table.add_row(
            each.id, *place, str(each.attempts), _time(each.last_at), letter.reason.partition("\n")[0]
        )
    out.print(table)
    if found.total > len(found.letters):
        out.print(f"{len(found.letters):,} of {found.total:,}; --limit shows more.")


def _lines(stored: StoredLetter) -> Iterator[tuple[str, str]]:
    letter = stored.letter
    yield "id", stored.id
    yield "document", f"{letter.source} _id {one_line(letter.key)}"
    yield "transform", f"{letter.transform} (fingerprint {letter.fingerprint}, worker {stored.worker})"
    yield "kind", letter.kind.value
    yield "reason", letter.reason
    if letter.waits_for:
        collection, key = letter.waits_for
        yield (
            "waits for",
            f"{collection} _id {one_line(key)}" + (", free now: it is tried soon" if letter.due else ""),
        )
    yield "attempts", f"{stored.attempts}, first {_time(stored.first_at)}, last {_time(stored.last_at)}"
    yield "position", f"{iso(letter.position.time)} {letter.position.token}"


def _time(when: datetime) -> str:
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
