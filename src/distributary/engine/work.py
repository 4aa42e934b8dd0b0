"""What is committed together, and how much of it one transaction holds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from distributary.derive.plan import Desired
from distributary.ports.events import Outbox, Put, Untold
from distributary.ports.sink import Sink
from distributary.ports.stores import CheckpointStore, JobStore, LetterStore
from distributary.state import Checkpoint, Job, Letter, LetterKey

#: What one transaction holds at most; more of a batch follows in others, before the position moves.
FIT_RECORDS = 60_000
FIT_BYTES = 48 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Stores:
    """What survives a restart, and the sink; all in one deployment, so that one transaction spans them."""

    sink: Sink
    checkpoints: CheckpointStore
    letters: LetterStore
    jobs: JobStore
    outbox: Outbox
    untold: Untold


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

    def former(self, desired: Sequence[Desired], checkpoint: Checkpoint) -> "Work":
        """Give what goes ahead of the last: records alone, at the checkpoint of now, as of when they may be."""
        ahead = replace(checkpoint, ahead=self.checkpoint.ahead)
        return replace(
            self, desired=desired, letters=(), checkpoint=ahead, asked=(), progress=None, foreign=()
        )

    def last(self, desired: Sequence[Desired], checkpoint: Checkpoint) -> "Work":
        """Give the last of them, with all else that is committed; it writes over the checkpoint of now."""
        return replace(
            self, desired=desired, checkpoint=replace(self.checkpoint, revision=checkpoint.revision)
        )


class Unwanted(Exception):
    """A job was cancelled before it was committed."""


class Finished(NamedTuple):
    """What a transaction wrote beside records."""

    letters: list[Letter]
    resolved: list[LetterKey]
    checkpoint: Checkpoint
    put: Put


def fitting(desired: Sequence[Desired]) -> list[Sequence[Desired]]:
    """Cut what documents yield into what one transaction holds."""
    cuts, records, size = [0], 0, 0
    for index, item in enumerate(desired):
        more, larger = len(item.records), item.size
        if records and (records + more > FIT_RECORDS or size + larger > FIT_BYTES):
            cuts.append(index)
            records = size = 0
        records, size = records + more, size + larger
    return [desired[start:end] for start, end in zip(cuts, [*cuts[1:], len(desired)], strict=True)]
