"""Holding the lease: waiting for it, renewing it, and giving it back."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from time import monotonic
from typing import Any, Protocol

from pymongo.errors import PyMongoError

from distributary.engine.retry import reason
from distributary.log import get_logger

log = get_logger()

#: How often a standby looks whether the lease is free, in seconds; more often when the lease is short.
STANDBY_SECONDS = 0.5

#: Renewals within one duration of the lease.
RENEWALS = 4


class HeldLease(Protocol):
    """The lease as seen by this process."""

    def acquire(self) -> bool:
        """Take it if it is free or expired."""

    def announce(self, session_id: Any) -> None:
        """Say which session writes under it."""

    def renew(self) -> bool:
        """Push the expiry out; False when someone else holds it."""

    def release(self) -> None:
        """Give it back."""


class Tenure:
    """The time in which this process is the one writer of a worker's name.

    `over` is set when the tenure ends: the lease was lost, or the process was asked to stop. `beside` is called
    several times in one duration of the lease, whatever the work does meanwhile.
    """

    def __init__(
        self, lease: HeldLease, seconds: float, stop: Event, beside: Callable[[], None] = lambda: None
    ) -> None:
        self.lease = lease
        self.over = Event()
        self._seconds = seconds
        self._stop = stop
        self._beside = beside

    def wait(self) -> bool:
        """Wait until this process holds the lease; False when it was asked to stop instead."""
        told = False
        while not self._stop.is_set():
            if self.lease.acquire():
                return True
            if not told:
                log.info("standing by", reason="another process holds the lease")
                told = True
            self._stop.wait(min(STANDBY_SECONDS, self._seconds / RENEWALS))
        return False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Renew the lease until the work inside is done; gives it back at the end."""
        thread = Thread(target=self._renew, name="lease", daemon=True)
        self._done = Event()
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()
            self._give_back()

    def _give_back(self) -> None:
        try:
            self.lease.release()
        except PyMongoError as error:
            log.warning("lease not given back, it expires", error=reason(error))

    def _renew(self) -> None:
        """Renew in time; a lease that could not be renewed for its whole duration is lost."""
        renewed = monotonic()
        while not self._done.wait(self._seconds / RENEWALS / 5):
            if self._stop.is_set():
                self.over.set()
            self._beside()
            if monotonic() - renewed < self._seconds / RENEWALS:
                continue
            try:
                held = self.lease.renew()
            except PyMongoError as error:
                log.warning("lease not renewed", error=reason(error))
                held = monotonic() - renewed < self._seconds
            else:
                renewed = monotonic()
            if not held:
                log.warning("lease lost")
                self.over.set()
                return
