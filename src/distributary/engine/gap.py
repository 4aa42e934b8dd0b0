"""A range of time that the source's history no longer has: what is uncertain, and what came of it."""

from bson import Timestamp

from distributary.errors import PositionLost
from distributary.log import get_logger
from distributary.ports.stores import JobStore
from distributary.state import Job

log = get_logger()

_SHORT = (
    "Make the source's oplog larger (`replSetResizeOplog`), so that it reaches further back than deriving "
    "everything again takes, and start again."
)


def uncertain(error: PositionLost, since: Timestamp, until: Timestamp) -> PositionLost:
    """Give the error with the range of time in which changes may have been missed."""
    since, until = sorted((since, until))  # a source that was restored is behind the position
    return PositionLost(
        f"{error.message} Changes between {_said(since)} and {_said(until)} may have been missed.", error.cure
    )


def endless(error: PositionLost, losses: int) -> PositionLost:
    """Give the error of a history that is shorter than it takes to derive everything again."""
    return PositionLost(
        f"{error.message} That was the position's loss number {losses} before everything was derived again.",
        _SHORT,
    )


def tell(jobs: JobStore, job: Job) -> None:
    """Report what came of a gap when the job that ended was the last that made it good."""
    if job.gap is None:
        return
    involved = jobs.of_gap(job.gap)
    if not all(each.done for each in involved):
        return
    since, until = job.gap
    log.warning(
        "lost position made good",
        since=_said(since),
        until=_said(until),
        documents=sum(each.documents for each in involved),
        written=sum(each.written for each in involved),
        removed=sum(each.removed for each in involved),
    )


def _said(time: Timestamp) -> str:
    return f"{time.as_datetime():%Y-%m-%d %H:%M:%S} UTC"
