"""What the engine tells, as metrics."""

from collections import Counter
from math import isnan, nan
from pathlib import Path
from typing import Any

from bson import Timestamp
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from distributary.change import Position
from distributary.engine.observer import Phase, Standing
from distributary.events.envelope import Message
from distributary.forecast import Forecast
from distributary.metrics import DECLARED, LABELS, PREFIX, Kind
from distributary.parts import parts_of
from distributary.ports.events import Held, Sent, Waiting
from distributary.ports.sink import Outcome
from distributary.recording import Names, Recording
from distributary.state import Job, JobKind

NAMES = Names(
    collections=frozenset({"lines", "customer"}),
    transforms=frozenset({"orders"}),
    topics=frozenset({"LINES"}),
    sources=frozenset({"orders"}),
)
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"


class Stage:
    """A recording on a clock of its own."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.recording = Recording(NAMES, clock=lambda: self.now)

    def value(self, name: str, **labels: str) -> float:
        """Give one value; fails where there is none."""
        value = self.recording.registry.get_sample_value(PREFIX + name, labels)
        assert value is not None, f"there is no {name} {labels}"
        return value

    def series(self, name: str) -> set[tuple[str, ...]]:
        """Give the label values of a metric."""
        return {
            tuple(sample.labels.values())
            for family in self.recording.registry.collect()
            for sample in family.samples
            if sample.name == PREFIX + name
        }


def standing(newest: int = 0, **changed: Any) -> Standing:
    """Give what was looked up."""
    parts: dict[str, Any] = {
        "oldest": Timestamp(400, 1),
        "letters": {},
        "pending_groups": 0,
        "refused": 0,
        "jobs": [],
    }
    return Standing(newest=Timestamp(newest, 1), **(parts | changed))


def at(seconds: int) -> Position:
    """Give a position."""
    return Position("", Timestamp(seconds, 1))


def job(source: str, documents: int, total: int) -> Job:
    """Give a backfill."""
    return Job(1, JobKind.BACKFILL, source, ("orders",), "asked", documents=documents, total=total)


def test_the_reference_page_and_what_is_scraped_are_the_same() -> None:
    """Every declared metric is scraped with its type and labels, nothing else is, and the page lists just these."""
    stage = Stage()
    stage.recording.derived({"orders": 1.0}, {"orders": 1})
    stage.recording.wrote(Outcome(), ())
    for tell in (stage.recording.read, stage.recording.committed):
        tell(1, 0.1)
    stage.recording.prepared(0.1)
    stage.recording.looked(standing(jobs=[job("orders", 1, 2)]))
    families = text_string_to_metric_families(stage.recording.scraped().decode())
    scraped = {f"{each.name}_total" if each.type == "counter" else each.name: each for each in families}
    by_type = {(name, each.type) for name, each in scraped.items()}
    kinds = {Kind.COUNTER: "counter", Kind.GAUGE: "gauge", Kind.INFO: "gauge", Kind.HISTOGRAM: "histogram"}
    assert by_type == {(each.full_name, kinds[each.kind]) for each in DECLARED}
    for each in DECLARED:
        shown = {label for sample in scraped[each.full_name].samples for label in sample.labels} - {"le"}
        assert shown == set(each.labels), each.name
        assert scraped[each.full_name].documentation == each.help
        assert f"| `{each.full_name}` | {each.kind.value} | {each.unit} |" in PAGE.read_text("utf-8")
    listed = [
        line.split("`")[1] for line in PAGE.read_text("utf-8").splitlines() if line.startswith(f"| `{PREFIX}")
    ]
    assert listed == [each.full_name for each in DECLARED]


def test_every_label_is_explained() -> None:
    """The page says which values each label may have."""
    assert set(LABELS) == {label for each in DECLARED for label in each.labels}


def test_labels_take_no_other_values_than_names_that_are_plugged_in() -> None:
    """However many shadows, old jobs and strange topics there are, each label has one more value at most."""
    stage = Stage()
    strange = [f"shadow {number}" for number in range(50)]
    outcome = Outcome(inserted=Counter(strange), removed=Counter(strange), rollups=Counter(strange))
    stage.recording.wrote(outcome, ())
    stage.recording.derived(dict.fromkeys(strange, 1.0), dict.fromkeys(strange, 2))
    messages = [Waiting(number, name, Message(name, b"", {}, ""), 1) for number, name in enumerate(strange)]
    stage.recording.sent(messages, [Sent()] * 25 + [Sent("away")] * 25, 0.1)
    jobs = [job(name, 1, 2) for name in strange]
    stage.recording.looked(standing(letters=dict.fromkeys(strange, 1), jobs=jobs))
    assert stage.series("records_written_total") == {("lines",), ("customer",), ("other",)}
    assert stage.series("records_removed_total") == {("lines",), ("customer",), ("other",)}
    assert stage.series("transform_documents_total") == {("orders",), ("other",)}
    assert stage.series("published_total") == {("LINES",), ("other",)}
    assert stage.series("dead_letters") == {("orders",), ("other",)}
    assert stage.series("job_documents") == {("backfill", "other")}
    assert stage.value("records_written_total", collection="other") == 100
    assert stage.value("published_total", topic="other") == 25
    assert stage.value("publish_failures_total", topic="other") == 25
    assert stage.value("job_documents", kind="backfill", source="other") == 50


def test_parts_count_for_their_shared_record() -> None:
    """Who looks at a shared record sees what was written to it by its name."""
    stage = Stage()
    stage.recording.wrote(Outcome(replaced=Counter({parts_of("customer"): 3})), ())
    assert stage.value("records_written_total", collection="customer") == 3


def test_series_of_jobs_that_are_done_are_gone() -> None:
    """A job that is done leaves no progress behind that stands still for ever."""
    stage = Stage()
    stage.recording.looked(standing(jobs=[job("orders", 3, 10), job("orders", 4, 10)]))
    assert stage.value("job_documents", kind="backfill", source="orders") == 7
    assert stage.value("job_documents_expected", kind="backfill", source="orders") == 20
    stage.recording.looked(standing())
    assert stage.series("job_documents") == set()


def test_lag_and_headroom_are_those_of_the_look() -> None:
    """Lag is the source's end minus the position, headroom the position minus the source's beginning."""
    stage = Stage()
    stage.recording.reached(at(600), 0)
    stage.recording.looked(standing(660))
    assert (stage.value("lag_seconds"), stage.value("history_headroom_seconds")) == (60, 200)
    assert stage.value("position_timestamp_seconds") == 600
    stage.recording.looked(standing(660, oldest=None))
    assert isnan(stage.value("history_headroom_seconds"))


def test_lag_grows_while_the_source_does_not_answer() -> None:
    """An outage of MongoDB does not look like a worker that has caught up."""
    stage = Stage()
    stage.recording.reached(at(600), 0)
    stage.recording.looked(standing(601))
    stage.now += 10
    assert stage.value("lag_seconds") == 1
    stage.now += 300
    assert stage.value("lag_seconds") == 311


def test_a_standby_shows_nothing_that_only_the_holder_knows() -> None:
    """A process that lost the lease shows no lag, backlog or job of the past, so that alerts see the holder's."""
    stage = Stage()
    stage.recording.held(lease=True)
    stage.recording.reached(at(600), 5)
    stage.recording.waiting(Held(3, 30))
    stage.recording.looked(standing(660, letters={"orders": 2}, jobs=[job("orders", 1, 2)]))
    assert (stage.value("lease_held"), stage.value("unpublished_events")) == (1, 3)
    stage.recording.held(lease=False)
    assert (stage.value("lease_held"), stage.value("read_ahead_bytes")) == (0, 0)
    for name in ("lag_seconds", "position_timestamp_seconds", "unpublished_events", "catch_up_seconds"):
        assert isnan(stage.value(name)), name
    assert stage.series("job_documents") == stage.series("dead_letters") == set()


def test_a_stream_that_is_opened_again_is_a_reconnect() -> None:
    """The first stream of a tenure is none; each further one is."""
    stage = Stage()
    for phase in (Phase.ACTIVE, Phase.WAITING, Phase.ACTIVE):
        stage.recording.enter(phase)
    assert stage.value("reconnects_total") == 1
    stage.recording.held(lease=False)
    stage.recording.enter(Phase.ACTIVE)
    assert stage.value("reconnects_total") == 1


def test_two_workers_in_a_process_do_not_clash() -> None:
    """Each recording has a registry of its own."""
    first, second = Stage(), Stage()
    first.recording.read(5, 0.1)
    assert (first.value("changes_read_total"), second.value("changes_read_total")) == (5, 0)
    assert first.recording.registry is not second.recording.registry
    assert isinstance(first.recording.registry, CollectorRegistry)


def estimates(*seen: tuple[float, float]) -> list[float]:
    """Give the estimates for lags at times."""
    forecast = Forecast()
    return [forecast.note(time, lag) for time, lag in seen]


def test_the_time_to_catch_up_follows_the_pace_of_the_last_minute() -> None:
    """A lag that falls by 10 s each second is gone in a tenth of it; one that does not fall has no end."""
    assert estimates((0, 1000), (10, 900))[-1] == 90
    assert str(estimates((0, 1000))[-1]) == str(nan)
    assert isnan(estimates((0, 100), (10, 100))[-1])
    assert isnan(estimates((0, 100), (10, 160))[-1])
    assert estimates((0, 100), (10, 4))[-1] == 0
    assert estimates((0, 5000), (100, 1000), (110, 900))[-1] == 90
