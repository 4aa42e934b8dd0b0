"""What every sink promises."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from bson import Timestamp
from pymongo.client_session import ClientSession

from distributary.derive.plan import Desired, Owner
from distributary.ports.sink import Outcome, Sink
from distributary.sink.collections import prepare
from distributary.sink.mongo import MongoSink
from tests.conftest import Databases
from tests.contract.making import Abort, desired
from tests.fakes import Deployment, FakeSink

#: What lies where: (derived collection, key) to (transform, source key, cluster time, value).
Content = dict[tuple[str, Any], tuple[str, Any, int, int]]

#: Collections in which each transform may have records.
COLLECTIONS = {"f": ["a", "b"], "g": ["a", "b"]}

#: A collection that is written along with "a".
SHADOWS = {"a": "c"}


def done(_session: ClientSession, _outcome: Outcome) -> None:
    """Finish a transaction with nothing more."""


def nothing(_session: ClientSession, _behind: tuple[Any, ...]) -> None:
    """Finish a copy with nothing more."""


def write(sink: Sink, items: Sequence[Desired], **options: Any) -> Outcome:
    """Write with nothing to finish."""
    return sink.write(items, options.pop("collections", COLLECTIONS), done, **options)


class SinkContract:
    """A suite for any `Sink`; give it the fixtures `sink`, `content` and `foreign`."""

    def test_records_are_what_their_owners_yield(self, sink: Sink, content: Callable[[], Content]) -> None:
        """What is new is inserted, what differs replaced, what is no longer yielded removed, the rest left."""
        first = write(sink, [desired(1, ("a", 1, 10), ("a", 2, 20), ("b", 1, 30), fresh=True)])
        assert dict(first.inserted) == {"a": 2, "b": 1}
        second = write(sink, [desired(1, ("a", 1, 10), ("a", 2, 21), ("a", 3, 40), time=2)])
        assert (dict(second.inserted), dict(second.replaced), dict(second.removed)) == (
            {"a": 1}, {"a": 1}, {"b": 1},
        )  # fmt: skip
        assert second.unchanged == 1
        assert second.released == [("b", 1)]
        assert content() == {
            ("a", 1): ("f", 1, 1, 10), ("a", 2): ("f", 1, 2, 21), ("a", 3): ("f", 1, 2, 40),
        }  # fmt: skip

    def test_a_document_that_is_gone_leaves_nothing(self, sink: Sink, content: Callable[[], Content]) -> None:
        """No records means that all are removed, those of this owner only."""
        write(sink, [desired(1, ("a", 1, 1)), desired(2, ("a", 2, 1)), desired(1, ("b", 1, 1), by="g")])
        write(sink, [desired(1, time=2)])
        assert content().keys() == {("a", 2), ("b", 1)}

    def test_a_second_time_changes_nothing(self, sink: Sink, content: Callable[[], Content]) -> None:
        """Writing again what was written is told as unchanged."""
        items = [desired(1, ("a", 1, 1), ("b", 1, 1)), desired(2, ("a", 2, 2))]
        write(sink, items)
        before = content()
        outcome = write(sink, items)
        assert (outcome.records, outcome.unchanged) == (0, 3)
        assert content() == before

    def test_a_document_that_was_not_fresh_is_written_right(
        self, sink: Sink, content: Callable[[], Content]
    ) -> None:
        """The promise that nothing is stored may turn out wrong, as when a batch is repeated."""
        write(sink, [desired(1, ("a", 1, 1), ("b", 1, 1), fresh=True)])
        write(sink, [desired(1, ("a", 1, 2), time=2, fresh=True)])
        assert content() == {("a", 1): ("f", 1, 2, 2)}

    def test_nothing_goes_back(self, sink: Sink, content: Callable[[], Content]) -> None:
        """What is stored of a newer state stays, all of it."""
        write(sink, [desired(1, ("a", 1, 2), time=5)])
        outcome = write(sink, [desired(1, ("a", 1, 1), ("a", 2, 1), time=4)])
        assert outcome.overtaken == 1
        assert content() == {("a", 1): ("f", 1, 5, 2)}

    def test_a_key_has_one_owner(self, sink: Sink, content: Callable[[], Content]) -> None:
        """A second owner of a key is contested and keeps all that it had; keys compare as in MongoDB."""
        write(sink, [desired(1, ("a", 1, 1)), desired(2, ("b", 2, 2))])
        outcome = write(sink, [desired(2, ("a", 1.0, 3), ("b", 3, 3), time=2)])
        (contest,) = outcome.contests
        assert (contest.place, contest.holder, contest.free) == (("a", 1), Owner("f", 1), False)
        assert content() == {("a", 1): ("f", 1, 1, 1), ("b", 2): ("f", 2, 1, 2)}

    @pytest.mark.parametrize("stored", [0, 149, 149.0], ids=["first", "last", "another type"])
    def test_one_of_many_documents_had_records(
        self, sink: Sink, content: Callable[[], Content], stored: float
    ) -> None:
        """It does not matter where among the keys of a large slice something is stored already."""
        write(sink, [desired(stored, ("a", "x", 1))])
        write(sink, [desired(key, ("b", key, 1), time=2) for key in range(150)])
        assert content().keys() == {("b", key) for key in range(150)}

    def test_keys_are_swapped_in_one_go(self, sink: Sink, content: Callable[[], Content]) -> None:
        """Owners that give up keys for one another contest nothing."""
        write(sink, [desired(1, ("a", 1, 1)), desired(2, ("a", 2, 2))])
        outcome = write(sink, [desired(1, ("a", 2, 1), time=2), desired(2, ("a", 1, 2), time=2)])
        assert not outcome.contests
        assert content() == {("a", 2): ("f", 1, 2, 1), ("a", 1): ("f", 2, 2, 2)}

    def test_records_of_unplugged_transforms_give_way(
        self, sink: Sink, content: Callable[[], Content]
    ) -> None:
        """Nobody contests for a transform that is not there."""
        write(sink, [desired(1, ("a", 1, 1), by="g")])
        outcome = write(sink, [desired(2, ("a", 1, 2))], unplugged=["g"])
        assert not outcome.contests
        assert content() == {("a", 1): ("f", 2, 1, 2)}

    def test_foreign_records_are_removed(
        self, sink: Sink, content: Callable[[], Content], foreign: Callable[[str, Any], None]
    ) -> None:
        """Records that nobody owns go where they are named; those that are owned, or not there, do not matter."""
        foreign("a", 1)
        foreign("b", 9)
        write(sink, [desired(1, ("a", 2, 1))])
        outcome = write(sink, [desired(1, ("a", 1, 1), time=2)], foreign=[("a", 1), ("b", 9), ("b", 8)])
        assert sorted(outcome.released) == [("a", 1), ("a", 2), ("b", 9)]
        assert content() == {("a", 1): ("f", 1, 2, 1)}

    def test_a_transaction_is_whole_or_nothing(self, sink: Sink, content: Callable[[], Content]) -> None:
        """What fails at the end undoes what was written, and the next transaction is not affected."""
        write(sink, [desired(1, ("a", 1, 1))])
        before = content()

        def fail(_session: ClientSession, outcome: Outcome) -> None:
            assert outcome.records == 2
            raise Abort

        with pytest.raises(Abort):
            sink.write([desired(1, ("b", 1, 1), time=2)], COLLECTIONS, fail)
        assert content() == before
        write(sink, [desired(1, ("b", 1, 1), time=2)])
        assert content().keys() == {("b", 1)}

    def test_source_keys_are_walked_in_order(self, sink: Sink) -> None:
        """Slices of a transform's source keys come in key order, behind the last one, none at the end."""
        write(sink, [desired(key, ("a", key, 1)) for key in (3, "x", 1, 2)])
        write(sink, [desired(0, ("a", 0, 1), by="g"), desired(7, ("b", 7, 1))])
        first = sink.swept("a", "f", (), 2)
        second = sink.swept("a", "f", (first[-1],), 2)
        assert (first, second) == ([1, 2], [3, "x"])
        assert sink.swept("a", "f", (second[-1],), 2) == []

    # --- shadows --------------------------------------------------------------------------------------------

    def test_shadows_are_written_along(self, sink: Sink, content: Callable[[], Content]) -> None:
        """With what their collections have, and only theirs."""
        write(sink, [desired(1, ("a", 1, 1), ("b", 1, 1))], shadows=SHADOWS)
        assert content().keys() == {("a", 1), ("b", 1), ("c", 1)}
        write(sink, [desired(1, ("a", 2, 1), time=2)], shadows=SHADOWS)
        assert content().keys() == {("a", 2), ("c", 2)}

    def test_shadows_alone(self, sink: Sink, content: Callable[[], Content]) -> None:
        """The collections that they belong to stay as they are."""
        write(sink, [desired(1, ("a", 1, 1))])
        outcome = write(sink, [desired(1, ("a", 2, 2), time=2)], shadows=SHADOWS, alone=True)
        assert content() == {("a", 1): ("f", 1, 1, 1), ("c", 2): ("f", 1, 2, 2)}
        assert dict(outcome.inserted) == {"c": 1}
        assert not outcome.released

    def test_each_side_is_planned_for_itself(self, sink: Sink, content: Callable[[], Content]) -> None:
        """A key that is taken in a shadow is contested there, told of the collection, and written in that."""
        write(sink, [desired(1, ("a", 1, 1))], shadows=SHADOWS, alone=True)
        outcome = write(sink, [desired(2, ("a", 1, 2))], shadows=SHADOWS)
        assert content() == {("a", 1): ("f", 2, 1, 2), ("c", 1): ("f", 1, 1, 1)}
        (contest,) = outcome.contests
        assert (contest.place, contest.desired.key, contest.holder) == (("a", 1), 2, Owner("f", 1))

    def test_who_is_contested_is_left_out_of_shadows(
        self, sink: Sink, content: Callable[[], Content]
    ) -> None:
        """What a document cannot have in the collections, it does not get in their shadows either."""
        write(sink, [desired(1, ("a", 1, 1))])
        outcome = write(sink, [desired(2, ("a", 1, 2))], shadows=SHADOWS)
        assert content() == {("a", 1): ("f", 1, 1, 1)}
        assert [contest.desired.key for contest in outcome.contests] == [2]

    def test_records_are_carried(self, sink: Sink, content: Callable[[], Content]) -> None:
        """Documents have in the shadows what they have in the collections, whatever they had there before."""
        write(sink, [desired(1, ("a", 1, 1), ("b", 1, 1)), desired(2, ("a", 2, 1))])
        write(sink, [desired(1, ("a", 3, 3), time=3)], shadows=SHADOWS, alone=True)
        sink.carry("f", lambda _: [1], SHADOWS, done)
        assert content().keys() == {("a", 1), ("a", 2), ("b", 1), ("c", 1)}

    def test_what_another_one_has_stays(self, sink: Sink, content: Callable[[], Content]) -> None:
        """Of a document, what is free is carried."""
        write(sink, [desired(1, ("a", 1, 1), ("a", 2, 1))])
        write(sink, [desired(2, ("a", 1, 2))], shadows=SHADOWS, alone=True)
        sink.carry("f", lambda _: [1], SHADOWS, done)
        shadow = {key: told[1] for (name, key), told in content().items() if name == "c"}
        assert shadow == {1: 2, 2: 1}

    def test_only_who_has_nothing_is_carried(self, sink: Sink, content: Callable[[], Content]) -> None:
        """With `missing`, a document that has a record in a shadow keeps that."""
        write(sink, [desired(1, ("a", 1, 1)), desired(2, ("a", 2, 1))])
        write(sink, [desired(1, ("a", 3, 3), time=3)], shadows=SHADOWS, alone=True)
        sink.carry("f", lambda _: [1, 2], SHADOWS, done, missing=True)
        assert {key for name, key in content() if name == "c"} == {3, 2}

    @pytest.mark.parametrize("limit", [1, 2, 3, 50])
    def test_collections_are_copied(self, sink: Sink, content: Callable[[], Content], limit: int) -> None:
        """All of it, slice by slice; what lies under a key already stays."""
        write(sink, [desired(key, ("a", key, key)) for key in range(5)])
        write(sink, [desired(9, ("c", 2, 99))], collections={"f": ["c"]})
        behind = sink.copy("a", "c", (), limit, nothing)
        while behind:
            behind = sink.copy("a", "c", behind, limit, nothing)
        copied = {key: told[3] for (name, key), told in content().items() if name == "c"}
        assert copied == {0: 0, 1: 1, 2: 99, 3: 3, 4: 4}

    def test_what_is_carried_and_copied_is_part_of_its_transaction(
        self, sink: Sink, content: Callable[[], Content]
    ) -> None:
        """Without its end there is nothing of it."""

        def abort(*_: object) -> None:
            raise Abort

        write(sink, [desired(1, ("a", 1, 1))])
        with pytest.raises(Abort):
            sink.carry("f", lambda _: [1], SHADOWS, abort)
        with pytest.raises(Abort):
            sink.copy("a", "c", (), 10, abort)
        assert content().keys() == {("a", 1)}


class TestFakeSink(SinkContract):
    """The fake keeps the contract."""

    @pytest.fixture
    def deployment(self) -> Deployment:
        """Give an empty deployment."""
        return Deployment()

    @pytest.fixture
    def sink(self, deployment: Deployment) -> Sink:
        """Give the fake."""
        return FakeSink(deployment)

    @pytest.fixture
    def content(self, deployment: Deployment) -> Callable[[], Content]:
        """Give what is stored."""
        return lambda: dict(_told(name, document) for (name, _), document in deployment.documents().items())

    @pytest.fixture
    def foreign(self, deployment: Deployment) -> Callable[[str, Any], None]:
        """Store what nobody owns."""
        return lambda name, key: deployment.place(name, {"_id": key})


class TestMongoSink(SinkContract):
    """The real sink keeps the contract."""

    @pytest.fixture
    def sink(self, databases: Databases) -> Iterator[Sink]:
        """Give the real sink."""
        prepare(databases.derived, [("a", []), ("b", []), ("c", [])])
        with databases.client.start_session() as session:
            yield MongoSink(databases.derived, databases.state, session)

    @pytest.fixture
    def content(self, databases: Databases) -> Callable[[], Content]:
        """Give what is stored."""
        return lambda: dict(_told(name, each) for name in "abc" for each in databases.derived[name].find())

    @pytest.fixture
    def foreign(self, databases: Databases) -> Callable[[str, Any], None]:
        """Store what nobody owns."""

        def put(name: str, key: Any) -> None:
            databases.derived[name].insert_one({"_id": key})

        return put


def _told(name: str, document: dict[str, Any]) -> tuple[tuple[str, Any], tuple[str, Any, int, int]]:
    source = document["_src"]
    at: Timestamp = source["at"]
    return (name, document["_id"]), (source["by"], source["key"], at.time, document["v"])
