"""How fast jobs may go: not faster than asked for, and not while the stream needs the time."""

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from bson import Timestamp

from distributary.change import Position

#: How often the source is asked how far the stream is behind, in seconds.
LOOK_SECONDS = 1.0

#: Seconds behind the source up to which the stream has caught up.
CAUGHT_UP = 5


#: The reason of a job that only goes no faster than it may.
RATE = "rate"


@dataclass(frozen=True, slots=True)
class Limits:
    """Documents per second that jobs derive at most (0: no limit), and when they wait, in seconds.

    They wait while the position is `lag` behind the source, or while it is behind at all and the history reaches back
    only `headroom` further than the position.
    """

    rate: float
    lag: float
    headroom: float


class Pace:
    """Says whether a job may go on now. `oldest` gives None where it is not known how far the history reaches back."""

    def __init__(
        self,
        limits: Limits,
        newest: Callable[[], Timestamp],
        oldest: Callable[[], Timestamp | None],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._limits = limits
        self._newest = newest
        self._oldest = oldest
        self._clock = clock
        self._next = self._looked = float("-inf")
        self._reason = ""

    def spent(self, documents: int) -> None:
        """Count documents that a job derived just now."""
        if self._limits.rate:
            self._next = max(self._next, self._clock()) + documents / self._limits.rate

    def reason(self, position: Position) -> str:
        """Say why a job has to wait, if it has to."""
        now = self._clock()
        if now - self._looked >= LOOK_SECONDS:
            self._looked, self._reason = now, self._stream_reason(position)
        return self._reason or (RATE if now < self._next else "")

    def _stream_reason(self, position: Position) -> str:
        lag = self._newest().time - position.time.time
        if lag > self._limits.lag:
            return f"the stream is {lag:,} s behind"
        oldest = self._oldest() if lag > CAUGHT_UP else None
        headroom = None if oldest is None else position.time.time - oldest.time
        if headroom is not None and headroom < self._limits.headroom:
            return f"the stream is {lag:,} s behind, and the history reaches back {headroom:,} s further only"
        return ""
