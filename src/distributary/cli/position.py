"""`distributary position`: a worker's checkpoint, what a resume token says, and moving the one to another."""

import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pymongo
from bson.binary import Binary
from pymongo.errors import PyMongoError

from distributary.assemble import Databases, connect, registry
from distributary.change import Position
from distributary.cli.common import config_option, emit_json, json_option, one_line, open_config, progress
from distributary.config import Config
from distributary.errors import ConfigurationError
from distributary.operate.positions import Counts, Mark, between, mark_of, marked
from distributary.operate.standing import Standing, me
from distributary.operate.status import WorkerStatus, iso, workers
from distributary.source.token import Token, TokenKind, token_of
from distributary.state import BEGINNING, Checkpoint
from distributary.store.checkpoints import Checkpoints
from distributary.store.positions import Move, Moves

#: Seconds that a source has to tell the name of a collection, which is nice to know and no more.
NAME_SECONDS = 2.0


#: A duration back looks like an option.
_BACK = re.compile(r"-(?:\d+[smhdw])+")


class _OfPositions(click.Command):
    """A command whose arguments may be durations back, such as -2h; they come with a blank before them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep durations from being taken for options."""
        return super().parse_args(ctx, [f" {each}" if _BACK.fullmatch(each) else each for each in args])


@click.group("position")
def command() -> None:
    """Show how far the worker is, read resume tokens, and move the worker to another position."""


# --- decode ---------------------------------------------------------------------------------------------


@command.command("decode")
@config_option
@json_option
@click.argument("token")
def decode(config_path: Path | None, token: str, *, as_json: bool) -> None:
    """Tell what a resume token says of itself, without a server.

    TOKEN is the hex string in `_data`, or the document around it. Where a configuration is found and its source
    answers, the collection is told by its name, too.
    """
    decoded = token_of(token)
    name = _name(config_path, decoded)
    if as_json:
        emit_json({"token": _token_answer(decoded, name)})
    else:
        _print_lines(_token_lines(decoded, name))


def _name(config_path: Path | None, token: Token) -> str | None:
    """Give the name of the token's collection, if the source tells it quickly."""
    try:
        config = open_config(config_path)
    except ConfigurationError:
        if config_path is not None:
            raise
        return None
    if token.collection is None:
        return None
    try:
        with connect(config) as databases, pymongo.timeout(NAME_SECONDS):
            found = list(
                databases.raw.list_collections(filter={"info.uuid": Binary.from_uuid(token.collection)})
            )
    except PyMongoError:
        return None
    return found[0]["name"] if found else None


def _token_answer(token: Token, name: str | None) -> dict[str, Any]:
    return {
        "time": iso(token.time),
        "increment": token.time.inc,
        "version": token.version,
        "kind": token.kind and token.kind.value,
        "index": token.index,
        "invalidate": token.invalidate,
        "collection_uuid": token.collection and str(token.collection),
        "collection": name,
        "operation": token.operation,
        "key": token.key,
        "description": token.description,
        "fragment": token.fragment,
        "unreadable": token.unreadable or None,
    }


def _token_lines(token: Token, name: str | None) -> Iterator[tuple[str, str]]:
    yield "time", f"{iso(token.time)} (increment {token.time.inc})"
    invalidate = " (an invalidate)" if token.invalidate else ""
    yield "kind", f"{_or_unread(token.kind and token.kind.value, token)}{invalidate}"
    if token.index:
        yield "index", f"{token.index} in its transaction"
    if token.kind is TokenKind.HIGH_WATER_MARK:
        return
    uuid = None if token.collection is None else str(token.collection)
    yield "collection", f"{name} ({uuid})" if name else _or_unread(uuid, token)
    if token.operation:
        yield "operation", token.operation
    yield "key", _or_unread(None if token.key is None else one_line(token.key), token)
    if token.description is not None:
        yield "tells", one_line(token.description)
    if token.fragment is not None:
        yield "fragment", str(token.fragment)


def _or_unread(text: str | None, token: Token) -> str:
    """Give what a token says, or why it says nothing."""
    if text is not None:
        return text
    return f"not readable from this token: {token.unreadable}" if token.unreadable else "none"


# --- show -----------------------------------------------------------------------------------------------


@command.command("show", cls=_OfPositions)
@config_option
@json_option
@click.argument("since", metavar="[FROM", required=False)
@click.argument("until", metavar="[TO]]", required=False)
def show(config_path: Path | None, since: str | None, until: str | None, *, as_json: bool) -> None:
    """Show the worker's checkpoint, or what lies between two positions.

    FROM and TO are each a POSITION: a resume token, an ISO-8601 time, a duration back (-2h), `oldest` or `now`.
    Without TO it is the worker's position, or now when it has none.
    """
    config = open_config(config_path)
    with connect(config) as databases:
        if since is None:
            _show_checkpoint(config, databases, as_json=as_json)
        else:
            _show_between(config, databases, since, until, as_json=as_json)


def _show_checkpoint(config: Config, databases: Databases, *, as_json: bool) -> None:
    name = config.worker.name
    checkpoint = Checkpoints(databases.state).load(name)
    (status,) = (each for each in workers(databases.raw, databases.state, name, None) if each.name == name)
    move = Moves(databases.state, name).latest()
    if as_json:
        found = _checkpoint_answer(checkpoint, status) if checkpoint else None
        emit_json({"worker": name, "checkpoint": found, "moved": move and _move_answer(move)})
    elif checkpoint is None:
        click.echo(
            f"Worker {name} has no checkpoint yet; it begins as worker.start says: {config.worker.start}"
        )
    else:
        _print_lines(_checkpoint_lines(checkpoint, status, move))


def _checkpoint_answer(checkpoint: Checkpoint, status: WorkerStatus) -> dict[str, Any]:
    return {
        "state": status.state.value,
        **_place(checkpoint.position),
        "ahead": iso(checkpoint.ahead) if checkpoint.ahead > BEGINNING else None,
        "epoch": checkpoint.epoch,
        "saved_at": status.saved_at and status.saved_at.isoformat(),
        "lag_seconds": status.lag_seconds,
        "headroom_seconds": status.headroom_seconds,
        "unknown": status.unknown or None,
    }


def _checkpoint_lines(
    checkpoint: Checkpoint, status: WorkerStatus, move: Move | None
) -> Iterator[tuple[str, str]]:
    time = checkpoint.position.time
    yield "worker", f"{status.name}, {status.state.value}"
    yield "position", f"{iso(time)} (increment {time.inc})"
    yield "token", checkpoint.position.token
    ahead = checkpoint.ahead > time
    yield "ahead", f"records may show changes up to {iso(checkpoint.ahead)}" if ahead else "nothing"
    yield "epoch", str(checkpoint.epoch)
    if status.saved_at is not None:
        yield "saved", f"{_span(round((datetime.now(UTC) - status.saved_at).total_seconds()))} ago"
    yield "lag", _span(status.lag_seconds)
    yield "headroom", _headroom(status.headroom_seconds)
    if status.unknown:
        yield "not known", status.unknown
    if move is not None:
        yield "moved", f"{_way(move)} by {move.by} at {move.at:%Y-%m-%d %H:%M:%S}Z, from {iso(move.old.time)}"


def _headroom(seconds: int | None) -> str:
    if seconds is not None and seconds < 0:
        return "position lost: the history no longer reaches it"
    return _span(seconds)


def _show_between(
    config: Config, databases: Databases, since: str, until: str | None, *, as_json: bool
) -> None:
    checkpoint = Checkpoints(databases.state).load(config.worker.name)
    one = mark_of(since.strip(), databases.raw)
    other = _other(until, checkpoint, databases)
    earlier, later = sorted((one, other), key=lambda mark: mark.order)
    watched = checkpoint.watched if checkpoint else sorted(registry(config).sources)
    seconds = later.time.time - earlier.time.time
    with progress("Reading", seconds, "seconds of history", as_json=as_json) as bar:
        counts = between(databases.raw, watched, earlier, later, bar.update)
    if as_json:
        emit_json(_between_answer(one, other, counts))
    else:
        _print_between(one, other, counts)


def _other(until: str | None, checkpoint: Checkpoint | None, databases: Databases) -> Mark:
    if until is None and checkpoint is not None:
        return marked(checkpoint.position)
    return mark_of((until or "now").strip(), databases.raw)


def _between_answer(since: Mark, until: Mark, counts: Counts) -> dict[str, Any]:
    changes: dict[str, dict[str, int]] = {}
    for (collection, operation), count in sorted(counts.items()):
        changes.setdefault(collection, {})[operation] = count
    return {
        "from": {"token": since.start.token, "time": iso(since.time)},
        "to": {"token": until.start.token, "time": iso(until.time)},
        "seconds": until.time.time - since.time.time,
        "total": counts.total(),
        "changes": changes,
    }


def _print_between(since: Mark, until: Mark, counts: Counts) -> None:
    seconds = until.time.time - since.time.time
    way = "ahead of" if since.order > until.order else "behind"
    click.echo(f"from {iso(since.time)}, to {iso(until.time)}: {_span(abs(seconds))} {way} it")
    click.echo(f"{counts.total():,} changes between them")
    for collection, some in _between_answer(since, until, counts)["changes"].items():
        told = ", ".join(f"{count:,} {operation}" for operation, count in some.items())
        click.echo(f"  {collection}: {told}")


# --- set ------------------------------------------------------------------------------------------------


@command.command("set", cls=_OfPositions)
@config_option
@json_option
@click.argument("position", metavar="POSITION")
@click.option("--yes", is_flag=True, help="Move it without asking.")
def set_(config_path: Path | None, position: str, *, yes: bool, as_json: bool) -> int:
    """Move the worker to a position; it must not run meanwhile.

    POSITION is a resume token, an ISO-8601 time, a duration back (-2h), `oldest` or `now`. Back, what changed since
    is read again and nothing goes to an older state. Ahead, changes are skipped, and every transform counts as not
    built until `distributary backfill`.
    """
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("Nobody can be asked here: say --yes to move the worker.")
    config = open_config(config_path)
    with connect(config) as databases:
        worker = config.worker
        standing = Standing(databases.raw, databases.state, worker.name, worker.lease_seconds)
        checkpoint = standing.checkpoint()
        standing.refuse_running()
        move = Move(worker.name, me(), checkpoint.position, standing.wanted(position.strip(), checkpoint))
        if not (as_json and yes):
            _print_move(move, err=as_json)
        if move.old == move.new:
            return _told(move, checkpoint, moved=False, as_json=as_json)
        if move.is_forward:
            standing.refuse_skipping()
        if not yes and not click.confirm("Move it?", err=True):
            click.echo("Nothing was changed.", err=True)
            return 1
        move = standing.move(move)
    return _told(move, checkpoint, moved=True, as_json=as_json)


def _print_move(move: Move, *, err: bool) -> None:
    click.echo(f"worker {move.worker}", err=err)
    click.echo(f"  from {iso(move.old.time)} {move.old.token}", err=err)
    click.echo(f"  to   {iso(move.new.time)} {move.new.token}", err=err)
    click.echo(_meaning(move), err=err)


def _meaning(move: Move) -> str:
    if move.old == move.new:
        return "That is where it is."
    if move.is_forward:
        return (
            f"That is {_way(move)}. WHAT CHANGED IN BETWEEN IS SKIPPED: derived collections stay wrong, and every"
            " transform counts as not built, until `distributary backfill` has derived everything again."
        )
    return f"That is {_way(move)}. What changed since is read again; no record goes to an older state."


def _told(move: Move, checkpoint: Checkpoint, *, moved: bool, as_json: bool) -> int:
    skipped = moved and move.is_forward
    if as_json:
        not_built = sorted(checkpoint.transforms) if skipped else []
        emit_json({"moved": moved, **_move_answer(move), "not_built": not_built})
    elif not moved:
        click.echo("Nothing was changed.")
    else:
        cure = ", then `distributary backfill`" if skipped else ""
        click.echo(f"Moved. Start the worker with `distributary run`{cure}.")
    return 0


def _move_answer(move: Move) -> dict[str, Any]:
    return {
        "worker": move.worker,
        "by": move.by,
        "at": move.at and move.at.isoformat(),
        "old": _place(move.old),
        "new": _place(move.new),
        "direction": "none" if move.old == move.new else "ahead" if move.is_forward else "back",
        "seconds": move.seconds,
    }


# --- what they share ------------------------------------------------------------------------------------


def _place(position: Position) -> dict[str, Any]:
    return {"token": position.token, "time": iso(position.time)}


def _way(move: Move) -> str:
    return f"{_span(abs(move.seconds))} {'ahead' if move.is_forward else 'back'}"


def _span(seconds: int | None) -> str:
    return "not known" if seconds is None else str(timedelta(seconds=max(0, seconds)))


def _print_lines(lines: Iterator[tuple[str, str]]) -> None:
    for name, value in lines:
        click.echo(f"{name + ':':<12} {value}")
