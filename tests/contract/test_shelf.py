"""What every shelf promises."""

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest

from distributary.errors import CheckpointMoved
from distributary.ports.sink import Contrast, Others, Shelf
from distributary.sink.shelf import MongoShelf
from tests.conftest import Databases
from tests.fakes import Deployment, FakeShelf

#: Stores records in a collection, and gives the keys of what is in one.
Store = Callable[[str, list[dict[str, Any]]], None]
Keys = Callable[[str], set[Any]]


def record(key: Any, value: int = 0) -> dict[str, Any]:
    """Give a record as a worker stores it."""
    return {"_id": key, "value": value, "_src": {"by": "f", "key": key, "epoch": value}}


def contrasted(shelf: Shelf, limit: int) -> Contrast:
    """Compare "old" with "new", slice by slice."""
    found = Contrast()
    behind = shelf.compare("old", "new", (), limit, found)
    while behind:
        behind = shelf.compare("old", "new", behind, limit, found)
    return found


class ShelfContract:
    """A suite for any `Shelf`; give it the fixtures `shelf`, `store` and `keys`."""

    def test_a_collection_keeps_its_id(self, shelf: Shelf) -> None:
        """One that is made is there, has an id of its own, and is empty."""
        one, other = shelf.make("one", "one"), shelf.make("other", "one")
        assert one != other
        assert shelf.ids() == {"one": one, "other": other}

    def test_one_takes_the_place_of_another(self, shelf: Shelf, store: Store, keys: Keys) -> None:
        """With all that it holds, and under its own id; the other one is gone."""
        store("live", [record(1), record(2)])
        made, there = shelf.make("shadow", "live"), shelf.ids()["live"]
        store("shadow", [record(3)])
        shelf.put("shadow", made, "live", there)
        assert shelf.ids() == {"live": made}
        assert keys("live") == {3}

    def test_one_takes_a_place_that_is_free(self, shelf: Shelf) -> None:
        """There need not be another one."""
        made = shelf.make("shadow", "live")
        shelf.put("shadow", made, "live", None)
        assert shelf.ids() == {"live": made}

    @pytest.mark.parametrize("wrong", ["known", "over", "gone"])
    def test_what_is_not_what_it_was_takes_no_place(
        self, shelf: Shelf, store: Store, keys: Keys, wrong: str
    ) -> None:
        """A holder that was overtaken harms nothing that was made since."""
        store("live", [record(1)])
        made, there = shelf.make("shadow", "live"), shelf.ids()["live"]
        known: UUID = uuid4() if wrong == "known" else made
        over = uuid4() if wrong == "over" else there
        name = "never" if wrong == "gone" else "shadow"
        with pytest.raises(CheckpointMoved):
            shelf.put(name, known, "live", over)
        assert shelf.ids() == {"live": there, "shadow": made}
        assert keys("live") == {1}

    def test_only_what_is_meant_is_dropped(self, shelf: Shelf) -> None:
        """By its name and its id; what is not there any more is no fault."""
        made = shelf.make("one", "one")
        shelf.drop("one", uuid4())
        assert shelf.ids() == {"one": made}
        shelf.drop("one", made)
        shelf.drop("one", made)
        assert shelf.ids() == {}

    @pytest.mark.parametrize("limit", [1, 2, 3, 4, 50])
    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (range(10), range(3)),
            (range(3), range(10)),
            (range(0, 20, 2), range(5, 15)),
            (range(5), range(5, 10)),
            (range(5, 10), range(5)),
            (range(0), range(4)),
            (range(4), range(0)),
            (range(0), range(0)),
        ],
    )
    def test_all_that_differs_is_counted(
        self, shelf: Shelf, store: Store, old: range, new: range, limit: int
    ) -> None:
        """Whatever slices it is done in; the engine's field is no difference."""
        store("old", [record(key) for key in old])
        store("new", [record(key, key % 2) for key in new])
        found, both = contrasted(shelf, limit), set(old) & set(new)
        assert found.equal == sum(key % 2 == 0 for key in both)
        assert found.changed == sum(key % 2 for key in both)
        assert found.added == len(set(new) - both)
        assert found.removed == len(set(old) - both)

    @pytest.mark.parametrize("limit", [1, 3, 50])
    def test_the_keys_of_others_are_given(self, shelf: Shelf, store: Store, limit: int) -> None:
        """Of records that differ or are only there or here, and of equal ones that another document owns."""
        store("old", [record(key) for key in range(6)])
        store("new", [record(1, 1), record(2) | {"_src": {"by": "g", "key": 2}}, record(3), record(9)])
        others = Others([], [])
        behind = shelf.compare("old", "new", (), limit, Contrast(), others)
        while behind:
            behind = shelf.compare("old", "new", behind, limit, Contrast(), others)
        assert sorted(others.differing) == [0, 1, 4, 5, 9]
        assert others.moved == [2]

    def test_the_first_of_each_kind_are_named(self, shelf: Shelf, store: Store) -> None:
        """With their keys, and the fields that differ."""
        store("old", [record(key) for key in range(20)])
        store("new", [record(key, 1) for key in range(19)] + [record(99)])
        found = contrasted(shelf, 7)
        changed = [each for each in found.samples if each["kind"] == "changed"]
        assert [each["key"] for each in changed] == list(range(Contrast.SAMPLES))
        assert changed[0]["fields"] == ["value"]
        assert {each["key"] for each in found.samples if each["kind"] != "changed"} == {19, 99}


class TestFakeShelf(ShelfContract):
    """The shelf in memory keeps the contract."""

    @pytest.fixture
    def deployment(self) -> Deployment:
        """Give an empty deployment."""
        return Deployment()

    @pytest.fixture
    def shelf(self, deployment: Deployment) -> Shelf:
        """Give the shelf in memory."""
        return FakeShelf(deployment)

    @pytest.fixture
    def store(self, deployment: Deployment) -> Store:
        """Store records."""

        def put(name: str, records: list[dict[str, Any]]) -> None:
            for each in records:
                deployment.place(name, each)

        return put

    @pytest.fixture
    def keys(self, deployment: Deployment) -> Keys:
        """Give the keys of a collection."""
        return lambda name: {
            each["_id"] for (there, _), each in deployment.documents().items() if there == name
        }


class TestMongoShelf(ShelfContract):
    """The real shelf keeps the contract."""

    @pytest.fixture
    def shelf(self, databases: Databases) -> Shelf:
        """Give the real shelf."""
        return MongoShelf(databases.derived, databases.state, {})

    @pytest.fixture
    def store(self, databases: Databases) -> Store:
        """Store records."""

        def put(name: str, records: list[dict[str, Any]]) -> None:
            if records:
                databases.derived[name].insert_many(records)

        return put

    @pytest.fixture
    def keys(self, databases: Databases) -> Keys:
        """Give the keys of a collection."""
        return lambda name: set(databases.derived[name].distinct("_id"))
