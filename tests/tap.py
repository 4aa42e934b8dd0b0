"""Interrupting a worker at a point of its commits."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pymongo.client_session import ClientSession

from distributary.change import Version
from distributary.derive.plan import Desired
from distributary.ports.records import Behind, Shown
from distributary.ports.rollups import Drained, Group, Marked
from distributary.ports.sink import Finish, FinishCopy, FinishMarking, FinishShowing, Outcome, Sink
from distributary.ports.stores import CheckpointStore
from distributary.state import Checkpoint

#: Where a commit may be interrupted, in its order.
POINTS = (
    "before the transaction",
    "after the records",
    "before the checkpoint",
    "before the commit",
    "after the commit",
)


class Crash(BaseException):
    """The process ends here."""


@dataclass
class Tap:
    """Does something when the worker comes to a point of a commit; `commits` are let through before.

    `committed` is done after every commit.
    """

    point: str = ""
    commits: int = 0
    action: Callable[[], None] = lambda: None
    committed: Callable[[], None] = lambda: None

    def reach(self, point: str) -> None:
        """Come to a point: the action is done once."""
        if point == POINTS[-1]:
            self.committed()
        if point != self.point:
            return
        self.commits -= 1
        if self.commits < 0:
            self.point = ""
            self.action()


@dataclass(frozen=True)
class TappedSink:
    """A sink whose transactions come to the points of a tap."""

    sink: Sink
    tap: Tap

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
        """Write, and come to points on the way."""

        def tapped(session: ClientSession, outcome: Outcome) -> None:
            self.tap.reach("after the records")
            finish(session, outcome)
            self.tap.reach("before the commit")

        self.tap.reach("before the transaction")
        outcome = self.sink.write(
            desired,
            collections,
            tapped,
            foreign,
            unplugged,
            shadows,
            alone=alone,
            defer=defer,
            states=states,
        )
        self.tap.reach("after the commit")
        return outcome

    def settle(self, drained: Sequence[Drained], version: Version, finish: Finish) -> Outcome:
        """Settle, and come to points on the way."""

        def tapped(session: ClientSession, outcome: Outcome) -> None:
            self.tap.reach("after the records")
            finish(session, outcome)
            self.tap.reach("before the commit")

        self.tap.reach("before the transaction")
        outcome = self.sink.settle(drained, version, tapped)
        self.tap.reach("after the commit")
        return outcome

    def mark(self, groups: Sequence[Group], finish: Finish) -> None:
        """Mark as the sink does."""
        self.sink.mark(groups, finish)

    def mark_next(
        self, rollup: str, after: Behind, limit: int, finish: FinishMarking, *, stored: bool
    ) -> Marked:
        """Mark as the sink does."""
        return self.sink.mark_next(rollup, after, limit, finish, stored=stored)

    def carry(
        self,
        transform: str,
        keys: Callable[[ClientSession], Sequence[Any]],
        shadows: Mapping[str, str],
        finish: Finish,
        *,
        missing: bool = False,
    ) -> None:
        """Carry as the sink does."""
        self.sink.carry(transform, keys, shadows, finish, missing=missing)

    def copy(
        self,
        name: str,
        onto: str,
        after: tuple[Any, ...],
        limit: int,
        finish: FinishCopy,
        shared: str | None = None,
    ) -> Behind:
        """Copy as the sink does."""
        return self.sink.copy(name, onto, after, limit, finish, shared)

    def suspend(self, rollups: Collection[str]) -> None:
        """Leave rollups alone as the sink does."""
        self.sink.suspend(rollups)

    def share(self, collections: Iterable[str]) -> None:
        """Make ready as the sink does."""
        self.sink.share(collections)

    def assemble(self, collection: str, after: tuple[Any, ...], limit: int, finish: Finish) -> Behind:
        """Put together as the sink does."""
        return self.sink.assemble(collection, after, limit, finish)

    def show(
        self,
        collection: str,
        after: tuple[Any, ...],
        limit: int,
        finish: FinishShowing,
        keys: Sequence[Any] = (),
    ) -> Shown:
        """Tell as the sink does."""
        return self.sink.show(collection, after, limit, finish, keys)

    def swept(self, collection: str, transform: str, after: tuple[Any, ...], limit: int) -> list[Any]:
        """Give source keys."""
        return self.sink.swept(collection, transform, after, limit)


@dataclass(frozen=True)
class TappedCheckpoints:
    """Checkpoints whose saving comes to a point of a tap."""

    store: CheckpointStore
    tap: Tap

    def load(self, worker: str) -> Checkpoint | None:
        """Give a worker's checkpoint."""
        return self.store.load(worker)

    def raise_fence(self, worker: str) -> int:
        """Raise the fence."""
        return self.store.raise_fence(worker)

    def save(self, checkpoint: Checkpoint, fence: int, session: ClientSession | None = None) -> Checkpoint:
        """Save, and come to a point before."""
        self.tap.reach("before the checkpoint")
        return self.store.save(checkpoint, fence, session)

    def claimed(self, worker: str) -> Mapping[str, str]:
        """Give what other workers write."""
        return self.store.claimed(worker)
