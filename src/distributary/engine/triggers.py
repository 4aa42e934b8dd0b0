"""Triggers beside the worker: a thread reads their stream and calls them ahead of the commit."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from queue import Queue
from threading import Event, Thread
from typing import Any, NamedTuple

from bson import Timestamp

from distributary.change import Position, identity
from distributary.derive.trigger import Effects, Reacted, Seen, Trigger, react
from distributary.engine.commit import Committer
from distributary.engine.handing import hand, taken
from distributary.engine.reactions import Reactions
from distributary.engine.spans import Unit
from distributary.errors import PositionLost
from distributary.log import get_logger
from distributary.ports.source import Changes, SeenBatch, Start
from distributary.ports.stores import LetterStore
from distributary.state import Checkpoint, Job, LetterKey, TriggerStream

log = get_logger()

#: Batches that wait to be committed; one more is being made.
DEPTH = 1

#: Bytes of effects in one batch, unless they are one change's.
BATCH_BYTES = 16 * 1024 * 1024

#: How long one read of the stream waits for a change.
WAIT_MS = 250

LOST_CURE = (
    'Set worker.on_lost_position = "resync" to let triggers go on at the present: what they did not see cannot be read'
    " again, and `status` names the gap."
)


class TriggersLost(PositionLost):
    """The position of the triggers' stream is no longer in the history; that of the worker may be."""


@dataclass(frozen=True, slots=True)
class Triggers:
    """What is plugged in, and what it needs; `start` is where the stream opens for the first time."""

    plugged: Mapping[str, Trigger]
    new_source: Callable[[], Changes]
    max_effects: int
    start: Start

    @property
    def filled(self) -> frozenset[str]:
        """The derived collections that they fill."""
        return frozenset[str]().union(*(each.collections for each in self.plugged.values()))


class Followed(NamedTuple):
    """A stream that is open, and the checkpoint that says where."""

    source: Changes
    checkpoint: Checkpoint


def follow(triggers: Triggers, checkpoint: Checkpoint, newest: Timestamp, *, lost: bool) -> Followed:
    """Open the triggers' stream where the checkpoint says; raises `TriggersLost` unless it is known to be `lost`.

    Without a position it opens where the configuration says; when it is lost, at the present, with the gap noted.
    """
    source = triggers.new_source()
    try:
        stream = _opened(triggers, source, checkpoint, newest, lost)
        return Followed(source, replace(checkpoint, triggers=replace(stream, collections=triggers.filled)))
    except BaseException:
        source.close()
        raise


def _opened(
    triggers: Triggers,
    source: Changes,
    checkpoint: Checkpoint,
    newest: Timestamp,
    lost: bool,  # noqa: FBT001 - as it was given
) -> TriggerStream:
    before, filter_ = checkpoint.triggers, source.filter
    if before is None:
        return TriggerStream(source.open(triggers.start), filter_)
    if lost:
        after = before.lost(source.open(Start()), filter_)
        log.error("triggers go on at the present", unseen=_range(after), reason="their position was lost")
        return after
    if before.position.time > newest:
        raise TriggersLost("The position of the triggers lies in the source's future.", LOST_CURE)
    try:
        return replace(before, position=_reopened(source, before), filter=filter_)
    except PositionLost as error:
        raise TriggersLost(f"The triggers' position is lost: {error.message}", LOST_CURE) from error


def _reopened(source: Changes, before: TriggerStream) -> Position:
    """Open behind a position; with another filter by time, without what lies in front of the token at that time."""
    token = before.position.token
    if before.filter == source.filter:
        return source.open(Start(token=token), token)
    return source.open(Start(time=before.position.time), token)


def _range(stream: TriggerStream) -> str:
    since, until = stream.gaps[-1]
    return f"{since.as_datetime():%Y-%m-%d %H:%M:%S} to {until.as_datetime():%Y-%m-%d %H:%M:%S} UTC"


class Ready(NamedTuple):
    """What triggers made of so many changes, and the position behind them; `torn` as in `SeenBatch`."""

    reacted: Sequence[Reacted]
    changes: int
    position: Position
    torn: bool


class Reader:
    """Reads the stream and calls the triggers, in a thread of its own; what goes wrong there is raised by `next`."""

    def __init__(self, triggers: Triggers, source: Changes, epoch: int) -> None:
        self._triggers = triggers
        self._source = source
        self._epoch = epoch
        self._ready: Queue[Ready | BaseException] = Queue(DEPTH)
        self._stop = Event()
        self._thread = Thread(target=self._guarded, name="triggers", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def next(self) -> Ready | None:
        """Give what is ready, without waiting."""
        return taken(self._ready, 0)

    @property
    def waiting(self) -> bool:
        """Whether something is ready."""
        return not self._ready.empty()

    def close(self, seconds: float | None = None) -> None:
        """Stop the thread, wait for it for so long at most, and close the stream; what was not given is read again."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(seconds)
        self._source.close()

    def _guarded(self) -> None:
        try:
            self._read()
        except PositionLost as error:
            lost = TriggersLost(f"The triggers' position is lost: {error.message}", LOST_CURE)
            hand(self._ready, lost, self._stop)
        except BaseException as error:  # noqa: BLE001 - handed to the caller, who judges it
            hand(self._ready, error, self._stop)

    def _read(self) -> None:
        while not self._stop.is_set():
            for batch in self._source.read(WAIT_MS):
                for ready in self._reacted(batch):
                    if not hand(self._ready, ready, self._stop):
                        return
            if self._source.ended:
                self._source.open(Start(token=batch.position.token), batch.position.token)

    def _reacted(self, batch: SeenBatch) -> Iterator[Ready]:
        """Call the triggers for a batch, in parts that may be committed at once; they end between two changes."""
        some: list[Reacted] = []
        size, changes = 0, batch.changes
        for seen in batch.seen:
            if size > BATCH_BYTES and some[-1].seen.token != seen.token:
                last = some[-1].seen
                yield Ready(some, 0, Position(last.token, last.time), torn=True)
                some, size = [], 0
            some.append(self.react(seen))
            size += _size(some[-1])
        yield Ready(some, changes, batch.position, batch.torn)

    def react(self, seen: Seen) -> Reacted:
        """Call a trigger for one change."""
        return react(self._triggers.plugged[seen.trigger], seen, self._epoch, self._triggers.max_effects)


def _size(reacted: Reacted) -> int:
    result = reacted.result
    return result.size if isinstance(result, Effects) else len(reacted.seen.content)


class TriggerTail:
    """The triggers' part of the worker's loop: commits what is ready, saves the position, tries parked changes again.

    A carrier of jobs that retry parked changes as well.
    """

    def __init__(self, triggers: Triggers, followed: Changes, committer: Committer) -> None:
        assert committer.checkpoint.triggers is not None
        self._triggers = triggers
        self._committer = committer
        self._reader = Reader(triggers, followed, committer.checkpoint.epoch)
        self._reactions = Reactions(committer, triggers.plugged)
        self._letters: LetterStore = committer.stores.letters
        self.reached, self._torn = committer.checkpoint.triggers.position, True

    def start(self) -> None:
        """Start to read."""
        self._reader.start()

    def close(self, seconds: float | None = None) -> None:
        """Stop to read; a trigger at work is waited for so long at most."""
        self._reader.close(seconds)

    @property
    def waiting(self) -> bool:
        """Whether something is ready to be committed."""
        return self._reader.waiting

    def passed(self, time: Timestamp) -> bool:
        """Whether triggers were called for every change up to a time."""
        return self.reached.time > time or (self.reached.time == time and not self._torn)

    def step(self) -> int:
        """Commit what is ready; gives the number of changes, 0 when there was nothing."""
        ready = self._reader.next()
        if ready is None:
            return 0
        if ready.reacted:
            with self._committer.observer.spans.unit(Unit.TRIGGERS, changes=ready.changes):
                self._reactions.commit(ready.reacted, ready.changes, ready.position)
        self.reached, self._torn = ready.position, ready.torn
        return ready.changes

    def save(self) -> None:
        """Save the position that was reached, unless it is saved."""
        saved = self._committer.checkpoint.triggers
        if saved is None or saved.position != self.reached:
            self._reactions.save(self.reached)

    def retries(self, job: Job) -> bool:
        """Whether a job tries changes again that one of these triggers failed for."""
        return any(name in self._triggers.plugged for name in job.transforms)

    def taken(self, job: Job) -> Job:
        """Give a job as it is to be gone on with."""
        return job

    def run(self, job: Job) -> Job:
        """Try parked changes again, each with what is parked of its document, in order; and the job is done."""
        (name,) = job.transforms
        keys = {identity(each["key"]): each["key"] for each in job.keys}
        tried = sum(self._again(name, key) for key in keys.values())
        done = replace(job, keys=(), documents=job.documents + tried, done=True)
        self._committer.progress(done, self._committer.checkpoint)
        return done

    def retry(self) -> None:
        """Try changes again that wait for no other one any more: what they waited for was discarded."""
        if not self._reactions.parked:
            return
        for name in self._triggers.plugged:
            for key in self._letters.ready(name):
                self._again(name, key)

    def _again(self, name: str, key: Any) -> int:
        """Try what is parked of one document again, up to the first change that fails; gives how many succeeded."""
        done = 0
        for each in self._letters.changes(name, key):
            parked = self._letters.change(LetterKey(name, each.seen.of))
            if parked is None:
                self._reactions.forget(each.seen)
            elif self._reactions.again(self._reader.react(parked.seen)):
                done += 1
            else:
                break
        return done
