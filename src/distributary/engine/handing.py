"""Handing something to another thread, as long as that wants it."""

from queue import Full, Queue
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
