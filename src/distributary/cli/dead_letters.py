"""`distributary dead-letters`: the documents that could not be derived."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click
from rich import box
from rich.table import Table

from distributary.assemble import connect
from distributary.cli.common import config_option, console, emit_json, json_option, one_line, open_config
from distributary.operate.dead_letters import Listing, answer, cure, listing, one
from distributary.operate.status import iso
from distributary.state import LetterKind
from distributary.store.letters import StoredLetter

#: Columns that a key or a transform's name takes at most in the list.
KEY_COLUMNS = 30


@click.group("dead-letters")
def command() -> None:
    """Show the documents that could not be derived, and why."""


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
