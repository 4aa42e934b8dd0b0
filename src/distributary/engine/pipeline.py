"""The read-ahead: one thread reads the stream, one derives, while the caller commits.

One derived batch waits at most. Nothing more is read while what was read and not derived yet has as many changes
as `read_ahead` commits may hold, or as many bytes as one may.
What goes wrong in a thread is raised to the caller, in order, by `next`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, Queue
from threading import Condition, Event, Thread
from time import monotonic, perf_counter
from typing import TypeVar

from distributary.engine.derivation import Derivation, Prepared
from distributary.engine.handing import TICK, hand
from distributary.engine.horizon import Horizon
from distributary.engine.observer import SILENT, Observer
from distributary.ports import Batch, Source

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one commit may hold, and how long a small batch waits for more."""

    changes: int
    bytes: int
    read_ahead: int
    linger: float
    wait_ms: int = 250


class _Room:
    """The changes and bytes that were read and are not derived yet; there is room while both are under their bound."""

    def __init__(self, changes: int, size: int) -> None:
        self._changes = changes
        self._bytes = size
        self._changed = Condition()

    def wait(self, timeout: float) -> bool:
        """Wait until there is room; False when there is none within the time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._changes > 0 and self._bytes > 0, timeout)

    @property
    def bytes(self) -> int:
        """The bytes that there is room for."""
        return self._bytes

    def take(self, changes: int, size: int) -> None:
        """Take room, or give it back where the numbers are negative."""
        with self._changed:
            self._changes -= changes
            self._bytes -= size
            self._changed.notify()


class Pipeline:
    """Reads and derives ahead of the caller, from a stream that is open."""

    def __init__(
        self,
        source: Source,
        derivation: Derivation,
        bounds: Bounds,
        horizon: Horizon,
        observer: Observer = SILENT,
    ) -> None:
        self._source = source
        self._derivation = derivation
        self._bounds = bounds
        self._horizon = horizon
        self._observer = observer
        self._stop = Event()
        self._read: Queue[Batch | BaseException] = Queue()
        self._ready: Queue[Prepared | BaseException] = Queue(1)
        self._room = _Room(bounds.read_ahead * bounds.changes, bounds.bytes)
        self._taken = (0, 0)
        self._pending: Batch | BaseException | None = None
        self._rest: Batch | None = None
        self._threads = [
            Thread(target=self._guarded, args=(self._read_all, self._read), name="reader", daemon=True),
            Thread(target=self._guarded, args=(self._derive_all, self._ready), name="deriver", daemon=True),
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    @property
    def read_ahead(self) -> int:
        """The bytes that are read and not derived yet."""
        return self._bounds.bytes - self._room.bytes

    def next(self, timeout: float) -> Prepared | None:
        """Give the next batch, or None when there is none yet; raises what a thread raised."""
        try:
            item = self._ready.get(timeout=timeout)
        except Empty:
            return None
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Stop the threads; what was read and not given is dropped, to be read again."""
        self._stop.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def _guarded(self, work: Callable[[], None], out: Queue[T | BaseException]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - handed to the caller, who judges it
            hand(out, error, self._stop)

    def _read_all(self) -> None:
        while not self._stop.is_set() and not self._source.ended:
            if not self._room.wait(TICK):
                continue
            since = perf_counter()
            for batch in self._source.read(self._bounds.wait_ms):
                if batch.changes:
                    self._observer.read(len(batch.changes), perf_counter() - since)
                self._room.take(*_extent(batch))
                hand(self._read, batch, self._stop)
                since = perf_counter()
        hand(self._read, StreamEnded(), self._stop)

    def _derive_all(self) -> None:
        while not self._stop.is_set():
            batch = self._gather()
            if isinstance(batch, BaseException):
                raise batch
            if batch is not None:
                hand(self._ready, self._prepare(batch), self._stop)
                if self._rest is None:
                    changes, size = self._taken
                    self._room.take(-changes, -size)
                    self._taken = (0, 0)

    def _prepare(self, batch: Batch) -> Prepared:
        """Derive a batch, or what fits of it, and note for those behind it what it read later than its end."""
        since = perf_counter()
        prepared = self._derivation.prepare(batch, self._horizon)
        if batch.changes:
            self._observer.prepared(perf_counter() - since)
        if late := prepared.late:
            self._horizon.plan(late, prepared.shown)
        self._rest = prepared.rest
        return prepared._replace(rest=None)

    def _gather(self) -> Batch | BaseException | None:
        """Take the next batch together with those that come while it lingers, up to the bounds."""
        if self._rest is not None:
            rest, self._rest = self._rest, None
            return rest
        first = self._take(TICK)
        if not isinstance(first, Batch) or not first.changes:
            return first
        until = monotonic() + self._bounds.linger
        while self._has_room(first):
            more = self._take(until - monotonic())
            if more is None:
                break
            if isinstance(more, BaseException):
                self._pending = more
                break
            size = first.size + more.size
            first = Batch(first.changes + more.changes, more.position, size, more.collections, more.torn)
        return first

    def _has_room(self, batch: Batch) -> bool:
        small = len(batch.changes) < self._bounds.changes and batch.size < self._bounds.bytes
        return small and not batch.collections

    def _take(self, timeout: float) -> Batch | BaseException | None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            return pending
        try:
            batch = self._read.get(timeout=timeout) if timeout > 0 else self._read.get_nowait()
        except Empty:
            return None
        if isinstance(batch, Batch):
            (changes, size), (more, larger) = self._taken, _extent(batch)
            self._taken = (changes + more, size + larger)
        return batch


def _extent(batch: Batch) -> tuple[int, int]:
    """Give the changes and bytes of a batch; one without changes counts too."""
    return max(1, len(batch.changes)), batch.size


class StreamEnded(Exception):
    """The server closed the stream behind an `invalidate`; it opens again behind the last position."""
