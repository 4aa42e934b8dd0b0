"""What every outbox promises."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from bson import Timestamp, encode

from distributary.change import Position
from distributary.derive.records import DerivedCollection
from distributary.derive.trigger import Event
from distributary.events.envelope import Envelope
from distributary.ports.events import Commit, Held, Outbox, Waiting
from distributary.ports.records import RecordState
from distributary.quoting import quoting
from distributary.store import outbox as store_outbox
from distributary.store.letters import Unsent, short_id
from distributary.store.outbox import MongoOutbox, unpublished
from distributary.store.refusals import order
from distributary.store.unpublished import unpublished_letters
from tests.conftest import Client, Databases
from tests.contract.making import Transaction, aborted, transactions
from tests.fakes import Deployment, FakeOutbox

PUBLISHED = {"customer": DerivedCollection("customer", publish="customer-view")}

#: Gives what an operator calls a refused event by.
Called = Callable[[Any], str]

#: More than there ever is.
MUCH = 1 << 30


def event(number: int = 0, **data: Any) -> Event:
    """Give a trigger's event."""
    return Event("f", "82A", number, Timestamp(1, 1), "topic", encode(data), "key", {"a": "b"})


def state(key: Any, *, gone: bool = False, **fields: Any) -> RecordState:
    """Give a record as it is stored."""
    origin = {"by": "f", "key": 1, "at": Timestamp(5, 1), "epoch": 1}
    return RecordState("customer", key, None if gone else encode({"_id": key, **fields, "_src": origin}))


def commit(revision: int) -> Commit:
    """Give what the events of a commit share."""
    return Commit(Position("82F", Timestamp(9, 1)), revision, Timestamp(9, 1))


def told(outbox: Outbox, limit: int = MUCH, size: int = MUCH) -> list[str]:
    """Give who tells, in the order in which it is published."""
    return [each.of for each in waiting(outbox, limit, size)]


def waiting(outbox: Outbox, limit: int = MUCH, size: int = MUCH) -> list[Waiting]:
    """Give the oldest messages of each topic, in the order of their commits, at most so many."""
    found = [each for topic in outbox.topics() for each in outbox.next(topic, limit, size)]
    return sorted(found, key=lambda each: order(each.id) if isinstance(each.id, dict) else each.id[1:])[
        :limit
    ]


def remove(outbox: Outbox, page: Sequence[Waiting], *left: Waiting) -> None:
    """Remove a page from its first message to its last, topic by topic."""
    for topic in {each.message.topic for each in page}:
        ids = [each.id for each in page if each.message.topic == topic]
        outbox.remove(topic, ids[0], ids[-1], [each.id for each in left])


class OutboxContract:
    """A suite for any `Outbox`; give it the fixtures `outbox`, `transaction` and `called`."""

    def test_messages_are_in_the_order_of_their_commits(
        self, outbox: Outbox, transaction: Transaction
    ) -> None:
        """Events of triggers come first within a commit, and everything in the order in which it was put."""
        with transaction() as session:
            outbox.put([event()], [state(2), state(1, gone=True)], commit(9), session)
        with transaction() as session:
            outbox.put([event(1), event(2)], [], commit(10), session)
        assert told(outbox) == ["f", "customer", "customer", "f", "f"]
        ids = [each.id for each in waiting(outbox)]
        assert [each.id for each in waiting(outbox, 2)] == ids[:2]

    def test_a_page_has_bounds(self, outbox: Outbox, transaction: Transaction) -> None:
        """By count and by bytes, but for the first message."""
        with transaction() as session:
            outbox.put([], [state(key, text="x" * 1000) for key in range(5)], commit(1), session)
        assert len(told(outbox, limit=2)) == 2
        assert len(told(outbox, size=10)) == 1
        sizes = [each.size for each in waiting(outbox)]
        assert len(told(outbox, size=sum(sizes[:3]))) == 3

    def test_what_is_confirmed_is_removed(self, outbox: Outbox, transaction: Transaction) -> None:
        """From the first to the last of a page, without what was refused; the rest stays."""
        with transaction() as session:
            put = outbox.put([], [state(key) for key in range(6)], commit(1), session)
        page = waiting(outbox, 4)
        outbox.refuse(page[1].id, "no")
        remove(outbox, page)
        left = waiting(outbox)
        assert [each.message.ordering_key for each in left] == ["4", "5"]
        assert put.held.events == 6
        assert outbox.held() == Held(2, sum(each.size for each in left))

    def test_what_is_left_stays(self, outbox: Outbox, transaction: Transaction) -> None:
        """Of a page that was not confirmed as a whole; and what waits for other topics does, too."""
        events = [event(number)._replace(topic="other" if number % 3 else "topic") for number in range(9)]
        with transaction() as session:
            outbox.put(events, [], commit(1), session)
        assert list(outbox.topics()) == ["other", "topic"]
        page = outbox.next("other", 5, MUCH)
        outbox.remove("other", page[0].id, page[-1].id, [page[1].id, page[3].id])
        assert list(outbox.next("other", MUCH, MUCH)) == [page[1], page[3], waiting(outbox)[-1]]
        assert len(outbox.next("topic", MUCH, MUCH)) == 3

    def test_an_aborted_transaction_changes_nothing(self, outbox: Outbox, transaction: Transaction) -> None:
        """Events are part of the transaction of what they tell of."""
        with aborted(transaction) as session:
            outbox.put([event()], [state(1)], commit(1), session)
        assert told(outbox) == []
        assert outbox.held() == Held()

    def test_a_refused_event_is_sent_again_in_its_place(
        self, outbox: Outbox, transaction: Transaction, called: Called
    ) -> None:
        """Before what was committed later; a page that was given before that does not take it along."""
        with transaction() as session:
            outbox.put([event(number) for number in range(4)], [], commit(1), session)
        page = waiting(outbox, 3)
        outbox.refuse(page[1].id, "no")
        with transaction() as session:
            assert outbox.readmit([called(page[1].id), "other"], session) == Held(1, page[1].size)
        remove(outbox, page)
        again = waiting(outbox)
        assert [each.id for each in again][:1] == [page[1].id]
        assert len(again) == 2
        remove(outbox, again)
        assert outbox.held() == Held()

    def test_an_event_may_be_refused_again(
        self, outbox: Outbox, transaction: Transaction, called: Called
    ) -> None:
        """Then it is out of the order until it is sent again once more."""
        with transaction() as session:
            outbox.put([event(), event(1)], [], commit(1), session)
        for _ in range(2):
            first = waiting(outbox, 1)[0]
            outbox.refuse(first.id, "no")
            assert len(waiting(outbox)) == 1
            with transaction() as session:
                outbox.readmit([called(first.id)], session)
        assert len(waiting(outbox)) == 2


class TestFakeOutbox(OutboxContract):
    """The fake keeps the contract."""

    @pytest.fixture
    def deployment(self) -> Deployment:
        """Give an empty deployment."""
        return Deployment()

    @pytest.fixture
    def outbox(self, deployment: Deployment) -> FakeOutbox:
        """Give the fake."""
        return FakeOutbox(deployment, "w")

    @pytest.fixture
    def transaction(self, deployment: Deployment) -> Transaction:
        """Give its transactions."""
        return deployment.transaction

    @pytest.fixture
    def called(self) -> Called:
        """Give the id as text."""
        return str


def mongo_outbox(databases: Databases, worker: str = "w", *, reference: bool = False) -> MongoOutbox:
    """Give the real one."""
    outbox = MongoOutbox(databases.state, worker, Envelope(worker), PUBLISHED, reference=reference)
    outbox.prepare()
    return outbox


class TestMongoOutbox(OutboxContract):
    """The real outbox keeps the contract."""

    @pytest.fixture
    def outbox(self, databases: Databases) -> MongoOutbox:
        """Give the real one."""
        return mongo_outbox(databases)

    @pytest.fixture
    def transaction(self, client: Client) -> Transaction:
        """Give its transactions."""
        return transactions(client)

    def put(self, outbox: Outbox, transaction: Transaction, revision: int, *states: RecordState) -> None:
        """Put states of records."""
        with transaction() as session:
            outbox.put([], states, commit(revision), session)

    def test_a_record_is_told_as_it_is_stored(self, outbox: MongoOutbox, transaction: Transaction) -> None:
        """To the topic of its collection, ordered by its key, at the time of its source."""
        self.put(outbox, transaction, 3, state("C1", name="Ada"), state("C2", gone=True))
        stored, gone = (each.message for each in waiting(outbox))
        assert (stored.topic, stored.ordering_key, gone.ordering_key) == ("customer-view", "C1", "C2")
        assert b"1970-01-01T00:00:05" in stored.data
        assert b'"name":"Ada"' in stored.data
        assert b"1970-01-01T00:00:09" in gone.data
        assert b"_src" not in stored.data

    def test_workers_do_not_see_one_another(
        self, databases: Databases, outbox: MongoOutbox, transaction: Transaction
    ) -> None:
        """Each has an order of its own, and is counted by itself."""
        other = mongo_outbox(databases, "v")
        self.put(other, transaction, 1, state(1))
        self.put(outbox, transaction, 1, state(1), state(2))
        (page,) = waiting(other)
        remove(other, [page])
        assert [other.held().events, outbox.held().events] == [0, 2]
        assert {name: each.waiting for name, each in unpublished(databases.state).items()} == {"w": 2}

    def test_a_checkpoint_that_begins_anew_comes_behind_what_waits(
        self, databases: Databases, outbox: MongoOutbox, transaction: Transaction
    ) -> None:
        """Revisions begin at one then, and what was committed before is published before."""
        self.put(outbox, transaction, 700, state("old"))
        anew = mongo_outbox(databases)
        self.put(anew, transaction, 1, state("new"))
        self.put(anew, transaction, 2, state("newer"))
        assert [each.message.ordering_key for each in waiting(anew)] == ["old", "new", "newer"]

    @pytest.fixture
    def called(self) -> Called:
        """Give the id that the letter has."""
        return short_id

    def letters(self, databases: Databases) -> list[tuple[str, Any]]:
        """Give who tells and of what, of each message that was refused."""
        found = unpublished_letters(databases.state, {"worker": "w"}, 0)
        return sorted((each.letter.transform, each.letter.key) for each in found)

    def test_what_was_refused_is_resolved_by_a_later_change(
        self, databases: Databases, outbox: MongoOutbox, transaction: Transaction
    ) -> None:
        """Of the same record, in the transaction that puts it, by MongoDB's equality; others stay."""
        self.put(outbox, transaction, 1, state(1), state(2))
        for each in waiting(outbox):
            outbox.refuse(each.id, "no")
        with aborted(transaction) as session:
            outbox.put([], [state(1)], commit(2), session)
        assert self.letters(databases) == [("customer", 1), ("customer", 2)]
        self.put(outbox, transaction, 2, state(1.0), state("2"))
        assert self.letters(databases) == [("customer", 2)]
        assert [each.message.ordering_key for each in waiting(outbox)] == ["1", "2"]

    def test_what_was_refused_is_resolved_by_what_waited_already(
        self, databases: Databases, outbox: MongoOutbox, transaction: Transaction
    ) -> None:
        """A record whose next message is published, or refused in its place, has no other letter."""
        self.put(outbox, transaction, 1, state(1, a=1), state(2, a=1))
        self.put(outbox, transaction, 2, state(1, a=2), state(2, a=2), state(3))
        page = waiting(outbox)
        outbox.refuse(page[0].id, "no")
        outbox.refuse(page[1].id, "no")
        outbox.refuse(page[3].id, "no again")
        assert self.letters(databases) == [("customer", 1), ("customer", 2)]
        remove(outbox, page)
        assert self.letters(databases) == [("customer", 2)]
        assert databases.state.outbox.count_documents({}) == 1

    def test_a_letter_of_a_record_keeps_its_id(
        self, databases: Databases, outbox: MongoOutbox, transaction: Transaction
    ) -> None:
        """However often its message is refused; the data is left to the record."""
        ids = set()
        for revision in (1, 2):
            self.put(outbox, transaction, revision, state("C1", a=revision))
            (only,) = waiting(outbox)
            outbox.refuse(only.id, "no")
            (letter,) = unpublished_letters(databases.state, {}, 0, whole=True)
            ids.add(letter.id)
            assert letter.message == Unsent("customer-view", "C1", is_event=False)
        assert len(ids) == 1

    @pytest.mark.parametrize(("values", "kept"), [(False, "BAD: …"), (True, "BAD: of Ada")])
    def test_a_reason_is_kept_without_what_it_quotes(
        self, databases: Databases, transaction: Transaction, *, values: bool, kept: str
    ) -> None:
        """Unless the values are asked for."""
        outbox = MongoOutbox(databases.state, "w", Envelope("w"), PUBLISHED, values=values)
        self.put(outbox, transaction, 1, state(1))
        (only,) = waiting(outbox)
        outbox.refuse(only.id, quoting("BAD: ", "of Ada"))
        assert [each["refused"] for each in databases.state.outbox.find()] == [kept]

    def test_nothing_is_asked_while_nothing_was_refused(
        self, databases: Databases, transaction: Transaction, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A commit costs no look for what it resolves, once the tenure began without any."""
        outbox = mongo_outbox(databases)
        outbox.held()
        with monkeypatch.context() as patched:
            patched.setattr(outbox._refusals, "_remove", pytest.fail)
            self.put(outbox, transaction, 1, state(1))
            (only,) = waiting(outbox)
            remove(outbox, [only])
        other = mongo_outbox(databases)
        self.put(other, transaction, 2, state(1))
        other.refuse(waiting(other, 1)[0].id, "no")
        outbox.held()
        self.put(outbox, transaction, 3, state(1))
        assert self.letters(databases) == []

    @pytest.mark.usefixtures("small")
    def test_a_look_does_not_forget_what_an_open_transaction_refused(
        self, databases: Databases, outbox: MongoOutbox, transaction: Transaction
    ) -> None:
        """The record's letter goes once it is told of anew, though nothing was there to be seen in between."""
        with transaction() as session:
            outbox.put([], [state("L", text="x" * 2000)], commit(1), session)
            outbox.held()
        assert self.letters(databases) == [("customer", "L")]
        self.put(outbox, transaction, 2, state("L"))
        assert self.letters(databases) == []

    @pytest.mark.usefixtures("small")
    def test_what_is_too_large_is_refused(
        self, databases: Databases, outbox: MongoOutbox, transaction: Transaction
    ) -> None:
        """A record is kept as refused, without its data, and those behind it are published; an event is given back."""
        large = state("L", text="x" * 2000)
        self.put(outbox, transaction, 1, large, state("S"))
        assert [each.message.ordering_key for each in waiting(outbox)] == ["S"]
        (refused,) = databases.state.outbox.find({"refused": {"$ne": None}})
        assert refused["key"] == {"of": "L"}
        assert "Pub/Sub's limit" in refused["refused"]
        assert unpublished(databases.state)["w"][0:3:2] == (1, 1)
        with aborted(transaction) as session:
            put = outbox.put([event(text="x" * 2000)], [], commit(2), session)
            ((_, reason),) = put.refused
        assert "what is published to 'topic' has 2," in reason

    @pytest.mark.usefixtures("small")
    def test_what_is_too_large_is_told_by_a_reference(
        self, databases: Databases, transaction: Transaction
    ) -> None:
        """If that is configured: where the record is, in its place in the order."""
        outbox = mongo_outbox(databases, reference=True)
        self.put(outbox, transaction, 1, state("L", text="x" * 2000), state("S"))
        first, second = (each.message for each in waiting(outbox))
        assert (first.ordering_key, second.ordering_key) == ("L", "S")
        assert b"distributary.record.referenced" in first.data
        assert b"xxx" not in first.data

    @pytest.fixture
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let messages be small."""
        monkeypatch.setattr(store_outbox, "MAX_MESSAGE_BYTES", 1000)
