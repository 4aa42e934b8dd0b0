"""The metrics: each is declared here, with its unit and what it says, and nowhere else."""

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

PREFIX = "distributary_"


class Kind(StrEnum):
    """What a metric's value does."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    INFO = "gauge, always 1"


class Metric(NamedTuple):
    """One metric; `name` is without the prefix, `buckets` are those of a histogram."""

    name: str
    kind: Kind
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def full_name(self) -> str:
        """The name as it is scraped."""
        return PREFIX + self.name

    def counter(self, registry: CollectorRegistry) -> Counter:
        """Make it in a registry."""
        return Counter(self.full_name, self.help, self.labels, registry=registry)

    def gauge(self, registry: CollectorRegistry) -> Gauge:
        """Make it in a registry."""
        gauge = Gauge(self.full_name, self.help, self.labels, registry=None)
        registry.register(_Undescribed(gauge))
        return gauge

    def histogram(self, registry: CollectorRegistry) -> Histogram:
        """Make it in a registry."""
        return Histogram(self.full_name, self.help, self.labels, registry=registry, buckets=self.buckets)


class _Undescribed(Collector):
    """A gauge whose name is not held against others.

    The library takes a gauge `x` and a counter `x_total` for one, as OpenMetrics does; in the text form they are two.
    """

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge

    def collect(self) -> Iterable[Family]:
        """Give its values."""
        return self._gauge.collect()


_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_CHANGES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0)

CHANGES_READ = Metric(
    "changes_read_total",
    Kind.COUNTER,
    "changes",
    "Changes that were read from the stream; after a start or a failure some are read again.",
)
RECORDS_WRITTEN = Metric(
    "records_written_total",
    Kind.COUNTER,
    "records",
    "Records that were inserted or replaced, by the stream and by jobs; of a rollup, groups that were written or"
    " removed.",
    ("collection",),
)
RECORDS_REMOVED = Metric(
    "records_removed_total", Kind.COUNTER, "records", "Records that were removed.", ("collection",)
)
RECORDS_UNCHANGED = Metric(
    "records_unchanged_total",
    Kind.COUNTER,
    "records",
    "Records that were derived and lay there already, so that nothing was written.",
)
DEAD_LETTERS_NOW = Metric(
    "dead_letters",
    Kind.GAUGE,
    "documents",
    "Documents and changes that are parked now, as of the last look (every 5 s).",
    ("transform",),
)
DEAD_LETTERS = Metric(
    "dead_letters_total",
    Kind.COUNTER,
    "documents",
    "Documents and changes that were parked, again where they failed again.",
    ("transform",),
)
LAG = Metric(
    "lag_seconds",
    Kind.GAUGE,
    "seconds",
    "How far the position is behind the source's newest operation, as of the last look (every 5 s); while the source"
    " does not answer, as if it went on. NaN in a standby.",
)
POSITION = Metric(
    "position_timestamp_seconds",
    Kind.GAUGE,
    "Unix time",
    "Cluster time of the position that the stream has reached. NaN in a standby.",
)
HEADROOM = Metric(
    "history_headroom_seconds",
    Kind.GAUGE,
    "seconds",
    "How far the source's history reaches back behind the position: the time left until changes are lost, if the worker"
    " stood still. NaN where the user may not read the oplog, and in a standby.",
)
CATCH_UP = Metric(
    "catch_up_seconds",
    Kind.GAUGE,
    "seconds",
    "Estimate of the time until the worker has caught up, from how the lag fell in the last minute: 0 when it has, NaN"
    " while it falls behind or where it is not known yet.",
)
BATCH_CHANGES = Metric(
    "batch_changes",
    Kind.HISTOGRAM,
    "changes",
    "Changes in one committed batch of the stream.",
    (),
    _CHANGES,
)
STAGE = Metric(
    "stage_seconds",
    Kind.HISTOGRAM,
    "seconds",
    "Duration of one batch of the stream in a stage: `read` (with the wait for the first change, 0.25 s at most),"
    " `derive` (with documents that are read), `commit`.",
    ("stage",),
    _SECONDS,
)
TRANSFORM_SECONDS = Metric(
    "transform_seconds_total",
    Kind.COUNTER,
    "seconds",
    "Time in a transform, with the encoding of what it yields.",
    ("transform",),
)
TRANSFORM_DOCUMENTS = Metric(
    "transform_documents_total",
    Kind.COUNTER,
    "documents",
    "Documents that a transform derived, by the stream and by jobs.",
    ("transform",),
)
READ_AHEAD = Metric(
    "read_ahead_bytes", Kind.GAUGE, "bytes", "Bytes of changes that are read and not derived yet."
)
RECONNECTS = Metric(
    "reconnects_total",
    Kind.COUNTER,
    "times",
    "Times that the stream was opened again after it had been open.",
)
ELECTIONS = Metric(
    "elections_total",
    Kind.COUNTER,
    "times",
    "Times that another primary was seen in the source, or in the derived deployment where that is another one.",
)
LEASE_HELD = Metric(
    "lease_held",
    Kind.GAUGE,
    "0 or 1",
    "Whether this process holds the lease: 1 in the active one, 0 in a standby.",
)
PUBLISHED = Metric(
    "published_total", Kind.COUNTER, "messages", "Messages that Pub/Sub confirmed.", ("topic",)
)
PUBLISH_FAILURES = Metric(
    "publish_failures_total",
    Kind.COUNTER,
    "messages",
    "Messages that were not confirmed, and are sent again, or that Pub/Sub refused.",
    ("topic",),
)
PUBLISH_SECONDS = Metric(
    "publish_seconds",
    Kind.HISTOGRAM,
    "seconds",
    "Time in which it was known of each message of one page (500 at most) what became of it.",
    (),
    _SECONDS,
)
UNPUBLISHED_EVENTS = Metric(
    "unpublished_events", Kind.GAUGE, "messages", "Messages that wait in the outbox to be published."
)
UNPUBLISHED_BYTES = Metric(
    "unpublished_bytes", Kind.GAUGE, "bytes", "Bytes of the messages that wait in the outbox."
)
UNPUBLISHABLE = Metric(
    "unpublishable_events",
    Kind.GAUGE,
    "messages",
    "Messages that cannot be published: too large, or refused; as of the last look.",
)
PENDING_GROUPS = Metric(
    "pending_groups", Kind.GAUGE, "groups", "Groups of rollups that are to be computed; as of the last look."
)
JOB_DOCUMENTS = Metric(
    "job_documents",
    Kind.GAUGE,
    "documents",
    "Documents that open jobs have looked at, as of the last look.",
    ("kind", "source"),
)
JOB_EXPECTED = Metric(
    "job_documents_expected",
    Kind.GAUGE,
    "documents",
    "Documents that open jobs will have looked at when they are done, estimated; 0 where it is not known.",
    ("kind", "source"),
)
BUILD = Metric(
    "build_info", Kind.INFO, "", "The version of distributary and of Python.", ("version", "python")
)

#: Every metric, in the order of the reference page.
DECLARED: tuple[Metric, ...] = (
    CHANGES_READ,
    RECORDS_WRITTEN,
    RECORDS_REMOVED,
    RECORDS_UNCHANGED,
    DEAD_LETTERS_NOW,
    DEAD_LETTERS,
    LAG,
    POSITION,
    HEADROOM,
    CATCH_UP,
    BATCH_CHANGES,
    STAGE,
    TRANSFORM_SECONDS,
    TRANSFORM_DOCUMENTS,
    READ_AHEAD,
    RECONNECTS,
    ELECTIONS,
    LEASE_HELD,
    PUBLISHED,
    PUBLISH_FAILURES,
    PUBLISH_SECONDS,
    UNPUBLISHED_EVENTS,
    UNPUBLISHED_BYTES,
    UNPUBLISHABLE,
    PENDING_GROUPS,
    JOB_DOCUMENTS,
    JOB_EXPECTED,
    BUILD,
)

#: The values that each label may have, for the reference page.
LABELS = {
    "collection": "a derived collection or rollup",
    "transform": "a transform or trigger",
    "topic": "a topic that a collection or trigger names",
    "stage": "`read`, `derive`, `commit`",
    "kind": "a kind of job",
    "source": "a raw or derived collection",
    "version": "of distributary",
    "python": "of Python",
}
