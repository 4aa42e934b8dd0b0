"""The interfaces between the engine and what it drives, and the values that cross them."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import accumulate, takewhile
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol, overload
from uuid import UUID

from bson import Timestamp
from pymongo.client_session import ClientSession

from distributary.change import Change, CollectionChange, Position, Version, decoded
from distributary.derive.plan import Contest, Desired
from distributary.derive.trigger import Event, Seen
from distributary.events.envelope import Message
from distributary.excerpt import key_of
from distributary.state import Checkpoint, Job, Letter, LetterKey, LetterKind, ParkedLetter, SlowTransform


class Batch(NamedTuple):
    """Changes in the source's order, and the position behind them.

    `size` is what they took on the wire, in bytes. `collections` are the whole collections that changed
    right behind the last change; nothing of a later position is in the batch then. `torn` says that changes
    of the last one's cluster time follow in the next batch.
    """

    changes: list[Change]
    position: Position
    size: int
    collections: tuple[CollectionChange, ...] = ()
    torn: bool = False


class Start(NamedTuple):
    """Where a stream opens: behind a token, at a cluster time, or (neither) at the present."""

    token: str | None = None
    time: Timestamp | None = None


class Encoded(Sequence[dict[str, Any]]):
    """Documents in BSON, each decoded anew when it is looked at: a dict takes many times the room."""

    def __init__(self, documents: Sequence[bytes]) -> None:
        self._documents = documents

    def __len__(self) -> int:
        return len(self._documents)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> "Encoded": ...

    def __getitem__(self, index: int | slice) -> "dict[str, Any] | Encoded":
        if isinstance(index, slice):
            return Encoded(self._documents[index])
        return decoded(self._documents[index])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Encoded({list(self)!r})"

    def keys(self) -> list[Any]:
        """Give the keys of the documents."""
        return [key_of(each) for each in self._documents]

    @property
    def raw(self) -> Sequence[bytes]:
        """The documents in BSON."""
        return self._documents

    def fit(self, most: int | None) -> int:
        """Give how many of the first documents have so many bytes at most; one always fits."""
        if most is None:
            return len(self)
        within = takewhile(most.__ge__, accumulate(map(len, self._documents)))
        return max(min(1, len(self)), sum(1 for _ in within))

    @property
    def size(self) -> int:
        """The documents' size in bytes."""
        return sum(map(len, self._documents))


class Snapshot(NamedTuple):
    """Documents as they all were at `time`; a key that was asked for and is missing did not exist then."""

    time: Timestamp
    documents: Sequence[dict[str, Any]]

    @property
    def keys(self) -> list[Any]:
        """The keys of the documents, in their order, out of reach of a transform that changes its document."""
        if isinstance(self.documents, Encoded):
            return self.documents.keys()
        return [deepcopy(each["_id"]) for each in self.documents]

    @property
    def size(self) -> int:
        """The size of the documents in bytes; 0 when they are no longer in BSON."""
        return self.documents.size if isinstance(self.documents, Encoded) else 0


class TooMuch(Exception):
    """The documents are more than may be held at once; `fit` of them are not, or it is 1."""

    def __init__(self, fit: int) -> None:
        super().__init__(fit)
        self.fit = max(1, fit)


class Source(Protocol):
    """A stream of changes."""

    def open(self, start: Start) -> Position:
        """Open the stream and give the position there; raises `PositionLost`."""

    def read(self, wait_ms: int) -> list[Batch]:
        """Give the next changes, waiting up to `wait_ms`; without any, one batch with a position only."""

    @property
    def ended(self) -> bool:
        """Whether the server closed the stream; a new one opens behind the last position."""

    def close(self) -> None:
        """Free what the server holds for the stream."""


class ParkedChange(NamedTuple):
    """A change that is parked."""

    seen: Seen
    kind: LetterKind
    due: bool


class SeenBatch(NamedTuple):
    """What triggers are called for of so many `changes`, in the source's order, and the position behind them.

    `torn` says that changes of the position's cluster time may follow.
    """

    seen: Sequence[Seen]
    changes: int
    position: Position
    torn: bool = False


class Changes(Protocol):
    """A stream of changes with their images, for triggers."""

    @property
    def filter(self) -> str:
        """What names the filter: a stream with another one opens by time."""

    def open(self, start: Start, after: str = "") -> Position:
        """Open the stream and give the position there, without what is not behind the token `after`.

        Raises `PositionLost`.
        """

    def read(self, wait_ms: int) -> Iterable[SeenBatch]:
        """Give the next changes, waiting up to `wait_ms`; the last batch has the position behind them."""

    @property
    def ended(self) -> bool:
        """Whether the server closed the stream; a new one opens behind the last position."""

    def close(self) -> None:
        """Free what the server holds for the stream."""


class RecordState(NamedTuple):
    """A record of a derived collection as it is stored, in BSON with the engine's field, or None when it is gone."""

    collection: str
    key: Any
    document: bytes | None


class Shown(NamedTuple):
    """Some records of a collection, and where the next ones begin, or the keys that are left; empty at the end."""

    states: Sequence[RecordState]
    behind: tuple[Any, ...]


class Sent(NamedTuple):
    """What became of a message: confirmed, or `error`; `lasting` when sending the same again is of no use."""

    error: str = ""
    lasting: bool = False


class Commit(NamedTuple):
    """What the events of one commit share: position and revision of its checkpoint, and the newest time."""

    position: Position
    revision: int
    time: Timestamp


class Held(NamedTuple):
    """How many events there are, and their bytes."""

    events: int = 0
    bytes: int = 0


class Put(NamedTuple):
    """What was put into the outbox, and the events that never could be published, each with the reason."""

    held: Held = Held()
    refused: Sequence[tuple[Event, str]] = ()


class Waiting(NamedTuple):
    """A message that waits to be published; ids rise in the order of the commits.

    `of` is the trigger or derived collection, `size` what it counts for in the bounds, in bytes.
    """

    id: Any
    of: str
    message: Message
    size: int


class Outbox(Protocol):
    """Where events lie that were committed with what they tell of, until they are published."""

    def put(
        self, events: Sequence[Event], states: Sequence[RecordState], commit: Commit, session: ClientSession
    ) -> Put:
        """Add events, and those of records that changed, in the session's transaction; they come in this order.

        A record that is too large for a message is kept as refused, or is told by a reference. What was refused of
        these records before is removed.
        """

    def next(self, limit: int, size: int) -> Sequence[Waiting]:
        """Give the oldest messages, at most so many and, beyond the first one, so many bytes."""

    def remove(self, first: Any, last: Any) -> None:
        """Remove the messages with these ids and all that `next` gave between them that were not refused.

        What was refused of their records before is removed, too.
        """

    def refuse(self, id: Any, reason: str) -> None:  # noqa: A002 - as the field is called
        """Take a message out of the order and keep it as refused, in the place of what was refused of its record."""

    def readmit(self, ids: Sequence[str], session: ClientSession) -> Held:
        """Let refused events of triggers be sent again in their places; gives what waits then that did not."""

    def tells(self, collection: str) -> bool:
        """Whether changes of a derived collection are published."""

    def held(self) -> Held:
        """Count what waits, at the beginning of a tenure."""


class Publisher(Protocol):
    """Publishes messages, where others read them."""

    def send(self, messages: Sequence[Message]) -> Sequence[Sent]:
        """Publish in order per topic and ordering key; returns once it is known of each message what became of it.

        Behind one that fails, those of its ordering key fail as well, so that sending the failed ones again in their
        order keeps the order. It raises nothing for what a server says, and takes about ten seconds at most.
        """

    def close(self) -> None:
        """Give up what is open."""


class Documents(Protocol):
    """Reads documents of the source."""

    def fetch(
        self,
        collection: str,
        keys: Sequence[Any],
        at: Timestamp | None = None,
        only: Mapping[str, Any] | None = None,
    ) -> Snapshot:
        """Read documents by key, as of `at` or, when the server has that no more, as of the newest time.

        With `only`, those that match this query. Raises `TooMuch`, if this reader is bounded; never for one key.
        """

    def scan(
        self,
        collection: str,
        after: tuple[Any, ...],
        limit: int,
        skip: int = 0,
        at: Timestamp | None = None,
        until: tuple[Any, ...] = (),
    ) -> Snapshot:
        """Read the next documents in key order, without `skip` of them, as of a time as in `fetch`; none at the end.

        `until` holds the key in front of which the end is; empty: there is none.
        """

    def keys(
        self, collection: str, after: tuple[Any, ...], limit: int, skip: int = 0, until: tuple[Any, ...] = ()
    ) -> Snapshot:
        """Read the next keys in their order as `scan` does: documents of `_id` only."""

    def last(self, collection: str) -> tuple[Any, ...]:
        """Give the last key in its order; nothing without one."""

    def existing(self, collection: str, keys: Sequence[Any]) -> Snapshot:
        """Read which of these keys exist: documents of `_id` only."""

    def exists(self, collection: str) -> bool:
        """Whether there is such a collection now."""

    def not_before(self, time: Timestamp) -> None:
        """Read nothing older than this from now on."""

    def count(self, collection: str) -> int:
        """Estimate the number of documents."""


@dataclass(slots=True)
class Outcome:
    """What a commit did, by derived collection, and what it could not do.

    `rollups` counts the groups that were written or removed, `pending` those that are left to be computed. `states` are
    the records of published collections that changed, as they are stored now.
    """

    inserted: Counter[str] = field(default_factory=Counter)
    replaced: Counter[str] = field(default_factory=Counter)
    removed: Counter[str] = field(default_factory=Counter)
    unchanged: int = 0
    overtaken: int = 0
    contests: list[Contest] = field(default_factory=list)
    refused: list[tuple[Desired, str]] = field(default_factory=list)
    released: list[tuple[str, Any]] = field(default_factory=list)
    rollups: Counter[str] = field(default_factory=Counter)
    pending: int = 0
    states: list[RecordState] = field(default_factory=list)

    def __add__(self, other: "Outcome") -> "Outcome":
        return Outcome(
            self.inserted + other.inserted,
            self.replaced + other.replaced,
            self.removed + other.removed,
            self.unchanged + other.unchanged,
            self.overtaken + other.overtaken,
            self.contests + other.contests,
            self.refused + other.refused,
            self.released + other.released,
            self.rollups + other.rollups,
            self.pending + other.pending,
            self.states + other.states,
        )

    @property
    def records(self) -> int:
        """The number of records that were written or removed."""
        return self.inserted.total() + self.replaced.total() + self.removed.total()


@dataclass(slots=True)
class Contrast:
    """How the records of a new collection differ from the old one's; `samples` has the first of each kind."""

    SAMPLES: ClassVar = 5

    equal: int = 0
    changed: int = 0
    added: int = 0
    removed: int = 0
    samples: list[dict[str, Any]] = field(default_factory=list)

    def note(self, kind: str, key: Any, fields: Sequence[str] = ()) -> None:
        """Count a record that is `changed`, `added` or `removed`."""
        setattr(self, kind, getattr(self, kind) + 1)
        if sum(each["kind"] == kind for each in self.samples) < self.SAMPLES:
            self.samples.append({"kind": kind, "key": key, "fields": list(fields)})


class ManyRefused(Exception):
    """MongoDB refused several documents of one transaction: it is tried in halves."""


class RollupRefused(Exception):
    """MongoDB cannot compute or store groups of a rollup: the records, or what they come to, are not right for it."""

    def __init__(self, rollup: str, reason: str) -> None:
        super().__init__(reason)
        self.rollup = rollup
        self.reason = reason


class Group(NamedTuple):
    """One group of one rollup; `key` is canonical."""

    rollup: str
    key: Any


class PendingGroup(NamedTuple):
    """A group that is to be computed.

    `since` is another one after every time that it was not pending in between; `rev` changes with every touch.
    `error` says why it could not be computed.
    """

    group: Group
    since: Any
    rev: int
    error: str = ""


class Drained(NamedTuple):
    """What a pending group came to: its document, None without records, and their number; or why it has none."""

    pending: PendingGroup
    document: Mapping[str, Any] | None
    records: int = 0
    error: str = ""


#: The key behind a slice of a collection; empty at its end.
Behind = tuple[Any, ...]


class GroupReader(Protocol):
    """Computes pending groups beside the stream, without a bound on their records."""

    def read(self, after: Behind, limit: int) -> tuple[list[Drained], Behind]:
        """Compute the next pending groups as of one moment, and give where to go on; empty at the end.

        What was pending, and with which `since` and `rev`, is of the same moment.
        """


class PendingStore(Protocol):
    """Where it lies which groups are to be computed. The holder of the lease alone writes it."""

    def mark(self, groups: Sequence[Group], session: ClientSession) -> None:
        """Let groups be pending; those that are already are touched once more, and lose their error."""

    def settle(self, groups: Sequence[Group], session: ClientSession) -> None:
        """Let groups that were computed in this transaction be pending no more."""

    def known(self, groups: Sequence[Group], session: ClientSession) -> list[PendingGroup]:
        """Give those of these groups that are pending."""

    def fail(self, errors: Sequence[tuple[Group, str]], session: ClientSession) -> None:
        """Note why groups cannot be computed; they are tried again after a while, or when they are touched."""

    def next(self, after: Behind, limit: int, session: ClientSession) -> tuple[list[PendingGroup], Behind]:
        """Give the next groups that are worth computing, in a fixed order, and where to go on; empty at the end."""


Finish = Callable[[ClientSession, Outcome], None]


class Marked(NamedTuple):
    """How many records were looked at for their groups, and where to go on; empty at the end."""

    documents: int
    behind: Behind


#: Called last in the transaction that lets groups be pending.
FinishMarking = Callable[[ClientSession, Marked], None]

#: The same at the end of what tells of records.
FinishShowing = Callable[[ClientSession, Shown], None]


#: Called last in the transaction of a copy.
FinishCopy = Callable[[ClientSession, Behind], None]


class Sink(Protocol):
    """Writes plans; the one place that writes derived collections."""

    def write(
        self,
        desired: Sequence[Desired],
        collections: Mapping[str, Collection[str]],
        finish: Finish,
        foreign: Sequence[tuple[str, Any]] = (),
        unplugged: Collection[str] = (),
        shadows: Mapping[str, str] = MappingProxyType({}),
        *,
        alone: bool = False,
        defer: bool = False,
        states: bool = False,
    ) -> Outcome:
        """Make what is stored for these owners equal to what they yield, in one transaction; durable on return.

        `collections` are those in which each transform may have records. `finish` is called last inside the
        transaction, and again when it is repeated. `foreign` are records without an owner that are removed.
        Records of `unplugged` transforms give way. The `shadows` of collections are written as well, as if they were
        all that there is, or `alone`; who is contested in the collections themselves is left out there.
        The groups of rollups that are touched are computed, or left pending: all of them with `defer`.
        """

    def swept(self, collection: str, transform: str, after: tuple[Any, ...], limit: int) -> list[Any]:
        """Give source keys of a transform's records in key order, repeated ones included; none at the end."""

    def carry(
        self,
        transform: str,
        keys: Callable[[ClientSession], Sequence[Any]],
        shadows: Mapping[str, str],
        finish: Finish,
        *,
        missing: bool = False,
    ) -> None:
        """Let documents have in the shadows what they have in the collections that are shadowed, in one transaction.

        What another document has under a key stays. With `missing`, only those that have nothing in the shadows.
        Raises `TooMuch`.
        """

    def copy(
        self,
        name: str,
        onto: str,
        after: tuple[Any, ...],
        limit: int,
        finish: FinishCopy,
        shared: str | None = None,
    ) -> Behind:
        """Copy the next records in key order into another collection, in one transaction with `finish`.

        What lies under their keys already stays. Fewer than `limit` are copied where they are large. Of parts that are
        copied, the records in `shared` are put together anew.
        """

    def suspend(self, rollups: Collection[str]) -> None:
        """Leave these rollups alone, and no other ones, until a job builds them from all records."""

    def share(self, collections: Iterable[str]) -> None:
        """Make ready for the parts of these collections' shared records; what is there stays."""

    def assemble(self, collection: str, after: tuple[Any, ...], limit: int, finish: Finish) -> Behind:
        """Put the next shared records in key order together anew from their parts, in one transaction with `finish`."""

    def show(
        self,
        collection: str,
        after: tuple[Any, ...],
        limit: int,
        finish: FinishShowing,
        keys: Sequence[Any] = (),
    ) -> Shown:
        """Tell of the next records in key order, in one transaction with `finish`; or of the first of `keys`.

        A key that no record has is told of, too: its record is gone.
        """

    def settle(self, drained: Sequence[Drained], version: Version, finish: Finish) -> Outcome:
        """Store pending groups that were computed, in one transaction.

        One that was computed by a transaction meanwhile is left as it is; one that was touched meanwhile stays pending.
        Raises `RollupRefused`.
        """

    def mark(self, groups: Sequence[Group], finish: Finish) -> None:
        """Let groups be pending, in one transaction."""

    def mark_next(
        self, rollup: str, after: Behind, limit: int, finish: FinishMarking, *, stored: bool
    ) -> Marked:
        """Let groups be pending of the next records that a rollup is over, or of those that it has stored."""


class Shelf(Protocol):
    """Whole derived collections. Nothing of it is part of a transaction, so each is known by its id as well."""

    def ids(self) -> Mapping[str, UUID]:
        """Give all collections with their ids, which they keep when they are renamed."""

    def make(self, name: str, like: str) -> UUID:
        """Create an empty collection with the options and indexes of another and those that are declared for it."""

    def put(self, name: str, known: UUID, onto: str, over: UUID | None) -> None:
        """Let a collection take another one's place: a reader sees one of them, whole.

        Raises `CheckpointMoved` when one of the names does not have the given id any more.
        """

    def drop(self, name: str, known: UUID) -> None:
        """Drop a collection if it is there and has this id."""

    def compare(self, old: str, new: str, after: tuple[Any, ...], limit: int, found: Contrast) -> Behind:
        """Hold the next records of two collections in key order against each other, and count in `found`."""


class CheckpointStore(Protocol):
    """Where checkpoints lie."""

    def load(self, worker: str) -> Checkpoint | None:
        """Give a worker's checkpoint; None before its first commit."""

    def raise_fence(self, worker: str) -> int:
        """Raise the fence and give it; no holder of an older one can commit any more."""

    def save(self, checkpoint: Checkpoint, fence: int, session: ClientSession | None = None) -> Checkpoint:
        """Write the checkpoint under the fence, in the session's transaction, and give the next revision.

        Raises `LeaseLost` or `CheckpointMoved`.
        """

    def claimed(self, worker: str) -> Mapping[str, str]:
        """Give the derived collections that other workers write, with the worker's name."""


class LetterStore(Protocol):
    """Where dead letters lie."""

    def parked(self) -> list[ParkedLetter]:
        """Give what is parked."""

    def due(self, transforms: Sequence[str], limit: int) -> list[LetterKey]:
        """Give keys of these transforms that are worth trying again now."""

    def still_parked(self, keys: Sequence[LetterKey], session: ClientSession) -> list[LetterKey]:
        """Give those of these keys that are parked: an operator may have discarded the letters of others."""

    def make_due(self, keys: Sequence[LetterKey], session: ClientSession) -> None:
        """Mark letters as worth trying again."""

    def put(self, letters: Sequence[Letter], session: ClientSession) -> None:
        """Park documents in the session's transaction."""

    def resolve(self, keys: Collection[LetterKey], session: ClientSession) -> None:
        """Remove the letters of documents that were derived."""

    def changes(self, trigger: str, keys: Sequence[Any] = ()) -> list[ParkedChange]:
        """Give the changes that are parked for a trigger, of these documents or of all, in the source's order.

        Their contents are left out: they may be large.
        """

    def change(self, key: LetterKey) -> ParkedChange | None:
        """Give one parked change with its content; None when it is not parked any more."""

    def release(self, places: Sequence[tuple[str, Any]], session: ClientSession) -> int:
        """Mark contested documents that wait for these (derived collection, key) as due."""


class JobStore(Protocol):
    """Where jobs lie."""

    def ask(self, jobs: Sequence[Job], session: ClientSession | None = None) -> list[Job]:
        """Record jobs to be done."""

    def next(self) -> Job | None:
        """Give the oldest job that is neither done nor paused."""

    def is_wanted(self, job_id: Any) -> bool:
        """Whether a job is to be gone on with: neither done, nor paused, nor cancelled."""

    def get(self, job_id: Any) -> Job | None:
        """Give one job."""

    def declined(self) -> list[Job]:
        """Give the rebuilds that were cancelled."""

    def open(self) -> list[Job]:
        """Give all jobs that are not done, oldest first."""

    def of_gap(self, gap: tuple[Timestamp, Timestamp]) -> list[Job]:
        """Give all jobs, done ones too, that make good what a lost position left uncertain."""

    def save(self, job: Job, session: ClientSession) -> bool:
        """Record progress in the transaction that made it; False for a job that was cancelled meanwhile."""


class Carrier(Protocol):
    """Carries out jobs, one slice at a time."""

    def taken(self, job: Job) -> Job:
        """Give a job as it is to be gone on with."""

    def run(self, job: Job) -> Job:
        """Do the next slice of a job and give the job as it is then; the very same job when it has to wait."""


class LeaseStore(Protocol):
    """The lease of one worker's name, as seen by this process."""

    def acquire(self) -> bool:
        """Take the lease if it is free or expired."""

    def announce(self, session_id: Any, code: Mapping[str, str]) -> None:
        """Say which session writes under it, and the fingerprints of the transforms that it runs."""

    def renew(self, slow: Sequence[SlowTransform] = ()) -> bool:
        """Push the expiry out, and say what holds the work up; False when someone else holds it."""

    def release(self) -> None:
        """Give it back."""
