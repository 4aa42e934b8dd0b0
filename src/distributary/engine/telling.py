"""Telling now and then how the process is, whatever its work does meanwhile."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from time import monotonic

from pymongo.errors import PyMongoError

from distributary.engine.retry import Verdict, judge, reason
from distributary.log import get_logger

log = get_logger()

#: How often it is looked whether there is something new to tell, in seconds.
LOOK_SECONDS = 0.1

#: How long the farewell is waited for, in seconds.
CLOSE_SECONDS = 1.0


@contextmanager
def telling(
    tell: Callable[[], None], leave: Callable[[], None], seconds: float, state: Callable[[], object]
) -> Iterator[None]:
    """Tell every so many seconds until the end of the block, from a thread of its own, and then say farewell.

    A new `state` is told at once. What MongoDB does not take is told again the next time; nobody waits for it.
    """
    stop, said = Event(), set[str]()

    def work() -> None:
        while not stop.is_set():
            told, until = state(), monotonic() + seconds
            _tried(tell, said)
            while state() == told and monotonic() < until:
                if stop.wait(LOOK_SECONDS):
                    break
        _tried(leave, said)

    thread = Thread(target=work, name="telling", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(CLOSE_SECONDS)


def _tried(work: Callable[[], None], said: set[str]) -> None:
    """Do it; the worker's own work tells of an outage, and this of anything else, once."""
    try:
        work()
    except PyMongoError as error:
        why = reason(error)
        if judge(error) is not Verdict.TRANSIENT and why not in said:
            said.add(why)
            log.warning("status stands still", error=why)
