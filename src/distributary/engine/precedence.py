"""Who goes first in the interpreter: one thread runs Python at a time, and the commit is what all wait for."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from threading import Event
from typing import TypeVar

T = TypeVar("T")

#: Seconds that a thread gives way for at most.
PATIENCE = 0.2


class Precedence(AbstractContextManager[None]):
    """While one thread is inside, those that read and derive ahead of it give way between two documents.

    Without, they take turns of some milliseconds with it, and the server waits for both.
    """

    def __init__(self) -> None:
        self._free = Event()
        self._free.set()

    def __enter__(self) -> None:
        self._free.clear()

    def __exit__(self, *_: object) -> None:
        self._free.set()

    def give_way(self) -> None:
        """Wait until nobody is inside, for a moment at most."""
        if not self._free.is_set():
            self._free.wait(PATIENCE)

    def behind(self, items: Iterable[T]) -> Iterator[T]:
        """Give the items one by one, giving way before each."""
        for item in items:
            self.give_way()
            yield item
            del item  # before the next one is decoded
