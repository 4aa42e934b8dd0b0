"""Telling once what goes on for long: its beginning, and again a minute later as long as it lasts."""

from collections.abc import Callable
from time import monotonic

#: Seconds between two lines about the same trouble.
AGAIN_SECONDS = 60.0


class News:
    """One trouble, which is there or not; asked by one thread."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._next = float("-inf")
        self.lasts = False

    def is_news(self) -> bool:
        """Note that it is there, and say whether that is worth a line."""
        self.lasts, now = True, self._clock()
        if now < self._next:
            return False
        self._next = now + AGAIN_SECONDS
        return True

    def ends(self) -> bool:
        """Note that it is not there, and say whether it was; its next beginning is news."""
        lasted, self.lasts, self._next = self.lasts, False, float("-inf")
        return lasted
