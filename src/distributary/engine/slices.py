"""Jobs, one slice at a time: each slice reads, derives and commits before the stream's next batch does."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from threading import Event
from time import monotonic
from typing import Any, ClassVar

from bson import Timestamp
from pymongo.errors import OperationFailure

from distributary.change import identity
from distributary.chunks import chunks
from distributary.derive.batch import is_storable
from distributary.derive.plan import Desired
from distributary.engine.ahead import Ahead, End, Slice
from distributary.engine.commit import Committer
from distributary.engine.derivation import Derivation, letters
from distributary.engine.portions import Portion
from distributary.engine.retry import Verdict, judge, reason
from distributary.engine.spans import Stage
from distributary.engine.work import Stores
from distributary.ports.records import TooMuch
from distributary.ports.source import Snapshot
from distributary.state import BEGINNING, Job, JobKind, Letter, LetterKey

#: The stage of a job in which the source is walked.
SCAN = "scan"

#: The stage of a job in which dead letters are swept: a document may be parked and have no record.
PARKED = "parked"


TIME_IS_UP = 50  # MaxTimeMSExpired

#: How long a slice waits for what is read ahead, in seconds, before the stream has its turn.
WAIT_SECONDS = 0.05

#: Seconds that the commit of a slice should take at most: as long does the stream wait for it.
SLICE_SECONDS = 0.5

#: How long what reads and derives ahead is waited for when it is dropped, in seconds: as long does the stream wait.
CLOSE_SECONDS = 0.3

#: Documents of a slice that is not made smaller.
LEAST = 100


class BadQuery(Exception):
    """MongoDB refuses a query that somebody has given, or takes too long for it."""


class Slices:
    """Carries out jobs for the holder of the lease; `most` documents are in a slice, fewer where commits take long.

    A slice shows nothing that is older than what was shown, so that nothing that was deleted comes back: those of a
    scan are read ahead, and leave out what the stream committed in the meantime; all others are read after everything
    that was committed, and are committed before anything else is.
    """

    #: What reads ahead.
    reading: ClassVar[type[Ahead]] = Ahead

    def __init__(
        self, derivation: Derivation, committer: Committer, stores: Stores, most: int, *, purge: bool
    ) -> None:
        self.derivation = derivation
        self.committer = committer
        self.stores = stores
        self.purge = purge
        self._portion = Portion(most, SLICE_SECONDS, LEAST)
        self._ahead: Ahead | None = None
        self._of: tuple[Any, str] = (None, "")

    @property
    def documents(self) -> int:
        """How many documents the next slice should have."""
        return self._portion.size

    def close(self) -> None:
        """Drop what was read ahead; a thread whose transform hangs is left behind, and gives nothing any more."""
        if self._ahead is not None:
            self._ahead.close(CLOSE_SECONDS)
            self.committer.overtaken.end()
            self._ahead = None

    def code(self, job: Job) -> dict[str, str]:
        """Give the fingerprints of a job's transforms as they are plugged in."""
        plugged = (each for some in self.derivation.transforms.values() for each in some)
        return {each.name: each.fingerprint for each in plugged if each.name in job.transforms}

    def taken(self, job: Job) -> Job:
        """Give a job as it is to be gone on with: begun anew when the code that it derives with has changed."""
        code = self.code(job)
        if job.kind is JobKind.DERIVE or code == job.code:
            return job
        total = job.total if job.only else self.derivation.documents.count(job.source)
        return replace(job, code=code, stage="", after=(), until=(), documents=0, total=total)

    def run(self, job: Job) -> Job:
        """Do the next slice of a job and give the job as it is then."""
        if job.kind is JobKind.DERIVE:
            return self._derive(job)
        stages = self._stages(job)
        if job.stage not in stages:
            job = replace(job, stage=stages[0], after=(), until=())
        if job.stage == PARKED:
            return self._sweep_parked(job)
        return self._scan(job) if job.stage == SCAN else self._sweep(job)

    def retry(self, keys: Sequence[LetterKey]) -> int:
        """Derive parked documents again from their current state, all in one; gives how many are parked no more."""
        entries = self.committer.checkpoint.transforms
        desired: list[Desired] = []
        parked: list[Letter] = []
        shown = BEGINNING
        for name in sorted({key.transform for key in keys}):
            source = entries[name].source
            wanted: Sequence[Any] = [key.key for key in keys if key.transform == name]
            wanted, snapshot = self.fetched(source, wanted)
            derived = self.derivation.of_snapshot(
                source, snapshot, [name], self._missing(source, snapshot, wanted)
            )
            desired += derived.desired
            parked += letters(derived.failed)
            shown = max(shown, snapshot.time)
        return self.committer.retried(shown, desired, parked)

    def fetched(
        self,
        source: str,
        keys: Sequence[Any],
        only: Mapping[str, Any] | None = None,
        at: Timestamp | None = None,
    ) -> tuple[Sequence[Any], Snapshot]:
        """Read the documents of these keys, or of the first ones that fit; gives which. `at` is as in `fetch`.

        Raises `BadQuery` when that is because of `only`: it must not hold the worker up.
        """
        while True:
            try:
                return keys, self.derivation.documents.fetch(source, keys, at, only)
            except TooMuch as error:
                keys = keys[: error.fit]
            except OperationFailure as error:
                if only is None or (judge(error) is Verdict.TRANSIENT and error.code != TIME_IS_UP):
                    raise
                raise BadQuery(reason(error)) from error

    def _missing(self, source: str, snapshot: Snapshot, keys: Sequence[Any]) -> Sequence[Any]:
        """Give the keys whose records go when their documents are missing: none, when the collection is kept."""
        return () if len(snapshot.documents) < len(keys) and self._is_kept(source) else keys

    def _is_kept(self, source: str) -> bool:
        return not self.purge and not self.derivation.documents.exists(source)

    def _end(self, job: Job, at: Timestamp | None) -> tuple[Sequence[Any], Snapshot]:
        """Read the last document of a scan; it may be gone."""
        if job.only is not None:
            return self.fetched(job.source, job.until, job.only)
        return job.until, self.derivation.documents.fetch(job.source, job.until, at)

    def _scan(self, job: Job) -> Job:
        """Derive the next documents; a query that cannot be carried out ends the job with a failure."""
        try:
            after = self.walk(job)
        except BadQuery as error:
            self.close()
            failed = replace(job, failure=f"The filter cannot be carried out: {error}", done=True)
            self.committer.progress(failed, self.committer.checkpoint)
            return failed
        return self._advance(job, self.committer.checkpoint.ahead) if after is None else after

    def walk(self, job: Job, *, alone: bool = False) -> Job | None:
        """Commit the next slice of a scan of the job's source, if it is read; None at the end.

        `alone` writes shadows only.
        """
        job, overtaken = self._bounded(job), self.committer.overtaken
        if self._ahead is None or self._of != (job.id, job.stage) or overtaken.void:
            self.close()
            overtaken.begin()
            self._ahead, self._of = self._begun(job), (job.id, job.stage)
        try:
            part = self._ahead.next(WAIT_SECONDS)
        except End:
            self.close()
            return None
        return replace(job) if part is None else self._put(job, overtaken.left(job.source, part), alone=alone)

    def walk_at(self, job: Job, at: Timestamp, *, alone: bool) -> Job | None:
        """Read and commit the next slice as of a time, or as of the newest one if that is gone; None at the end.

        What has no key that a slice can start behind is done along with what comes behind it.
        """
        job = self._bounded(job)
        for part in self._read(job, self.derivation, at):
            after = self._put(job, part, alone=alone)
            if after.after != job.after:
                return after
            job = after
        return None

    def _begun(self, job: Job) -> Ahead:
        """Begin to read ahead behind the job's key."""
        stop = Event()
        return self.reading(self._read(job, self.derivation.stopped_by(stop)), stop)

    def _bounded(self, job: Job) -> Job:
        """Give a scan that begins its end: what is inserted behind that comes by the stream."""
        if job.after or job.until:
            return job
        last = self.derivation.documents.last(job.source)
        return replace(job, until=last) if last and is_storable(last[0]) else job

    def _put(self, job: Job, part: Slice, *, alone: bool) -> Job:
        """Commit a slice of a scan, and learn how many documents the next one should have."""
        after = replace(job, after=part.after, documents=job.documents + part.documents)
        self.committer.observer.spans.stage(Stage.SCAN, part.made, documents=part.documents)
        began = monotonic()
        after = self._commit(after, part.time, part.desired, part.letters, alone=alone)
        self._portion.took(part.documents, monotonic() - began, full=True)
        return after

    def _read(self, job: Job, derivation: Derivation, at: Timestamp | None = None) -> Iterator[Slice]:
        """Read and derive documents behind the job's key, as of `at` or as of the newest time.

        Where no key of a slice can be encoded, the next slice starts behind the same key and leaves them out.
        """
        skip = 0
        while not _is_at(job.after, job.until):
            keys, snapshot = self._next(job, skip, at)
            if not keys and job.until:
                keys, snapshot = self._end(job, at)
            if not keys:
                return
            behind = _behind(keys)
            if not snapshot.documents:
                yield Slice(0, behind or job.after, snapshot.time, [], [])
            yield from self._parts(job, derivation, snapshot, behind)
            job = replace(job, after=behind or job.after)
            skip = 0 if behind else skip + len(keys)

    def _parts(
        self, job: Job, derivation: Derivation, snapshot: Snapshot, behind: tuple[Any, ...]
    ) -> Iterator[Slice]:
        """Derive what was read, in parts that fit into memory; the last one leaves `behind` as the key to go on at."""
        before, scanned = 0, snapshot.keys
        for done, derived in derivation.parts(job.source, snapshot, job.transforms):
            reached = behind if done == len(scanned) else _behind(scanned[:done])
            yield Slice(
                done - before, reached or job.after, snapshot.time, derived.desired, letters(derived.failed)
            )
            before = done

    def _next(self, job: Job, skip: int, at: Timestamp | None) -> tuple[Sequence[Any], Snapshot]:
        """Read the next documents that a job takes; gives the keys that were looked at, none at the end."""
        documents = self.derivation.documents
        if job.only is None:
            snapshot = documents.scan(job.source, job.after, self.documents, skip, at, job.until)
            return snapshot.keys, snapshot
        looked = documents.keys(job.source, job.after, self.documents, skip, job.until)
        keys = looked.keys
        readable = [key for key in keys if is_storable(key)]
        if not readable:
            return keys, Snapshot(looked.time, [])
        read, snapshot = self.fetched(job.source, readable, job.only)
        return (keys if len(read) == len(readable) else read), snapshot

    def _derive(self, job: Job) -> Job:
        """Read keys again; foreign records are removed in the transaction that writes what takes their place."""
        some, snapshot = self.fetched(job.source, job.keys if job.foreign else job.keys[: self.documents])
        rest = job.keys[len(some) :]
        after = replace(job, keys=rest, documents=job.documents + len(some), done=not rest)
        return self.again(after, job.source, some, snapshot)

    def again(self, job: Job, source: str, keys: Sequence[Any], snapshot: Snapshot) -> Job:
        """Derive documents that were read, and commit them with the job; those of `keys` that are missing are gone.

        A collection that was dropped is left to the stream, which detaches or purges it.
        """
        keys = self._missing(source, snapshot, keys)
        derived = self.derivation.of_snapshot(source, snapshot, job.transforms, keys)
        return self._commit(job, snapshot.time, derived.desired, letters(derived.failed))

    def _sweep(self, job: Job) -> Job:
        """Remove the records of one slice of source keys whose documents are gone.

        The sweep comes before the scan: what it finds alive is scanned later, with all that is stored for it.
        """
        transform, _, collection = job.stage.partition("/")
        after = self.sweep(job, transform, collection)
        return self._advance(job, self.committer.checkpoint.ahead) if after is None else after

    def sweep(self, job: Job, transform: str, collection: str, *, alone: bool = False) -> Job | None:
        """Remove records of a transform whose documents are gone, as far as one slice goes; None at the end."""
        keys = self._distinct(collection, transform, job.after)
        if not keys:
            return None
        there = self.derivation.documents.existing(job.source, keys)
        alive = {identity(each["_id"]) for each in there.documents}
        gone = [key for key in keys if identity(key) not in alive]
        if gone and self._is_kept(job.source):
            return self._detach(job, there.time)
        after = replace(job, after=(keys[-1],))
        nothing = self.derivation.gone(job.source, gone, there.time, transform)
        return self._commit(after, there.time, nothing, alone=alone)

    def _sweep_parked(self, job: Job) -> Job:
        """Resolve the dead letters of documents that are gone."""
        for name in job.transforms:
            for keys in chunks(self.committer.parked_keys(name), self.documents):
                there = self.derivation.documents.existing(job.source, keys)
                alive = {identity(each["_id"]) for each in there.documents}
                gone = [key for key in keys if identity(key) not in alive]
                if gone and self._is_kept(job.source):
                    return self._detach(job, there.time)
                nothing = self.derivation.gone(job.source, gone, there.time, name)
                job = self._commit(job, there.time, nothing)
        return self._advance(job, self.committer.checkpoint.ahead)

    def _distinct(self, collection: str, transform: str, after: tuple[Any, ...]) -> list[Any]:
        found = self.stores.sink.swept(collection, transform, after, self.documents)
        return list({identity(key): key for key in found}.values())

    def _stages(self, job: Job) -> list[str]:
        entries = self.committer.checkpoint.transforms
        if not job.sweep:
            return [SCAN]
        names = [name for name in job.transforms if name in entries]
        records = [f"{name}/{each}" for name in names for each in sorted(entries[name].places)]
        return [*records, PARKED, SCAN]

    def _advance(self, job: Job, shown: Timestamp) -> Job:
        """Go on to the next stage, or finish."""
        stages = self._stages(job)
        following = stages[stages.index(job.stage) + 1 :]
        if not following:
            return self._finish(job)
        after = replace(job, stage=following[0], after=(), until=())
        self.committer.job(after, shown, [])
        return after

    def _commit(
        self,
        job: Job,
        shown: Timestamp,
        desired: Sequence[Desired],
        letters: Sequence[Letter] = (),
        *,
        alone: bool = False,
    ) -> Job:
        """Commit a slice and give the job with what the slice wrote and removed."""
        outcome = self.committer.job(job, shown, desired, letters, alone=alone)
        written = outcome.inserted.total() + outcome.replaced.total()
        return replace(job, written=job.written + written, removed=job.removed + outcome.removed.total())

    def _detach(self, job: Job, time: Timestamp) -> Job:
        """Finish with a collection that is not there, and whose records are kept until it is again."""
        after = replace(job, done=True)
        self.committer.job(after, self.committer.checkpoint.ahead, [], detached=time)
        return after

    def _finish(self, job: Job) -> Job:
        after = replace(job, done=True)
        self.committer.job(after, self.committer.checkpoint.ahead, [])
        return after


def _behind(keys: Sequence[Any]) -> tuple[Any, ...]:
    """Give the last key that a slice can start behind; nothing without one."""
    return next(((key,) for key in reversed(keys) if is_storable(key)), ())


def _is_at(after: tuple[Any, ...], until: tuple[Any, ...]) -> bool:
    """Whether a scan has reached its end."""
    return bool(after and until) and identity(after[0]) == identity(until[0])
