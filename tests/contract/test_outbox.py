"""What every outbox promises."""

from collections.abc import Callable
from typing import Any

import pytest
from bson import Timestamp, decode, encode

from distributary.derive.trigger import Event
from distributary.ports import Outbox
from distributary.store.outbox import MongoOutbox, waiting
from tests.conftest import Client, Databases
from tests.contract.making import Transaction, aborted, transactions
from tests.fakes import Deployment, FakeOutbox

#: Gives what waits: position and data of each event, in order.
Waiting = Callable[[], list[tuple[str, Any]]]


def event(position: str, number: int = 0, **data: Any) -> Event:
    """Give an event."""
    return Event("f", position, number, Timestamp(1, 1), "topic", encode(data), "key", {"a": "b"})


class OutboxContract:
    """A suite for any `Outbox`; give it the fixtures `outbox`, `lies` and `transaction`."""

    def test_events_lie_in_the_order_of_their_changes(
        self, outbox: Outbox, lies: Waiting, transaction: Transaction
    ) -> None:
        """Whatever was put first, events come by position, and those of one change by their numbers."""
        with transaction() as session:
            outbox.put([event("82B", n=3), event("82A", 1, n=2)], session)
        with transaction() as session:
            outbox.put([event("82A", n=1)], session)
        assert lies() == [("82A", {"n": 1}), ("82A", {"n": 2}), ("82B", {"n": 3})]

    def test_an_event_is_there_once(self, outbox: Outbox, lies: Waiting, transaction: Transaction) -> None:
        """What is put again takes its own place."""
        for n in range(2):
            with transaction() as session:
                outbox.put([event("82A", n=n)], session)
        assert lies() == [("82A", {"n": 1})]

    def test_an_aborted_transaction_changes_nothing(
        self, outbox: Outbox, lies: Waiting, transaction: Transaction
    ) -> None:
        """Events are part of the transaction of what they tell of."""
        with aborted(transaction) as session:
            outbox.put([event("82A")], session)
        assert lies() == []


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
    def lies(self, outbox: FakeOutbox) -> Waiting:
        """Give what lies there."""
        return lambda: [(each.position, decode(each.data)) for each in outbox.waiting()]

    @pytest.fixture
    def transaction(self, deployment: Deployment) -> Transaction:
        """Give its transactions."""
        return deployment.transaction


class TestMongoOutbox(OutboxContract):
    """The real outbox keeps the contract."""

    @pytest.fixture
    def outbox(self, databases: Databases) -> MongoOutbox:
        """Give the real one."""
        outbox = MongoOutbox(databases.state, "w")
        outbox.prepare()
        return outbox

    @pytest.fixture
    def lies(self, databases: Databases) -> Waiting:
        """Give what lies there."""

        def found() -> list[tuple[str, Any]]:
            events = list(databases.state.outbox.find().sort("_id", 1))
            assert waiting(databases.state) == ({"w": len(events)} if events else {})
            return [(each["position"], each["data"]) for each in events]

        return found

    @pytest.fixture
    def transaction(self, client: Client) -> Transaction:
        """Give its transactions."""
        return transactions(client)
