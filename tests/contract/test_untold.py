"""What every store of keys promises that are to be told of."""

from collections.abc import Callable
from typing import Any

import pytest

from distributary.ports.events import Untold
from distributary.store.untold import CHUNK_BYTES, CHUNK_KEYS, MongoUntold
from tests.conftest import Client, Databases
from tests.contract.making import Transaction, aborted, transactions
from tests.fakes import Deployment, FakeUntold

#: Gives the keys of one worker; all workers share what lies there.
Make = Callable[[str], Untold]


def kept(untold: Untold, shadow: str) -> list[Any]:
    """Give all keys of a shadow."""
    found: list[Any] = []
    chunk = untold.next(shadow, ())
    while chunk is not None:
        found += chunk.keys
        chunk = untold.next(shadow, chunk.behind)
    return found


class UntoldContract:
    """A suite for any `Untold`; give it the fixtures `make` and `transaction`."""

    @pytest.fixture
    def untold(self, make: Make) -> Untold:
        """Give the keys of one worker."""
        return make("w")

    def test_keys_are_those_of_their_shadow(
        self, untold: Untold, make: Make, transaction: Transaction
    ) -> None:
        """All of them, whatever they are, and nobody else's."""
        with transaction() as session:
            untold.note("a", [1, "x", {"order": 1, "line": 2}], session)
            untold.note("b", [2], session)
            make("v").note("a", [3], session)
        with transaction() as session:
            untold.note("a", [4], session)
        assert kept(untold, "a") == [1, "x", {"order": 1, "line": 2}, 4]
        assert kept(untold, "b") == [2]
        assert kept(untold, "c") == []

    def test_an_aborted_transaction_changes_nothing(self, untold: Untold, transaction: Transaction) -> None:
        """Neither keeps it anything nor forgets it."""
        with transaction() as session:
            untold.note("a", [1], session)
        with aborted(transaction) as session:
            untold.note("a", [2], session)
            untold.forget("a", session)
            untold.keep((), session)
        assert kept(untold, "a") == [1]

    def test_what_nobody_wants_is_forgotten(
        self, untold: Untold, make: Make, transaction: Transaction
    ) -> None:
        """The keys of all other shadows of this worker."""
        with transaction() as session:
            untold.note("a", [1], session)
            untold.note("b", [2], session)
            make("v").note("c", [3], session)
        assert untold.others({"a"})
        with transaction() as session:
            untold.keep({"a"}, session)
        assert not untold.others({"a"})
        assert (kept(untold, "a"), kept(untold, "b"), kept(make("v"), "c")) == ([1], [], [3])
        with transaction() as session:
            untold.forget("a", session)
            untold.forget("c", session)
        assert (kept(untold, "a"), kept(make("v"), "c")) == ([], [3])


class TestFakeUntold(UntoldContract):
    """The fake keeps the contract."""

    @pytest.fixture
    def deployment(self) -> Deployment:
        """Give an empty deployment."""
        return Deployment()

    @pytest.fixture
    def make(self, deployment: Deployment) -> Make:
        """Give fakes."""
        return lambda worker: FakeUntold(deployment, worker)

    @pytest.fixture
    def transaction(self, deployment: Deployment) -> Transaction:
        """Give its transactions."""
        return deployment.transaction


class TestMongoUntold(UntoldContract):
    """The real one keeps the contract."""

    @pytest.fixture
    def make(self, databases: Databases) -> Make:
        """Give real ones."""

        def made(worker: str) -> Untold:
            untold = MongoUntold(databases.state, worker)
            untold.prepare()
            return untold

        return made

    @pytest.fixture
    def transaction(self, client: Client) -> Transaction:
        """Give its transactions."""
        return transactions(client)

    @pytest.mark.parametrize("size", [1, CHUNK_BYTES // 5])
    def test_a_chunk_has_bounds(self, untold: Untold, transaction: Transaction, size: int) -> None:
        """By count and by bytes: it is a document, and lies in a job."""
        keys = [f"{number}".ljust(size, "x") for number in range(12 if size > 1 else 2 * CHUNK_KEYS + 1)]
        with transaction() as session:
            untold.note("a", keys, session)
        assert kept(untold, "a") == keys
        first = untold.next("a", ())
        assert first is not None
        assert len(first.keys) == (4 if size > 1 else CHUNK_KEYS)
