"""The engine on ports in memory: gathering, horizon, breaker, slices, where a worker begins, whole stories."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from enum import Enum
from queue import Queue
from threading import Event
from threading import enumerate as enumerate_threads
from time import monotonic
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from bson import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from distributary.change import Change, CollectionChange, Operation, Position, identity
from distributary.derive.plan import Owner
from distributary.derive.records import DerivedCollection, Place, Record
from distributary.derive.transform import Failure, Transform, derive
from distributary.engine import begin
from distributary.engine.ahead import Overtaken
from distributary.engine.begin import Wanted
from distributary.engine.breaker import Breaker
from distributary.engine.commit import Committer
from distributary.engine.derivation import Derivation, Prepared
from distributary.engine.horizon import Horizon
from distributary.engine.pace import Limits
from distributary.engine.pipeline import FEW, Bounds, Pipeline, StreamEnded
from distributary.engine.slices import Slices
from distributary.engine.wiring import Goal, Settings, Wiring
from distributary.engine.work import Stores
from distributary.engine.worker import Worker
from distributary.errors import Failed, LeaseLost, PositionLost, TooManyDeadLetters
from distributary.ports.source import Batch, Start
from distributary.state import (
    BEGINNING,
    Built,
    Checkpoint,
    Job,
    JobKind,
    Letter,
    LetterKey,
    LetterKind,
    SourceIdentity,
)
from tests.conftest import eventually
from tests.fakes import (
    Deployment,
    FakeCheckpoints,
    FakeJobs,
    FakeLetters,
    FakeOutbox,
    FakeShelf,
    FakeSink,
    FakeUntold,
    Raw,
    Tailed,
)
from tests.tap import POINTS, Crash, Tap, TappedCheckpoints, TappedSink

Document = dict[str, Any]

SOURCE = SourceIdentity("rs", "set", "raw")

orders = DerivedCollection("orders")
lines = DerivedCollection("lines")
codes = DerivedCollection("codes")


def ordered(document: Document) -> Iterator[Record]:
    """Yield a record, a fan-out and a key that others may yield too."""
    if document.get("bad"):
        raise ValueError("bad")
    yield orders.record(document["_id"], {"v": document.get("v", 0)})
    for line in range(document.get("lines", 0)):
        yield lines.record({"of": document["_id"], "line": line}, {})
    if document.get("code") is not None:
        yield codes.record(document["code"], {"of": document["_id"]})


def made(name: str = "orders", source: str = "raw", **fields: Any) -> Transform:
    """Give a transform of the three collections."""
    whole = Transform(name, source, ordered, "1", frozenset({"orders", "lines", "codes"}), "t.py:1")
    return replace(whole, **fields)


def wanted(*transforms: Transform, **fields: Any) -> Wanted:
    """Give what is plugged in."""
    plugged = {each.name: each for each in transforms or [made()]}
    return replace(Wanted("w", plugged, SOURCE, Start(), backfill=True, rebuild=False), **fields)


# --- whole stories -----------------------------------------------------------------------------------------------


class Then(Enum):
    """What happens between changes of a story."""

    CRASH = "the worker ends in its next commit"
    IDLE = "the worker catches up"


CRASH, IDLE = Then.CRASH, Then.IDLE


class Put(NamedTuple):
    """A document is inserted or replaced."""

    key: Any
    fields: Mapping[str, Any] = MappingProxyType({})


class Set(NamedTuple):
    """Fields of a document are updated."""

    key: Any
    fields: Document


class Gone(NamedTuple):
    """A document is deleted."""

    key: Any


class Dropped(NamedTuple):
    """The collection is dropped."""


Step = Put | Set | Gone | Dropped | Then


@dataclass
class Bench:
    """A worker on ports in memory, and the source that it reads."""

    raw: Raw
    deployment: Deployment
    tap: Tap
    plugged: Wanted
    settings: Settings

    def stores(self) -> Stores:
        """Give what a worker drives, interrupted by the tap."""
        sink = TappedSink(FakeSink(self.deployment), self.tap)
        checkpoints = TappedCheckpoints(FakeCheckpoints(self.deployment), self.tap)
        letters, jobs = FakeLetters(self.deployment, "w"), FakeJobs(self.deployment, "w")
        return Stores(
            sink,
            checkpoints,
            letters,
            jobs,
            FakeOutbox(self.deployment, "w"),
            FakeUntold(self.deployment, "w"),
        )

    def worker(self, stop: Event | None = None) -> Worker:
        """Give one more holder of the lease."""
        stores = self.stores()
        by_source: dict[str, list[Transform]] = {}
        for each in self.plugged.transforms.values():
            by_source.setdefault(each.source, []).append(each)
        wiring = Wiring(
            stores=stores,
            documents=self.raw,
            by_source=by_source,
            new_source=lambda: self.raw.source(self.plugged.watched),
            newest=lambda: self.raw.now,
            oldest=lambda: None,
            prepare=lambda: None,
            shelf=FakeShelf(self.deployment),
            draw=lambda: uuid4().hex[:8],
            told=iter,
        )
        fence = stores.checkpoints.raise_fence("w")
        return Worker(wiring, self.plugged, self.settings, fence, stop or Event())

    def catch_up(self) -> None:
        """Work until now is reached."""
        self.worker().run(Goal(self.raw.now))

    def tell(self, story: Iterable[Step], point: str = "before the commit") -> None:
        """Let things happen one after the other; after each catch-up derived equals recomputed."""
        for step in story:
            if step is CRASH:
                self._crash(point)
            elif step is IDLE:
                self.catch_up()
                self.check()
            else:
                self._write(step)

    def check(self) -> None:
        """Fail unless what is stored is what the documents yield that are not parked."""
        expected: dict[Place, Any] = {}
        parked = {Owner(*each.key) for each in FakeLetters(self.deployment, "w").parked()}
        for transform in self.plugged.transforms.values():
            for document in self.raw.documents(transform.source):
                owner = Owner(transform.name, identity(document["_id"]))
                output = derive(transform, document, 100)
                assert isinstance(output, Failure) <= (owner in parked)
                if owner not in parked and not isinstance(output, Failure):
                    expected |= {record.place: (owner, record.body) for record in output}
        shown = {each.place: (each.owner, each.body) for each in self.deployment.records()}
        assert {place: each for place, each in shown.items() if each[0] not in parked} == expected

    def _crash(self, point: str) -> None:
        self.tap.point, self.tap.commits, self.tap.action = point, 0, self._end
        with suppress(Crash):
            self.catch_up()
        self.tap.point = ""

    @staticmethod
    def _end() -> None:
        raise Crash

    def _write(self, step: Step) -> None:
        there = {identity(each["_id"]) for each in self.raw.documents("raw")}
        if isinstance(step, Put):
            write = self.raw.replace if identity(step.key) in there else self.raw.insert
            write("raw", {"_id": step.key, **step.fields})
        elif isinstance(step, Set) and identity(step.key) in there:
            self.raw.update("raw", step.key, **step.fields)
        elif isinstance(step, Gone) and identity(step.key) in there:
            self.raw.delete("raw", step.key)
        elif isinstance(step, Dropped):
            self.raw.drop("raw")


@pytest.fixture
def bench() -> Bench:
    """Give a worker that starts on an empty source."""
    return fresh()


def fresh(**fields: Any) -> Bench:
    """Give a worker that starts on an empty source."""
    bounds = Bounds(changes=3, bytes=10**6, read_ahead=1, linger=0, wait_ms=1)
    few = Settings(
        bounds=bounds,
        idle_save=0,
        max_records=100,
        scan_documents=2,
        pace=Limits(0, 1000, 0),
        purge=True,
        resync=True,
        breaker=(0, 10),
    )
    return Bench(Raw(), Deployment(), Tap(), wanted(), replace(few, **fields))


@pytest.mark.parametrize(
    "story",
    [
        pytest.param([Put(1, {"lines": 2}), IDLE], id="what exists is derived at the first start"),
        pytest.param([IDLE, Put(1, {"lines": 3}), IDLE, Set(1, {"lines": 1}), IDLE], id="a fan-out shrinks"),
        pytest.param([IDLE, Put(1), Gone(1), Put(1, {"v": 2}), IDLE], id="deleted and inserted in one batch"),
        pytest.param(
            [Put(1, {"code": 1}), IDLE, Set(1, {"code": 2}), CRASH, Gone(1), IDLE], id="gone after a crash"
        ),
        pytest.param([CRASH, Put(1), Put(2), CRASH, Set(1, {"v": 5}), CRASH, IDLE], id="crash after crash"),
        pytest.param(
            [Put(n, {"lines": 1}) for n in range(7)] + [CRASH, Gone(3), CRASH, IDLE], id="a scan goes on"
        ),
        pytest.param([Put(1, {"bad": True}), IDLE, Set(1, {"bad": False}), IDLE], id="a repaired document"),
        pytest.param([Put(1), IDLE, Put(1, {"bad": True}), IDLE, Gone(1), IDLE], id="a bad document leaves"),
        pytest.param([Put(1, {"code": 7}), Put(2, {"code": 7}), IDLE, Gone(1), IDLE], id="a contested key"),
        pytest.param([Put(1, {"lines": 2}), IDLE, Dropped(), Put(2), IDLE], id="dropped and created again"),
    ],
)
@pytest.mark.parametrize("point", POINTS)
def test_a_story_ends_equal_to_a_recomputation(bench: Bench, story: list[Step], point: str) -> None:
    """Whatever happens in between, and wherever in a commit a crash comes, nothing is missing or stale."""
    bench.tell(story, point)


KEYS = st.sampled_from([1, 2, "x"])
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "lines": st.integers(0, 2),
        "code": st.sampled_from([None, 1, 2]),
        "bad": st.booleans(),
        "v": st.integers(0, 1),
    },
)
STEPS = st.one_of(
    st.builds(Put, KEYS, FIELDS),
    st.builds(Set, KEYS, FIELDS),
    st.builds(Gone, KEYS),
    st.builds(Dropped),
    st.sampled_from(Then),
)


@given(st.lists(STEPS, max_size=12), st.sampled_from(POINTS))
@settings(max_examples=25)
def test_any_story_ends_equal_to_a_recomputation(story: list[Step], point: str) -> None:
    """The same of stories that nobody thought of."""
    fresh().tell([*story, IDLE], point)


def test_a_history_that_is_too_short_is_made_good() -> None:
    """With a position that is lost, everything is derived again in a new epoch, and what is gone is removed."""
    bench = fresh()
    bench.tell([Put(1, {"lines": 2}), Put(2, {"bad": True}), IDLE, Gone(1), Gone(2), Put(3)])
    bench.raw.forgotten = len(bench.raw.history)
    bench.tell([IDLE])
    checkpoint = bench.stores().checkpoints.load("w")
    assert checkpoint is not None
    assert checkpoint.epoch == 2
    assert FakeLetters(bench.deployment, "w").parked() == []


def test_a_lost_position_stops_the_worker_that_may_not_resync() -> None:
    """`fail` ends with the position lost and leaves everything as it was."""
    bench = fresh(resync=False)
    bench.tell([Put(1), IDLE, Gone(1)])
    bench.raw.forgotten = len(bench.raw.history)
    before = bench.deployment.documents()
    with pytest.raises(PositionLost):
        bench.catch_up()
    assert bench.deployment.documents() == before


class Torn(Tailed):
    """A stream in which everything new is one transaction: a change at a time, each behind the commit of the last."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench.raw, frozenset({"raw"}), 1000)
        self._bench = bench
        self._left: list[Batch] = []

    def read(self, wait_ms: int) -> list[Batch]:
        """Give the next change."""
        if not self._left:
            (batch,) = super().read(wait_ms)
            now = self._bench.raw.now
            parts = [each._replace(time=now) for each in batch.changes]
            self._left = [Batch([each], Position(each.token, now), 1, torn=True) for each in parts]
            if not self._left:
                return [batch]
            self._left[-1] = self._left[-1]._replace(torn=False)
            return [self._left.pop(0)]
        eventually(lambda: self._is_torn() or self.closed)
        return [self._left.pop(0)]

    def _is_torn(self) -> bool:
        stored = self._bench.stores().checkpoints.load("w")
        assert stored
        return stored.torn


def test_a_run_ends_behind_the_whole_of_a_torn_transaction(bench: Bench) -> None:
    """Though each part of it has the position's cluster time; a worker that starts between two parts does, too."""
    bench.tell([IDLE, *(Put(number, {"lines": 1}) for number in range(4))])
    bench.raw.source = lambda _: Torn(bench)  # type: ignore[method-assign, assignment, misc]
    bench.tap.point, bench.tap.commits, bench.tap.action = "after the commit", 1, bench._end
    with suppress(Crash):
        bench.catch_up()
    bench.tap.point = ""
    stored = bench.stores().checkpoints.load("w")
    assert stored is not None
    assert (stored.torn, stored.is_level, stored.position.time) == (True, False, bench.raw.now)
    bench.catch_up()
    bench.check()
    stored = bench.stores().checkpoints.load("w")
    assert stored is not None
    assert (stored.torn, stored.is_level) == (False, True)


def test_who_lost_the_lease_commits_nothing(bench: Bench) -> None:
    """A worker whose fence is no longer the newest ends, and the new one's work stays."""
    bench.tell([Put(1), IDLE, Put(1, {"v": 1})])
    before = bench.worker()
    bench.tell([IDLE, Put(1, {"v": 2})])
    content = bench.deployment.documents()
    with pytest.raises(LeaseLost):
        before.run(Goal(bench.raw.now))
    assert bench.deployment.documents() == content


def test_a_goal_waits_for_jobs(bench: Bench) -> None:
    """A run ends only when no job is left, also one that was asked for meanwhile."""
    bench.tell([Put(1), IDLE])
    jobs = FakeJobs(bench.deployment, "w")
    jobs.ask([Job(None, JobKind.BACKFILL, "raw", ("orders",), "asked", sweep=True)])
    bench.worker().run(Goal(BEGINNING))
    assert jobs.open() == []


# --- the read-ahead ----------------------------------------------------------------------------------------------


class Script:
    """A source that gives replies, each a list of batches, as they are put; then it ends, or gives nothing."""

    def __init__(self, *, ends: bool = False) -> None:
        self.replies: Queue[list[Batch] | BaseException] = Queue()
        self.reads = 0
        self._ends = ends
        self._closed = False

    @property
    def ended(self) -> bool:
        """Whether the server closed the stream."""
        return self._closed or (self._ends and self.replies.empty())

    def open(self, start: Start) -> Position:  # noqa: ARG002 - the port's
        """Begin."""
        return at(0)

    def read(self, wait_ms: int) -> list[Batch]:  # noqa: ARG002 - the port's
        """Give the next reply, when there is one."""
        item = self.replies.get()
        self.reads += 1
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Give one more reply, so that nobody waits for it."""
        self._closed = True
        self.replies.put([])


def at(time: int) -> Position:
    """Give the position at a time."""
    return Position(f"82{1:08X}{time:08X}00", Timestamp(1, time))


def change(key: Any, time: int, operation: Operation = Operation.INSERT, **fields: Any) -> Change:
    """Give a change that carries its document when one is inserted."""
    document = {"_id": key, **fields} if operation is Operation.INSERT else None
    return Change("raw", key, Timestamp(1, time), operation, document, f"token {time}")


def batch(*keys: Any, time: int, size: int = 1, **fields: Any) -> Batch:
    """Give a batch of inserts at one time."""
    return Batch([change(key, time) for key in keys], at(time), size, **fields)


def derivation(raw: Raw, *transforms: Transform) -> Derivation:
    """Give what derives documents of a source."""
    return Derivation(raw, {"raw": transforms or (made(),)}, 1, 100)


@contextmanager
def reading(script: Script, *replies: list[Batch] | BaseException, **bounds: Any) -> Iterator[Pipeline]:
    """Give a read-ahead over replies that are all there."""
    for each in replies:
        script.replies.put(each)
    whole = {"changes": 3, "bytes": 100, "read_ahead": 10, "linger": 0.5} | bounds
    pipeline = Pipeline(script, derivation(Raw()), Bounds(**whole), Horizon(BEGINNING))
    pipeline.start()
    try:
        yield pipeline
    finally:
        script.close()
        pipeline.close()


def keys_of(prepared: Prepared | None) -> list[Any]:
    """Give the keys of a batch that is ready."""
    assert prepared is not None
    return [each.key for each in prepared.batch.changes]


def test_small_batches_are_gathered_while_they_linger() -> None:
    """Changes that come within the linger are committed together, up to the bound on their number."""
    with reading(
        Script(), [batch(1, time=1)], [batch(2, time=2), batch(3, time=3)], [batch(4, time=4)]
    ) as pipeline:
        first, second = pipeline.next(5), pipeline.next(5)
    assert (keys_of(first), keys_of(second)) == ([1, 2, 3], [4])
    assert first is not None
    assert first.batch.position == at(3)


def test_bytes_bound_what_is_gathered() -> None:
    """A batch that is large does not wait for another."""
    with reading(Script(), [batch(1, time=1, size=100)], [batch(2, time=2)]) as pipeline:
        assert keys_of(pipeline.next(5)) == [1]


def test_without_a_linger_nothing_waits() -> None:
    """A small batch goes at once when nothing else is there."""
    with reading(Script(), [batch(1, time=1)], linger=0) as pipeline:
        assert keys_of(pipeline.next(5)) == [1]


def test_a_few_changes_are_gathered_until_they_are_waited_for() -> None:
    """What comes while the caller is busy goes with the next batch, without a linger."""
    script = Script()
    with reading(script, [batch(1, time=1)], changes=1000, linger=0) as pipeline:
        assert keys_of(pipeline.next(5)) == [1]
        for number in range(2, 6):
            script.replies.put([batch(number, time=number)])
        script.replies.put([])
        eventually(script.replies.empty)
        assert keys_of(pipeline.next(5)) == [2, 3, 4, 5]


def test_a_caller_without_patience_is_given_a_few_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are there, though they are derived only when it asks; else they would wait for a whole slice of a job."""
    monkeypatch.setattr("distributary.engine.pipeline.FEW_SECONDS", 60.0)
    script = Script()
    with reading(script, [batch(1, time=1)], changes=1000, linger=0) as pipeline:
        assert keys_of(pipeline.next(5)) == [1]
        script.replies.put([batch(2, time=2)])
        script.replies.put([])
        eventually(script.replies.empty)
        assert keys_of(pipeline.next(0.0)) == [2]
        assert pipeline.next(0.0) is None


def test_many_changes_are_derived_ahead() -> None:
    """What is enough for a batch of its own is derived while the caller is busy."""
    script = Script()
    with reading(script, [batch(1, time=1)], changes=1000, bytes=10_000, linger=0) as pipeline:
        assert keys_of(pipeline.next(5)) == [1]
        script.replies.put([batch(*range(FEW), time=2)])
        eventually(lambda: pipeline.next(0.0))
        script.replies.put([batch(*range(FEW), time=3)])
        eventually(pipeline._ready.full)


def test_an_idle_batch_passes_at_once() -> None:
    """A position without changes is given as it is, and one behind changes is taken along."""
    with reading(Script(), [Batch([], at(1), 0)], [batch(1, time=2)], [Batch([], at(9), 0)]) as pipeline:
        first, second = pipeline.next(5), pipeline.next(5)
    assert keys_of(first) == []
    assert keys_of(second) == [1]
    assert second is not None
    assert second.batch.position == at(9)


def test_the_change_of_a_collection_closes_a_batch() -> None:
    """What comes behind a drop is not gathered with it."""
    dropped = CollectionChange("raw", Timestamp(1, 2), gone=True)
    replies = [[batch(1, time=1), Batch([], at(2), 0, (dropped,))], [batch(2, time=3)]]
    with reading(Script(), *replies) as pipeline:
        first, second = pipeline.next(5), pipeline.next(5)
    assert (keys_of(first), keys_of(second)) == ([1], [2])
    assert first is not None
    assert first.batch.collections == (dropped,)


def test_what_goes_wrong_comes_in_order() -> None:
    """An error of the source is raised behind the batches that were read before it."""
    with reading(Script(), [batch(1, time=1)], PositionLost("gone")) as pipeline:
        assert keys_of(pipeline.next(5)) == [1]
        with pytest.raises(PositionLost):
            pipeline.next(5)


def test_an_ended_stream_is_told_behind_its_changes() -> None:
    """The end of the stream is raised, so that it is opened again."""
    with reading(Script(ends=True), [batch(1, time=1)]) as pipeline:
        assert keys_of(pipeline.next(5)) == [1]
        with pytest.raises(StreamEnded):
            pipeline.next(5)


def test_the_read_ahead_is_bounded() -> None:
    """However much there is to read, no more is read ahead of what is committed than the bounds say."""
    script = Script()
    replies = [[batch(time, time=time)] for time in range(1, 100)]
    # Two read, one read and waiting for room, one being derived, one ready, one derived and waiting for room.
    ahead = 6
    with reading(script, *replies, changes=1, read_ahead=2, linger=0) as pipeline:
        for time in range(1, 100):
            assert keys_of(pipeline.next(5)) == [time]
            assert script.reads <= time + ahead


# --- horizon and breaker -----------------------------------------------------------------------------------------


def test_the_horizon_knows_what_is_shown_of_each_document() -> None:
    """Nothing is shown before the floor; what is noted holds for its document, and only forwards."""
    horizon = Horizon(Timestamp(5, 0))
    horizon.note([("raw", 1)], Timestamp(9, 0))
    horizon.note([("raw", 1), ("raw", 2)], Timestamp(7, 0))
    shown = [horizon.shown(("raw", key)) for key in (1, 2, 3)]
    assert shown == [Timestamp(9, 0), Timestamp(7, 0), Timestamp(5, 0)]
    assert horizon.is_behind(Timestamp(10, 0))
    assert not horizon.is_behind(Timestamp(9, 0))


def test_every_note_is_a_new_version() -> None:
    """Who derived with an older version looks again."""
    horizon = Horizon(BEGINNING)
    before = horizon.version
    horizon.note([("raw", 1)], Timestamp(1, 0))
    assert horizon.version != before


def test_the_horizon_forgets_what_the_stream_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many documents are forgotten when the position is behind them, and else all taken for shown."""
    monkeypatch.setattr("distributary.engine.horizon.REMEMBERED", 4)
    horizon = Horizon(BEGINNING)
    horizon.passed = Timestamp(3, 0)
    horizon.note([("raw", key) for key in range(3)], Timestamp(2, 0))
    horizon.note([("raw", key) for key in range(3, 5)], Timestamp(4, 0))
    assert [horizon.shown(("raw", key)) for key in (0, 3)] == [BEGINNING, Timestamp(4, 0)]
    horizon.note([("raw", key) for key in range(5, 8)], Timestamp(6, 0))
    assert [horizon.shown(("raw", key)) for key in (0, 3, 99)] == [Timestamp(6, 0)] * 3


def letter(key: Any = 1) -> Letter:
    """Give the letter of a document that failed."""
    return Letter("orders", key, "raw", LetterKind.FAILED, "ValueError: bad", "", at(1), "1")


def test_the_breaker_lets_some_documents_fail() -> None:
    """Up to the limit in the window documents are parked; one more stops the worker."""
    breaker = Breaker(limit=3, window=10)
    for _ in range(3):
        breaker.check(4, [letter()])
    with pytest.raises(TooManyDeadLetters, match="ValueError: bad") as stopped:
        breaker.check(1, [letter()])
    assert "max_in_window" in stopped.value.cure


def test_the_breaker_forgets_what_is_behind_its_window() -> None:
    """Failures long ago do not count, and changes that do not fail never stop."""
    breaker = Breaker(limit=2, window=10)
    for _ in range(20):
        breaker.check(1, [letter()])
        breaker.check(10, [])


def test_the_breaker_is_off_with_a_limit_of_0() -> None:
    """0 means that the worker never stops for failing documents."""
    breaker = Breaker(limit=0, window=1)
    breaker.check(100, [letter(key) for key in range(100)])


def test_nothing_of_what_stops_the_breaker_is_committed() -> None:
    """With the transform corrected, the documents are derived as if nothing had been."""
    bench = fresh(breaker=(1, 10))
    bench.tell([IDLE, Put(1, {"bad": True}), Put(2, {"bad": True}), Put(3)])
    with pytest.raises(TooManyDeadLetters):
        bench.catch_up()
    assert FakeLetters(bench.deployment, "w").parked() == []
    bench.plugged = wanted(
        made(function=lambda document: orders.record(document["_id"], {}), fingerprint="2")
    )
    bench.tell([IDLE])
    assert len(bench.deployment.documents()) == 3


# --- jobs --------------------------------------------------------------------------------------------------------


@dataclass
class Walk:
    """Slices of jobs over a source, by hand."""

    bench: Bench
    purge: bool = True

    def slices(self) -> Slices:
        """Give what carries out slices, as one more holder of the lease."""
        stores = self.bench.stores()
        checkpoint = stores.checkpoints.load("w")
        assert checkpoint is not None
        transforms = self.bench.plugged.transforms
        fence = stores.checkpoints.raise_fence("w")
        committer = Committer(stores, transforms, checkpoint, fence, Breaker(0, 1))
        committer.begin([])
        derived = derivation(self.bench.raw, *transforms.values())
        return Slices(derived, committer, stores, 2, purge=self.purge)

    def stages(self, job: Job) -> list[str]:
        """Carry out a job, and give the stages that its slices were in."""
        slices = self.slices()
        (job,) = slices.stores.jobs.ask([job])
        job = slices.taken(job)
        seen = []
        while not job.done:
            job = slices.run(job)
            seen.append(job.stage)
        assert slices.stores.jobs.open() == []
        return seen


BACKFILL = Job(None, JobKind.BACKFILL, "raw", ("orders",), "asked", sweep=True)


def test_a_sweep_comes_before_the_scan(bench: Bench) -> None:
    """Records and letters whose documents are gone are removed first, slice by slice, then documents are walked."""
    bench.tell([*(Put(key, {"lines": 1, "code": key}) for key in range(5)), Put(9, {"bad": True}), IDLE])
    bench.tell([Gone(0), Gone(4), Gone(9), Put(5)])
    stages = Walk(bench).stages(BACKFILL)
    assert list(dict.fromkeys(stages)) == [
        "orders/codes", "orders/lines", "orders/orders", "parked", "scan",
    ]  # fmt: skip
    assert stages.count("scan") > 2
    bench.check()
    assert FakeLetters(bench.deployment, "w").parked() == []


def test_without_a_sweep_there_is_only_a_scan(bench: Bench) -> None:
    """What is gone stays when nobody asked for it to be looked for."""
    bench.tell([Put(1), Put(2), IDLE, Gone(1)])
    assert set(Walk(bench).stages(replace(BACKFILL, sweep=False))) == {"scan"}
    assert len(bench.deployment.documents()) == 2


def test_a_kept_collection_is_not_swept(bench: Bench) -> None:
    """A collection that is not there and whose records are kept ends the job and removes nothing."""
    bench.tell([Put(1), Put(2), IDLE, Dropped()])
    Walk(bench, purge=False).stages(BACKFILL)
    assert len(bench.deployment.documents()) == 2
    Walk(bench, purge=True).stages(BACKFILL)
    assert bench.deployment.documents() == {}


def test_keys_are_derived_again(bench: Bench) -> None:
    """A job of keys reads them in slices; those that are gone lose their records."""
    bench.tell([*(Put(key, {"lines": 1}) for key in range(5)), IDLE, Gone(1), Set(2, {"lines": 3})])
    job = Job(None, JobKind.DERIVE, "raw", ("orders",), "asked", keys=[0, 1, 2, 77])
    assert len(Walk(bench).stages(job)) == 2
    bench.check()


def test_a_job_begins_anew_with_other_code(bench: Bench) -> None:
    """What was scanned by other code is scanned again; with the same code the job goes on where it was."""
    bench.tell([Put(1), IDLE])
    slices = Walk(bench).slices()
    begun = replace(BACKFILL, stage="scan", after=(1,), documents=1, code={"orders": "1"})
    assert slices.taken(begun) == begun
    anew = slices.taken(replace(begun, code={"orders": "0"}))
    assert (anew.stage, anew.after, anew.documents, anew.code) == ("", (), 0, {"orders": "1"})


class Hang:
    """A transform that hangs on the first document that it meets, until it is let go."""

    def __init__(self) -> None:
        self.begun, self.go, self.left = Event(), Event(), Event()
        self.met: list[Any] = []

    def __call__(self, document: Document) -> Iterator[Record]:
        """Derive one document."""
        self.met.append(document["_id"])
        if len(self.met) == 1:
            self.begun.set()
            self.go.wait(60)
            self.left.set()
        yield orders.record(document["_id"], {})


@contextmanager
def hanging() -> Iterator[tuple[Hang, Slices, Job]]:
    """Give a scan that has been begun, and whose transform hangs on the first of its documents."""
    hang = Hang()
    bench = fresh()
    bench.tell([*(Put(key) for key in range(4)), IDLE])
    slices = Walk(bench).slices()
    slices.derivation = derivation(bench.raw, made("orders", function=hang))
    (job,) = slices.stores.jobs.ask([replace(BACKFILL, sweep=False)])
    job = slices.run(slices.taken(job))
    assert hang.begun.wait(10)
    try:
        yield hang, slices, job
    finally:
        hang.go.set()


def test_a_scan_whose_transform_hangs_is_left_between_two_documents() -> None:
    """Who leaves it does not wait for the transform; once that ends, no further document is derived."""
    with hanging() as (hang, slices, _):
        began = monotonic()
        slices.close()
        assert monotonic() - began < 5
        assert not hang.left.is_set()
        (thread,) = (each for each in enumerate_threads() if each.name == "scanner")
        hang.go.set()
        thread.join(10)
        assert not thread.is_alive()
        assert hang.met == [0]


def test_a_scan_begins_anew_beside_one_that_hangs() -> None:
    """After a collection was dropped the next slices are read again, and what hangs commits nothing."""
    with hanging() as (hang, slices, begun):
        job = begun
        slices.committer.overtaken.note([], void=True)
        while not job.done:
            job = slices.run(job)
        assert not hang.left.is_set()
        assert hang.met == [0, 0, 1, 2, 3]
        assert job.documents == 4


def test_what_the_stream_overtakes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a job is held no more documents are remembered than is said; then what was read ahead is not used."""
    monkeypatch.setattr("distributary.engine.ahead.REMEMBERED", 10)
    overtaken = Overtaken()
    overtaken.begin()
    seen = []
    for keys in ([*range(10)], [10], [11]):
        overtaken.note([(("raw", key), Timestamp(1, 1)) for key in keys], void=False)
        seen.append((overtaken.void, len(overtaken._times or ())))
    assert seen == [(False, 10), (True, 0), (True, 0)]
    overtaken.begin()
    assert not overtaken.void


def test_parked_documents_that_are_gone_are_resolved_by_a_retry(bench: Bench) -> None:
    """Trying again looks at what is there now: what derives is parked no more, what fails still is."""
    bench.tell([*(Put(key, {"bad": True}) for key in range(3)), IDLE, Gone(0), Set(1, {"bad": False})])
    retried = Walk(bench).slices().retry([LetterKey("orders", key) for key in range(3)])
    assert retried == 2
    assert [each.key.key for each in FakeLetters(bench.deployment, "w").parked()] == [2]


# --- where a worker begins ---------------------------------------------------------------------------------------


def before(*transforms: Transform, **fields: Any) -> Checkpoint:
    """Give a checkpoint in which everything is built."""
    entries = {
        each.name: Built(each.source, each.fingerprint, each.collections, built=True)
        for each in transforms or [made()]
    }
    sources = tuple(sorted({each.source for each in entries.values()}))
    return replace(Checkpoint("w", at(7), BEGINNING, SOURCE, 1, sources, entries), **fields)


def test_the_first_start_asks_for_a_backfill() -> None:
    """Without a checkpoint nothing is built yet, and every source is scanned with a sweep."""
    two = wanted(made(), made("more"), made("users", "users"))
    first = begin.first(two, at(3))
    assert first.checkpoint.position == at(3)
    assert not any(each.built for each in first.checkpoint.transforms.values())
    assert [(job.source, job.transforms, job.sweep) for job in first.jobs] == [
        ("raw", ("more", "orders"), True), ("users", ("users",), True),
    ]  # fmt: skip
    assert begin.first(replace(two, backfill=False), at(3)).jobs == []


def test_a_checkpoint_is_gone_on_from() -> None:
    """With nothing new the stream opens behind the position, and nothing is asked for."""
    resumed = begin.resumed(wanted(), before())
    assert (resumed.start, resumed.jobs, resumed.changed) == (Start(token=at(7).token), [], [])
    assert resumed.checkpoint == before()


def test_a_new_transform_of_a_watched_collection_is_backfilled() -> None:
    """Only the new one is derived, and the stream goes on where it was."""
    resumed = begin.resumed(wanted(made(), made("more")), before())
    assert [job.transforms for job in resumed.jobs] == [("more",)]
    assert resumed.start == Start(token=at(7).token)
    assert {name: each.built for name, each in resumed.checkpoint.transforms.items()} == {
        "orders": True, "more": False,
    }  # fmt: skip


def test_another_filter_opens_the_stream_by_time() -> None:
    """A token of a stream with another filter is not used; the time of it is taken for shown."""
    resumed = begin.resumed(wanted(made(), made("users", "users")), before())
    assert resumed.start == Start(time=at(7).time)
    assert resumed.checkpoint.ahead == at(7).time
    assert resumed.checkpoint.watched == ("raw", "users")


def test_a_transform_that_is_left_out_is_unplugged_and_built_anew_when_it_is_back() -> None:
    """Its entry stays, so that its collections are known."""
    away = begin.resumed(wanted(made("users", "users")), before(made(), made("users", "users"))).checkpoint
    assert (away.transforms["orders"].built, away.transforms["orders"].unplugged) == (False, True)
    assert begin.resumed(wanted(made("users", "users")), before(made(), made("users", "users"))).freed
    assert not begin.resumed(wanted(made("users", "users")), away).freed
    back = begin.resumed(wanted(made(), made("users", "users")), away)
    assert [job.transforms for job in back.jobs] == [("orders",)]
    assert not back.checkpoint.transforms["orders"].unplugged


def test_a_transform_of_another_source_is_new() -> None:
    """Its documents are others, so they are derived."""
    resumed = begin.resumed(wanted(made(source="other")), before())
    assert [(job.source, job.transforms) for job in resumed.jobs] == [("other", ("orders",))]


def test_changed_code_is_named_and_rebuilt_when_wanted() -> None:
    """`warn` asks for nothing; `rebuild` asks for a backfill, once."""
    changed = made(fingerprint="2", collections=frozenset({"orders", "other"}))
    told = begin.resumed(wanted(changed), before())
    assert (told.changed, told.jobs) == (["orders"], [])
    assert told.checkpoint.transforms["orders"].fingerprint == "1"
    assert told.checkpoint.transforms["orders"].collections == {"orders", "lines", "codes", "other"}
    rebuilt = begin.resumed(wanted(changed, rebuild=True), before())
    assert [job.transforms for job in rebuilt.jobs] == [("orders",)]
    assert begin.resumed(wanted(changed, rebuild=True), before(), rebuilt.jobs).jobs == []


@pytest.mark.parametrize(
    "other",
    [
        SourceIdentity("rs", "other", "raw"),
        SourceIdentity("rs1", "set", "raw"),
        SourceIdentity("rs", "set", "raw1"),
    ],
)
def test_another_source_is_refused(other: SourceIdentity) -> None:
    """A position means nothing on another deployment or database."""
    with pytest.raises(Failed, match="belongs to another source"):
        begin.resumed(wanted(source=other), before())


def test_a_source_whose_id_may_not_be_read_is_taken_for_the_same() -> None:
    """Without the privilege to read the id, names decide."""
    unknown = wanted(source=SOURCE.__class__("rs", None, "raw"))
    assert begin.resumed(unknown, before()).jobs == []


def test_a_lost_position_begins_a_new_epoch() -> None:
    """Everything that is plugged in is derived again, and nothing is taken for shown or built."""
    lost = begin.lost(wanted(), before(made(), made("away"), ahead=Timestamp(99, 1)), at(50))
    assert (lost.checkpoint.epoch, lost.checkpoint.position, lost.checkpoint.ahead) == (2, at(50), BEGINNING)
    assert [(job.transforms, job.gap) for job in lost.jobs] == [(("orders",), (at(7).time, at(50).time))]
    assert not any(each.built for each in lost.checkpoint.transforms.values())
