"""Reading ahead in a scan: the next slices are read and derived while one is committed."""

from collections.abc import Iterable, Iterator, Sequence
from queue import Queue
from threading import Event, Thread
from time import perf_counter
from typing import Any, NamedTuple

from bson import Timestamp

from distributary.change import identity
from distributary.derive.collapse import Place
from distributary.derive.plan import Desired
from distributary.engine.handing import hand, taken
from distributary.ports.source import Stretch
from distributary.state import BEGINNING, Letter

#: Slices that wait to be committed; one more is being derived.
DEPTH = 2

#: Documents of which it is remembered when they changed, at most.
REMEMBERED = 200_000


class Slice(NamedTuple):
    """A part of a scan: how many documents, the key behind them, as of when they were read, and what they yield.

    `made` is when they were read and derived, where that is known.
    """

    documents: int
    after: tuple[Any, ...]
    time: Timestamp
    desired: Sequence[Desired]
    letters: Sequence[Letter]
    made: Stretch | None = None


class End(Exception):
    """There is no further slice."""


class Ahead:
    """Takes slices in a thread of its own, some ahead; what goes wrong there is raised by `next`.

    `close` sets `stop`, so that what makes the slices may look at it.
    """

    def __init__(self, slices: Iterator[Slice], stop: Event) -> None:
        self._slices = slices
        self._ready: Queue[Slice | BaseException] = Queue(DEPTH)
        self._stop = stop
        self._thread = Thread(target=self._take, name="scanner", daemon=True)
        self._thread.start()

    def next(self, seconds: float) -> Slice | None:
        """Give the next slice, or None when there is none within the time; raises `End` behind the last one."""
        return taken(self._ready, seconds)

    def close(self, seconds: float) -> None:
        """Stop the thread, and wait for it for so long at most; what was taken and not given is dropped.

        A thread that goes on, in a transform that hangs, gives nothing to anybody any more.
        """
        self._stop.set()
        self._thread.join(seconds)

    def _take(self) -> None:
        try:
            since = perf_counter()
            for item in self._slices:
                made = item._replace(made=Stretch(since, perf_counter()))
                if not hand(self._ready, made, self._stop):
                    return
                since = perf_counter()
            hand(self._ready, End(), self._stop)
        except BaseException as error:  # noqa: BLE001 - handed to the caller, who judges it
            hand(self._ready, error, self._stop)


class Overtaken:
    """Documents that the stream committed while a scan reads ahead, with the cluster time as of which they are shown.

    What the scan read of such a document before that time is older: it is left out. `void` says that whole collections
    changed, or more documents than are remembered, so that nothing that was read ahead may be used.
    """

    def __init__(self) -> None:
        self._times: dict[Place, Timestamp] | None = None
        self.void = False

    def begin(self) -> None:
        """Begin to note."""
        self._times, self.void = {}, False

    def end(self) -> None:
        """Note no longer."""
        self._times, self.void = None, False

    def note(self, states: Iterable[tuple[Place, Timestamp]], *, void: bool) -> None:
        """Note what a batch of the stream committed."""
        if self._times is None or self.void:
            return
        self._times.update(states)
        self.void = void or len(self._times) > REMEMBERED
        if self.void:
            self._times = {}

    def left(self, source: str, part: Slice) -> Slice:
        """Give a slice without the documents that the stream has a later state of."""
        times = self._times
        if not times:
            return part

        def is_newest(key: Any) -> bool:
            return times.get((source, identity(key)), BEGINNING) <= part.time

        desired = [item for item in part.desired if is_newest(item.key)]
        letters = [letter for letter in part.letters if is_newest(letter.key)]
        if len(times) > REMEMBERED // 2:
            self._times = {place: time for place, time in times.items() if time > part.time}
        return part._replace(desired=desired, letters=letters)
