"""Replays: the history is read again, and what changed in it is derived from its current state."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from bson import Timestamp
from pymongo.errors import PyMongoError

from distributary.change import Change, Identity, identity
from distributary.derive.batch import is_storable
from distributary.engine.slices import Slices
from distributary.errors import PositionLost
from distributary.ports.source import Batch, Source, Start
from distributary.state import Job

#: How long a slice waits for the server to find the next change, in milliseconds.
WAIT_MS = 50


class _TooNew(Exception):
    """The server no longer has documents as of the stream's position."""


class Replays:
    """Carries out replays, one slice at a time; the stream of the one at hand stays open in between.

    Nothing of the history but which documents changed is used, so that nothing goes back to an older state and
    nothing that was deleted comes back. With `told`, somebody is told of what the stream changes: a replay that tells
    nobody then shows documents as of the stream's position, lest it takes changes away from the stream.
    """

    def __init__(self, slices: Slices, new_source: Callable[[], Source], *, told: bool = False) -> None:
        self._slices = slices
        self._new_source = new_source
        self._told = told
        self._open: tuple[Any, Source] | None = None

    def taken(self, job: Job) -> Job:
        """Give a replay as it is to be gone on with; it derives with the code that is plugged in."""
        return replace(job, code=self._slices.code(job))

    def run(self, job: Job) -> Job:
        """Do the next slice; a position that the source no longer has ends the replay with a failure.

        The same job comes back where it has to wait for the stream.
        """
        if self._is_silent(job) and not self._is_level():
            return job
        try:
            batches = self._source(job).read(WAIT_MS)
        except PositionLost as error:
            self.close()
            return self._save(replace(job, failure=error.message, done=True))
        except PyMongoError:
            self.close()
            raise
        before = job
        for batch in batches:
            try:
                job = self._batch(job, batch)
            except _TooNew:
                self.close()
                return before
            if job.done:
                self.close()
                return job
        if self._source(job).ended:
            self.close()
        return job

    def _is_silent(self, job: Job) -> bool:
        return self._told and not job.publish

    def _is_level(self) -> bool:
        """Whether nothing is shown that the stream has not come to."""
        return self._slices.committer.checkpoint.is_level

    def close(self) -> None:
        """Free what the server holds for the stream at hand."""
        if self._open is not None:
            with suppress(PyMongoError):
                self._open[1].close()
            self._open = None

    def _source(self, job: Job) -> Source:
        """Give the stream behind the job's last token, opened if it is not."""
        if self._open is None or self._open[0] != job.id:
            self.close()
            source = self._new_source()
            self._open = (job.id, source)
            source.open(Start(token=job.after[0]))
        return self._open[1]

    def _batch(self, job: Job, batch: Batch) -> Job:
        assert job.span is not None
        until = job.span[1]
        for source, keys in self._changed(job, batch.changes, until).items():
            job = self._again(job, source, keys)
        done = batch.position.time >= until and not batch.torn
        after = (batch.position.token,)
        if batch.changes or done:
            return self._save(replace(job, after=after, done=done))
        return replace(job, after=after)

    def _changed(self, job: Job, changes: Iterable[Change], until: Timestamp) -> Mapping[str, Sequence[Any]]:
        """Give the keys of the documents that changed, by source collection."""
        transforms = self._slices.derivation.transforms
        sources = {name for name, some in transforms.items() if any(t.name in job.transforms for t in some)}
        changed: dict[str, dict[Identity, Any]] = {}
        for change in changes:
            if change.collection in sources and change.time <= until:
                changed.setdefault(change.collection, {})[identity(change.key)] = change.key
        return {source: list(keys.values()) for source, keys in changed.items()}

    def _again(self, job: Job, source: str, keys: Sequence[Any]) -> Job:
        """Derive documents from their current state, as many at a time as fit; the replay stays where it was."""
        left = [key for key in keys if is_storable(key)]
        at = self._slices.committer.checkpoint.position.time if self._is_silent(job) else None
        while left:
            some, snapshot = self._slices.fetched(source, left[: self._slices.documents], at=at)
            if at is not None and snapshot.time > at:
                raise _TooNew
            job = replace(job, documents=job.documents + len(some))
            job = self._slices.again(job, source, some, snapshot)
            left = left[len(some) :]
        return job

    def _save(self, job: Job) -> Job:
        committer = self._slices.committer
        committer.progress(job, committer.checkpoint)
        return job
