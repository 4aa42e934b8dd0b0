"""What the engine tells of its work, for metrics and health; told per batch, commit and page, never per record."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from bson import Timestamp

from distributary.change import Position
from distributary.engine.spans import UNTRACED, Spans
from distributary.ports.events import Held, Sent, Waiting
from distributary.ports.sink import Outcome
from distributary.state import Job, Letter


class Part(StrEnum):
    """What goes on by itself while a worker runs: each has a thread of its own."""

    WORK = "work"
    LEASE = "lease"
    PUBLISHING = "publishing"


class Phase(StrEnum):
    """Where a process is: `opening` holds the lease and no open stream yet, `waiting` tries again after a failure."""

    STARTING = "starting"
    STANDBY = "standby"
    OPENING = "opening"
    ACTIVE = "active"
    WAITING = "waiting"
    STOPPING = "stopping"


class Standing(NamedTuple):
    """What is looked up now and then: the ends of the source's history, and what is left to be done.

    `oldest` is None where the user may not see it. `letters` are the dead letters by transform, `refused` the events
    that cannot be published, `jobs` those that are not done, `held` what waits to be published.
    """

    newest: Timestamp
    oldest: Timestamp | None
    letters: Mapping[str, int]
    pending_groups: int
    refused: int
    jobs: Sequence[Job]
    held: Held | None = None


class Observer:
    """Is told of the work, by any thread; this one keeps nothing. What it does must neither fail nor wait.

    `spans` stands around the work.
    """

    spans: Spans = UNTRACED

    def beat(self, part: Part) -> None:
        """Note that a part made a step; called by its thread."""

    def rest(self, part: Part) -> None:
        """Note that a part has ended, in order."""

    def enter(self, phase: Phase, why: str = "") -> None:
        """Note that the process is in this phase now."""

    def blocked(self, why: str) -> None:
        """Note why nothing is committed for now; with an empty text, that it goes on. A phase begins unblocked."""

    def held(self, *, lease: bool) -> None:
        """Note that the process holds the lease from now on, or does not any more."""

    def elected(self) -> None:
        """Note that another primary was seen."""

    def read(self, changes: int, seconds: float) -> None:
        """Note that a batch of the stream was read."""

    def prepared(self, seconds: float) -> None:
        """Note that a batch of the stream was derived."""

    def derived(self, seconds: Mapping[str, float], documents: Mapping[str, int]) -> None:
        """Note that documents were derived, by transform."""

    def committed(self, changes: int, seconds: float) -> None:
        """Note that a batch of the stream was committed."""

    def wrote(self, outcome: Outcome, letters: Sequence[Letter]) -> None:
        """Note that a transaction was committed, of the stream, a job or triggers, and what it parked."""

    def reached(self, position: Position, read_ahead: int) -> None:
        """Note where the stream is, and how many bytes are read and not derived yet."""

    def waiting(self, held: Held) -> None:
        """Note how much waits to be published."""

    def sent(self, messages: Sequence[Waiting], sent: Sequence[Sent], seconds: float) -> None:
        """Note that messages were handed to Pub/Sub, with what became of each."""

    def looked(self, standing: Standing) -> None:
        """Note what was looked up."""


#: Keeps nothing.
SILENT = Observer()
