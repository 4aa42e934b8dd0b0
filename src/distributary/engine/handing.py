"""Handing something to another thread, as long as that wants it, and going on as long as nobody says stop."""

from collections.abc import Iterable, Iterator
from queue import Empty, Full, Queue
from threading import Event
from typing import TypeVar

T = TypeVar("T")

#: How long a thread waits before it looks whether it should stop, in seconds.
TICK = 0.2


def hand(queue: Queue[T], item: T, stop: Event) -> bool:
    """Put an item into a queue once there is room; False when `stop` was set instead."""
    while not stop.is_set():
        try:
            queue.put(item, timeout=TICK)
        except Full:
            continue
        return True
    return False


def taken(queue: Queue[T | BaseException], seconds: float) -> T | None:
    """Take what another thread handed over, or None when there is nothing within the time; raises an error of its."""
    try:
        item = queue.get(timeout=seconds)
    except Empty:
        return None
    if isinstance(item, BaseException):
        raise item
    return item


class Interrupted(Exception):
    """The worker was asked to stop; what was under way is not committed, so that it is done again."""


def until(stop: Event, items: Iterable[T]) -> Iterator[T]:
    """Give the items one by one; raises `Interrupted` in place of the next one once `stop` is set."""
    for item in items:
        if stop.is_set():
            raise Interrupted
        yield item
        del item  # before the next one is decoded
