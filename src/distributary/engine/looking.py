"""Looking up now and then what no batch tells: how far the source is, and what is left to be done."""

from collections.abc import Callable
from threading import Event, Thread
from time import monotonic

from pymongo.errors import PyMongoError

from distributary.engine.news import News
from distributary.engine.observer import Observer, Standing
from distributary.engine.retry import reason
from distributary.errors import DistributaryError
from distributary.log import get_logger

log = get_logger()

#: Seconds between two looks, and how many times as long as a look took, so that counting much costs little.
LOOK_SECONDS = 5.0
REST = 20

#: How long a look that is under way is waited for at the end, in seconds.
CLOSE_SECONDS = 0.5


class Looking:
    """A thread that looks, and tells the observer; what fails is tried again at the next time."""

    def __init__(
        self, look: Callable[[], Standing], observer: Observer, seconds: float = LOOK_SECONDS
    ) -> None:
        self._look = look
        self._observer = observer
        self._seconds = seconds
        self._stop = Event()
        self._thread = Thread(target=self._work, name="looking", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop the thread; one that waits for MongoDB ends by itself."""
        self._stop.set()
        self._thread.join(CLOSE_SECONDS)

    def _work(self) -> None:
        failing = News()
        while not self._stop.is_set():
            since = monotonic()
            try:
                standing = self._look()
            except (PyMongoError, DistributaryError) as error:
                if failing.is_news():
                    log.warning("metrics stand still", error=reason(error))
            else:
                failing.ends()
                if not self._stop.is_set():
                    self._observer.looked(standing)
            self._stop.wait(max(self._seconds, REST * (monotonic() - since)))
