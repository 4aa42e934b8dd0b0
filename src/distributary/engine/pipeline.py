"""The read-ahead: one thread reads the stream, one derives, while the caller commits.

One derived batch waits at most, and a few changes are derived only once the caller waits for them: until then more may
join them. Nothing more is read while what was read and not derived yet has as many changes as `read_ahead` commits may
hold, or as many bytes as one may.
What goes wrong in a thread is raised to the caller, in order, by `next`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, Queue
from threading import Condition, Event, Thread
from time import monotonic, perf_counter
from typing import TypeVar

from distributary.engine.derivation import Derivation, Prepared
from distributary.engine.handing import TICK, hand, taken
from distributary.engine.horizon import Horizon
from distributary.engine.observer import SILENT, Observer
from distributary.engine.portions import Portion, joined, portioned
from distributary.ports.source import Batch, Source, Stretch

T = TypeVar("T")

#: Fewer changes than this are derived so fast that the caller may wait for it.
FEW = 200

#: How long the caller waits at least for a few changes that are there, in seconds.
FEW_SECONDS = 0.05


class _Wanted:
    """The caller waits for a batch."""


_WANTED = _Wanted()


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
    """Reads and derives ahead of the caller, from a stream that is open.

    A batch holds no more changes than `portion` says, which the caller tells how long commits take.
    """

    def __init__(
        self,
        source: Source,
        derivation: Derivation,
        bounds: Bounds,
        horizon: Horizon,
        observer: Observer = SILENT,
        portion: Portion | None = None,
    ) -> None:
        self._source = source
        self._derivation = derivation
        self._bounds = bounds
        self._horizon = horizon
        self._observer = observer
        self._portion = portion or Portion(bounds.changes)
        self._stop = Event()
        self._read: Queue[Batch | _Wanted | BaseException] = Queue()
        self._ready: Queue[Prepared | BaseException] = Queue(1)
        self._room = _Room(bounds.read_ahead * bounds.changes, bounds.bytes)
        self._taken = (0, 0)
        self._pending: Batch | BaseException | None = None
        self._rest: Batch | None = None
        self._asked = self._wanted = False
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
        """Give the next batch, or None when there is none yet; raises what a thread raised.

        A few changes that were read are waited for a moment longer: they are derived only now.
        """
        if self._ready.empty() and not self._asked:
            timeout = max(timeout, FEW_SECONDS if self._holds_few else 0.0)
            self._asked = True
            self._read.put(_WANTED)
        return taken(self._ready, timeout)

    @property
    def _holds_few(self) -> bool:
        return self._taken[0] < FEW and bool(self._taken[0] or self._read.qsize())

    def close(self, seconds: float | None = None) -> None:
        """Stop the threads, and wait for each for so long at most; what was not given is read again."""
        self._stop.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(seconds)

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
                read = Stretch(since, perf_counter())
                if batch.changes:
                    self._observer.read(len(batch.changes), read.end - read.begin)
                self._room.take(*_extent(batch))
                hand(self._read, batch._replace(read=read) if batch.changes else batch, self._stop)
                since = perf_counter()
        hand(self._read, StreamEnded(), self._stop)

    def _derive_all(self) -> None:
        while not self._stop.is_set():
            batch = self._gather()
            if isinstance(batch, BaseException):
                raise batch
            if batch is not None:
                prepared = self._prepare(batch)
                changes, size = self._derived()
                self._asked = self._wanted = False
                hand(self._ready, prepared, self._stop)
                self._room.take(-changes, -size)

    def _derived(self) -> tuple[int, int]:
        """Give the changes and bytes that are derived to the last, and begin to count anew."""
        if self._rest is not None:
            return 0, 0
        derived, self._taken = self._taken, (0, 0)
        return derived

    def _prepare(self, batch: Batch) -> Prepared:
        """Derive a batch, or what fits of it, and note for those behind it what it read later than its end."""
        since = perf_counter()
        batch, behind = portioned(batch, self._portion.size)
        prepared = self._derivation.prepare(batch, self._horizon)
        derived = Stretch(since, perf_counter())
        if batch.changes:
            self._observer.prepared(derived.end - derived.begin)
        if late := prepared.late:
            self._horizon.plan(late, prepared.shown)
        self._rest = joined(prepared.rest, behind)
        return prepared._replace(rest=None, derived=derived)

    def _gather(self) -> Batch | BaseException | None:
        """Take the next batch together with those that come until it is wanted, and has lingered, up to the bounds."""
        if self._rest is not None:
            rest, self._rest = self._rest, None
            return rest
        first = self._take(TICK)
        if not isinstance(first, Batch) or not first.changes:
            return first
        until = monotonic() + self._bounds.linger
        while self._has_room(first):
            left = until - monotonic()
            more = self._take(left if self._is_due(first) else max(left, TICK))
            if more is None:
                if self._stop.is_set() or (left <= 0 and self._is_due(first)):
                    break
                continue
            if isinstance(more, BaseException):
                self._pending = more
                break
            size = first.size + more.size
            read = Stretch.over(first.read, more.read)
            first = Batch(
                first.changes + more.changes, more.position, size, more.collections, more.torn, read
            )
        return first

    def _is_due(self, batch: Batch) -> bool:
        """Whether the caller waits for a batch, or it has enough changes to be derived ahead of it."""
        return self._wanted or len(batch.changes) >= FEW

    def _has_room(self, batch: Batch) -> bool:
        small = len(batch.changes) < self._portion.size and batch.size < self._bounds.bytes
        return small and not batch.collections

    def _take(self, timeout: float) -> Batch | BaseException | None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            return pending
        try:
            batch = self._read.get(timeout=timeout) if timeout > 0 else self._read.get_nowait()
        except Empty:
            return None
        if isinstance(batch, _Wanted):
            self._wanted = True
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
