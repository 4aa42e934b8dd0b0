"""Rollups whose groups are not computed in the transactions that touch them: draining, and building anew."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from threading import Thread
from time import monotonic
from typing import Any, NamedTuple

from distributary.engine.commit import Committer
from distributary.engine.news import News
from distributary.engine.retry import Verdict, judge, reason
from distributary.log import get_logger
from distributary.ports.records import Behind
from distributary.ports.rollups import Drained, Group, GroupReader
from distributary.quoting import quoting
from distributary.state import Job, JobKind

log = get_logger()

#: Groups that are computed at once; fewer after that took too long for the server.
GROUPS = 1000

#: How many times as long as a read took the next one waits while changes keep coming.
PAUSE = 3

#: Seconds after which groups that could not be computed are looked at again, and after which a failed read is repeated.
LOOK_SECONDS = 60.0
RETRY_SECONDS = 1.0

#: How long a read that is under way is waited for at the end, in seconds; what it gives is dropped.
CLOSE_SECONDS = 0.5

#: Records, or groups, of which the groups become pending in one slice of a job.
SLICE = 5000

#: The stages of a job that builds a rollup: the records that it is over, then the groups that it has.
RECORDS, STORED = "records", "groups"

#: The most keys in one job.
JOB_KEYS = 5000


def rollup_job(name: str, reason: str, keys: Sequence[Any] = ()) -> Job:
    """Give the job that lets groups of a rollup be computed: all of them, or those with these keys."""
    return Job(None, JobKind.ROLLUP, name, (), reason, keys=keys, total=len(keys))


class _Read(NamedTuple):
    """What a read gave: groups, where the next one goes on, how long it took, or what went wrong."""

    drained: list[Drained]
    behind: Behind
    seconds: float
    error: BaseException | None = None


class Draining:
    """Computes pending groups beside the stream: a thread reads, the caller commits.

    It reads at most a quarter of the time while changes keep coming. A group that is touched meanwhile is stored as it
    was, which is newer than what is stored, and stays pending; so one that is always touched makes progress, too.
    """

    def __init__(
        self, reader: GroupReader | None, committer: Committer, clock: Callable[[], float] = monotonic
    ) -> None:
        self._reader = reader
        self._committer = committer
        self._clock = clock
        self._thread: Thread | None = None
        self._read: _Read | None = None
        self._after: Behind = ()
        self._groups = GROUPS
        self._marks = -1
        self._found = False
        self._clean = reader is None
        self._not_before = float("-inf")
        self._looked = float("-inf")
        self._failing = News()

    @property
    def is_done(self) -> bool:
        """Whether nothing is pending but what cannot be computed."""
        return self._reader is None or (self._clean and self._marks == self._committer.marks)

    @property
    def is_reading(self) -> bool:
        """Whether a read is under way or waits to be taken."""
        return self._thread is not None

    def step(self, *, idle: bool) -> None:
        """Commit what was read, and begin the next read if there is anything to do and the stream leaves the time."""
        if self._reader is None:
            return
        if self._thread is not None:
            if self._thread.is_alive():
                return
            self._thread.join()
            self._thread = None
            self._take(self._read)
        if self._is_due(idle=idle):
            self._begin()

    def close(self) -> None:
        """Drop what is being read."""
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)
            self._thread = None

    def _is_due(self, *, idle: bool) -> bool:
        now = self._clock()
        if self.is_done and now - self._looked < LOOK_SECONDS:
            return False
        return idle or now >= self._not_before

    def _begin(self) -> None:
        if not self._after:
            self._marks, self._found, self._looked = self._committer.marks, False, self._clock()
        self._clean, self._read = False, None
        self._thread = Thread(target=self._work, name="rollups", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        assert self._reader is not None
        began = self._clock()
        try:
            drained, behind = self._reader.read(self._after, self._groups)
            self._read = _Read(drained, behind, self._clock() - began)
        except BaseException as error:  # noqa: BLE001 - handed to the caller, who judges it
            self._read = _Read([], (), self._clock() - began, error)

    def _take(self, read: _Read | None) -> None:
        assert read is not None
        self._not_before = self._clock() + PAUSE * read.seconds
        if read.error is not None:
            self._failed(read.error)
            return
        self._failing.ends()
        self._committer.settle(read.drained)
        if failed := [each for each in read.drained if each.error]:
            first = failed[0]
            log.error(
                "group cannot be computed",
                groups=len(failed),
                group=_name(first.pending.group),
                reason=first.error,
            )
        self._groups = min(GROUPS, 2 * self._groups)
        self._after, self._found = read.behind, self._found or bool(read.drained)
        self._clean = not self._after and not self._found

    def _failed(self, error: BaseException) -> None:
        """Try again a moment later, with fewer groups; raises what does not pass by itself."""
        if judge(error) is not Verdict.TRANSIENT:
            raise error
        if self._failing.is_news():
            log.warning("trying again", rollups=True, error=reason(error))
        self._groups = max(1, self._groups // 2)
        self._after, self._not_before = (), self._clock() + RETRY_SECONDS


class Builds:
    """Carries out jobs that build rollups: all their groups become pending, a slice at a time."""

    def __init__(self, committer: Committer, plugged: Mapping[str, str]) -> None:
        self._committer = committer
        self._plugged = plugged

    def taken(self, job: Job) -> Job:
        """Give a job as it is to be gone on with: begun anew, since nobody may have kept what it passed along."""
        code = {name: fingerprint for name, fingerprint in self._plugged.items() if name == job.source}
        return replace(job, code=code, stage="", after=(), documents=0)

    def run(self, job: Job) -> Job:
        """Do the next slice of a job and give the job as it is then."""
        name, checkpoint = job.source, self._committer.checkpoint
        if name not in self._plugged:
            done = replace(job, done=True, failure=f"The worker runs without rollup {name!r}.")
            self._committer.progress(done, checkpoint)
            return done
        if job.keys:
            done = replace(job, done=True, documents=len(job.keys))
            self._committer.mark(done, checkpoint, [Group(name, key) for key in job.keys])
            return done
        self._committer.resume(name)
        stage = job.stage or RECORDS
        after = self._committer.mark_next(replace(job, stage=stage), name, SLICE, stored=stage == STORED)
        return after if after.after else self._advance(after)

    def _advance(self, job: Job) -> Job:
        """Go on to the next stage, or note that the rollup is built: what is left to do of it is pending."""
        checkpoint = self._committer.checkpoint
        if job.stage == RECORDS:
            after = replace(job, stage=STORED, after=())
        else:
            after = replace(job, done=True)
            checkpoint = replace(checkpoint, rollups={**checkpoint.rollups, job.source: job.code[job.source]})
        self._committer.progress(after, checkpoint)
        return after


def _name(group: Group) -> str:
    return quoting(f"{group.rollup}[", f"{group.key!r:.80}", "]")
