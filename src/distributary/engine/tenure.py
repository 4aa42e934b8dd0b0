"""Holding the lease: waiting for it, renewing it, and giving it back."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Event, Thread
from time import monotonic

from pymongo.errors import PyMongoError

from distributary.engine.news import News
from distributary.engine.observer import SILENT, Observer, Part, Phase
from distributary.engine.retry import reason
from distributary.log import get_logger
from distributary.ports.stores import LeaseStore
from distributary.state import SlowTransform

log = get_logger()

#: How often a standby looks whether the lease is free, in seconds.
STANDBY_SECONDS = 0.1

#: How soon a thread that waits for the process to be asked to stop looks whether the work has ended, in seconds.
FOLLOW_SECONDS = 1.0

#: Renewals within one duration of the lease.
RENEWALS = 4


class Tenure:
    """The time in which this process is the one writer of a worker's name.

    `over` is set when the tenure ends: the lease was lost, or the process was asked to stop. `slow` is asked
    several times in one duration of the lease, whatever the work does meanwhile, for what holds it up.
    """

    def __init__(
        self,
        lease: LeaseStore,
        seconds: float,
        stop: Event,
        slow: Callable[[], Sequence[SlowTransform]] = list,
        observer: Observer = SILENT,
    ) -> None:
        self.lease = lease
        self.over = Event()
        self._is_given_back = False
        self._seconds = seconds
        self._stop = stop
        self._slow = slow
        self._observer = observer

    def wait(self) -> bool:
        """Wait until this process holds the lease; False when it was asked to stop instead."""
        told = False
        while not self._stop.is_set():
            self._observer.beat(Part.WORK)
            if self.lease.acquire():
                self._observer.enter(Phase.OPENING)
                return True
            self._observer.enter(Phase.STANDBY)
            if not told:
                log.info("standing by", reason="another process holds the lease")
                told = True
            self._stop.wait(STANDBY_SECONDS)
        return False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Renew the lease until the work inside is done; gives it back at the end."""
        thread = Thread(target=self._renew, name="lease", daemon=True)
        self._done = Event()
        self._observer.held(lease=True)
        thread.start()
        Thread(target=self._follow_stop, name="stop", daemon=True).start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()
            self._observer.rest(Part.LEASE)
            self._observer.held(lease=False)
            self._give_back()

    def give_up(self) -> None:
        """Give the lease back though the work goes on: it commits nothing any more once the next holder began."""
        self.over.set()
        self._give_back(working=True)

    def _give_back(self, *, working: bool = False) -> None:
        if self._is_given_back:
            return
        try:
            self.lease.release(working=working)
            self._is_given_back = True
        except PyMongoError as error:
            log.warning("lease not given back, it expires", error=reason(error))

    def _follow_stop(self) -> None:
        """End the tenure when the process is asked to stop, whatever the other threads wait for."""
        while not self._done.is_set():
            if self._stop.wait(FOLLOW_SECONDS):
                self.over.set()
                return

    def _renew(self) -> None:
        """Renew in time; a lease that could not be renewed for its whole duration is lost."""
        renewed, failing = monotonic(), News()
        while not self._done.wait(self._seconds / RENEWALS / 5):
            self._observer.beat(Part.LEASE)
            slow = self._slow()
            if monotonic() - renewed < self._seconds / RENEWALS:
                continue
            try:
                held = self.lease.renew(slow)
            except PyMongoError as error:
                left = self._seconds - (monotonic() - renewed)
                if failing.is_news():
                    log.warning("lease not renewed", seconds_left=max(0, round(left)), error=reason(error))
                held = left > 0
            else:
                renewed = monotonic()
                failing.ends()
            if not held:
                log.warning("lease lost", next="this process commits nothing more, and stands by")
                self._observer.rest(Part.LEASE)
                self._observer.held(lease=False)
                self.over.set()
                return
