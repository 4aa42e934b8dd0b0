"""What every source promises: its stream of changes, and reading its documents."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol
from uuid import uuid4
from weakref import ReferenceType, ref

import pytest

from distributary.change import CollectionChange, Operation
from distributary.ports.source import Batch, Documents, Snapshot, Source, Start
from distributary.source.documents import Documents as MongoDocuments
from distributary.source.stream import Stream
from tests.conftest import Databases, eventually
from tests.fakes import Raw

#: Gives a source of some collections; it is closed at the end.
Tail = Callable[[Sequence[str]], AbstractContextManager[Source]]


class Writer(Protocol):
    """A source database that is written to."""

    def insert(self, collection: str, document: dict[str, Any]) -> None:
        """Insert a document."""

    def replace(self, collection: str, document: dict[str, Any]) -> None:
        """Replace a document."""

    def update(self, collection: str, key: Any, **fields: Any) -> None:
        """Update fields of a document."""

    def delete(self, collection: str, key: Any) -> None:
        """Delete a document."""

    def drop(self, collection: str) -> None:
        """Drop a collection."""


def read(source: Source, count: int) -> list[Batch]:
    """Read until there are so many changes, of documents and collections."""
    batches: list[Batch] = []

    def enough() -> bool:
        batches.extend(source.read(50))
        return sum(len(each.changes) + len(each.collections) for each in batches) >= count

    eventually(enough)
    return batches


def told(batches: Sequence[Batch]) -> list[tuple[str, Any]]:
    """Give what changes say: operation and key."""
    return [(change.operation.value, change.key) for batch in batches for change in batch.changes]


class SourceContract:
    """A suite for any `Source`; give it the fixtures `tail` and `writer`."""

    def test_changes_come_in_order(self, tail: Tail, writer: Writer) -> None:
        """Every operation is a change, in the source's order, with the time and token of its own."""
        with tail(["a"]) as source:
            source.open(Start())
            writer.insert("a", {"_id": 1, "v": 1})
            writer.update("a", 1, v=2)
            writer.replace("a", {"_id": 1, "v": 3})
            writer.delete("a", 1)
            batches = read(source, 4)
        changes = [change for batch in batches for change in batch.changes]
        assert [each.operation for each in changes] == [
            Operation.INSERT, Operation.UPDATE, Operation.REPLACE, Operation.DELETE,
        ]  # fmt: skip
        assert [each.time for each in changes] == sorted(each.time for each in changes)
        assert len({each.token for each in changes}) == 4

    def test_inserts_and_replaces_carry_their_document(self, tail: Tail, writer: Writer) -> None:
        """What they carry is the document as of then; updates and deletes carry none."""
        with tail(["a"]) as source:
            source.open(Start())
            writer.insert("a", {"_id": 1, "v": 1})
            writer.replace("a", {"_id": 1, "v": 2})
            writer.update("a", 1, v=3)
            writer.delete("a", 1)
            batches = read(source, 4)
        documents = [change.document for batch in batches for change in batch.changes]
        assert documents == [{"_id": 1, "v": 1}, {"_id": 1, "v": 2}, None, None]

    def test_only_what_was_asked_for_comes(self, tail: Tail, writer: Writer) -> None:
        """Changes of other collections are left out."""
        with tail(["a"]) as source:
            source.open(Start())
            for name in ("b", "a", "aa", "a"):
                writer.insert(name, {"_id": uuid4().hex})
            batches = read(source, 2)
        assert {change.collection for batch in batches for change in batch.changes} == {"a"}

    def test_without_changes_there_is_a_position(self, tail: Tail, writer: Writer) -> None:
        """An idle stream gives one batch without changes, whose position moves on while others write."""
        with tail(["a"]) as source:
            before = source.open(Start())
            (idle,) = source.read(10)
            assert (idle.changes, idle.collections) == ([], ())
            assert idle.position.time >= before.time
            writer.insert("b", {"_id": 1})
            eventually(lambda: source.read(10)[-1].position.time > before.time)

    def test_a_position_is_behind_its_changes(self, tail: Tail, writer: Writer) -> None:
        """Opened behind a batch's position, a stream gives everything later and nothing again."""
        with tail(["a"]) as source:
            start = source.open(Start())
            writer.insert("a", {"_id": 1})
            middle = read(source, 1)[-1].position
            writer.insert("a", {"_id": 2})
            read(source, 1)
        assert self._from(tail, Start(token=middle.token), 1) == [("insert", 2)]
        assert self._from(tail, Start(token=start.token), 2) == [("insert", 1), ("insert", 2)]

    def test_opening_at_a_time_gives_its_changes(self, tail: Tail, writer: Writer) -> None:
        """A stream opened at a cluster time begins with the changes of that time."""
        with tail(["a"]) as source:
            source.open(Start())
            writer.insert("a", {"_id": 1})
            writer.insert("a", {"_id": 2})
            batches = read(source, 2)
        second = [change for batch in batches for change in batch.changes][1]
        assert self._from(tail, Start(time=second.time), 1) == [("insert", 2)]

    def test_a_drop_ends_a_batch(self, tail: Tail, writer: Writer) -> None:
        """Nothing that happened later is in the batch of a whole collection's change."""
        with tail(["a"]) as source:
            source.open(Start())
            writer.insert("a", {"_id": 1})
            writer.drop("a")
            writer.insert("a", {"_id": 2})
            batches = read(source, 3)
        (whole,) = [batch for batch in batches if batch.collections]
        (dropped,) = whole.collections
        assert dropped == CollectionChange("a", dropped.time, gone=True)
        index = batches.index(whole)
        assert (told(batches[: index + 1]), told(batches[index + 1 :])) == (
            [("insert", 1)], [("insert", 2)],
        )  # fmt: skip
        assert self._from(tail, Start(token=whole.position.token), 1) == [("insert", 2)]

    def test_a_stream_that_is_open_has_not_ended(self, tail: Tail) -> None:
        """Only the server ends a stream."""
        with tail(["a"]) as source:
            source.open(Start())
            source.read(10)
            assert not source.ended

    @staticmethod
    def _from(tail: Tail, start: Start, count: int) -> list[tuple[str, Any]]:
        with tail(["a"]) as source:
            source.open(start)
            return told(read(source, count))


class DocumentsContract:
    """A suite for any `Documents`; give it the fixtures `documents` and `writer`."""

    def test_documents_are_read_by_key(self, documents: Documents, writer: Writer) -> None:
        """Keys that do not exist are missing; keys compare as in MongoDB."""
        writer.insert("a", {"_id": 1, "v": 1})
        writer.insert("a", {"_id": "x", "v": 2})
        found = documents.fetch("a", [1.0, "x", "y"])
        assert sorted(each["v"] for each in found.documents) == [1, 2]
        assert documents.fetch("none", [1]).documents == []

    def test_documents_are_read_as_of_a_time(self, documents: Documents, writer: Writer) -> None:
        """With a time, all are as they were then, and the snapshot says so."""
        writer.insert("a", {"_id": 1, "v": 1})
        before = documents.fetch("a", [1])
        writer.update("a", 1, v=2)
        writer.insert("a", {"_id": 2, "v": 2})
        then = documents.fetch("a", [1, 2], before.time)
        assert (then.time, then.documents) == (before.time, [{"_id": 1, "v": 1}])
        assert documents.fetch("a", [1]).documents == [{"_id": 1, "v": 2}]

    def test_time_does_not_go_back(self, documents: Documents, writer: Writer) -> None:
        """What is read later shows a state that is as new, and one with all that was written before."""
        writer.insert("a", {"_id": 1})
        first = documents.fetch("a", [1])
        documents.not_before(first.time)
        writer.insert("a", {"_id": 2})
        second = documents.scan("a", (), 10)
        assert second.time > first.time
        assert len(second.documents) == 2

    def test_a_scan_walks_in_key_order(self, documents: Documents, writer: Writer) -> None:
        """Slices come in MongoDB's order of keys across types, each behind the last key, none at the end."""
        for key in ("x", 3, 1.5, "a", 2):
            writer.insert("a", {"_id": key})
        seen: list[Any] = []
        after: tuple[Any, ...] = ()
        while some := documents.scan("a", after, 2).documents:
            seen += [each["_id"] for each in some]
            after = (seen[-1],)
        assert seen == [1.5, 2, 3, "a", "x"]

    def test_a_scan_skips(self, documents: Documents, writer: Writer) -> None:
        """Documents right behind the last key can be left out."""
        for key in range(5):
            writer.insert("a", {"_id": key})
        assert [each["_id"] for each in documents.scan("a", (0,), 2, skip=1).documents] == [2, 3]

    def test_a_scan_ends_in_front_of_a_key(self, documents: Documents, writer: Writer) -> None:
        """Whatever its type, and whether or not there is such a document; keys are read in the same way."""
        for key in (1, 2, 3, "a", "b"):
            writer.insert("a", {"_id": key, "v": 0})
        assert [each["_id"] for each in documents.scan("a", (1,), 9, until=("a",)).documents] == [2, 3]
        assert [each["_id"] for each in documents.scan("a", (), 9, until=(2.5,)).documents] == [1, 2]
        assert documents.keys("a", (2,), 9, until=("b",)).documents == [{"_id": 3}, {"_id": "a"}]
        assert documents.keys("a", (1,), 2, skip=1).documents == [{"_id": 3}, {"_id": "a"}]

    def test_a_scan_may_be_of_the_past(self, documents: Documents, writer: Writer) -> None:
        """With a time, it shows what there was then."""
        writer.insert("a", {"_id": 1, "v": 1})
        before = documents.fetch("a", [1]).time
        writer.update("a", 1, v=2)
        writer.insert("a", {"_id": 2, "v": 2})
        then = documents.scan("a", (), 9, at=before)
        assert (then.time, then.documents) == (before, [{"_id": 1, "v": 1}])

    def test_the_last_key_is_told(self, documents: Documents, writer: Writer) -> None:
        """In the order of a scan; there is none without a document."""
        assert documents.last("a") == ()
        for key in ("x", 3, "a"):
            writer.insert("a", {"_id": key})
        assert documents.last("a") == ("x",)

    def test_a_query_leaves_documents_out(self, documents: Documents, writer: Writer) -> None:
        """Of those that are asked for, the ones that match."""
        for key in range(4):
            writer.insert("a", {"_id": key, "v": key % 2})
        found = documents.fetch("a", [0, 1, 3], only={"v": 1}).documents
        assert sorted(each["_id"] for each in found) == [1, 3]

    def test_keys_that_exist_are_told(self, documents: Documents, writer: Writer) -> None:
        """Of the documents nothing but their key is read."""
        writer.insert("a", {"_id": 1, "v": 1})
        assert documents.existing("a", [1, 2]).documents == [{"_id": 1}]

    def test_collections_exist_or_not(self, documents: Documents, writer: Writer) -> None:
        """A collection is there from its first document until it is dropped."""
        assert not documents.exists("a")
        writer.insert("a", {"_id": 1})
        assert documents.exists("a")
        assert documents.count("a") == 1
        writer.drop("a")
        assert not documents.exists("a")
        assert documents.count("a") == 0


class TestFakeSource(SourceContract, DocumentsContract):
    """The fake keeps both contracts."""

    @pytest.fixture
    def raw(self) -> Raw:
        """Give an empty source."""
        return Raw()

    @pytest.fixture
    def writer(self, raw: Raw) -> Writer:
        """Give what writes to it."""
        return raw

    @pytest.fixture
    def documents(self, raw: Raw) -> Documents:
        """Give what reads it."""
        return raw

    @pytest.fixture
    def tail(self, raw: Raw) -> Tail:
        """Give what tails it."""

        @contextmanager
        def tailed(collections: Sequence[str]) -> Iterator[Source]:
            yield raw.source(collections)

        return tailed


class _Writer:
    """Writes to a real database."""

    def __init__(self, databases: Databases) -> None:
        self._raw = databases.raw

    def insert(self, collection: str, document: dict[str, Any]) -> None:
        self._raw[collection].insert_one(document)

    def replace(self, collection: str, document: dict[str, Any]) -> None:
        self._raw[collection].replace_one({"_id": document["_id"]}, document)

    def update(self, collection: str, key: Any, **fields: Any) -> None:
        self._raw[collection].update_one({"_id": key}, {"$set": fields})

    def delete(self, collection: str, key: Any) -> None:
        self._raw[collection].delete_one({"_id": key})

    def drop(self, collection: str) -> None:
        self._raw[collection].drop()


class TestMongoSource(SourceContract, DocumentsContract):
    """The real source keeps both contracts."""

    @pytest.fixture
    def writer(self, databases: Databases) -> Writer:
        """Give what writes to it."""
        return _Writer(databases)

    @pytest.fixture
    def documents(self, databases: Databases) -> Documents:
        """Give what reads it."""
        return MongoDocuments(databases.source)

    @pytest.fixture
    def tail(self, databases: Databases) -> Tail:
        """Give what tails it."""

        @contextmanager
        def tailed(collections: Sequence[str]) -> Iterator[Source]:
            stream = Stream(databases.source, collections, carry_bytes=1024, batch_changes=100)
            try:
                yield stream
            finally:
                stream.close()

        return tailed

    def test_a_refused_read_keeps_nothing_of_its_caller(
        self, databases: Databases, documents: Documents
    ) -> None:
        """What the server refuses leaves no cycle that would keep a batch while the collector is off."""
        before = databases.client.admin.command("ping")["operationTime"]
        databases.raw.orders.insert_one({"_id": 1})

        def read() -> tuple[Snapshot, "ReferenceType[set[int]]"]:
            batch = {1, 2, 3}
            return documents.fetch("orders", [1], at=before), ref(batch)

        gc.collect()
        gc.disable()
        try:
            snapshot, kept = read()
        finally:
            gc.enable()
        assert list(snapshot.documents) == [{"_id": 1}]
        assert kept() is None
