"""What commits show already where that is ahead of the stream."""

from collections.abc import Iterable
from threading import Lock

from bson import Timestamp

from distributary.derive.collapse import Place

#: Documents that a horizon remembers one by one; with more, it takes all documents for shown.
REMEMBERED = 200_000


class Horizon:
    """As of which cluster time each document of the source may be shown already.

    Jobs read ahead of the stream, and so does a batch whose end the server no longer has the state of. What the
    stream brings later of such a document is older: it says that the document changed, not how it is. `floor`
    holds for every document; it is all that a restarted worker knows. `passed` is the time of the last committed
    position, behind which nothing is brought. Used by the thread that derives and by the one that commits.
    """

    def __init__(self, floor: Timestamp) -> None:
        self._lock = Lock()
        self._late: dict[Place, Timestamp] = {}
        self._floor = self._newest = floor
        self.passed = floor
        self.version = 0

    def is_behind(self, time: Timestamp) -> bool:
        """Whether no document may be shown as of this time or later."""
        return self._newest < time

    def shown(self, place: Place) -> Timestamp:
        """Give the newest cluster time as of which this document may be shown."""
        late = self._late.get(place)
        return self._floor if late is None or late < self._floor else late

    def note(self, places: Iterable[Place], time: Timestamp) -> None:
        """Note that documents are shown as of `time`."""
        with self._lock:
            for place in places:
                if time > self._late.get(place, self._floor):
                    self._late[place] = time
                    self._newest = max(self._newest, time)
            if len(self._late) > REMEMBERED:
                self._forget()
            self.version += 1

    def _forget(self) -> None:
        self._late = {place: late for place, late in self._late.items() if late > self.passed}
        if len(self._late) > REMEMBERED // 2:
            self._floor = max(self._late.values())
            self._late = {}
