"""Where a worker stands, and moving it to another position by hand."""

import getpass
import os
import socket
from dataclasses import dataclass, replace
from threading import Event
from typing import Any

from pymongo.client_session import ClientSession
from pymongo.database import Database

from distributary.change import Position
from distributary.engine.tenure import Tenure
from distributary.errors import Failed
from distributary.operate.positions import lean, mark_of, opened
from distributary.source import deployment
from distributary.state import Checkpoint, Job
from distributary.store.checkpoints import Checkpoints
from distributary.store.jobs import Jobs
from distributary.store.lease import Lease
from distributary.store.positions import Move, Moves


def moved(checkpoint: Checkpoint, position: Position) -> Checkpoint:
    """Give a checkpoint at another position, such that the promise holds of what it calls built.

    Behind the position, records show states up to the old one: what changed up to there is read again, so that
    nothing goes back. Ahead of it, changes were skipped: no transform is built any more.
    """
    there = checkpoint.seen(checkpoint.position.time).moved(position)
    if not Move("", "", checkpoint.position, position).is_forward:
        return there
    unbuilt = {name: replace(each, built=False) for name, each in there.transforms.items()}
    rebuilding = there.rebuilding if there.rebuilding and there.rebuilding.swapping else None
    return replace(there, transforms=unbuilt, rebuilding=rebuilding)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the worker of a name stands, seen from a process that may move it."""

    raw: Database[Any]
    state: Database[Any]
    worker: str
    lease_seconds: float

    def checkpoint(self) -> Checkpoint:
        """Give the checkpoint; raises `Failed` when there is none, or one of another source."""
        checkpoint = Checkpoints(self.state).load(self.worker)
        if checkpoint is None:
            raise Failed(
                f"Worker {self.worker!r} has no checkpoint yet, so there is nothing to move.",
                "Where it begins is what worker.start says: set that, and run `distributary run`.",
            )
        if checkpoint.source.differs(deployment.identify(self.raw)):
            raise Failed(
                f"Worker {self.worker!r} reads another source ({checkpoint.source.set_name}/"
                f"{checkpoint.source.database}): positions of this one mean nothing there.",
                "Point `source` at the one that the worker reads.",
            )
        return checkpoint

    def refuse_running(self) -> None:
        """Raise `Failed` while a process holds the lease."""
        holder = self._lease().holder()
        if holder is not None and holder.alive:
            raise Failed(
                f"Worker {self.worker!r} is running, held by {holder.name}: its position is its own.",
                "Stop it, run this again, and start it. A killed one holds its lease for some seconds more.",
            )

    def wanted(self, text: str, checkpoint: Checkpoint) -> Position:
        """Give the position that the stream has for a POSITION; raises `PositionLost` when it has none."""
        source = lean(self.raw, checkpoint.watched)
        try:
            return opened(source, mark_of(text, self.raw).start, self.raw)[0]
        finally:
            source.close()

    def refuse_skipping(self) -> None:
        """Raise `Failed` when a job has begun: it would miss what is skipped of the documents that it has read."""
        begun = [str(job.id) for job in Jobs(self.state, self.worker).open() if _has_begun(job)]
        if begun:
            raise Failed(
                f"Jobs are under way, and changes that they count on would be skipped: {', '.join(begun)}.",
                "Run the worker until they are done, or end them with `distributary jobs cancel ID`.",
            )

    def move(self, move: Move) -> Move:
        """Move the checkpoint as the holder of the lease, record it, and give what was recorded; durable on return.

        Raises `Failed` when a process holds the lease, or the worker is no longer at the old position.
        """
        lease = self._lease()
        tenure = Tenure(lease, self.lease_seconds, Event())
        if not lease.acquire():
            self.refuse_running()
            raise Failed("Another process took the lease.", "Run this again once it is done.")
        with tenure.held():
            fence = Checkpoints(self.state).raise_fence(self.worker)
            checkpoint = self.checkpoint()
            if checkpoint.position != move.old:
                raise Failed("The worker went on meanwhile; nothing was changed.", "Run this again.")
            if move.is_forward:
                self.refuse_skipping()
            self._save(moved(checkpoint, move.new), fence, move)
            return Moves(self.state, self.worker).latest() or move

    def _save(self, checkpoint: Checkpoint, fence: int, move: Move) -> None:
        def write(session: ClientSession) -> None:
            Checkpoints(self.state).save(checkpoint, fence, session)
            Moves(self.state, self.worker).record(move, session)

        with self.state.client.start_session() as session:
            session.with_transaction(write)

    def _lease(self) -> Lease:
        return Lease(self.state, self.worker, self.lease_seconds)


def _has_begun(job: Job) -> bool:
    return bool(job.stage or job.after or job.documents)


def me() -> str:
    """Give who runs this process, as user@host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
