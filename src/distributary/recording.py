"""What the engine tells, as metrics."""

import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from math import nan
from threading import Lock
from time import monotonic

from prometheus_client import CollectorRegistry, Gauge, disable_created_metrics, generate_latest

from distributary import metrics
from distributary.change import Position
from distributary.derive.registry import Registry
from distributary.engine.looking import LOOK_SECONDS
from distributary.engine.observer import Observer, Part, Phase, Standing
from distributary.engine.spans import UNTRACED, Spans
from distributary.forecast import Forecast
from distributary.health import Health
from distributary.parts import is_parts, shared_of
from distributary.ports.events import Held, Sent, Waiting
from distributary.ports.sink import Outcome
from distributary.state import Job, Letter

#: The label of whatever has no name of its own: shadows that a rebuild fills, and what is no longer plugged in.
OTHER = "other"

#: The form of what `scraped` gives.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

#: Seconds after which a look is so old that the source does not answer.
STALE_SECONDS = 3 * LOOK_SECONDS


@dataclass(frozen=True, slots=True)
class Names:
    """The values that labels may have, so that there are never more series than names that are plugged in."""

    collections: frozenset[str]
    transforms: frozenset[str]
    topics: frozenset[str]
    sources: frozenset[str]

    @classmethod
    def of(cls, plugged: Registry, topics: Iterable[str]) -> "Names":
        """Give the names of what is plugged in."""
        return cls(
            frozenset(plugged.collections) | frozenset(plugged.rollups),
            frozenset(plugged.transforms) | frozenset(plugged.triggers),
            frozenset(topics),
            frozenset(plugged.read),
        )

    def collection(self, name: str) -> str:
        """Give the label of a derived collection; parts have that of their shared record."""
        name = shared_of(name) if is_parts(name) else name
        return name if name in self.collections else OTHER

    def transform(self, name: str) -> str:
        """Give the label of a transform or trigger."""
        return name if name in self.transforms else OTHER

    def topic(self, name: str) -> str:
        """Give the label of a topic."""
        return name if name in self.topics else OTHER

    def source(self, name: str) -> str:
        """Give the label of what a job walks through."""
        return name if name in self.sources or name in self.collections else OTHER


class _Family:
    """A gauge whose series come and go; a scrape sees old values or new ones, never none."""

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge
        self._shown: set[tuple[str, ...]] = set()

    def show(self, values: Mapping[tuple[str, ...], float]) -> None:
        """Show these series and no others."""
        for labels, value in values.items():
            self._gauge.labels(*labels).set(value)
        for labels in self._shown - values.keys():
            self._gauge.remove(*labels)
        self._shown = set(values)


class Recording(Observer):
    """Keeps the metrics of one process in a registry of their own, and tells its health."""

    def __init__(
        self,
        names: Names,
        health: Health | None = None,
        clock: Callable[[], float] = monotonic,
        spans: Spans = UNTRACED,
    ) -> None:
        self.spans = spans
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the number of series
        self.registry = registry = CollectorRegistry()
        self.health = health or Health()
        self._names = names
        self._clock = clock
        self._lock = Lock()
        self._forecast = Forecast()
        self._position: Position | None = None
        self._lag, self._looked = nan, 0.0
        self._opened = False
        self._changes = metrics.CHANGES_READ.counter(registry)
        self._written = metrics.RECORDS_WRITTEN.counter(registry)
        self._removed = metrics.RECORDS_REMOVED.counter(registry)
        self._unchanged = metrics.RECORDS_UNCHANGED.counter(registry)
        self._letters_now = _Family(metrics.DEAD_LETTERS_NOW.gauge(registry))
        self._letters = metrics.DEAD_LETTERS.counter(registry)
        metrics.LAG.gauge(registry).set_function(self._lag_now)
        metrics.POSITION.gauge(registry).set_function(self._position_now)
        self._headroom = metrics.HEADROOM.gauge(registry)
        self._catch_up = metrics.CATCH_UP.gauge(registry)
        self._batch = metrics.BATCH_CHANGES.histogram(registry)
        self._stage = metrics.STAGE.histogram(registry)
        self._transform_seconds = metrics.TRANSFORM_SECONDS.counter(registry)
        self._transform_documents = metrics.TRANSFORM_DOCUMENTS.counter(registry)
        self._read_ahead = metrics.READ_AHEAD.gauge(registry)
        self._reconnects = metrics.RECONNECTS.counter(registry)
        self._elections = metrics.ELECTIONS.counter(registry)
        self._lease = metrics.LEASE_HELD.gauge(registry)
        self._published = metrics.PUBLISHED.counter(registry)
        self._publish_failures = metrics.PUBLISH_FAILURES.counter(registry)
        self._publish_seconds = metrics.PUBLISH_SECONDS.histogram(registry)
        self._unpublished = metrics.UNPUBLISHED_EVENTS.gauge(registry)
        self._unpublished_bytes = metrics.UNPUBLISHED_BYTES.gauge(registry)
        self._unpublishable = metrics.UNPUBLISHABLE.gauge(registry)
        self._pending = metrics.PENDING_GROUPS.gauge(registry)
        self._jobs = _Family(metrics.JOB_DOCUMENTS.gauge(registry))
        self._jobs_expected = _Family(metrics.JOB_EXPECTED.gauge(registry))
        built = metrics.BUILD.gauge(registry)
        built.labels(version("distributary"), platform.python_version()).set(1)
        self._begin()
        self._forget()

    def scraped(self) -> bytes:
        """Give all metrics in the text form that Prometheus reads."""
        return generate_latest(self.registry)

    # --- health ---------------------------------------------------------------------------------------------

    def beat(self, part: Part) -> None:
        """See `Health`."""
        self.health.beat(part)

    def rest(self, part: Part) -> None:
        """See `Health`."""
        self.health.rest(part)

    def enter(self, phase: Phase, why: str = "") -> None:
        """See `Health`; counts streams that were opened again."""
        self.health.enter(phase, why)
        if phase is Phase.ACTIVE:
            if self._opened:
                self._reconnects.inc()
            self._opened = True

    def blocked(self, why: str) -> None:
        """See `Health`."""
        self.health.blocked(why)

    def held(self, *, lease: bool) -> None:
        """Show that the process holds the lease; without it, forget what only its holder knows."""
        self._lease.set(lease)
        if not lease:
            self._forget()

    def elected(self) -> None:
        """Count an election."""
        self._elections.inc()

    # --- the stream and its commits -------------------------------------------------------------------------

    def read(self, changes: int, seconds: float) -> None:
        """Count a batch that was read."""
        self._changes.inc(changes)
        self._stage.labels("read").observe(seconds)

    def prepared(self, seconds: float) -> None:
        """Count a batch that was derived."""
        self._stage.labels("derive").observe(seconds)

    def derived(self, seconds: Mapping[str, float], documents: Mapping[str, int]) -> None:
        """Count documents that were derived."""
        for name, spent in seconds.items():
            self._transform_seconds.labels(self._names.transform(name)).inc(spent)
        for name, number in documents.items():
            self._transform_documents.labels(self._names.transform(name)).inc(number)

    def committed(self, changes: int, seconds: float) -> None:
        """Count a batch that was committed."""
        self._batch.observe(changes)
        self._stage.labels("commit").observe(seconds)

    def wrote(self, outcome: Outcome, letters: Sequence[Letter]) -> None:
        """Count what a transaction wrote."""
        for counted in (outcome.inserted, outcome.replaced, outcome.rollups):
            for name, number in counted.items():
                self._written.labels(self._names.collection(name)).inc(number)
        for name, number in outcome.removed.items():
            self._removed.labels(self._names.collection(name)).inc(number)
        self._unchanged.inc(outcome.unchanged)
        for letter in letters:
            self._letters.labels(self._names.transform(letter.transform)).inc()

    def reached(self, position: Position, read_ahead: int) -> None:
        """Note where the stream is."""
        self._position = position
        self._read_ahead.set(read_ahead)

    # --- publishing -----------------------------------------------------------------------------------------

    def waiting(self, held: Held) -> None:
        """Note what waits to be published."""
        self._unpublished.set(held.events)
        self._unpublished_bytes.set(held.bytes)

    def sent(self, messages: Sequence[Waiting], sent: Sequence[Sent], seconds: float) -> None:
        """Count what was sent."""
        self._publish_seconds.observe(seconds)
        for each, what in zip(messages, sent, strict=True):
            counter = self._publish_failures if what.error else self._published
            counter.labels(self._names.topic(each.message.topic)).inc()

    # --- now and then ---------------------------------------------------------------------------------------

    def looked(self, standing: Standing) -> None:
        """Show what was looked up."""
        self._letters_now.show(self._letters_shown(standing.letters))
        self._pending.set(standing.pending_groups)
        self._unpublishable.set(standing.refused)
        if standing.held is not None:
            self.waiting(standing.held)
        self._show_jobs(standing.jobs)
        if self._position is not None:
            self._show_lag(standing, self._position.time.time)

    def _show_lag(self, standing: Standing, reached: int) -> None:
        lag, now = max(0, standing.newest.time - reached), self._clock()
        with self._lock:
            self._lag, self._looked = lag, now
        self._catch_up.set(self._forecast.note(now, lag))
        self._headroom.set(nan if standing.oldest is None else reached - standing.oldest.time)

    def _show_jobs(self, jobs: Sequence[Job]) -> None:
        done: dict[tuple[str, ...], float] = {}
        expected: dict[tuple[str, ...], float] = {}
        for job in jobs:
            labels = (job.kind.value, self._names.source(job.source))
            done[labels] = done.get(labels, 0) + job.documents
            expected[labels] = expected.get(labels, 0) + job.total
        self._jobs.show(done)
        self._jobs_expected.show(expected)

    def _letters_shown(self, letters: Mapping[str, int]) -> dict[tuple[str, ...], float]:
        shown: dict[tuple[str, ...], float] = {(name,): 0 for name in self._names.transforms}
        for name, number in letters.items():
            label = (self._names.transform(name),)
            shown[label] = shown.get(label, 0) + number
        return shown

    def _lag_now(self) -> float:
        with self._lock:
            age = self._clock() - self._looked
            return self._lag + (age if age > STALE_SECONDS else 0)

    def _position_now(self) -> float:
        return self._position.time.time if self._position else nan

    # --- the beginning and the end of a tenure --------------------------------------------------------------

    def _begin(self) -> None:
        """Begin counters at 0, so that the first thing that happens is seen as an increase."""
        for name in self._names.collections:
            self._written.labels(name)
            self._removed.labels(name)
        for name in self._names.transforms:
            self._letters.labels(name)
            self._transform_seconds.labels(name)
            self._transform_documents.labels(name)
        for name in self._names.topics:
            self._published.labels(name)
            self._publish_failures.labels(name)

    def _forget(self) -> None:
        """Forget what only the holder of the lease knows."""
        self._position, self._opened = None, False
        with self._lock:
            self._lag, self._looked = nan, 0.0
        self._forecast = Forecast()
        for gauge in (self._headroom, self._catch_up, self._pending, self._unpublishable):
            gauge.set(nan)
        for gauge in (self._unpublished, self._unpublished_bytes):
            gauge.set(nan)
        self._read_ahead.set(0)
        for family in (self._letters_now, self._jobs, self._jobs_expected):
            family.show({})
