"""What a worker is made of and told: what it drives, how, and when it is done."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bson import Timestamp
from pymongo.client_session import ClientSession

from distributary.derive.collapse import Latest
from distributary.derive.transform import Transform
from distributary.engine import publishing
from distributary.engine.observer import SILENT, Observer, Standing
from distributary.engine.pace import Limits
from distributary.engine.pipeline import Bounds
from distributary.engine.triggers import Triggers
from distributary.engine.work import Stores
from distributary.ports.events import Publisher
from distributary.ports.rollups import GroupReader
from distributary.ports.sink import Shelf
from distributary.ports.source import Documents, Source


@dataclass(frozen=True, slots=True)
class Settings:
    """What the configuration says about a worker; times in seconds."""

    bounds: Bounds
    idle_save: float
    max_records: int
    scan_documents: int
    pace: Limits
    purge: bool
    resync: bool
    breaker: tuple[int, int]
    outbox: publishing.Bounds = publishing.UNBOUNDED

    @property
    def slice_documents(self) -> int:
        """Documents in one slice of a job, at most; not more than a second's."""
        return min(self.scan_documents, round(self.pace.rate) or self.scan_documents)


@dataclass(frozen=True, slots=True)
class Wiring:
    """What the worker drives; `tidy` removes, in a transaction, some of what nobody wants any more, until `is_tidy`."""

    stores: Stores
    documents: Documents
    by_source: Mapping[str, Sequence[Transform]]
    new_source: Callable[[], Source]
    newest: Callable[[], Timestamp]
    oldest: Callable[[], Timestamp | None]
    prepare: Callable[[], None]
    shelf: Shelf
    draw: Callable[[], str]
    told: Callable[[Iterable[Latest]], Iterable[Latest]]
    groups: GroupReader | None = None
    rollups: Mapping[str, str] = field(default_factory=dict)
    triggers: Triggers | None = None
    new_publisher: Callable[[], Publisher] | None = None
    publishes: bool = False
    is_tidy: Callable[[], bool] = lambda: True
    tidy: Callable[[ClientSession], None] = lambda _: None
    observer: Observer = SILENT
    look: Callable[[], Standing] | None = None


@dataclass(frozen=True, slots=True)
class Goal:
    """When a run ends by itself: at `time` and once no job is left, or never.

    It waits until everything is published, but for Pub/Sub that is away only if it is `patient`.
    """

    time: Timestamp | None = None
    patient: bool = True
