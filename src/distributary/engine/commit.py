"""Committing: what a batch yields, its dead letters and jobs, the checkpoint and last the fence, together."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from bson import Timestamp
from pymongo.client_session import ClientSession
from pymongo.errors import OperationFailure

from distributary.change import CollectionChange, Position, identity
from distributary.derive.batch import is_storable
from distributary.derive.plan import Desired, Owner
from distributary.derive.transform import Transform
from distributary.derive.trigger import Event
from distributary.engine.ahead import Overtaken
from distributary.engine.breaker import Breaker
from distributary.engine.derivation import Prepared
from distributary.engine.horizon import Horizon
from distributary.engine.observer import SILENT, Observer, Part
from distributary.parts import called
from distributary.ports import (
    Behind,
    CheckpointStore,
    Commit,
    Drained,
    Group,
    Held,
    JobStore,
    LetterStore,
    ManyRefused,
    Marked,
    Outbox,
    Outcome,
    Put,
    RecordState,
    RollupRefused,
    Shown,
    Sink,
    TooMuch,
)
from distributary.state import (
    Built,
    Checkpoint,
    Job,
    JobKind,
    Letter,
    LetterKey,
    LetterKind,
    ParkedLetter,
)

#: What one transaction holds at most; more of a batch follows in others, before the position moves.
PART_RECORDS = 60_000
PART_BYTES = 48 * 1024 * 1024

#: Parked documents whose records are carried into shadows at once.
CARRIED = 200

#: Shared records that are put together in one transaction.
ASSEMBLED = 1000

#: BSONObjectTooLarge, TransactionTooLarge, TransactionExceededLifetimeLimitSeconds, TransactionTooLargeForCache
#: (its number differs by version).
TOO_LARGE = frozenset({10334, 257, 290, 313, 388})


@dataclass(frozen=True, slots=True)
class Stores:
    """What survives a restart, and the sink; all in one deployment, so that one transaction spans them."""

    sink: Sink
    checkpoints: CheckpointStore
    letters: LetterStore
    jobs: JobStore
    outbox: Outbox


@dataclass(frozen=True, slots=True)
class Work:
    """What is committed together; `retry` says that it was parked before, `due` what is to be tried again.

    Where collections have shadows, records go into both, or into the shadows `alone`. `wanted` refuses to commit a job
    that was cancelled. With `defer`, groups of rollups are left pending. What changes is published unless it is
    `silent`, and with `states` what does not change as well.
    """

    desired: Sequence[Desired]
    letters: Sequence[Letter]
    checkpoint: Checkpoint
    asked: Sequence[Job] = ()
    progress: Job | None = None
    foreign: Sequence[tuple[str, object]] = ()
    retry: bool = False
    due: Sequence[LetterKey] = ()
    alone: bool = False
    wanted: bool = False
    defer: bool = False
    silent: bool = False
    states: bool = False


class Unwanted(Exception):
    """A job was cancelled before it was committed."""


class Finished(NamedTuple):
    """What a transaction wrote beside records."""

    letters: list[Letter]
    resolved: list[LetterKey]
    checkpoint: Checkpoint
    put: Put = Put()


class Committer:
    """The one writer of a worker's name: commits under a fence, and knows the last committed checkpoint."""

    def __init__(
        self,
        stores: Stores,
        transforms: Mapping[str, Transform],
        checkpoint: Checkpoint,
        fence: int,
        breaker: Breaker,
        told: Callable[[Held], None] = lambda _: None,
        observer: Observer = SILENT,
    ) -> None:
        self._stores = stores
        self.observer = observer
        self._told = told
        self._transforms = transforms
        self._fence = fence
        self._breaker = breaker
        self._parked = {_parked(each.key): each for each in stores.letters.parked()}
        self.checkpoint = checkpoint
        self.horizon = Horizon(checkpoint.ahead)
        self.overtaken = Overtaken()
        self._unswept: set[str] = set()
        self._suspended: set[str] = set()
        self.marks = 0

    @property
    def stores(self) -> Stores:
        """What survives a restart."""
        return self._stores

    @property
    def fence(self) -> int:
        """The fence under which everything is committed."""
        return self._fence

    def check(self, changes: int, letters: Sequence[Letter]) -> None:
        """Count changes and those of them that failed; raises `TooManyDeadLetters`."""
        self._breaker.check(changes, letters)

    @property
    def parked(self) -> int:
        """The number of documents that are parked."""
        return len(self._parked)

    def parked_keys(self, transform: str) -> list[Any]:
        """Give the source keys that are parked for a transform."""
        return [each.key.key for each in self._parked.values() if each.key.transform == transform]

    def begin(self, asked: Sequence[Job], *, freed: bool = False) -> None:
        """Commit the checkpoint that the worker starts from, with the jobs that it asks for.

        `freed` says that keys may be free now that were not: contested documents are tried again.
        """
        due = (
            [each.key for each in self._parked.values() if each.kind is LetterKind.CONTESTED] if freed else []
        )
        self._stores.sink.share(self.checkpoint.shared)
        for name, transform in self._transforms.items():
            built = self.checkpoint.transforms.get(name)
            if built is not None and built.shared_by == transform.fingerprint:
                transform.shapes.know(built.shared)
        jobs = [*asked, *self._stores.jobs.open()]
        self._suspended = {job.source for job in jobs if self._is_to_build(job)}
        self._stores.sink.suspend(self._suspended)
        if self.checkpoint.revision:
            self._unswept = {job.source for job in jobs if job.sweep}
        self._transact(Work([], [], self.checkpoint, asked, due=due))

    def _is_to_build(self, job: Job) -> bool:
        """Whether a job is about to build a rollup that never was: until it begins, groups need no computing."""
        fresh = job.kind is JobKind.ROLLUP and not (job.keys or job.stage or job.done)
        return fresh and job.source not in self.checkpoint.rollups

    def resume(self, rollup: str) -> None:
        """Keep a rollup along from now on."""
        if rollup in self._suspended:
            self._suspended.remove(rollup)
            self._stores.sink.suspend(self._suspended)

    def batch(self, prepared: Prepared, *, purge: bool) -> Outcome:
        """Commit a batch of the stream and move the position behind it."""
        self._breaker.check(len(prepared.batch.changes), prepared.letters)
        checkpoint = self.checkpoint.moved(prepared.batch.position).seen(prepared.shown)
        checkpoint, returned = _attached(checkpoint, prepared.sources)
        checkpoint, changed = self._with_collections(checkpoint, prepared.batch.collections, purge=purge)
        self._unswept.update(job.source for job in returned)
        desired = self._doubted(prepared.desired)
        outcome = self._commit(Work(desired, prepared.letters, checkpoint, [*returned, *changed]))
        self._unswept.update(job.source for job in changed)
        self.horizon.passed = checkpoint.position.time
        self.overtaken.note(prepared.states, torn=bool(prepared.batch.collections))
        return outcome

    def job(
        self,
        job: Job,
        shown: Timestamp,
        desired: Sequence[Desired],
        letters: Sequence[Letter] = (),
        detached: Timestamp | None = None,
        *,
        alone: bool = False,
    ) -> Outcome:
        """Commit a slice of a job with its progress; the position stays.

        `detached` is when the job's source collection was found not to be there, with its records kept. `alone` leaves
        the collections as they are that have shadows.
        """
        self._breaker.check(len(desired) + len(letters), letters)
        checkpoint = self.checkpoint.seen(shown)
        if job.done and job.kind is JobKind.BACKFILL and job.only is None:
            checkpoint = _built(checkpoint, job)
        if detached is not None:
            checkpoint = replace(checkpoint, detached={**checkpoint.detached, job.source: detached})
        self._note(desired, shown)
        work = Work(desired, letters, checkpoint, progress=job, foreign=job.foreign, alone=alone, defer=True)
        if job.kind is JobKind.REPLAY:
            work = replace(work, silent=not job.publish, states=job.publish)
        outcome = self._commit(work)
        if job.done and job.sweep:
            self._unswept = {each.source for each in self._stores.jobs.open() if each.sweep}
        return outcome

    def progress(
        self,
        job: Job,
        checkpoint: Checkpoint,
        asked: Sequence[Job] = (),
        due: Sequence[LetterKey] = (),
        *,
        wanted: bool = False,
    ) -> None:
        """Commit a job's progress and a checkpoint without any record; raises `Unwanted` if that matters."""
        self._commit(Work([], [], checkpoint, asked, progress=job, due=due, wanted=wanted))

    def carry(self, job: Job, transform: str, *, contested: bool) -> None:
        """Let parked documents have in the shadows what they have in the live collections.

        Those that are contested, only where they have nothing there (one may be free in a shadow), or all others.
        """
        keys = [
            each.key
            for each in self._parked.values()
            if each.key.transform == transform and (each.kind is LetterKind.CONTESTED) is contested
        ]
        storable = [key for key in keys if is_storable(key.key)]
        for start in range(0, len(storable), CARRIED):
            self._carry(job, transform, storable[start : start + CARRIED], missing=contested)

    def _carry(self, job: Job, transform: str, keys: Sequence[LetterKey], *, missing: bool) -> None:
        def still_parked(session: ClientSession) -> list[Any]:
            return [each.key for each in self._stores.letters.still_parked(keys, session)]

        finishing = _Finishing(self, Work([], [], self.checkpoint, progress=job))
        try:
            self._stores.sink.carry(
                transform, still_parked, self.checkpoint.shadows, finishing, missing=missing
            )
        except TooMuch:
            half = len(keys) // 2
            self._carry(job, transform, keys[:half], missing=missing)
            self._carry(job, transform, keys[half:], missing=missing)
        else:
            self.checkpoint = finishing.checkpoint

    def copy(self, job: Job, name: str, onto: str, limit: int, shared: str | None = None) -> Job:
        """Copy the next records of a collection, and give the job behind them; at the end nothing is behind.

        Of parts that are copied, the records in `shared` are put together anew.
        """
        finishing = _Finishing(self, Work([], [], self.checkpoint, progress=job))

        def finish(session: ClientSession, behind: Behind) -> None:
            nonlocal finishing
            finishing = _Finishing(self, Work([], [], self.checkpoint, progress=replace(job, after=behind)))
            finishing(session, Outcome())

        behind = self._stores.sink.copy(name, onto, job.after, limit, finish, shared)
        self.checkpoint = finishing.checkpoint
        return replace(job, after=behind)

    def settle(self, drained: Sequence[Drained]) -> Outcome:
        """Commit pending groups of rollups that were computed; what the server does not take stays with its error."""
        if not drained:
            return Outcome()
        finishing = _Finishing(self, Work([], [], self.checkpoint))
        try:
            outcome = self._stores.sink.settle(drained, self.checkpoint.version, finishing)
        except RollupRefused as error:
            if len(drained) == 1:
                return self.settle([drained[0]._replace(document=None, error=error.reason)])
            half = len(drained) // 2
            return self.settle(drained[:half]) + self.settle(drained[half:])
        self.checkpoint = finishing.checkpoint
        self.observer.wrote(outcome, ())
        return outcome

    def aside(self, work: Callable[[ClientSession], None]) -> None:
        """Do something in a transaction of its own, under the fence."""
        finishing = _Finishing(self, Work([], [], self.checkpoint))

        def finish(session: ClientSession, outcome: Outcome) -> None:
            work(session)
            finishing(session, outcome)

        self._stores.sink.mark([], finish)
        self.checkpoint = finishing.checkpoint

    def mark(self, job: Job, checkpoint: Checkpoint, groups: Sequence[Group]) -> None:
        """Let groups of rollups be pending, and commit the job and the checkpoint behind that."""
        finishing = _Finishing(self, Work([], [], checkpoint, progress=job))
        self._stores.sink.mark(groups, finishing)
        self.checkpoint = finishing.checkpoint
        self.marks += len(groups)

    def mark_next(self, job: Job, rollup: str, limit: int, *, stored: bool) -> Job:
        """Let the next groups of a rollup be pending, and give the job behind them; at the end nothing is behind."""
        finishing = _Finishing(self, Work([], [], self.checkpoint, progress=job))

        def after(marked: Marked) -> Job:
            return replace(job, after=marked.behind, documents=job.documents + marked.documents)

        def finish(session: ClientSession, marked: Marked) -> None:
            nonlocal finishing
            finishing = _Finishing(self, Work([], [], self.checkpoint, progress=after(marked)))
            finishing(session, Outcome())

        marked = self._stores.sink.mark_next(rollup, job.after, limit, finish, stored=stored)
        self.checkpoint = finishing.checkpoint
        self.marks += 1
        return after(marked)

    def show(self, job: Job, limit: int) -> Job:
        """Publish the next records of a collection, or of the job's keys, and give the job behind them."""
        finishing = _Finishing(self, Work([], [], self.checkpoint, progress=job))

        def after(shown: Shown) -> Job:
            left = replace(job, keys=shown.behind) if job.keys else replace(job, after=shown.behind)
            return replace(left, documents=job.documents + len(shown.states), done=not shown.behind)

        def finish(session: ClientSession, shown: Shown) -> None:
            nonlocal finishing
            finishing = _Finishing(self, Work([], [], self.checkpoint, progress=after(shown)))
            finishing(session, Outcome(states=list(shown.states)))

        shown = self._stores.sink.show(job.source, job.after, limit, finish, job.keys)
        self._finished(finishing)
        return after(shown)

    def send_again(self, job: Job) -> Job:
        """Let the refused events that a job names be sent again, and give the job, which is done."""
        done = replace(job, keys=(), documents=job.documents + len(job.keys), done=True)
        finishing = _Finishing(self, Work([], [], self.checkpoint, progress=done))
        held = Held()

        def finish(session: ClientSession, outcome: Outcome) -> None:
            nonlocal held
            held = self._stores.outbox.readmit(job.keys, session)
            finishing(session, outcome)

        self._stores.sink.mark([], finish)
        self._finished(finishing)
        self._told(held)
        return done

    def retried(self, shown: Timestamp, desired: Sequence[Desired], letters: Sequence[Letter]) -> int:
        """Commit parked documents that were derived again; gives how many are parked no more."""
        before = len(self._parked)
        self._note(desired, shown)
        self._commit(Work(desired, letters, self.checkpoint.seen(shown), retry=True))
        return before - len(self._parked)

    def position(self, position: Position) -> None:
        """Save a position behind which nothing of ours happened."""
        self.save(self.checkpoint.moved(position))
        self.horizon.passed = position.time

    def save(self, checkpoint: Checkpoint) -> None:
        """Commit a checkpoint by itself."""
        self.checkpoint = self._stores.checkpoints.save(checkpoint, self._fence)

    def _doubted(self, desired: Sequence[Desired]) -> Sequence[Desired]:
        """Take no document for new of whose key there may be records of an earlier life, until they are swept."""
        if not self._unswept:
            return desired
        return [
            replace(item, fresh=item.fresh and self._transforms[item.transform].source not in self._unswept)
            for item in desired
        ]

    def _note(self, desired: Iterable[Desired], shown: Timestamp) -> None:
        places = {(self._transforms[item.transform].source, item.owner.identity) for item in desired}
        self.horizon.note(places, shown)

    # --- the transaction ------------------------------------------------------------------------------------

    def _commit(self, work: Work) -> Outcome:
        """Commit, in one transaction where it fits in one; the position moves with the last."""
        work = replace(work, checkpoint=self._with_shared(work.checkpoint, self._share()))
        if work.alone:
            free = [item for item in work.desired if not self._is_contested(item.owner)]
            work = replace(work, desired=free)
        *parts, last = _parts(work.desired)
        outcome = Outcome()
        for part in parts:
            ahead = replace(self.checkpoint, ahead=work.checkpoint.ahead)
            outcome += self._divided(
                replace(work, desired=part, letters=(), checkpoint=ahead, asked=(), progress=None, foreign=())
            )
        revision = self.checkpoint.revision
        return outcome + self._divided(
            replace(work, desired=last, checkpoint=replace(work.checkpoint, revision=revision))
        )

    def _share(self) -> Mapping[str, frozenset[str]]:
        """Note to which shared records transforms contribute, before they do so for the first time; gives what is new.

        What lies in such a collection then is left over from a state that was dropped: it has no parts. What others
        derive meanwhile is noted the next time.
        """
        new = {name: shared for name in self._transforms if (shared := self._unnoted(name))}
        if not new:
            return new
        known = self.checkpoint.shared
        sharing = frozenset[str]().union(*new.values())
        self._stores.sink.share(sharing)
        for name in sorted(sharing - known):
            self._assemble(name)
        self.save(self._with_shared(self.checkpoint, new))
        return new

    def _unnoted(self, name: str) -> frozenset[str]:
        """Give to which shared records a transform contributes, if that or the code that does so is not noted yet."""
        built, transform = self.checkpoint.transforms.get(name), self._transforms[name]
        shared = transform.shared
        noted = built is None or (shared <= built.shared and built.shared_by == transform.fingerprint)
        return frozenset() if noted else shared

    def _with_shared(self, checkpoint: Checkpoint, new: Mapping[str, frozenset[str]]) -> Checkpoint:
        """Note shared records to which transforms contribute, too."""
        for name, shared in new.items():
            built, code = checkpoint.transforms[name], self._transforms[name].fingerprint
            noted = replace(built, shared=built.shared | shared, shared_by=code)
            checkpoint = checkpoint.with_built(name, noted)
        return checkpoint

    def _assemble(self, collection: str) -> None:
        """Put all shared records of a collection together from their parts, some at a time."""
        behind: Behind | None = None
        while behind != ():
            finishing = _Finishing(self, Work([], [], self.checkpoint))
            behind = self._stores.sink.assemble(collection, behind or (), ASSEMBLED, finishing)
            self._finished(finishing)
            self.marks += 1

    def _divided(self, work: Work) -> Outcome:
        """Commit a transaction; one that is too large, or of which MongoDB refuses much, is halved."""
        try:
            return self._transact(work)
        except (ManyRefused, TooMuch):
            pass
        except OperationFailure as error:
            if error.code not in TOO_LARGE or len(work.desired) <= 1:
                raise
        half = len(work.desired) // 2
        ahead = replace(self.checkpoint, ahead=work.checkpoint.ahead)
        first = replace(
            work,
            desired=work.desired[:half],
            letters=(),
            checkpoint=ahead,
            asked=(),
            progress=None,
            foreign=(),
        )
        outcome = self._divided(first)
        rest = replace(work.checkpoint, revision=self.checkpoint.revision)
        return outcome + self._divided(replace(work, desired=work.desired[half:], checkpoint=rest))

    def _transact(self, work: Work) -> Outcome:
        """Commit one transaction; what is remembered here changes only after that."""
        finishing = _Finishing(self, work)
        entries = work.checkpoint.transforms
        outcome = self._stores.sink.write(
            work.desired,
            {name: built.places for name, built in entries.items()},
            finishing,
            work.foreign,
            [name for name, built in entries.items() if built.unplugged],
            work.checkpoint.shadows,
            alone=work.alone,
            defer=work.defer,
            states=work.states,
        )
        self.marks += outcome.pending
        for key in finishing.resolved:
            self._parked.pop(_parked(key), None)
        for letter in finishing.letters:
            key = LetterKey(letter.transform, letter.key)
            self._parked[_parked(key)] = ParkedLetter(key, letter.kind)
        self._finished(finishing)
        self.observer.wrote(outcome, finishing.letters)
        outcome.states.clear()
        return outcome

    def finish(self, work: Work, session: ClientSession, outcome: Outcome) -> Finished:
        """Write what goes with the records, inside their transaction, and last the checkpoint with the fence."""
        rivals = self._rivals(work, outcome, session)
        contested = self._contested(work, outcome, rivals)
        letters = [*map(self._placed, work.letters), *contested, *self._refused(outcome)]
        lost = {_parked(LetterKey(letter.transform, letter.key)) for letter in letters}
        resolved = [] if work.alone else self._resolved(work.desired, lost)
        self._stores.letters.resolve(resolved, session)
        self._stores.letters.put(letters, session)
        rivalling = [self._parked[each].key for each in set(rivals.values())]
        self._stores.letters.make_due([*work.due, *rivalling], session)
        if outcome.released and any(each.kind is LetterKind.CONTESTED for each in self._parked.values()):
            self._stores.letters.release(outcome.released, session)
        self._stores.jobs.ask(work.asked, session)
        if work.progress is not None:
            saved = self._stores.jobs.save(work.progress, session)
            if work.wanted and not saved:
                raise Unwanted
        put = Put() if work.silent else self.put((), outcome.states, work.checkpoint, session)
        checkpoint = self._stores.checkpoints.save(work.checkpoint, self._fence, session)
        return Finished(letters, resolved, checkpoint, put)

    def put(
        self,
        events: Sequence[Event],
        states: Sequence[RecordState],
        checkpoint: Checkpoint,
        session: ClientSession,
    ) -> Put:
        """Put what is to be published into the outbox, in the transaction that saves a checkpoint."""
        if not (events or states):
            return Put()
        newest = max(checkpoint.position.time, checkpoint.ahead)
        commit = Commit(checkpoint.position, checkpoint.revision + 1, newest)
        return self._stores.outbox.put(events, states, commit, session)

    def committed(self, checkpoint: Checkpoint, put: Put) -> None:
        """Note what was committed."""
        self.checkpoint = checkpoint
        self._told(put.held)
        self.observer.beat(Part.WORK)

    def _finished(self, finishing: "_Finishing") -> None:
        self.committed(finishing.checkpoint, finishing.put)

    def _resolved(self, desired: Iterable[Desired], lost: set[Owner]) -> list[LetterKey]:
        if not self._parked:
            return []
        return [
            LetterKey(item.transform, item.key)
            for item in desired
            if item.owner in self._parked and item.owner not in lost
        ]

    def _is_contested(self, owner: Owner) -> bool:
        parked = self._parked.get(owner)
        return parked is not None and parked.kind is LetterKind.CONTESTED

    def _rivals(self, work: Work, outcome: Outcome, session: ClientSession) -> Mapping[Owner, Owner]:
        """Give the contested documents outside this work that hold what documents in it are contested for.

        Each with who is contested for its key, by itself or by way of others in this work: all of them together
        may only need to swap. One whose letter was discarded is not tried again, so that nobody may wait for it.
        """
        members = {item.owner for item in work.desired}
        holders = {each.desired.owner: each.holder for each in outcome.contests}
        ends = {owner: _end(owner, holders) for owner in holders}
        rivals = {owner: end for owner, end in ends.items() if end not in members and self._is_contested(end)}
        keys = [self._parked[each].key for each in set(rivals.values())]
        still = {_parked(key) for key in self._stores.letters.still_parked(keys, session)} if keys else set()
        return {owner: end for owner, end in rivals.items() if end in still}

    def _placed(self, letter: Letter) -> Letter:
        """Give a letter of a scanned document the position that the worker was at."""
        return letter if letter.position.token else replace(letter, position=self.checkpoint.position)

    def _contested(self, work: Work, outcome: Outcome, rivals: Mapping[Owner, Owner]) -> Iterator[Letter]:
        """Give the letters of contested documents; a retry that finds a rival is done again with all and it."""
        for contest in outcome.contests:
            place = (contest.place[0], contest.key)
            reason = f"yields {called(*place)}, which source document {contest.holder.identity!r:.80} owns"
            letter = self._letter(
                contest.desired, LetterKind.CONTESTED, f"{reason} ({contest.holder.transform})"
            )
            due = contest.free or contest.desired.owner in rivals or (work.retry and bool(rivals))
            yield replace(letter, waits_for=place, due=due)

    def _refused(self, outcome: Outcome) -> Iterator[Letter]:
        for desired, reason in outcome.refused:
            yield self._letter(desired, LetterKind.REFUSED, reason)

    def _letter(self, desired: Desired, kind: LetterKind, reason: str) -> Letter:
        transform = self._transforms[desired.transform]
        position = Position(self.checkpoint.position.token, desired.version.time)
        return Letter(
            transform.name, desired.key, transform.source, kind, reason, "", position, transform.fingerprint
        )

    # --- whole collections ----------------------------------------------------------------------------------

    def _with_collections(
        self, checkpoint: Checkpoint, changes: Sequence[CollectionChange], *, purge: bool
    ) -> tuple[Checkpoint, list[Job]]:
        """Detach, purge or derive anew the source collections that were dropped, renamed or replaced."""
        jobs = []
        for change in changes:
            detached = dict(checkpoint.detached)
            detached.pop(change.collection, None)
            if change.gone and not purge:
                detached[change.collection] = change.time
            else:
                reason = "dropped" if change.gone else "replaced by a rename"
                jobs.append(job_for(checkpoint, change.collection, reason))
            checkpoint = replace(checkpoint, detached=detached)
        return checkpoint, jobs


class _Finishing:
    """The end of one transaction; called again when it is repeated, and then the last call counts."""

    def __init__(self, committer: Committer, work: Work) -> None:
        self._committer = committer
        self._work = work
        self._finished = Finished([], [], work.checkpoint)

    def __call__(self, session: ClientSession, outcome: Outcome) -> None:
        self._finished = self._committer.finish(self._work, session, outcome)

    @property
    def letters(self) -> list[Letter]:
        """What was parked."""
        return self._finished.letters

    @property
    def resolved(self) -> list[LetterKey]:
        """What was parked and is no more."""
        return self._finished.resolved

    @property
    def checkpoint(self) -> Checkpoint:
        """What was saved."""
        return self._finished.checkpoint

    @property
    def put(self) -> Put:
        """What was put into the outbox."""
        return self._finished.put


def _parked(key: LetterKey) -> Owner:
    return Owner(key.transform, identity(key.key))


def _parts(desired: Sequence[Desired]) -> list[Sequence[Desired]]:
    """Cut what documents yield into what one transaction holds."""
    cuts, records, size = [0], 0, 0
    for index, item in enumerate(desired):
        more, larger = len(item.records), item.size
        if records and (records + more > PART_RECORDS or size + larger > PART_BYTES):
            cuts.append(index)
            records = size = 0
        records, size = records + more, size + larger
    return [desired[start:end] for start, end in zip(cuts, [*cuts[1:], len(desired)], strict=True)]


def _built(checkpoint: Checkpoint, job: Job) -> Checkpoint:
    """Note that every existing document of a source went through these transforms, and that it is there."""
    for name, fingerprint in job.code.items():
        entry = checkpoint.transforms[name]
        checkpoint = checkpoint.with_built(
            name, replace(entry, fingerprint=fingerprint, built=not entry.unplugged)
        )
    if not job.documents:
        return checkpoint
    return replace(checkpoint, detached={k: v for k, v in checkpoint.detached.items() if k != job.source})


def _attached(checkpoint: Checkpoint, sources: Iterable[str]) -> tuple[Checkpoint, list[Job]]:
    """Take back detached collections in which something happens again: they are derived anew, with a sweep."""
    back = [name for name in sources if name in checkpoint.detached]
    detached = {name: time for name, time in checkpoint.detached.items() if name not in back}
    jobs = [job_for(checkpoint, name, "created again") for name in back]
    return replace(checkpoint, detached=detached) if back else checkpoint, jobs


def job_for(checkpoint: Checkpoint, source: str, reason: str) -> Job:
    """Give the job that derives one source collection anew for all of its transforms."""
    names = tuple(sorted(name for name, built in checkpoint.transforms.items() if built.source == source))
    return Job(None, JobKind.BACKFILL, source, names, reason, sweep=True)


def _end(owner: Owner, holders: Mapping[Owner, Owner]) -> Owner:
    """Follow who holds what who is contested for, as far as it goes."""
    seen = set()
    while owner in holders and owner not in seen:
        seen.add(owner)
        owner = holders[owner]
    return owner


def entry(transform: Transform, before: Built | None, *, built: bool) -> Built:
    """Give a transform's entry in the checkpoint: the collections it names now and those it ever wrote."""
    ever: frozenset[str] = before.collections if before else frozenset()
    fingerprint = before.fingerprint if before else transform.fingerprint
    collections = ever | transform.collections
    if before is None:
        return Built(transform.source, fingerprint, collections, built)
    return replace(before, source=transform.source, collections=collections, built=built, unplugged=False)
