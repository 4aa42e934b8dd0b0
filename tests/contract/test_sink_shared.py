"""What every sink promises of shared records, which follow their parts."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from bson import Timestamp
from pymongo.client_session import ClientSession

from distributary.change import Version, identity
from distributary.derive.plan import Desired, Owner
from distributary.derive.records import DerivedCollection, Item, Section, encode_record, origin, tail_of
from distributary.derive.shared import is_shared
from distributary.parts import parts_of
from distributary.ports.sink import Outcome, Sink
from distributary.sink.collections import prepare
from distributary.sink.mongo import MongoSink
from tests.conftest import Databases
from tests.contract.making import Abort
from tests.fakes import Deployment, FakeSink

#: The collection of the shared records, its parts, and the shadows of both.
WHOLE, PARTS = "a", parts_of("a")
SHADOWS = {WHOLE: "c", PARTS: parts_of("c")}

made = DerivedCollection(WHOLE)

#: The shared records of a collection by their keys, without the engine's field.
Shown = dict[Any, dict[str, Any]]

#: Gives what is shown in a collection.
Show = Callable[[str], Shown]


def section(name: str, value: int, key: Any = "x") -> Section:
    """Give a section."""
    return made.section(key, name, {"v": value})


def item(item_key: Any, value: int, key: Any = "x") -> Item:
    """Give an item of the one list."""
    return made.item(key, "list", item_key, {"v": value})


def owner(key: Any, *parts: Section | Item, time: int = 1) -> Desired:
    """Give a document that contributes these parts."""
    version = Version(1, Timestamp(time, 1))
    source = origin("f", key, version)
    encoded = [encode_record(each, source, tail_of(source)) for each in parts]
    return Desired("f", key, Owner("f", identity(key)), version, encoded)


def done(_session: ClientSession, _outcome: object) -> None:
    """Finish a transaction with nothing more."""


def write(sink: Sink, items: Sequence[Desired], **options: Any) -> Outcome:
    """Write with nothing to finish."""
    return sink.write(items, {"f": [PARTS]}, done, **options)


class SharedContract:
    """A suite for any `Sink`; give it the fixtures `sink`, `show` and `damage`, which removes a shared record."""

    def test_parts_of_several_owners_are_one_record(self, sink: Sink, show: Show) -> None:
        """Sections and lists are shown together, items in the order of their keys; each key has its own record."""
        write(sink, [owner(1, section("s", 1), item(7, 1)), owner(2, item(3, 2), section("s", 2, key="y"))])
        write(sink, [owner(3, item(5, 3), section("t", 3))])
        assert show(WHOLE) == {
            "x": {
                "s": {"v": 1},
                "t": {"v": 3},
                "list": [{"_id": 3, "v": 2}, {"_id": 5, "v": 3}, {"_id": 7, "v": 1}],
            },
            "y": {"s": {"v": 2}},
        }

    def test_parts_change_move_and_go(self, sink: Sink, show: Show) -> None:
        """What a document does not yield any more is gone; an empty list is absent, and so is an empty record."""
        write(sink, [owner(1, section("s", 1), item(1, 1)), owner(2, item(2, 2))])
        write(sink, [owner(1, section("s", 9), item(1, 9), time=2)])
        assert show(WHOLE) == {"x": {"s": {"v": 9}, "list": [{"_id": 1, "v": 9}, {"_id": 2, "v": 2}]}}
        write(sink, [owner(1, item(1, 9, key="y"), time=3)])
        assert show(WHOLE) == {"x": {"list": [{"_id": 2, "v": 2}]}, "y": {"list": [{"_id": 1, "v": 9}]}}
        write(sink, [owner(2, section("s", 2), time=4), owner(1, time=4)])
        assert show(WHOLE) == {"x": {"s": {"v": 2}}}
        write(sink, [owner(2, time=5)])
        assert show(WHOLE) == {}

    def test_a_part_has_one_owner(self, sink: Sink, show: Show) -> None:
        """A second owner of a section or an item is contested, and the record shows what the first one yields."""
        write(sink, [owner(1, section("s", 1), item(1, 1))])
        outcome = write(sink, [owner(2, section("s", 2)), owner(3, item(1.0, 3))])
        assert sorted(each.desired.key for each in outcome.contests) == [2, 3]
        assert show(WHOLE) == {"x": {"s": {"v": 1}, "list": [{"_id": 1, "v": 1}]}}

    def test_shared_records_are_part_of_the_transaction(self, sink: Sink, show: Show) -> None:
        """Without its end they stay what they were."""

        def fail(_session: ClientSession, _outcome: Outcome) -> None:
            raise Abort

        write(sink, [owner(1, section("s", 1))])
        with pytest.raises(Abort):
            sink.write([owner(1, item(1, 1), time=2)], {"f": [PARTS]}, fail)
        assert show(WHOLE) == {"x": {"s": {"v": 1}}}

    def test_shadows_have_shared_records_of_their_own(self, sink: Sink, show: Show) -> None:
        """They show what was written to the shadow of the parts, and nothing else."""
        write(sink, [owner(1, section("s", 1))])
        write(sink, [owner(2, item(2, 2))], shadows=SHADOWS)
        assert show(WHOLE) == {"x": {"s": {"v": 1}, "list": [{"_id": 2, "v": 2}]}}
        assert show("c") == {"x": {"list": [{"_id": 2, "v": 2}]}}
        write(sink, [owner(3, item(3, 3))], shadows=SHADOWS, alone=True)
        assert [each["_id"] for each in show("c")["x"]["list"]] == [2, 3]
        assert [each["_id"] for each in show(WHOLE)["x"]["list"]] == [2]

    def test_parts_are_carried(self, sink: Sink, show: Show) -> None:
        """The shadow shows what the document contributes to the collection, and no more what it had there."""
        write(sink, [owner(1, section("s", 1)), owner(2, item(2, 2))])
        write(sink, [owner(1, section("s", 9, key="y"), time=2)], shadows=SHADOWS, alone=True)
        sink.carry("f", lambda _: [1], SHADOWS, done)
        assert show("c") == {"x": {"s": {"v": 1}}}

    @pytest.mark.parametrize("limit", [1, 2, 50])
    def test_parts_are_copied(self, sink: Sink, show: Show, limit: int) -> None:
        """Slice by slice, with the shared records that they make; what lies under a part's key already stays."""
        write(sink, [owner(1, section("s", 1)), owner(2, item(2, 2)), owner(3, item(3, 3, key="y"))])
        write(sink, [owner(4, section("s", 4))], shadows=SHADOWS, alone=True)
        behind = sink.copy(PARTS, SHADOWS[PARTS], (), limit, done, "c")
        while behind:
            behind = sink.copy(PARTS, SHADOWS[PARTS], behind, limit, done, "c")
        assert show("c") == {
            "x": {"s": {"v": 4}, "list": [{"_id": 2, "v": 2}]},
            "y": {"list": [{"_id": 3, "v": 3}]},
        }

    @pytest.mark.parametrize("limit", [1, 50])
    def test_records_are_put_together_anew(
        self, sink: Sink, show: Show, damage: Callable[[Any], None], limit: int
    ) -> None:
        """Slice by slice, from their parts, whatever was shown; a record without parts is removed."""
        write(sink, [owner(1, section("s", 1), item(2, 2)), owner(2, section("s", 2, key="y"))])
        before = show(WHOLE)
        for key in ("x", "z"):
            damage(key)
        assert show(WHOLE) == before | {"x": {"t": 1}, "z": {"t": 1}}
        behind = sink.assemble(WHOLE, (), limit, done)
        while behind:
            behind = sink.assemble(WHOLE, behind, limit, done)
        assert show(WHOLE) == before

    def test_getting_ready_again_changes_nothing(self, sink: Sink, show: Show) -> None:
        """`share` is for parts that are there as well."""
        write(sink, [owner(1, section("s", 1))])
        sink.share([WHOLE])
        write(sink, [owner(2, item(2, 2))])
        assert show(WHOLE) == {"x": {"s": {"v": 1}, "list": [{"_id": 2, "v": 2}]}}


#: What a hand has made of a shared record.
DAMAGED = {"_src": {"shared": True}, "t": 1}


class TestFakeSink(SharedContract):
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
    def show(self, deployment: Deployment) -> Show:
        """Give what is stored."""
        return lambda name: _shown(each for (at, _), each in deployment.documents().items() if at == name)

    @pytest.fixture
    def damage(self, deployment: Deployment) -> Callable[[Any], None]:
        """Put something else in the place of a shared record."""
        return lambda key: deployment.place(WHOLE, {"_id": key, **DAMAGED})


class TestMongoSink(SharedContract):
    """The real sink keeps the contract."""

    @pytest.fixture
    def sink(self, databases: Databases) -> Iterator[Sink]:
        """Give the real sink."""
        prepare(databases.derived, [(WHOLE, []), ("c", [])])
        with databases.client.start_session() as session:
            sink = MongoSink(databases.derived, databases.state, session)
            sink.share([WHOLE, "c"])
            yield sink

    @pytest.fixture
    def show(self, databases: Databases) -> Show:
        """Give what is stored."""
        return lambda name: _shown(databases.derived[name].find())

    @pytest.fixture
    def damage(self, databases: Databases) -> Callable[[Any], None]:
        """Put something else in the place of a shared record."""

        def put(key: Any) -> None:
            databases.derived[WHOLE].replace_one({"_id": key}, dict(DAMAGED), upsert=True)

        return put


def _shown(documents: Iterator[dict[str, Any]]) -> Shown:
    found = {each.pop("_id"): each for each in documents}
    assert all(is_shared(each) for each in found.values())
    return {key: {name: each[name] for name in each if name != "_src"} for key, each in found.items()}
