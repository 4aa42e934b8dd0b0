"""What the worker tells while it has much to do: a line now and then, quiet otherwise."""

from collections.abc import Callable
from time import monotonic

from bson import Timestamp

from distributary.change import Position
from distributary.log import get_logger
from distributary.state import Job

log = get_logger()

#: Seconds until the first line, and between two lines when it goes on for long: each waits twice as long.
REPORT_SECONDS = 10.0
LONGEST_SECONDS = 60.0

#: Seconds behind the source from which on the worker is catching up rather than tailing.
BEHIND_SECONDS = 5


class Report:
    """Tells rate and lag while the worker is behind, and how far a job is."""

    def __init__(self, newest: Callable[[], Timestamp]) -> None:
        self._newest = newest
        self._since = monotonic()
        self._every = REPORT_SECONDS
        self._changes = 0
        self._documents = 0

    def count(self, changes: int) -> None:
        """Count changes that were committed."""
        self._changes += changes

    def tell(self, position: Position, job: Job | None) -> None:
        """Write a line when it is time for one and there is something to tell."""
        seconds = monotonic() - self._since
        if seconds < self._every:
            return
        lag = self._newest().time - position.time.time
        is_long = lag > BEHIND_SECONDS or job is not None
        self._every = min(2 * self._every, LONGEST_SECONDS) if is_long else REPORT_SECONDS
        if lag > BEHIND_SECONDS:
            log.info("catching up", changes_per_second=round(self._changes / seconds), lag_seconds=lag)
        if job is not None:
            self._tell_job(job, seconds)
        self._since, self._changes = monotonic(), 0
        self._documents = job.documents if job else 0

    def _tell_job(self, job: Job, seconds: float) -> None:
        rate = max(0, job.documents - self._documents) / seconds
        left = round((job.total - job.documents) / rate) if rate and job.total > job.documents else None
        log.info(
            "job under way",
            kind=job.kind.value,
            source=job.source,
            documents=job.documents,
            of=job.total or None,
            documents_per_second=round(rate),
            seconds_left=left,
        )
