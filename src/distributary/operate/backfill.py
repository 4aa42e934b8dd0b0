"""Deriving again what exists: which jobs that takes."""

from collections import defaultdict
from collections.abc import Mapping

from distributary.derive.transform import Transform
from distributary.errors import Failed
from distributary.state import Checkpoint, Job, JobKind

_REASON = "asked for"


def backfills(transforms: Mapping[str, Transform], checkpoint: Checkpoint | None) -> list[Job]:
    """Give one job for each source collection that these transforms read.

    Raises `Failed` when the worker of this name does not know one of them: it derives with the code that it began with.
    """
    known = checkpoint.transforms if checkpoint else {}
    unknown = sorted(name for name in transforms if name not in known or known[name].unplugged)
    if unknown:
        raise Failed(
            f"The worker has not begun to derive with {', '.join(unknown)}.",
            "Start it again with the transform modules as they are now: a new transform gets its backfill by itself.",
        )
    by_source: dict[str, list[str]] = defaultdict(list)
    for name, each in transforms.items():
        by_source[each.source].append(name)
    return [
        Job(None, JobKind.BACKFILL, source, tuple(sorted(names)), _REASON, sweep=True)
        for source, names in sorted(by_source.items())
    ]
