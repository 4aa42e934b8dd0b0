"""Around what the worker does, for whoever follows a batch through its stages and into the messages it causes."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum

from distributary.ports.events import Sent, Waiting
from distributary.ports.sink import Outcome
from distributary.ports.source import Stretch


class Unit(StrEnum):
    """What is committed together: a batch of the stream, a slice of a job, changes that triggers were called for.

    `retry` is what was parked and is tried again.
    """

    BATCH = "batch"
    SLICE = "slice"
    TRIGGERS = "triggers"
    RETRY = "retry"


class Stage(StrEnum):
    """A part of a unit that was done before the unit began; `scan` is reading and deriving for a job."""

    READ = "read"
    DERIVE = "derive"
    SCAN = "scan"


class Spans:
    """Stands around the units of the work, one at a time, and their transactions; this one keeps nothing.

    The thread that commits calls all but `sent`, which is called by the one that publishes. What it does must neither
    fail nor wait.
    """

    def unit(self, unit: Unit, **facts: str | int) -> AbstractContextManager[None]:
        """Stand around a unit, which may turn out to have nothing to commit."""
        del unit, facts
        return nullcontext()

    def stage(self, stage: Stage, when: Stretch | None, **facts: str | int) -> None:
        """Note a stage of the unit at hand."""

    def transaction(self) -> AbstractContextManager[None]:
        """Stand around a transaction of the unit at hand."""
        return nullcontext()

    def wrote(self, outcome: Outcome) -> None:
        """Note what the transaction at hand wrote."""

    @property
    def trace(self) -> str:
        """The `traceparent` that the events of the unit at hand carry on; empty where nobody traces."""
        return ""

    def sent(self, messages: Sequence[Waiting], sent: Sequence[Sent], when: Stretch) -> None:
        """Note that messages were handed to Pub/Sub, with what became of each."""


#: Keeps nothing.
UNTRACED = Spans()
