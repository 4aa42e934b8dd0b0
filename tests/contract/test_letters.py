"""What every store of dead letters promises."""

from collections.abc import Callable
from typing import Any

import pytest
from bson import decode
from pymongo.monitoring import (
    CommandFailedEvent,
    CommandListener,
    CommandStartedEvent,
    CommandSucceededEvent,
)

from distributary.change import identity
from distributary.ports.stores import LetterStore
from distributary.state import LetterKey, LetterKind, ParkedLetter
from distributary.store.letters import Letters
from tests.conftest import Client, Databases
from tests.contract.making import Transaction, aborted, change, letter, transactions, waiting
from tests.fakes import Deployment, FakeLetters

#: Gives the letters of one worker; all workers share what lies there.
Make = Callable[[str], LetterStore]

_NOT_CHOSEN = {"rejectedPlans", "allPlansExecution", "command"}
_OF_SESSION = {"lsid", "$db", "$clusterTime", "$readPreference"}


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
        """Changes of a document come in the source's order, with keys and kinds; 1 and 1.0 are the same key."""
        with transaction() as session:
            late = change(1, "82C", LetterKind.WAITING)
            store.put([late, change({"a": 1}, "82B"), change(1, "82A"), letter(1)], session)
        found = store.changes("f", 1.0)
        assert [(each.seen.key, each.seen.token) for each in found] == [(1, "82A"), (1, "82C")]
        assert [each.kind for each in found] == [LetterKind.FAILED, LetterKind.WAITING]
        assert [each.seen.token for each in store.changes("f", {"a": 1})] == ["82B"]
        assert store.changes("g", 1) == store.changes("f", 2) == []

    def test_positions_are_given_by_document(self, store: LetterStore, transaction: Transaction) -> None:
        """Of all documents or of some; those without parked changes are not named, nor are documents' own letters."""
        with transaction() as session:
            store.put([change(1, "82A"), change({"a": 1}, "82B"), change(1, "82C"), letter(2)], session)
        one, other = identity(1), identity({"a": 1})
        assert store.tokens("f") == {one: {"82A", "82C"}, other: {"82B"}}
        assert store.tokens("f", [1.0, 2]) == {one: {"82A", "82C"}}
        assert store.tokens("f", []) == store.tokens("g") == {}

    def test_who_may_be_tried_again_is_told_by_the_first_change(
        self, store: LetterStore, transaction: Transaction
    ) -> None:
        """It is due, or waits though nothing is in front of it; what comes behind it does not count."""
        behind = LetterKind.WAITING
        with transaction() as session:
            store.put([change("late", "82G"), change("late", "82H", behind)], session)
            store.put([change("left", "82D", behind), change("left", "82E", behind), letter(1)], session)
            store.put([change("failed", "82A"), change("failed", "82B", behind)], session)
        assert store.ready("f") == ["left"]
        with transaction() as session:
            store.make_due([LetterKey("f", {"key": "late", "position": "82G"})], session)
            store.make_due([LetterKey("f", {"key": "failed", "position": "82B"})], session)
        assert store.ready("f") == ["left", "late"]
        assert store.ready("g") == []

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

    def test_parked_changes_are_found_by_the_index(self, databases: Databases) -> None:
        """However many there are: the server reads no letters of other documents, nor does it sort what it reads."""
        heard = Heard()
        with Client(databases.uri, event_listeners=[heard]) as client:
            store = Letters(client[databases.state.name], "w")
            store.prepare()
            with transactions(client)() as session:
                store.put([change(n % 20, f"82{n:04}") for n in range(200)], session)
            heard.commands.clear()
            assert len(store.changes("f", 7)) == 10
            assert len(store.tokens("f", [7])[7]) == 10
            assert store.ready("f") == []
        one, tokens, ready = (databases.state.command("explain", each) for each in heard.commands)
        assert indexes(ready) - {"SORT"} == {"queues"}  # what was found is sorted in the end
        for plan in (one, tokens):
            assert indexes(plan) == {"queues"}
            assert plan["executionStats"]["totalDocsExamined"] == 10


class Heard(CommandListener):
    """Keeps the queries that a client sends, as they can be explained."""

    def __init__(self) -> None:
        self.commands: list[dict[str, Any]] = []

    def started(self, event: CommandStartedEvent) -> None:
        """Keep a query without what belongs to its session."""
        if event.command_name in {"find", "aggregate"}:
            ours = {name: value for name, value in event.command.items() if name not in _OF_SESSION}
            self.commands.append(ours)

    def succeeded(self, _: CommandSucceededEvent) -> None:
        """Keep nothing of an answer."""

    def failed(self, _: CommandFailedEvent) -> None:
        """Keep nothing of a failure."""


def indexes(plan: Any) -> set[str]:
    """Give the indexes that a chosen plan uses, and SORT or COLLSCAN if it does either."""
    if isinstance(plan, list):
        return set[str]().union(*map(indexes, plan))
    if not isinstance(plan, dict):
        return set()
    here = {plan["indexName"]} if "indexName" in plan else {"SORT", "COLLSCAN"} & {plan.get("stage")}
    inside = (each for name, each in plan.items() if name not in _NOT_CHOSEN)
    return here.union(*map(indexes, inside))
