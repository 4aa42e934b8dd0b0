"""Leaving in time: who asks a process to stop knows how long that takes at most, whatever the process waits for."""

import os
import sys
from math import inf
from threading import Timer
from time import monotonic
from typing import NoReturn

#: Seconds between the last thing that is waited for and the end of the process.
MARGIN = 0.2


class Leaving:
    """The end of a process that was asked to stop: with `code` when its time is up, unless it has ended by then.

    Nothing is tidied up then: connections to servers that do not answer, and threads of libraries, end with it.
    """

    def __init__(self) -> None:
        self.code = 0
        self._at = inf

    def within(self, seconds: float) -> None:
        """End this process after so many seconds."""
        self._at = monotonic() + seconds
        timer = Timer(seconds, lambda: os._exit(self.code))
        timer.daemon = True
        timer.start()

    def left(self) -> float:
        """Give the seconds that anything may still be waited for; no bound while nobody asked to stop."""
        return max(0.0, self._at - monotonic() - MARGIN)

    def now(self) -> NoReturn:
        """End this process now."""
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(self.code)
