"""Changes of one source transaction are shown together, also where documents are read later than the batch."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from bson import Timestamp, decode

from distributary.change import CODEC
from distributary.engine.derivation import Derivation, Prepared
from distributary.engine.horizon import Horizon
from distributary.ports.source import Batch, Snapshot, Start
from distributary.source import deployment
from distributary.source.documents import Documents
from distributary.source.stream import Stream
from distributary.state import BEGINNING
from tests.conftest import Databases
from tests.fault.load import MODULE
from tests.harness import Harness

ORDER = {"_id": 1, "life": 1, "revision": 1, "customer": 1, "skus": []}


@pytest.fixture
def harness(databases: Databases, tmp_path: Path) -> Harness:
    """Give transforms of members and links, with one group of two in the raw database."""
    databases.raw.orders.insert_one(dict(ORDER))
    for source in ("members", "links"):
        databases.raw[source].insert_one({"_id": "of group", "group": 1, "revision": 1})
    return Harness(databases, tmp_path / "modules", {"load": MODULE})


@pytest.fixture
def stream(harness: Harness) -> Iterator[Stream]:
    """Give a stream of what happens from now on."""
    sources = ["orders", "members", "links"]
    with closing(Stream(harness.databases.raw, sources, carry_bytes=100_000, batch_changes=100)) as opened:
        opened.open(Start())
        yield opened


def change_group(databases: Databases, revision: int) -> None:
    """Change both documents in one transaction: the stream carries the one and not the other."""
    with databases.client.start_session() as session, session.start_transaction():
        whole = {"group": 1, "revision": revision}
        databases.raw.members.replace_one({"_id": "of group"}, whole, session=session)
        databases.raw.links.update_one({"_id": "of group"}, {"$set": whole}, session=session)


def revisions(prepared: Prepared) -> set[int]:
    """Give the revisions of the group that the batch shows."""
    records = [decode(record.document, CODEC) for item in prepared.desired for record in item.records]
    return {record["revision"] for record in records if "group" in record}


def read(stream: Stream, changes: int) -> Batch:
    """Read until so many changes are there, as one batch."""
    batches: list[Batch] = []
    while sum(len(batch.changes) for batch in batches) < changes:
        batches += stream.read(250)
    return batches[-1]._replace(changes=[change for batch in batches for change in batch.changes])


class Racing(Documents):
    """Documents with a writer that is quicker than the next query."""

    def __init__(self, databases: Databases) -> None:
        super().__init__(databases.raw)
        self._databases = databases
        self._revision = 100

    def fetch(
        self,
        collection: str,
        keys: Sequence[Any],
        at: Timestamp | None = None,
        only: Mapping[str, Any] | None = None,
    ) -> Snapshot:
        """Read, and change the group behind it."""
        snapshot = super().fetch(collection, keys, at, only)
        self._revision += 1
        change_group(self._databases, self._revision)
        return snapshot


def test_a_document_that_is_shown_later_takes_no_other_with_it(harness: Harness, stream: Stream) -> None:
    """Of a batch with a document that a job has read ahead, the others are shown as of the batch's end."""
    harness.databases.raw.orders.update_one({"_id": 1}, {"$set": {"revision": 2}})
    change_group(harness.databases, 2)
    batch = read(stream, 3)
    change_group(harness.databases, 3)
    horizon = Horizon(BEGINNING)
    horizon.note([("orders", 1)], deployment.head(harness.databases.client))
    derivation = Derivation(Documents(harness.databases.raw), harness.registry.by_source, 1, 100)
    assert revisions(derivation.prepare(batch, horizon)) == {2}


def test_collections_that_are_read_later_are_read_as_of_one_time(harness: Harness, stream: Stream) -> None:
    """After a restart, when every document may be shown later, all collections show the same moment."""
    change_group(harness.databases, 2)
    batch = read(stream, 2)
    horizon = Horizon(deployment.head(harness.databases.client))
    derivation = Derivation(Racing(harness.databases), harness.registry.by_source, 1, 100)
    assert len(revisions(derivation.prepare(batch, horizon))) == 1
