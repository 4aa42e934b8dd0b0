"""Handing work to the one writer: the lease holder does it, or this process takes the lease and does."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Event
from typing import Any, Protocol

from bson import ObjectId

from distributary.change import Position
from distributary.derive.transform import Transform
from distributary.errors import Failed, LeaseLost
from distributary.log import get_logger
from distributary.operate.watch import LOOK_SECONDS
from distributary.state import Checkpoint, Job
from distributary.store.jobs import Jobs
from distributary.store.lease import Holder

log = get_logger()

#: Told how many documents of the jobs are done, and how many there are (0: not known).
Told = Callable[[int, int], None]


class Workplace(Protocol):
    """A worker's name, seen from a process that may become its worker. `stop` ends what `work_off` does."""

    stop: Event

    def jobs(self) -> Jobs:
        """Give the jobs of this name."""

    def holder(self) -> Holder | None:
        """Give who holds the lease."""

    def checkpoint(self) -> Checkpoint | None:
        """Give the last committed checkpoint."""

    def work_off(self) -> bool:
        """Take the lease and work until no job is left; False when another process has it."""


def carry_out(
    workplace: Workplace,
    jobs: Sequence[Job],
    progress: Told = lambda _done, _total: None,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Job]:
    """Ask for jobs and see them through; gives them as they are at the end, all of them done.

    A living worker does them, also one that starts or takes over meanwhile; without one this process does.
    On Ctrl-C they stay asked for: the worker goes on with them, at once or when it runs again.
    """
    if workplace.checkpoint() is None:
        raise Failed("No worker of this name ever ran, so there is nothing to do.", "Run `distributary run`.")
    try:
        return _Handed(workplace, workplace.jobs().ask(jobs), progress, sleep).see_through()
    except KeyboardInterrupt:
        log.warning("interrupted", jobs="those asked for stay with the worker: `distributary run` does them")
        raise


class _Handed:
    """Jobs that were asked for."""

    def __init__(
        self, workplace: Workplace, jobs: Sequence[Job], progress: Told, sleep: Callable[[float], None]
    ) -> None:
        self._workplace = workplace
        self._ids: list[Any] = [job.id for job in jobs]
        self._progress = progress
        self._sleep = sleep

    def see_through(self) -> list[Job]:
        while not self._done():
            if self._workplace.stop.is_set():
                raise Failed("The work was stopped; its jobs stay.", "`distributary run` carries them out.")
            self._refuse_paused()
            holder = self._workplace.holder()
            if holder is not None and holder.alive:
                self._sleep(LOOK_SECONDS)
            else:
                self._work_off()
        return self._found()

    def _refuse_paused(self) -> None:
        paused = [str(job.id) for job in self._found() if job.paused and not job.done]
        if paused:
            raise Failed(
                f"The job was paused: {', '.join(paused)}.",
                "`distributary jobs resume` lets the worker go on with it; this command need not run for that.",
            )

    def _found(self) -> list[Job]:
        return [job for each in self._ids if (job := self._workplace.jobs().get(each)) is not None]

    def _done(self) -> bool:
        """Look at the jobs and tell of their progress; one that is not there any more is done."""
        found = self._found()
        extents = [extent(job) for job in found]
        self._progress(sum(done for done, _ in extents), sum(total for _, total in extents))
        return all(job.done for job in found)

    def _work_off(self) -> None:
        """Work in a thread, so that progress is told and Ctrl-C ends the work between two commits."""
        with ThreadPoolExecutor(1, "worker") as pool:
            working = pool.submit(self._workplace.work_off)
            try:
                while not wait([working], LOOK_SECONDS).done:
                    self._done()
            except BaseException:
                self._workplace.stop.set()
                raise
        try:
            working.result()
        except LeaseLost as error:
            log.warning("stepped back", reason=error.message)


def extent(job: Job) -> tuple[int, int]:
    """Give how much of a job is done, and of how much: documents, or seconds of the history of a replay."""
    if job.span is None:
        return job.documents, max(job.documents, job.total or job.documents + len(job.keys))
    since, until = (time.time for time in job.span)
    reached = until if job.done else Position.of_token(job.after[0]).time.time
    return max(0, min(reached, until) - since), until - since


def refuse_other_code(workplace: Workplace, transforms: Mapping[str, Transform]) -> None:
    """Raise `Failed` when the running worker has other code of these transforms than is plugged in here."""
    holder = workplace.holder()
    running = holder.code if holder is not None and holder.alive else {}
    other = sorted(
        name for name, each in transforms.items() if running.get(name, each.fingerprint) != each.fingerprint
    )
    if other:
        raise Failed(
            f"The running worker has other code of {', '.join(other)} than there is here.",
            "Deploy the transform modules and start the worker again, then run this again.",
        )


def known(jobs: Jobs, text: str) -> Any:
    """Give the id of an open job from its text; raises `Failed` when there is none."""
    if not any(str(job.id) == text for job in jobs.open()):
        raise Failed(
            f"There is no open job {text!r}: it is done, or never was.",
            "`distributary jobs list` shows the ids.",
        )
    return ObjectId(text)
