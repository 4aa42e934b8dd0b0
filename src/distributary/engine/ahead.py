"""Reading ahead in a scan: the next slices are read and derived while one is committed."""

from collections.abc import Iterable, Iterator, Sequence
from queue import Empty, Queue
from threading import Event, Thread
from typing import Any, NamedTuple

from bson import Timestamp

from distributary.change import identity
from distributary.derive.collapse import Place
from distributary.derive.plan import Desired
from distributary.engine.handing import hand
from distributary.state import BEGINNING, Letter

#: Slices that wait to be committed; one more is being derived.
DEPTH = 2

#: Documents of which it is remembered when they changed, at most.
REMEMBERED = 200_000


class Slice(NamedTuple):
    """A part of a scan: how many documents, the key behind them, as of when they were read, and what they yield."""

    documents: int
    after: tuple[Any, ...]
    time: Timestamp
    desired: Sequence[Desired]
    letters: Sequence[Letter]


class End:
    """There is no further slice."""


class Ahead:
    """Takes slices in a thread of its own, some ahead; what goes wrong there is raised by `next`."""

    def __init__(self, slices: Iterator[Slice]) -> None:
        self._slices = slices
        self._ready: Queue[Slice | End | BaseException] = Queue(DEPTH)
        self._stop = Event()
        self._thread = Thread(target=self._take, name="scanner", daemon=True)
        self._thread.start()

    def next(self, seconds: float) -> Slice | End | None:
        """Give the next slice, or None when there is none within the time."""
        try:
            item = self._ready.get(timeout=seconds)
        except Empty:
            return None
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Stop the thread; what was taken and not given is dropped."""
        self._stop.set()
        self._thread.join()

    def _take(self) -> None:
        try:
            for item in self._slices:
                if not hand(self._ready, item, self._stop):
                    return
            hand(self._ready, End(), self._stop)
        except BaseException as error:  # noqa: BLE001 - handed to the caller, who judges it
            hand(self._ready, error, self._stop)


class Overtaken:
    """Documents that the stream committed while a scan reads ahead, with the cluster time as of which they are shown.

    What the scan read of such a document before that time is older: it is left out. `torn` says that whole collections
    changed, so that nothing that was read ahead may be used.
    """

    def __init__(self) -> None:
        self._times: dict[Place, Timestamp] | None = None
        self.torn = False

    def begin(self) -> None:
        """Begin to note."""
        self._times, self.torn = {}, False

    def end(self) -> None:
        """Note no longer."""
        self._times, self.torn = None, False

    def note(self, states: Iterable[tuple[Place, Timestamp]], *, torn: bool) -> None:
        """Note what a batch of the stream committed."""
        if self._times is not None:
            self._times.update(states)
            self.torn = self.torn or torn

    def left(self, source: str, part: Slice) -> Slice:
        """Give a slice without the documents that the stream has a later state of."""
        times = self._times
        if not times:
            return part

        def is_newest(key: Any) -> bool:
            return times.get((source, identity(key)), BEGINNING) <= part.time

        desired = [item for item in part.desired if is_newest(item.key)]
        letters = [letter for letter in part.letters if is_newest(letter.key)]
        if len(times) > REMEMBERED:
            self._times = {place: time for place, time in times.items() if time > part.time}
        return part._replace(desired=desired, letters=letters)
