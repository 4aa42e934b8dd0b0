"""The values that survive a restart: checkpoint, dead letters, jobs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, NamedTuple
from uuid import UUID

from bson import Timestamp

from distributary.change import Position, Version
from distributary.parts import parts_of

#: The format of what is written to the state database; a checkpoint of a newer one is refused.
FORMAT = 4

BEGINNING = Timestamp(0, 0)


@dataclass(frozen=True, slots=True)
class SourceIdentity:
    """Which deployment and database a position belongs to; `set_id` is None where it may not be read."""

    set_name: str
    set_id: str | None
    database: str

    def differs(self, other: "SourceIdentity") -> bool:
        """Whether a position of one is meaningless on the other."""
        if self.set_id is not None and other.set_id is not None and self.set_id != other.set_id:
            return True
        return (self.set_name, self.database) != (other.set_name, other.database)


@dataclass(frozen=True, slots=True)
class Built:
    """What is known of one transform's records.

    `collections`: every derived collection it ever wrote; `shared`: those of them in which it has sections or items of
    shared records, as the code with the fingerprint `shared_by` yields them. `built`: whether every existing document
    of its source went through it. `fingerprint`: of the code that built them. `unplugged`: the worker ran without it
    since, so that its records are behind.
    """

    source: str
    fingerprint: str
    collections: frozenset[str]
    built: bool
    unplugged: bool = False
    shared: frozenset[str] = frozenset()
    shared_by: str = ""

    @property
    def places(self) -> frozenset[str]:
        """The collections in which records or parts of it may lie."""
        return self.collections | {parts_of(name) for name in self.shared}


class Shadow(NamedTuple):
    """The collection that will take a derived collection's place; `id` is the server's and outlives a rename."""

    name: str
    id: UUID


@dataclass(frozen=True, slots=True)
class Rebuilding:
    """A rebuild under way: its job, and the shadows by the names of the collections that they belong to.

    Shadows are written along with those until they take their places. While `swapping`, nothing else is done first.
    """

    job: Any
    shadows: Mapping[str, Shadow]
    swapping: bool = False


class Gap(NamedTuple):
    """A range of time whose changes no trigger has seen."""

    since: Timestamp
    until: Timestamp


#: Gaps that a checkpoint tells apart; of more, the earliest ones count as one.
GAPS = 5


@dataclass(frozen=True, slots=True)
class TriggerStream:
    """How far the stream of the triggers is, with which filter, what it never saw, and what they fill."""

    position: Position
    filter: str
    gaps: tuple[Gap, ...] = ()
    collections: frozenset[str] = frozenset()

    def lost(self, position: Position, filter_: str) -> "TriggerStream":
        """Give the stream as it goes on at the present, with the gap before it."""
        since, until = sorted((self.position.time, position.time))
        gaps = (*self.gaps, Gap(since, until))
        if len(gaps) > GAPS:
            gaps = (Gap(gaps[0].since, gaps[1].until), *gaps[2:])
        return TriggerStream(position, filter_, gaps, self.collections)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far a worker is, and of what.

    `ahead` is the newest cluster time that committed records may show: jobs and late reads show states that
    the stream reaches later. `watched` are the collections that the stream's filter names. `detached` are
    the source collections that were dropped or renamed away, with the time of it. `revision` counts the
    commits: each one writes over the one before it or fails. `rollups` are the fingerprints of those that are built.
    `triggers` is None until the worker has triggers. `torn` says that changes of the position's cluster time follow.
    """

    worker: str
    position: Position
    ahead: Timestamp
    source: SourceIdentity
    epoch: int
    watched: tuple[str, ...]
    transforms: Mapping[str, Built]
    detached: Mapping[str, Timestamp] = field(default_factory=dict)
    revision: int = 0
    rebuilding: Rebuilding | None = None
    rollups: Mapping[str, str] = field(default_factory=dict)
    triggers: TriggerStream | None = None
    torn: bool = False

    @property
    def is_level(self) -> bool:
        """Whether records show the source exactly as of the position's cluster time."""
        return self.ahead <= self.position.time and not self.torn

    def has_passed(self, time: Timestamp) -> bool:
        """Whether everything of the source up to a cluster time is committed."""
        return self.position.time > time or (self.position.time == time and not self.torn)

    @property
    def version(self) -> Version:
        """The newest version that a committed record can have."""
        return Version(self.epoch, max(self.position.time, self.ahead))

    @property
    def shadows(self) -> Mapping[str, str]:
        """The names of the shadows, by those of the collections that they belong to."""
        return {name: each.name for name, each in self.rebuilding.shadows.items()} if self.rebuilding else {}

    def moved(self, position: Position, *, torn: bool = False) -> "Checkpoint":
        """Give the checkpoint at a later position."""
        return replace(self, position=position, torn=torn)

    def seen(self, time: Timestamp) -> "Checkpoint":
        """Give the checkpoint after records were committed that show the source at `time`."""
        return self if time <= self.ahead else replace(self, ahead=time)

    def with_built(self, name: str, built: Built) -> "Checkpoint":
        """Give the checkpoint with one transform's entry replaced."""
        return replace(self, transforms={**self.transforms, name: built})

    @property
    def shared(self) -> frozenset[str]:
        """The derived collections of shared records."""
        return frozenset[str]().union(*(built.shared for built in self.transforms.values()))

    def left_behind(self, named: Iterable[str]) -> list[str]:
        """Give the collections that some transform once wrote and that are not among those `named` now."""
        written = {name for built in self.transforms.values() for name in built.collections}
        return sorted(written - set(named))


class LetterKind(StrEnum):
    """Why a document is parked, or a change that a trigger failed for; `waiting` is one behind such a change.

    `unpublished` is a message that never can be published.
    """

    FAILED = "failed"
    CONTESTED = "contested"
    REFUSED = "refused"
    WAITING = "waiting"
    UNPUBLISHED = "unpublished"


class LetterKey(NamedTuple):
    """The transform and source key that could not be derived."""

    transform: str
    key: Any


@dataclass(frozen=True, slots=True)
class Letter:
    """A document that could not be derived, with everything needed to repair it.

    `waits_for` is the (derived collection, key) that another document owns; `due` says that it is worth
    trying again now. A trigger's letter has the `change`, as `Seen.content` does, and is keyed by the document's key
    and the change's position.
    """

    transform: str
    key: Any
    source: str
    kind: LetterKind
    reason: str
    traceback: str
    position: Position
    fingerprint: str
    waits_for: tuple[str, Any] | None = None
    due: bool = False
    change: Mapping[str, Any] | None = None

    @property
    def document_key(self) -> Any:
        """The key of the document that was not derived, or whose change is parked."""
        return self.key["key"] if self.change is not None and "key" in self.key else self.key


#: The stage of a rebuild in which it can no longer be cancelled.
SWAP = "swap/"

#: The stage of a job that sends events again that were refused.
EVENTS = "events"

#: What the stage of a job begins with that tells of the records that a shadow had otherwise; its name follows.
UNTOLD = "untold/"


class JobKind(StrEnum):
    """What a job does.

    `backfill` derives every document of a source collection, `derive` those of given keys, `replay` those that
    changed in a part of the history. `rebuild` builds derived collections anew beside the live ones, `undo` brings
    back what was kept of them, and `drop` removes those that no transform names any more. `rollup` lets all groups of
    the rollup that is its `source` be computed, or those in `keys`. `publish` tells of all records of the derived
    collection that is its `source`, or of those in `keys`; at the stage "events" it sends events of the trigger that is
    its `source` again, `keys` being the ids of their letters, and at a stage "untold/SHADOW" it tells of the records
    that differed when the shadow took the collection's place.
    """

    BACKFILL = "backfill"
    DERIVE = "derive"
    REPLAY = "replay"
    REBUILD = "rebuild"
    UNDO = "undo"
    DROP = "drop"
    ROLLUP = "rollup"
    PUBLISH = "publish"


@dataclass(frozen=True, slots=True)
class Job:
    """Work that was asked for and that the lease holder carries out in slices.

    With `sweep`, records and dead letters whose source is gone are removed first. `stage` is what is walked
    (empty: not begun; "scan": the source; "parked": the dead letters; else "transform/collection" of the
    records that are swept), and `after` holds the key behind which the next slice starts (empty: at the
    beginning), `until` the last one when a scan began: what is inserted behind it comes by the stream. `code` are the
    fingerprints of the transforms that the job began with. `gap` is the range of time that is uncertain until the job
    is done, after the position was lost. `documents` were looked at, and records `written` and `removed`; a crash may
    lose what the last slice counted. A `paused` job waits for an operator, and one that was `cancelled` is done, as is
    one with a `failure`.

    A backfill takes only documents that match `only`, if that is given. A replay reads the history behind the token
    in `after`, and `span` says from when until when. A rebuild reads several sources, `source` being the one at hand;
    with `keep` it copies the old collections aside first, and `report` has what it found. With `publish`, a replay
    tells of all records that it comes to, and a rebuild of those that change; without it, of none. A job waits until
    those that it is `behind` are done, and is cancelled with any of them.
    """

    id: Any
    kind: JobKind
    source: str
    transforms: tuple[str, ...]
    reason: str
    sweep: bool = False
    keys: Sequence[Any] = ()
    foreign: Sequence[tuple[str, Any]] = ()
    stage: str = ""
    after: tuple[Any, ...] = ()
    documents: int = 0
    total: int = 0
    done: bool = False
    code: Mapping[str, str] = field(default_factory=dict)
    gap: tuple[Timestamp, Timestamp] | None = None
    written: int = 0
    removed: int = 0
    paused: bool = False
    cancelled: bool = False
    failure: str = ""
    only: Mapping[str, Any] | None = None
    span: tuple[Timestamp, Timestamp] | None = None
    keep: bool = False
    until: tuple[Any, ...] = ()
    report: Mapping[str, Any] = field(default_factory=dict)
    publish: bool = False
    behind: tuple[Any, ...] = ()


class SlowTransform(NamedTuple):
    """A document that a transform has been working on for so many seconds; `key` is its key as text."""

    transform: str
    source: str
    key: str
    seconds: float


class ParkedLetter(NamedTuple):
    """What a worker remembers of a parked document."""

    key: LetterKey
    kind: LetterKind
