"""How long it takes until the worker has caught up, from how its lag fell lately."""

from collections import deque
from math import nan
from typing import NamedTuple

#: Seconds that the estimate looks back on, and seconds that it has to have seen.
WINDOW_SECONDS = 60.0
LEAST_SECONDS = 4.0

#: Seconds behind the source up to which the stream has caught up.
CAUGHT_UP = 5


class _Seen(NamedTuple):
    time: float
    lag: float


class Forecast:
    """Is told the lag now and then, and says in how many seconds it will be gone at that pace."""

    def __init__(self) -> None:
        self._seen: deque[_Seen] = deque()

    def note(self, time: float, lag: float) -> float:
        """Give the seconds that are left: 0 when it has caught up, NaN while the lag does not fall."""
        self._seen.append(_Seen(time, lag))
        while time - self._seen[0].time > WINDOW_SECONDS:
            self._seen.popleft()
        if lag <= CAUGHT_UP:
            return 0.0
        first = self._seen[0]
        seconds, fell = time - first.time, first.lag - lag
        return lag * seconds / fell if seconds >= LEAST_SECONDS and fell > 0 else nan
