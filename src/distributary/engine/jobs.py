"""The jobs of a worker: the one at hand is done a slice at a time, between the batches of the stream."""

from collections.abc import Mapping
from time import monotonic
from typing import Any

from distributary.change import Position
from distributary.derive.plan import Owner
from distributary.engine import gap
from distributary.engine.commit import Committer
from distributary.engine.derivation import Derivation
from distributary.engine.pace import RATE, Pace
from distributary.engine.parked import owner_of
from distributary.engine.publishing import Tellings
from distributary.engine.rebuild import BUILDING, Rebuilds
from distributary.engine.replay import Replays
from distributary.engine.rollups import Builds
from distributary.engine.slices import Slices
from distributary.engine.spans import Unit
from distributary.engine.triggers import TriggerTail
from distributary.engine.wiring import Settings, Wiring
from distributary.log import get_logger
from distributary.ports.stores import Carrier
from distributary.state import Job, JobKind

log = get_logger()

#: How often the worker looks for jobs that were asked for, in seconds.
LOOK_SECONDS = 1.0

#: Parked documents that are tried again in one go.
DUE = 1000


class JobRunner:
    """Does the jobs that were asked for, one after the other, and tries parked documents again that are due."""

    def __init__(
        self,
        wiring: Wiring,
        settings: Settings,
        committer: Committer,
        derivation: Derivation,
        triggers: TriggerTail | None,
    ) -> None:
        self._committer = committer
        self._triggers = triggers
        self._spans = wiring.observer.spans
        self._stores = wiring.stores
        self._names = [each.name for some in wiring.by_source.values() for each in some]
        self._pace = Pace(settings.pace, wiring.newest, wiring.oldest)
        self._slices = Slices(
            derivation, committer, wiring.stores, settings.slice_documents, purge=settings.purge
        )
        self._replays = Replays(self._slices, wiring.new_source, told=wiring.publishes)
        self._rebuilds = Rebuilds(self._slices, wiring.shelf, wiring.draw)
        self._builds = Builds(committer, wiring.rollups)
        self._tellings = Tellings(committer)
        self.job: Job | None = None
        self._held = ""
        self.waits = False
        self._looked = float("-inf")

    def start(self) -> None:
        """Finish what a rebuild was in the middle of."""
        self._rebuilds.finish()

    def close(self) -> None:
        """Leave what is read ahead."""
        self._slices.close()
        self._replays.close()

    @property
    def is_idle(self) -> bool:
        """Whether there is no job at hand."""
        return self.job is None

    @property
    def shown(self) -> Job | None:
        """The job at hand, unless it is held up by something else than its rate."""
        return None if self._held not in {"", RATE} else self.job

    def step(self, reached: Position) -> bool:
        """Do a slice of the job at hand, or look for one; True when it waits for the position to be saved."""
        if self.job is not None and self._is_halted(self.job):
            log.info("job halted", **_named(self.job))
            self._leave()
        if self.job is None:
            if monotonic() - self._looked >= LOOK_SECONDS:
                self.look()
            return False
        if self._is_held(self.job, reached):
            return False
        return self._slice(self.job)

    def look(self) -> bool:
        """Look for a job; without one, parked documents have their turn, and it is True."""
        self._looked = monotonic()
        job = self._stores.jobs.next()
        self.job = job and self._carrier(job).taken(job)
        if job is None or job.kind not in BUILDING:
            self._rebuilds.tidy()
        if self.job is None:
            self._retry()
        return self.job is None

    def _slice(self, before: Job) -> bool:
        with self._spans.unit(Unit.SLICE, job_kind=before.kind.value, job_source=before.source):
            job = self.job = self._carrier(before).run(before)
        self._pace.spent(max(0, job.documents - before.documents))
        self.waits = job is before
        if job.done:
            log.info("job done", **_named(job))
            gap.tell(self._stores.jobs, job)
            self._leave()
        return self.waits

    def _is_held(self, job: Job, reached: Position) -> bool:
        """Whether the job at hand has to wait; that is told once."""
        reason = self._pace.reason(reached)
        if reason and not self._held and reason != RATE:
            log.info("job waits", kind=job.kind, source=job.source, reason=reason)
        self._held, self.waits = reason, bool(reason)
        return self.waits

    def _carrier(self, job: Job) -> Carrier:
        if self._triggers is not None and self._triggers.retries(job):
            return self._triggers
        if job.kind is JobKind.REPLAY:
            return self._replays
        if job.kind is JobKind.ROLLUP:
            return self._builds
        if job.kind is JobKind.PUBLISH:
            return self._tellings
        return self._slices if job.kind in {JobKind.BACKFILL, JobKind.DERIVE} else self._rebuilds

    def _leave(self) -> None:
        """Leave the job at hand, and look for the next one at once."""
        self.close()
        self.job, self.waits, self._looked = None, False, float("-inf")

    def _is_halted(self, job: Job) -> bool:
        """Look now and then whether an operator has paused or cancelled the job at hand."""
        if monotonic() - self._looked < LOOK_SECONDS:
            return False
        self._looked = monotonic()
        return not self._stores.jobs.is_wanted(job.id)

    def _retry(self) -> None:
        """Try parked documents again that are due, as long as some are resolved or new ones become due."""
        tried: set[Owner] = set()
        resolved = 0
        if self._triggers is not None:
            with self._spans.unit(Unit.RETRY):
                self._triggers.retry()
        while self._committer.parked and (due := self._stores.letters.due(self._names, DUE)):
            owners = {owner_of(key) for key in due}
            if owners <= tried and not resolved:
                return
            tried |= owners
            with self._spans.unit(Unit.RETRY, documents=len(due)):
                resolved = self._slices.retry(due)


def _named(job: Job) -> Mapping[str, Any]:
    return {"kind": job.kind, "source": job.source, "documents": job.documents}
