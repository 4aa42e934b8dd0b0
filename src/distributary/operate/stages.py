"""What a job is at, in words for people."""

from distributary.engine.rollups import RECORDS, STORED
from distributary.engine.slices import PARKED, SCAN
from distributary.parts import shared_of
from distributary.state import EVENTS, UNTOLD, Job, JobKind

_BACKFILL = {SCAN: "deriving its documents", PARKED: "removing dead letters whose documents are gone"}
_ROLLUP = {RECORDS: "noting the groups of its records", STORED: "noting the groups that it has"}

#: Of a rebuild, by what the stage begins with; `{}` is the collection or the source that the rest of it names.
_REBUILD = {
    "copy": "keeping a copy of {}",
    "seed": "filling the new {} with what was kept",
    "sweep": "removing what lost its source from the new {}",
    "scan": "deriving the documents of {}",
    "again": "verifying with the documents of {}",
    "owners": "comparing the owners in the new {} with those in the old one",
    "compare": "comparing the new {} with the old one",
    "settle": "waiting until the new collections show what the old ones do",
    "swap": "putting the new collections in their places",
}


def stage_of(job: Job) -> str:
    """Say what a job does at its stage; empty before the first one, and the stage itself where it is not known."""
    if not job.stage:
        return ""
    return _known(job) or f"at stage {job.stage!r}"


def _known(job: Job) -> str:
    match job.kind:
        case JobKind.BACKFILL:
            return _BACKFILL.get(job.stage) or _of_sweep(job.stage)
        case JobKind.ROLLUP:
            return _ROLLUP.get(job.stage, "")
        case JobKind.REBUILD | JobKind.UNDO:
            return _of_rebuild(job.stage)
        case JobKind.PUBLISH:
            return _of_publishing(job.stage)
        case JobKind.DROP:
            return "dropping what no transform names any more"
        case _:
            return ""


def _of_sweep(stage: str) -> str:
    _, slash, collection = stage.partition("/")
    return f"removing what lost its source from {shared_of(collection)}" if slash else ""


def _of_rebuild(stage: str) -> str:
    head, _, place = stage.partition("/")
    if head == "sweep":
        _, _, place = place.partition("/")
    return _REBUILD.get(head, "").format(shared_of(place))


def _of_publishing(stage: str) -> str:
    if stage == EVENTS:
        return "sending events again that were refused"
    return "telling of what a rebuild changed" if stage.startswith(UNTOLD) else ""
