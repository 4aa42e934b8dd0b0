"""Where changes and documents come from."""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from itertools import accumulate, takewhile
from typing import Any, NamedTuple, Protocol, overload

from bson import Timestamp

from distributary.change import Change, CollectionChange, Position, decoded
from distributary.derive.trigger import Seen
from distributary.excerpt import key_of


class Stretch(NamedTuple):
    """From when until when something was done, by `perf_counter`."""

    begin: float
    end: float

    @staticmethod
    def over(*some: "Stretch | None") -> "Stretch | None":
        """Give the stretch from the first beginning to the last end."""
        known = [each for each in some if each is not None]
        return Stretch(min(each.begin for each in known), max(each.end for each in known)) if known else None


class Batch(NamedTuple):
    """Changes in the source's order, and the position behind them.

    `size` is what they took on the wire, in bytes. `collections` are the whole collections that changed
    right behind the last change; nothing of a later position is in the batch then. `torn` says that changes
    of the last one's cluster time follow in the next batch. `read` is when they were read, where that is known.
    """

    changes: list[Change]
    position: Position
    size: int
    collections: tuple[CollectionChange, ...] = ()
    torn: bool = False
    read: Stretch | None = None


class Start(NamedTuple):
    """Where a stream opens: behind a token, at a cluster time, or (neither) at the present."""

    token: str | None = None
    time: Timestamp | None = None


class Encoded(Sequence[dict[str, Any]]):
    """Documents in BSON, each decoded anew when it is looked at: a dict takes many times the room."""

    def __init__(self, documents: Sequence[bytes]) -> None:
        self._documents = documents

    def __len__(self) -> int:
        return len(self._documents)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> "Encoded": ...

    def __getitem__(self, index: int | slice) -> "dict[str, Any] | Encoded":
        if isinstance(index, slice):
            return Encoded(self._documents[index])
        return decoded(self._documents[index])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Encoded({list(self)!r})"

    def keys(self) -> list[Any]:
        """Give the keys of the documents."""
        return [key_of(each) for each in self._documents]

    @property
    def raw(self) -> Sequence[bytes]:
        """The documents in BSON."""
        return self._documents

    def fit(self, most: int | None) -> int:
        """Give how many of the first documents have so many bytes at most; one always fits."""
        if most is None:
            return len(self)
        within = takewhile(most.__ge__, accumulate(map(len, self._documents)))
        return max(min(1, len(self)), sum(1 for _ in within))

    @property
    def size(self) -> int:
        """The documents' size in bytes."""
        return sum(map(len, self._documents))


class Snapshot(NamedTuple):
    """Documents as they all were at `time`; a key that was asked for and is missing did not exist then."""

    time: Timestamp
    documents: Sequence[dict[str, Any]]

    @property
    def keys(self) -> list[Any]:
        """The keys of the documents, in their order, out of reach of a transform that changes its document."""
        if isinstance(self.documents, Encoded):
            return self.documents.keys()
        return [deepcopy(each["_id"]) for each in self.documents]

    @property
    def size(self) -> int:
        """The size of the documents in bytes; 0 when they are no longer in BSON."""
        return self.documents.size if isinstance(self.documents, Encoded) else 0


class Source(Protocol):
    """A stream of changes."""

    def open(self, start: Start) -> Position:
        """Open the stream and give the position there; raises `PositionLost`."""

    def read(self, wait_ms: int) -> list[Batch]:
        """Give the next changes, waiting up to `wait_ms`; without any, one batch with a position only."""

    @property
    def ended(self) -> bool:
        """Whether the server closed the stream; a new one opens behind the last position."""

    def close(self) -> None:
        """Free what the server holds for the stream."""


class SeenBatch(NamedTuple):
    """What triggers are called for of so many `changes`, in the source's order, and the position behind them.

    `torn` says that changes of the position's cluster time may follow.
    """

    seen: Sequence[Seen]
    changes: int
    position: Position
    torn: bool = False


class Changes(Protocol):
    """A stream of changes with their images, for triggers."""

    @property
    def filter(self) -> str:
        """What names the filter: a stream with another one opens by time."""

    def open(self, start: Start, after: str = "") -> Position:
        """Open the stream and give the position there, without what is not behind the token `after`.

        Raises `PositionLost`.
        """

    def read(self, wait_ms: int) -> Iterable[SeenBatch]:
        """Give the next changes, waiting up to `wait_ms`; the last batch has the position behind them."""

    @property
    def ended(self) -> bool:
        """Whether the server closed the stream; a new one opens behind the last position."""

    def close(self) -> None:
        """Free what the server holds for the stream."""


class Documents(Protocol):
    """Reads documents of the source."""

    def fetch(
        self,
        collection: str,
        keys: Sequence[Any],
        at: Timestamp | None = None,
        only: Mapping[str, Any] | None = None,
    ) -> Snapshot:
        """Read documents by key, as of `at` or, when the server has that no more, as of the newest time.

        With `only`, those that match this query. Raises `TooMuch`, if this reader is bounded; never for one key.
        """

    def scan(
        self,
        collection: str,
        after: tuple[Any, ...],
        limit: int,
        skip: int = 0,
        at: Timestamp | None = None,
        until: tuple[Any, ...] = (),
    ) -> Snapshot:
        """Read the next documents in key order, without `skip` of them, as of a time as in `fetch`; none at the end.

        `until` holds the key in front of which the end is; empty: there is none.
        """

    def keys(
        self, collection: str, after: tuple[Any, ...], limit: int, skip: int = 0, until: tuple[Any, ...] = ()
    ) -> Snapshot:
        """Read the next keys in their order as `scan` does: documents of `_id` only."""

    def last(self, collection: str) -> tuple[Any, ...]:
        """Give the last key in its order; nothing without one."""

    def existing(self, collection: str, keys: Sequence[Any]) -> Snapshot:
        """Read which of these keys exist: documents of `_id` only."""

    def exists(self, collection: str) -> bool:
        """Whether there is such a collection now."""

    def not_before(self, time: Timestamp) -> None:
        """Read nothing older than this from now on."""

    def count(self, collection: str) -> int:
        """Estimate the number of documents."""
