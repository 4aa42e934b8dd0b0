"""What every store of dead letters promises."""

from collections.abc import Callable

import pytest
from bson import decode

from distributary.ports import LetterStore
from distributary.state import LetterKey, LetterKind, ParkedLetter
from distributary.store.letters import Letters
from tests.conftest import Client, Databases
from tests.contract.making import Transaction, aborted, change, letter, transactions, waiting
from tests.fakes import Deployment, FakeLetters

#: Gives the letters of one worker; all workers share what lies there.
Make = Callable[[str], LetterStore]


class LetterStoreContract:
    """A suite for any `LetterStore`; give it the fixtures `make` and `transaction`."""

    @pytest.fixture
    def store(self, make: Make) -> LetterStore:
        """Give the letters of one worker."""
        return make("w")

    def test_what_is_put_is_parked(self, store: LetterStore, transaction: Transaction) -> None:
        """Each letter is parked under its transform and key, with its kind."""
        assert store.parked() == []
        with transaction() as session:
            store.put([letter(1), waiting(2, "a", "k")], session)
        assert sorted(store.parked()) == [
            ParkedLetter(LetterKey("f", 1), LetterKind.FAILED),
            ParkedLetter(LetterKey("f", 2), LetterKind.CONTESTED),
        ]

    def test_a_document_has_one_letter(self, store: LetterStore, transaction: Transaction) -> None:
        """The last letter of a document counts, under whatever type its key is equal."""
        with transaction() as session:
            store.put([letter(1)], session)
        with transaction() as session:
            store.put([waiting(1.0, "a", "k")], session)
        assert [(each.key.key, each.kind) for each in store.parked()] == [(1, LetterKind.CONTESTED)]

    def test_resolved_letters_are_gone(self, store: LetterStore, transaction: Transaction) -> None:
        """Resolving removes, also a second time and when there was nothing."""
        with transaction() as session:
            store.put([letter(1), letter(2)], session)
        for _ in range(2):
            with transaction() as session:
                store.resolve([LetterKey("f", 1.0), LetterKey("g", 2)], session)
        assert [each.key for each in store.parked()] == [("f", 2)]

    def test_a_letter_is_due_when_it_says_so(self, store: LetterStore, transaction: Transaction) -> None:
        """Due are letters that were put as such, of the transforms asked for, up to the limit."""
        with transaction() as session:
            store.put([letter(1), letter(2, due=True), letter(3, due=True)], session)
        assert {key.key for key in store.due(["f"], 10)} == {2, 3}
        assert len(store.due(["f"], 1)) == 1
        assert store.due(["g"], 10) == []

    def test_letters_are_made_due(self, store: LetterStore, transaction: Transaction) -> None:
        """Marking makes due what is parked, and nothing of what is not."""
        with transaction() as session:
            store.put([letter(1), letter(2)], session)
        with transaction() as session:
            store.make_due([LetterKey("f", 2), LetterKey("f", 3)], session)
        assert store.due(["f"], 10) == [("f", 2)]
        assert len(store.parked()) == 2

    def test_it_tells_which_are_still_parked(self, store: LetterStore, transaction: Transaction) -> None:
        """Of the keys that are asked for those are given that have a letter, as MongoDB compares keys."""
        with transaction() as session:
            store.put([letter(1), letter(2)], session)
            asked = [LetterKey("f", 2.0), LetterKey("f", 3), LetterKey("g", 1)]
            assert store.still_parked(asked, session) == [("f", 2)]
            assert store.still_parked([], session) == []

    def test_parking_again_ends_being_due(self, store: LetterStore, transaction: Transaction) -> None:
        """A document that failed once more waits again."""
        with transaction() as session:
            store.put([letter(1, due=True)], session)
        with transaction() as session:
            store.put([letter(1)], session)
        assert store.due(["f"], 10) == []

    def test_a_key_that_is_free_makes_due_who_waits(
        self, store: LetterStore, transaction: Transaction
    ) -> None:
        """Only those become due that wait for this key of this collection, as MongoDB compares keys."""
        with transaction() as session:
            store.put([waiting(1, "a", 7), waiting(2, "b", 7), waiting(3, "a", 8), letter(4)], session)
        with transaction() as session:
            assert store.release([("a", 7.0), ("c", 1)], session) == 1
        assert store.due(["f"], 10) == [("f", 1)]

    def test_an_aborted_transaction_changes_nothing(
        self, store: LetterStore, transaction: Transaction
    ) -> None:
        """Putting, resolving, marking and releasing are part of their transaction."""
        with transaction() as session:
            store.put([letter(1), waiting(2, "a", "k")], session)
        with aborted(transaction) as session:
            store.put([letter(3)], session)
            store.resolve([LetterKey("f", 1)], session)
            store.make_due([LetterKey("f", 1)], session)
            store.release([("a", "k")], session)
        assert sorted(each.key.key for each in store.parked()) == [1, 2]
        assert store.due(["f"], 10) == []

    def test_workers_do_not_see_one_another(self, make: Make, transaction: Transaction) -> None:
        """A letter belongs to one worker; another one resolves and releases only its own."""
        mine, other = make("w"), make("other")
        with transaction() as session:
            mine.put([waiting(1, "a", "k")], session)
        with transaction() as session:
            other.resolve([LetterKey("f", 1)], session)
            other.make_due([LetterKey("f", 1)], session)
            assert other.release([("a", "k")], session) == 0
        assert other.parked() == []
        assert [each.key for each in mine.parked()] == [("f", 1)]
        assert mine.due(["f"], 10) == []

    def test_changes_are_kept_in_order(self, store: LetterStore, transaction: Transaction) -> None:
        """Changes of a trigger come in the source's order, of some documents or all, with keys and kinds."""
        with transaction() as session:
            late = change(1, "82C", LetterKind.WAITING)
            store.put([late, change({"a": 1}, "82B"), change(1, "82A"), letter(1)], session)
        found = store.changes("f")
        assert [(each.seen.key, each.seen.token) for each in found] == [
            (1, "82A"),
            ({"a": 1}, "82B"),
            (1, "82C"),
        ]
        assert [each.kind for each in found] == [LetterKind.FAILED, LetterKind.FAILED, LetterKind.WAITING]
        assert [each.seen.token for each in store.changes("f", [1.0])] == ["82A", "82C"]
        assert store.changes("g") == []

    def test_a_change_is_given_with_its_content(self, store: LetterStore, transaction: Transaction) -> None:
        """One change is given whole; nothing when it is not parked any more, and never a document's letter."""
        key = LetterKey("f", {"key": 1, "position": "82A"})
        with transaction() as session:
            store.put([change(1, "82A"), letter(1)], session)
        found = store.change(key)
        assert found is not None
        assert decode(found.seen.content)["document"] == {"_id": 1, "token": "82A"}
        assert store.change(LetterKey("f", 1)) is None
        with transaction() as session:
            store.resolve([key], session)
        assert store.change(key) is None


class TestFakeLetters(LetterStoreContract):
    """The fake keeps the contract."""

    @pytest.fixture
    def deployment(self) -> Deployment:
        """Give an empty deployment."""
        return Deployment()

    @pytest.fixture
    def make(self, deployment: Deployment) -> Make:
        """Give the fakes."""
        return lambda worker: FakeLetters(deployment, worker)

    @pytest.fixture
    def transaction(self, deployment: Deployment) -> Transaction:
        """Give their transactions."""
        return deployment.transaction


class TestMongoLetters(LetterStoreContract):
    """The real store keeps the contract."""

    @pytest.fixture
    def make(self, databases: Databases) -> Make:
        """Give the real stores."""
        Letters(databases.state, "w").prepare()
        return lambda worker: Letters(databases.state, worker)

    @pytest.fixture
    def transaction(self, client: Client) -> Transaction:
        """Give their transactions."""
        return transactions(client)
