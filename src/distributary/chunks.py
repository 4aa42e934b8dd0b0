"""Cutting what is too much for one query or transaction."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def chunks(items: Sequence[T], size: int) -> Iterator[list[T]]:
    """Give the items in their order, in lists of `size`; the last one may have fewer."""
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
