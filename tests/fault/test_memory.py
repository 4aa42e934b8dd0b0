"""Memory is bounded by `worker.batch_bytes`, whatever the size of documents.

Of those that are carried, read, scanned, yielded and learned. `benchmarks/memory.py` shows it with gigabytes.

The peak is that of a real process (Linux: `VmHWM`).
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from bson import encode

from distributary.embedded import EmbeddedMongo
from tests.conftest import Databases, embedded_or_skip, eventually
from tests.fault.deployment import databases_of
from tests.harness import Harness

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")

MB = 1024 * 1024

#: What is derived is as large as what is read.
COPIES = """
    from distributary import DerivedCollection, transform

    copies = DerivedCollection("copies")

    @transform("documents")
    def documents(document):
        yield copies.record(document["_id"], {name: value for name, value in document.items() if name != "_id"})
"""

#: What the bounds leave room for, in megabytes: a few batches of two megabytes, decoded and encoded.
ROOM = 60

#: Records that one transaction may learn, in megabytes, and the replies that they come in.
LEARNED = 32 + 96

SETTINGS = {"worker.batch_bytes": "2MiB", "worker.carry_bytes": "64KiB"}


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedMongo]:
    """Give a server that holds some more in its cache."""
    with embedded_or_skip(arguments=["--wiredTigerCacheSizeGB", "1"]) as mongo:
        yield mongo


@pytest.fixture
def databases(server: EmbeddedMongo) -> Iterator[Databases]:
    """Give fresh databases there."""
    with databases_of(server.uri) as fresh:
        yield fresh
        for database in fresh:
            fresh.client.drop_database(database.name)


@pytest.fixture
def harness(databases: Databases, tmp_path: Path) -> Harness:
    """Give a worker that copies documents, within small bounds."""
    return Harness(databases, tmp_path / "modules", {"documents": COPIES}, dict(SETTINGS))


@pytest.fixture(scope="module")
def idle(server: EmbeddedMongo, tmp_path_factory: pytest.TempPathFactory) -> int:
    """Give the peak of a worker that has next to nothing to do."""
    with databases_of(server.uri) as databases:
        harness = Harness(databases, tmp_path_factory.mktemp("idle"), {"documents": COPIES}, dict(SETTINGS))
        databases.raw.documents.insert_one({"_id": 1})
        return peak(harness)


def peak(harness: Harness) -> int:
    """Let a worker catch up as a process, and give the most memory that it had, in megabytes."""
    worker = harness.process("run", "--until-caught-up", stderr=PIPE)
    status = Path(f"/proc/{worker.pid}/status")
    highest = 0

    def ended() -> bool:
        nonlocal highest
        for line in status.read_text().splitlines() if status.exists() else ():
            if line.startswith("VmHWM:"):
                highest = max(highest, int(line.split()[1]) // 1024)
        return worker.poll() is not None

    eventually(ended, 110)
    said = worker.communicate()[1]
    assert worker.returncode == 0, said
    return highest


def content(size: int) -> list[dict[str, Any]]:
    """Give a list of small values that takes about so many bytes."""
    one = {"sku": "sku-0000", "quantity": 3, "price": 12.5}
    return [{**one, "sku": f"sku-{number:04}"} for number in range(size // (len(encode(one)) + 8))]


@dataclass(frozen=True)
class Shape:
    """So many documents of so many bytes."""

    documents: int
    size: int

    def insert(self, databases: Databases) -> None:
        """Insert them, a few megabytes at a time."""
        items = content(self.size)
        some = max(1, 8 * MB // self.size)
        for first in range(0, self.documents, some):
            numbers = range(first, min(first + some, self.documents))
            databases.raw.documents.insert_many([{"_id": number, "items": items} for number in numbers])


#: Together they are far more than a worker may take.
SHAPES = [Shape(1500, 20_000), Shape(30, 1 * MB)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_existing_documents_are_derived_in_bounds(harness: Harness, idle: int, shape: Shape) -> None:
    """A backfill holds one slice of documents, whatever their size."""
    shape.insert(harness.databases)
    assert peak(harness) < idle + ROOM
    harness.assert_equal()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_updates_are_read_in_bounds(harness: Harness, idle: int, shape: Shape) -> None:
    """Updates do not carry their documents: those of one batch are not read all at once."""
    harness.catch_up()
    shape.insert(harness.databases)
    harness.catch_up()
    harness.databases.raw.documents.update_many({}, {"$set": {"new": 1}})
    assert peak(harness) < idle + ROOM
    harness.assert_equal()


def test_carried_documents_are_read_in_bounds(harness: Harness, idle: int) -> None:
    """Inserts carry their documents: no more are read ahead than bounded, though a reply may hold 16 MB of them."""
    harness.catch_up()
    Shape(1500, 20_000).insert(harness.databases)
    assert peak(harness) < idle + ROOM
    harness.assert_equal()


def test_a_fan_out_is_committed_in_bounds(harness: Harness, idle: int) -> None:
    """Documents that yield many times their size are not all derived before something is committed."""
    wide = COPIES.replace("yield copies", "for n in range(20): yield copies").replace(
        'document["_id"],', 'document["_id"] * 20 + n,'
    )
    harness.write({"documents": wide})
    harness.catch_up()
    Shape(200, 20_000).insert(harness.databases)
    harness.databases.raw.documents.update_many({}, {"$set": {"new": 1}})
    assert peak(harness) < idle + ROOM
    harness.assert_equal()


def test_what_is_stored_is_learned_in_bounds(harness: Harness, idle: int) -> None:
    """Documents that yield little now and much before do not have all of that held against it."""
    harness.catch_up()
    Shape(150, 1 * MB).insert(harness.databases)
    assert peak(harness) < idle + ROOM
    harness.databases.raw.documents.update_many({}, {"$set": {"items": []}})
    assert peak(harness) < idle + ROOM + LEARNED
    harness.assert_equal()
