"""`distributary dead-letters`: the documents that could not be derived, and what cannot be published."""

import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import click
from rich import box
from rich.table import Table

from distributary.assemble import Assembled, connect_known, registry
from distributary.cli.common import (
    config_option,
    console,
    emit_json,
    json_option,
    named,
    one_line,
    open_config,
    progress,
)
from distributary.log import get_logger
from distributary.operate.dead_letters import (
    Listing,
    answer,
    chosen,
    cure,
    discard,
    effects,
    listing,
    one,
    remaining,
    retries,
    sent,
)
from distributary.operate.jobs import carry_out
from distributary.operate.status import iso
from distributary.state import LetterKind
from distributary.store.letters import StoredLetter, Unsent

log = get_logger()

#: Columns that a key or a transform's name takes at most in the list.
KEY_COLUMNS = 30

#: Documents that are named that are still parked after a retry, or that are to be discarded.
SHOWN = 20


@click.group("dead-letters")
def command() -> None:
    """Show the documents that could not be derived and what cannot be published, and why, try again, or forget them."""


@command.command("list")
@config_option
@json_option
@click.option(
    "--transform", metavar="NAME", help="Only those of this transform, trigger or published collection."
)
@click.option(
    "--kind", type=click.Choice([kind.value for kind in LetterKind]), help="Only those of this kind."
)
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Show at most N.")
def list_(
    config_path: Path | None, transform: str | None, kind: str | None, limit: int, *, as_json: bool
) -> None:
    """List dead letters, the last first, with the id that `show` takes."""
    with connect_known(open_config(config_path)) as databases:
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
    """Show everything that is known of one dead letter, and what to do about it."""
    config = open_config(config_path)
    with connect_known(config) as databases:
        stored = one(databases.state, id)
    if as_json:
        emit_json({"letter": answer(stored)})
        return
    for name, value in _lines(stored):
        click.echo(f"{name + ':':<12} {value}")
    if stored.letter.traceback:
        click.echo(f"\n{stored.letter.traceback.rstrip()}")
    click.echo(f"\n{cure(stored)}")


@command.command("retry")
@config_option
@json_option
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--transform", metavar="NAME", help="All of this transform, trigger or published collection.")
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
    """Derive parked documents again, and publish what could not be.

    A document is derived from its current state; a record is published as it is now, an event of a trigger as it
    was. The running worker does it as a job; without one this process takes the lease and does it. Exits with 0 when
    none of them is left, with 1 when some are.
    """
    if sum([bool(ids), bool(transform or kind), everything]) != 1:
        raise click.UsageError("Give the ids, or --transform, --kind or both, or --all.")
    config = open_config(config_path)
    plugged = registry(config)
    if transform not in plugged.published:
        plugged.only([transform] if transform else [], "--transform")  # refuses a name that nothing has
    with connect_known(config) as databases:
        assembled = Assembled(config, databases, plugged)
        kinds = LetterKind(kind) if kind else None
        letters = chosen(databases.state, config.worker.name, ids, transform, kinds)
        if letters:
            with progress("Deriving", as_json=as_json) as bar:
                published = plugged.published if config.pubsub else None
                carry_out(assembled, retries(letters, plugged.triggers, published), bar.update)
            if any(each.message for each in letters) and not sent(databases.state, config.worker.name):
                log.warning("still waiting to be published", next="`distributary status` tells of it")
        left = remaining(databases.state, letters)
    if as_json:
        emit_json({"tried": len(letters), "parked": [answer(each) for each in left]})
    else:
        click.echo(
            f"{len(letters):,} tried, {len(letters) - len(left):,} resolved, {len(left):,} still parked"
        )
        _name(left)
    return 1 if left else 0


@command.command("discard")
@config_option
@json_option
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option(
    "--transform",
    metavar="NAME",
    help="All of this transform, trigger or published collection, plugged in or not.",
)
@click.option("--kind", type=click.Choice([kind.value for kind in LetterKind]), help="All of this kind.")
@click.option("--all", "everything", is_flag=True, help="All of this worker.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def discard_(
    config_path: Path | None,
    ids: tuple[str, ...],
    transform: str | None,
    kind: str | None,
    *,
    everything: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Forget dead letters without trying again, with a running worker or without.

    Says first what becomes of them, and asks. Without a terminal, and with --json, --yes has to be given. Exits with 0
    when they are discarded, with 1 when the answer is no.
    """
    if sum([bool(ids), bool(transform or kind), everything]) != 1:
        raise click.UsageError("Give the ids, or --transform, --kind or both, or --all.")
    if as_json and not yes:
        raise click.UsageError("--json does not ask; give --yes with it.")
    config = open_config(config_path)
    with connect_known(config) as databases:
        worker = config.worker.name
        letters = chosen(databases.state, worker, ids, transform, LetterKind(kind) if kind else None)
        if transform and not letters:
            registry(config).only([transform], "--transform")  # refuses a name that nothing has
        if not as_json:
            _warn(letters)
        if letters and not (yes or _confirmed(len(letters))):
            click.echo("Nothing was discarded.")
            return 1
        count = discard(databases.state, worker, letters)
    if as_json:
        emit_json({"discarded": count, "letters": [answer(each) for each in letters]})
    elif letters:
        click.echo(f"{count:,} discarded")
    return 0


def _warn(letters: Sequence[StoredLetter]) -> None:
    """Say which letters are about to be forgotten, and what becomes of what they tell of."""
    if not letters:
        click.echo("No dead letters to discard.")
        return
    _name(letters)
    for line in effects(letters):
        click.echo(line)


def _confirmed(count: int) -> bool:
    """Ask on a terminal; without one nobody can answer."""
    if not sys.stdin.isatty():
        raise click.UsageError("There is no terminal to ask on; give --yes.")
    return click.confirm(f"Discard {count:,} dead {'letter' if count == 1 else 'letters'}?")


def _name(letters: Sequence[StoredLetter]) -> None:
    """Name dead letters, the first of many, each with its reason."""
    for each in letters[:SHOWN]:
        letter = each.letter
        reason = letter.reason.partition("\n")[0]
        click.echo(f"  {each.id} {letter.transform} {one_line(letter.document_key)}: {reason}")
    if len(letters) > SHOWN:
        click.echo(f"  … and {len(letters) - SHOWN:,} more")


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
        place = (letter.transform, one_line(letter.document_key), letter.kind.value)
        table.add_row(
            each.id, *place, str(each.attempts), _time(each.last_at), letter.reason.partition("\n")[0]
        )
    out.print(table)
    if found.total > len(found.letters):
        out.print(f"{len(found.letters):,} of {found.total:,}; --limit shows more.")


def _lines(stored: StoredLetter) -> Iterator[tuple[str, str]]:
    if stored.message is not None:
        yield from _message_lines(stored, stored.message)
        return
    letter = stored.letter
    yield "id", stored.id
    yield "document", f"{letter.source} _id {one_line(letter.document_key)}"
    role = "transform" if letter.change is None else "trigger"
    yield role, f"{letter.transform} (fingerprint {letter.fingerprint}, worker {stored.worker})"
    if letter.change is not None:
        yield "change", one_line(letter.change)
    yield "kind", letter.kind.value
    yield "reason", letter.reason
    if letter.waits_for:
        free = ", free now: it is tried soon" if letter.due else ""
        yield "waits for", f"{named(*letter.waits_for)}{free}"
    yield "attempts", f"{stored.attempts}, first {_time(stored.first_at)}, last {_time(stored.last_at)}"
    yield "position", f"{iso(letter.position.time)} {letter.position.token}"


def _message_lines(stored: StoredLetter, message: Unsent) -> Iterator[tuple[str, str]]:
    letter = stored.letter
    yield "id", stored.id
    if message.is_event:
        yield "event", f"of trigger {letter.transform} (worker {stored.worker})"
        yield "data", message.data
    else:
        yield "record", f"{named(letter.transform, letter.key)} (worker {stored.worker})"
    ordered = f", ordering key {one_line(message.ordering_key)}" if message.ordering_key else ""
    yield "topic", f"{message.topic}{ordered}"
    yield "kind", letter.kind.value
    yield "reason", letter.reason
    yield "position", f"{iso(letter.position.time)} {letter.position.token}"


def _time(when: datetime) -> str:
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
