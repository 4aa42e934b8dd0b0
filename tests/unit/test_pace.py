"""How fast jobs may go, on a clock and a source that are moved by hand."""

from dataclasses import dataclass

import pytest
from bson import Timestamp

from distributary.change import Position
from distributary.engine.pace import LOOK_SECONDS, RATE, Limits, Pace


@dataclass
class Source:
    """The clock, and how far the history goes."""

    now: float = 0.0
    newest: int = 1000
    oldest: int | None = 0

    def pace(self, rate: float = 0) -> Pace:
        """Give a pace with a lag of 60 s and a headroom of 100 s."""
        return Pace(
            Limits(rate, 60, 100),
            lambda: Timestamp(self.newest, 0),
            lambda: None if self.oldest is None else Timestamp(self.oldest, 0),
            lambda: self.now,
        )


def at(seconds: int) -> Position:
    """Give a position."""
    return Position("82", Timestamp(seconds, 1))


def test_a_rate_is_kept_over_time() -> None:
    """What was derived is paid for with time, and no time is saved up."""
    source = Source()
    pace = source.pace(rate=10)
    assert pace.reason(at(1000)) == ""
    pace.spent(20)
    source.now = 1.9
    assert pace.reason(at(1000)) == RATE
    source.now = 2.0
    assert pace.reason(at(1000)) == ""
    source.now = 50
    pace.spent(10)
    source.now = 50.9
    assert pace.reason(at(1000)) == RATE


@pytest.mark.parametrize(
    ("position", "oldest", "reason"),
    [
        (1000, 0, ""),
        (939, 0, "the stream is 61 s behind"),
        (990, 850, ""),
        (990, 900, "the stream is 10 s behind, and the history reaches back 90 s further only"),
        (998, 990, ""),
        (990, None, ""),
    ],
)
def test_the_stream_comes_first(position: int, oldest: int | None, reason: str) -> None:
    """Jobs wait while it is far behind, or behind with little history left; a short history alone says nothing."""
    assert Source(oldest=oldest).pace().reason(at(position)) == reason


def test_the_source_is_asked_now_and_then() -> None:
    """Not for every slice: what was seen holds for a moment."""
    source = Source()
    pace = source.pace()
    assert pace.reason(at(1000)) == ""
    source.newest = 2000
    assert pace.reason(at(1000)) == ""
    source.now = LOOK_SECONDS
    assert "1,000 s behind" in pace.reason(at(1000))
