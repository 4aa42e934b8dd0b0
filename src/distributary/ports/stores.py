"""What survives a restart beside records."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from bson import Timestamp
from pymongo.client_session import ClientSession

from distributary.change import Identity
from distributary.derive.trigger import Seen
from distributary.state import Checkpoint, Job, Letter, LetterKey, LetterKind, ParkedLetter, SlowTransform


class ParkedChange(NamedTuple):
    """A change that is parked."""

    seen: Seen
    kind: LetterKind
    due: bool


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

    def changes(self, trigger: str, key: Any) -> list[ParkedChange]:
        """Give the changes of one document that are parked for a trigger, in the source's order.

        Their contents are left out: they may be large.
        """

    def tokens(self, trigger: str, keys: Sequence[Any] | None = None) -> Mapping[Identity, set[str]]:
        """Give the positions of changes that are parked for a trigger, of these documents or of all, by document."""

    def ready(self, trigger: str) -> list[Any]:
        """Give the keys of documents of which the first change that is parked for a trigger may be tried again.

        It is due, or waits for one that is parked no more. In the source's order.
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

    def keeping(self) -> list[Job]:
        """Give the rebuilds that keep, or kept, what others take the places of."""

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

    def release(self, *, working: bool = False) -> None:
        """Give it back; of a holder that is still `working`, the next one ends the session."""
