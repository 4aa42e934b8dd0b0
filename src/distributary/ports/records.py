"""Records as they are stored, and what is behind a slice of them."""

from collections.abc import Sequence
from typing import Any, NamedTuple


class TooMuch(Exception):
    """The documents are more than may be held at once; `fit` of them are not, or it is 1."""

    def __init__(self, fit: int) -> None:
        super().__init__(fit)
        self.fit = max(1, fit)


class RecordState(NamedTuple):
    """A record of a derived collection as it is stored, in BSON with the engine's field, or None when it is gone."""

    collection: str
    key: Any
    document: bytes | None


class Shown(NamedTuple):
    """Some records of a collection, and where the next ones begin, or the keys that are left; empty at the end."""

    states: Sequence[RecordState]
    behind: tuple[Any, ...]


#: The key behind a slice of a collection; empty at its end.
Behind = tuple[Any, ...]
