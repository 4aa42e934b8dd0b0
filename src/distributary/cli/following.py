"""Following jobs that were handed to the worker."""

from collections.abc import Sequence

from distributary.assemble import Assembled
from distributary.cli.common import progress
from distributary.errors import Failed, PositionLost
from distributary.operate.jobs import carry_out
from distributary.state import Job, JobKind

#: What to do about a job that failed, other than a replay or a rebuild.
_CURES = {
    JobKind.BACKFILL: "What was derived before stays. Correct --filter, and try it with `find` on the source first."
}


def follow(
    assembled: Assembled, jobs: Sequence[Job], label: str, unit: str = "documents", *, as_json: bool
) -> list[Job]:
    """Ask for jobs and show their progress until they are done; raises what one of them failed of."""
    with progress(label, unit=unit, as_json=as_json) as bar:
        done = carry_out(assembled, jobs, bar.update)
    for job in done:
        if job.failure and job.kind is JobKind.REPLAY:
            raise PositionLost(job.failure, "Replay from `oldest`, or run `distributary backfill`.")
        if job.failure:
            raise Failed(job.failure, _CURES.get(job.kind, "The live collections are as they were."))
    return done
