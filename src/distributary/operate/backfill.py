"""Deriving again what exists: which jobs that takes."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from pymongo.database import Database
from pymongo.errors import OperationFailure

from distributary.derive.transform import Transform
from distributary.errors import ConfigurationError, Failed, Fault
from distributary.state import Checkpoint, Job, JobKind

_REASON = "asked for"

#: Milliseconds for which a query is tried, and its documents are counted.
COUNT_MS = 5000

_TIME_IS_UP = 50  # MaxTimeMSExpired

_QUERY = 'Give a query of MongoDB as JSON, such as {"status": "open"}.'


def refuse_unknown(transforms: Iterable[str], checkpoint: Checkpoint | None) -> None:
    """Raise `Failed` when the worker of this name does not know a transform: it derives with what it began with."""
    known = checkpoint.transforms if checkpoint else {}
    unknown = sorted(name for name in transforms if name not in known or known[name].unplugged)
    if unknown:
        raise Failed(
            f"The worker has not begun to derive with {', '.join(unknown)}.",
            "Start it again with the transform modules as they are now: a new transform gets its backfill by itself.",
        )


def backfills(transforms: Mapping[str, Transform], checkpoint: Checkpoint | None) -> list[Job]:
    """Give one job for each source collection that these transforms read.

    Raises `Failed` when the worker of this name does not know one of them.
    """
    refuse_unknown(transforms, checkpoint)
    by_source: dict[str, list[str]] = defaultdict(list)
    for name, each in transforms.items():
        by_source[each.source].append(name)
    return [
        Job(None, JobKind.BACKFILL, source, tuple(sorted(names)), _REASON, sweep=True)
        for source, names in sorted(by_source.items())
    ]


def part(raw: Database[Any], job: Job, only: Mapping[str, Any]) -> Job:
    """Give the job that derives only the documents that match a query; it removes nothing whose source is gone.

    Raises `ConfigurationError` for what MongoDB takes for no query. The number of documents is counted if that is
    quick.
    """
    try:
        raw[job.source].find_one(only, {"_id": 1}, max_time_ms=COUNT_MS)
        total = raw[job.source].count_documents(only, maxTimeMS=COUNT_MS)
    except OperationFailure as error:
        if error.code != _TIME_IS_UP:
            raise ConfigurationError([Fault("--filter", f"is no query: {_said(error)}.", _QUERY)]) from error
        total = 0
    return replace(job, only=only, sweep=False, total=total)


def _said(error: OperationFailure) -> str:
    return str((error.details or {}).get("errmsg", error))
