"""Topics side by side: which rest, for how long, and whose turn it is."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from bson import Timestamp

from distributary.change import Position
from distributary.derive.trigger import Event
from distributary.engine.lanes import LEAST_SECONDS, MANY, MOST_SECONDS, Lanes
from distributary.engine.publishing import PAGE_EVENTS, UNBOUNDED, Backlog, Publishing
from distributary.events.envelope import Message
from distributary.ports.events import Commit, Sent
from tests.fakes import Deployment, FakeOutbox


@dataclass
class Clock:
    """A clock that is set by hand."""

    now: float = 0.0

    def __call__(self) -> float:
        """Give the time."""
        return self.now


def test_a_topic_that_fails_rests_longer_and_longer() -> None:
    """Others have their turns; then one message is tried."""
    clock = Clock()
    lanes = Lanes(clock)
    rested = []
    for _ in range(9):
        lanes.failed("a", 0.0)
        assert lanes.turns(["a", "b"]) == ["b"]
        assert not lanes.are_open
        rested.append(lanes.pause(60))
        clock.now += rested[-1]
        assert lanes.turns(["a", "b"]) == ["a", "b"]
        assert (lanes.limit("a", 500), lanes.limit("b", 500)) == (1, 500)
    assert rested[0] == pytest.approx(LEAST_SECONDS)
    assert rested[-1] == pytest.approx(MOST_SECONDS)
    assert rested == sorted(rested)


def test_one_that_took_long_rests_longer() -> None:
    """A topic that does not answer leaves the most of the time to the others."""
    lanes = Lanes(Clock())
    lanes.failed("a", 10.0)
    assert lanes.pause(60) == 20


def test_a_trial_that_passes_opens_a_topic() -> None:
    """Whether all goes well again the next page says, else it rests longer than before."""
    clock = Clock()
    lanes = Lanes(clock)
    lanes.passed("a")
    lanes.failed("a", 0.0)
    clock.now += LEAST_SECONDS
    assert lanes.limit("a", 500) == 1
    lanes.passed("a")
    assert lanes.are_open
    assert lanes.limit("a", 500) == 500
    lanes.failed("a", 0.0)
    assert lanes.pause(60) == pytest.approx(2 * LEAST_SECONDS)
    clock.now += 1
    for _ in range(2):
        lanes.passed("a")
    lanes.failed("a", 0.0)
    assert lanes.pause(60) == pytest.approx(LEAST_SECONDS)


def test_what_is_refused_as_a_whole_is_tried_as_a_whole() -> None:
    """One message alone would seem to be at fault."""
    lanes = Lanes(Clock())
    assert not lanes.judge("a", taken=0, refused=MANY - 1)
    assert lanes.judge("a", taken=0, refused=1)
    lanes.failed("a", 0.0)
    assert lanes.limit("a", 500) == 500
    assert not lanes.are_open
    assert lanes.judge("a", taken=1, refused=9)
    assert not lanes.judge("a", taken=0, refused=9)


def test_every_topic_has_its_turn() -> None:
    """The one behind the last that was served comes first."""
    lanes = Lanes(Clock())
    turns = []
    for _ in range(4):
        first, *_ = lanes.turns(["c", "a", "b"])
        lanes.served(first)
        turns.append(first)
    assert turns == ["a", "b", "c", "a"]


@dataclass
class Picky:
    """A publisher that does not take messages of some topics, and notes those that it takes.

    With `mends_behind`, it takes all again behind so many messages.
    """

    refuses: dict[str, Sent] = field(default_factory=dict)
    mends_behind: int | None = None
    taken: list[Message] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def send(self, messages: Sequence[Message]) -> list[Sent]:
        """Take messages."""
        self.sizes.append(len(messages))
        sent = [self._sent(each) for each in messages]
        self.taken += [each for each, what in zip(messages, sent, strict=True) if not what.error]
        return sent

    def _sent(self, message: Message) -> Sent:
        if self.mends_behind is not None:
            self.mends_behind -= 1
            if self.mends_behind < 0:
                self.refuses.clear()
        return self.refuses.get(message.topic, Sent())

    def close(self) -> None:
        """Do nothing."""


@dataclass
class Stage:
    """Publishing in memory, one step at a time, by a clock that is set by hand."""

    publisher: Picky = field(default_factory=Picky)
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.deployment = Deployment()
        self.outbox = FakeOutbox(self.deployment, "w")
        self.backlog = Backlog(UNBOUNDED)
        self.publishing = Publishing(self.outbox, self.publisher, self.backlog)
        self.publishing._lanes = Lanes(self.clock)
        self.revision = 0

    def put(self, topic: str, count: int) -> None:
        """Commit events."""
        self.revision += 1
        events = [Event("f", "82", number, Timestamp(1, 1), topic, b"{}", "k", {}) for number in range(count)]
        commit = Commit(Position("82", Timestamp(1, 1)), self.revision, Timestamp(1, 1))
        with self.deployment.transaction() as session:
            self.backlog.add(self.outbox.put(events, [], commit, session).held)

    def steps(self, count: int) -> None:
        """Let so many pages be sent."""
        for _ in range(count):
            self.publishing._try()

    def fails(self) -> bool:
        """Tell whether nothing that is left is taken."""
        return self.publishing.is_failing

    def taken(self, topic: str) -> int:
        """Count the messages of a topic that were taken."""
        return sum(each.topic == topic for each in self.publisher.taken)


PASSING, LASTING = Sent("PERMISSION_DENIED: no"), Sent("INVALID_ARGUMENT: no", lasting=True)


def test_a_topic_that_fails_holds_up_no_other() -> None:
    """Though its messages are the oldest and more than a page; when it is there again, all of them arrive."""
    stage = Stage()
    stage.publisher.refuses["bad"] = PASSING
    stage.put("bad", 2 * PAGE_EVENTS)
    stage.put("good", 2 * PAGE_EVENTS)
    stage.steps(4)
    assert stage.taken("good") == 2 * PAGE_EVENTS
    assert stage.backlog.held.events == stage.outbox.held().events == 2 * PAGE_EVENTS
    stage.clock.now += MOST_SECONDS
    stage.steps(1)
    assert stage.publisher.sizes[-1] == 1
    assert stage.fails()
    stage.publisher.refuses.clear()
    stage.clock.now += MOST_SECONDS
    stage.steps(3)
    assert stage.taken("bad") == 2 * PAGE_EVENTS
    assert not stage.fails()
    assert stage.outbox.held().events == 0


@pytest.mark.parametrize("count", [MANY - 1, 3 * MANY])
def test_many_that_are_refused_alike_are_a_topics_fault(count: int) -> None:
    """They stay and are tried again; a few are kept as refused, beside those of other topics that are taken."""
    stage = Stage()
    stage.publisher.refuses["bad"] = LASTING
    stage.put("bad", count)
    stage.put("good", 10)
    stage.steps(1)
    stage.clock.now += MOST_SECONDS
    stage.steps(1 if count > MANY else 0)
    assert stage.taken("good") == 10
    assert len(stage.deployment.rows.refused) == (0 if count > MANY else count)
    assert stage.outbox.held().events == (count if count > MANY else 0)


def test_a_topic_that_comes_to_its_senses_keeps_no_good_message() -> None:
    """What is refused beside messages that are taken is tried once more where all were refused just before."""
    stage = Stage()
    stage.publisher.refuses["bad"] = LASTING
    stage.put("bad", 2 * MANY)
    stage.steps(1)
    stage.publisher.mends_behind = MANY
    stage.clock.now += MOST_SECONDS
    stage.steps(1)
    assert stage.taken("bad") == MANY
    assert not stage.deployment.rows.refused
    stage.clock.now += MOST_SECONDS
    stage.steps(3)
    assert stage.taken("bad") == 2 * MANY
    assert not stage.deployment.rows.refused


def test_beside_a_busy_topic_few_are_refused_at_a_time() -> None:
    """However small a topic's share of a page is: no more are kept as refused than what decides whose fault it is."""
    stage = Stage()
    stage.publisher.refuses["bad"] = LASTING
    stage.put("bad", 5 * PAGE_EVENTS)
    for _ in range(20):
        stage.put("busy", PAGE_EVENTS - MANY // 2)
        stage.publishing._lanes.served("bad")
        stage.steps(1)
        stage.clock.now += MOST_SECONDS
    assert stage.taken("busy") == 20 * (PAGE_EVENTS - MANY // 2)
    assert len(stage.deployment.rows.refused) < MANY
    assert stage.outbox.held().events > 4 * PAGE_EVENTS


def test_a_page_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all topics, but for the last one's first message; each has its turn in the next page."""
    monkeypatch.setattr("distributary.engine.publishing.PAGE_BYTES", 5)
    stage = Stage()
    for topic in "abc":
        stage.put(topic, 2)
    stage.steps(3)
    assert stage.publisher.sizes == [3, 3]
    assert stage.outbox.held().events == 0
