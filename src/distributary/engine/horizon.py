"""What commits show already where that is ahead of the stream."""

from collections.abc import Iterable
from threading import Lock

from bson import Timestamp

from distributary.derive.collapse import Place

#: Documents that are remembered one by one; with more, all documents are taken for shown.
REMEMBERED = 200_000


class _Shown:
    """As of which cluster time documents are shown: each its own, and `floor` for all."""

    def __init__(self, floor: Timestamp) -> None:
        self.floor = self.newest = floor
        self._times: dict[Place, Timestamp] = {}

    def of(self, place: Place) -> Timestamp:
        time = self._times.get(place)
        return self.floor if time is None or time < self.floor else time

    def note(self, places: Iterable[Place], time: Timestamp, passed: Timestamp) -> None:
        for place in places:
            if time > self.of(place):
                self._times[place] = time
        self.newest = max(self.newest, time)
        if len(self._times) > REMEMBERED:
            self._forget(passed)

    def _forget(self, passed: Timestamp) -> None:
        self._times = {place: time for place, time in self._times.items() if time > passed}
        if len(self._times) > REMEMBERED // 2:
            self.floor = max(self._times.values())
            self._times = {}


class Horizon:
    """As of which cluster time each document of the source may be shown already.

    Jobs read ahead of the stream, and so does a batch whose end the server no longer has the state of. What the
    stream brings later of such a document is older: it says that the document changed, not how it is. `floor`
    holds for every document; it is all that a restarted worker knows. `passed` is the time of the last committed
    position, behind which nothing is brought. Used by the thread that derives, which plans ahead of the one that
    commits.
    """

    def __init__(self, floor: Timestamp) -> None:
        self._lock = Lock()
        self._planned = _Shown(floor)
        self._committed = _Shown(floor)
        self.passed = floor
        self.version = 0

    def is_behind(self, time: Timestamp) -> bool:
        """Whether no document may be shown as of this time or later."""
        return max(self._planned.newest, self._committed.newest) < time

    def shown(self, place: Place) -> Timestamp:
        """Give the newest cluster time as of which this document may be shown, once what is planned is committed."""
        return max(self._planned.of(place), self._committed.of(place))

    def plan(self, places: Iterable[Place], time: Timestamp) -> None:
        """Note that a batch, to be committed after all before it, shows these documents as of `time`."""
        with self._lock:
            self._planned.note(places, time, self.passed)

    def note(self, places: Iterable[Place], time: Timestamp) -> None:
        """Note that a commit out of the stream's turn shows these documents as of `time`."""
        with self._lock:
            self._committed.note(places, time, self.passed)
            self.version += 1

    def overtook(self, states: Iterable[tuple[Place, Timestamp]]) -> bool:
        """Whether a commit out of turn shows one of these documents as of a later time."""
        return any(self._committed.of(place) > time for place, time in states)
