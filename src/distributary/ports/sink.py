"""Where records go, and what became of them."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol
from uuid import UUID

from pymongo.client_session import ClientSession

from distributary.change import Version
from distributary.derive.plan import Contest, Desired
from distributary.ports.records import Behind, RecordState, Shown
from distributary.ports.rollups import Drained, Group, Marked


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


class Others(NamedTuple):
    """Keys of records that differ between two collections, and of those that are equal and have another owner."""

    differing: list[Any]
    moved: list[Any]


class ManyRefused(Exception):
    """MongoDB refused several documents of one transaction: it is tried in halves."""


Finish = Callable[[ClientSession, Outcome], None]


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

    def compare(
        self,
        old: str,
        new: str,
        after: tuple[Any, ...],
        limit: int,
        found: Contrast,
        others: Others | None = None,
    ) -> Behind:
        """Hold the next records of two collections in key order against each other, and count in `found`.

        Their keys are added to `others`, if they are wanted.
        """
