"""Positions in the history of the source: what a POSITION means, and what lies between two of them."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from bson import Timestamp
from pymongo.database import Database

from distributary.change import Position
from distributary.config import Point, point_of
from distributary.errors import ConfigurationError, Fault, PositionLost
from distributary.operate.status import iso
from distributary.ports.source import Batch, Source, Start
from distributary.source import deployment
from distributary.source.stream import Stream

#: What a POSITION may be.
POSITIONS = (
    "a resume token in hex, a time such as 2026-01-31T12:00:00Z, a duration back such as -2h, oldest or now"
)

#: Characters of a text that a refusal repeats.
_SHOWN = 40

#: How long a stream waits for the server's next change, in milliseconds.
_WAIT_MS = 500

#: Changes that are read in one reply.
_CHANGES = 10_000


def start_of(text: str, raw: Database[Any]) -> Start:
    """Give where a stream opens for a POSITION; `oldest` asks the source for its oldest operation.

    Raises `ConfigurationError` for what is no POSITION. Whether the source still has it shows when it is opened.
    """
    point = _point(text)
    if isinstance(point, datetime):
        return Start(time=_cluster_time(text, point))
    if point == "oldest":
        return Start(time=deployment.oldest(raw.client))
    return Start() if point == "now" else Start(token=point.upper())


def _point(text: str) -> str | datetime:
    """Read a POSITION; a duration back comes as a time."""
    try:
        point: Point = point_of(text)
        point = datetime.now(UTC) - point if isinstance(point, timedelta) else point
    except (ValueError, OverflowError):
        raise _refused(text) from None
    if point == "backfill":
        raise _refused(text)
    return point


def _cluster_time(text: str, time: datetime) -> Timestamp:
    try:
        return Timestamp(time, 0)
    except ValueError:
        raise _refused(text) from None


def _refused(
    text: str, problem: str = "is no position.", cure: str = f"Give {POSITIONS}."
) -> ConfigurationError:
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
    return ConfigurationError([Fault(repr(shown), problem, cure)])


# --- in the source's history ----------------------------------------------------------------------------------


class Mark(NamedTuple):
    """A POSITION in the history: where a stream opens for it, and its cluster time.

    A token lies behind its own change, a time before what happened at it, and `now` behind everything.
    """

    start: Start
    time: Timestamp

    @property
    def order(self) -> tuple[Timestamp, int, str]:
        """What marks are sorted by; tokens have the order of the history."""
        kind = 1 if self.start.token is not None else 0 if self.start.time is not None else 2
        return self.time, kind, self.start.token or ""

    def reached(self, position: Position) -> bool:
        """Whether a stream at this position has given everything before the mark."""
        if self.start.token is not None:
            return position.token >= self.start.token
        return position.time >= self.time

    def is_behind(self, token: str, time: Timestamp) -> bool:
        """Whether a change lies before the mark."""
        if self.start.token is not None:
            return token <= self.start.token
        return time < self.time or (time == self.time and self.start.time is None)


def mark_of(text: str, raw: Database[Any]) -> Mark:
    """Find a POSITION in the history; a time behind the newest operation, but not in the future, is `now`.

    Raises `ConfigurationError` for what is no POSITION or in the future, and `PositionLost` for what is before the
    oldest operation, if the user may see that.
    """
    start, hello = start_of(text, raw), deployment.hello(raw.client)
    head: Timestamp = hello["lastWrite"]["majorityOpTime"]["ts"]
    if start.token is not None:
        mark = marked(Position.of_token(start.token))
        if mark.time > head:
            raise _refused(
                text, "lies in the future.", f"The newest operation of the source is of {iso(head)}."
            )
        return _kept(mark, raw)
    if start.time is None:
        return Mark(start, head)
    if start.time.time > hello["localTime"].timestamp():
        raise _refused(text, "lies in the future.", f"The newest operation of the source is of {iso(head)}.")
    return Mark(Start(), head) if start.time > head else _kept(Mark(start, start.time), raw)


def marked(position: Position) -> Mark:
    """Give the mark of a position."""
    return Mark(Start(token=position.token.upper()), position.time)


def _kept(mark: Mark, raw: Database[Any]) -> Mark:
    """Refuse a mark before the oldest operation: the server opens some of them all the same."""
    oldest = deployment.oldest_if_known(raw.client)
    if oldest is not None and mark.time < oldest:
        raise _lost(f"The history of the source does not reach back to {iso(mark.time)}.", raw)
    return mark


def _lost(message: str, raw: Database[Any]) -> PositionLost:
    oldest = deployment.oldest_if_known(raw.client)
    told = "" if oldest is None else f" Its oldest operation is of {iso(oldest)}."
    return PositionLost(f"{message}{told}", "Give a later position, or `oldest`.")


def lean(raw: Database[Any], collections: Sequence[str]) -> Stream:
    """Give a stream that carries no documents."""
    return Stream(raw, collections, carry_bytes=0, batch_changes=_CHANGES)


def opened(source: Source, start: Start, raw: Database[Any]) -> tuple[Position, list[Batch]]:
    """Open a stream and read once, since only then the server looks for the token.

    Gives the position that it opened at, and what it read. Raises `PositionLost`, which tells the oldest operation.
    """
    try:
        return source.open(start), source.read(_WAIT_MS)
    except PositionLost as error:
        raise _lost(error.message, raw) from error


#: How a collection that was dropped or renamed away counts, and one that another was renamed onto.
GONE, RENAMED_ONTO = "gone", "renamed onto"

Counts = Counter[tuple[str, str]]


def between(
    raw: Database[Any],
    collections: Sequence[str],
    since: Mark,
    until: Mark,
    progress: Callable[[int], None] = lambda _: None,
) -> Counts:
    """Count what happened to these collections from one mark to a later one, by collection and operation.

    `progress` is told how many seconds of the history were read. Raises `PositionLost`.
    """
    counts: Counts = Counter()
    for batch in history(raw, collections, since, until):
        counts.update(_counted(batch, until))
        progress(min(batch.position.time.time, until.time.time) - since.time.time)
    return counts


def history(raw: Database[Any], collections: Sequence[str], since: Mark, until: Mark) -> Iterator[Batch]:
    """Give the changes of these collections from one mark to a later one, without documents.

    The last batch may have some from behind `until`. Raises `PositionLost`.
    """
    source = lean(raw, collections)
    try:
        for batch in _batches(source, since.start, raw):
            yield batch
            if until.reached(batch.position) and not batch.torn:
                return
    finally:
        source.close()


def _batches(source: Source, start: Start, raw: Database[Any]) -> Iterator[Batch]:
    """Give what a stream has from a start on; one that the server closed is opened again."""
    position, batches = opened(source, start, raw)
    while True:
        for batch in batches:
            position = batch.position
            yield batch
        if source.ended:
            source.open(Start(token=position.token))
        batches = source.read(_WAIT_MS)


def _counted(batch: Batch, until: Mark) -> Iterator[tuple[str, str]]:
    for change in batch.changes:
        if until.is_behind(change.token, change.time):
            yield change.collection, change.operation.value
    for each in batch.collections:
        if until.is_behind(batch.position.token, each.time):
            yield each.collection, GONE if each.gone else RENAMED_ONTO
