"""How every domain's documents come into a raw database: loaded, told as a story, and written as life goes on."""

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from random import Random
from threading import Event
from typing import Any

from bson import Timestamp
from pymongo.client_session import ClientSession
from pymongo.database import Database

from distributary.sample.people import Document, few

BATCH = 2_000

#: A write that is still to be done, and what there is to tell of it.
Chapter = tuple[str, Callable[[], object]]

#: Is told after every batch how many documents lie in the database, of how many.
Progress = Callable[[int, int], object]


def fill(
    database: Database[Document],
    data_set: Iterable[tuple[str, Iterable[Document]]],
    whole: int,
    progress: Progress | None,
) -> None:
    """Insert collections with their documents, `whole` of them together."""
    loaded = 0
    for name, documents in data_set:
        for batch in _batches(documents):
            database[name].insert_many(batch, ordered=False)
            loaded += len(batch)
            if progress:
                progress(loaded, whole)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    rest = iter(documents)
    while batch := list(islice(rest, BATCH)):
        yield batch


def tell(
    database: Database[Document], chapters: Callable[[ClientSession], Iterator[Chapter]]
) -> Iterator[tuple[str, Timestamp]]:
    """Do one write after the other; give what each was, and its cluster time."""
    with database.client.start_session() as session:
        for told, write in chapters(session):
            write()
            assert session.operation_time
            yield told, session.operation_time


def keep_writing(
    session: ClientSession,
    act: Callable[[], str],
    stop: Event,
    rate: float,
    wrote: Callable[[str, Timestamp], object] | None,
) -> dict[str, int]:
    """Act until `stop` is set: `rate` writes per second, one after the other.

    `wrote` is told each write's operation and cluster time, in the thread of the caller, once the write is
    acknowledged. When the server cannot keep up, writes follow without a pause. Gives the number of writes by
    operation.
    """
    counts: Counter[str] = Counter()
    started = time.monotonic()
    while not stop.wait(max(0.0, started + counts.total() / rate - time.monotonic())):
        operation = act()
        counts[operation] += 1
        if wrote and session.operation_time:
            wrote(operation, session.operation_time)
    return dict(counts)


class Acting(ABC):
    """Who acts on raw collections; every act is one write of a session. `keys` are those of the documents there are."""

    def __init__(
        self, database: Database[Document], session: ClientSession, rng: Random, names: Iterable[str]
    ) -> None:
        self.database, self.session, self.rng = database, session, rng
        self.keys = {name: self._all_keys(name) for name in names}

    @abstractmethod
    def habits(self) -> dict[Callable[[], str], int]:
        """Give what is done, and how often in a hundred times."""

    def act(self) -> str:
        """Do one write and give its operation: insert, update, replace or delete."""
        acts, weights = zip(*self.habits().items(), strict=True)
        operation: str = self.rng.choices(acts, weights)[0]()
        return operation

    def any_of(self, collection: str) -> Any:
        """Draw the key of a document."""
        return self.rng.choice(self.keys[collection])

    def recent(self, collection: str) -> Any:
        """Draw the key of a document, new ones more often."""
        keys = self.keys[collection]
        return keys[-1 - few(self.rng, len(keys), skew=5)]

    def read(self, collection: str, key: Any) -> Document:
        """Give a document."""
        found = self.database[collection].find_one({"_id": key}, session=self.session)
        if found is None:
            raise LookupError(f"{collection} has no {key!r}: somebody else writes to the sample data.")
        return found

    def insert(self, collection: str, document: Document) -> str:
        """Insert a document."""
        self.database[collection].insert_one(document, session=self.session)
        self.keys[collection].append(document["_id"])
        return "insert"

    def update(self, collection: str, key: Any, change: Document) -> str:
        """Change a document; its revision counts up, so that no update leaves it as it was."""
        counted = {**change, "$inc": {"revision": 1}}
        self.database[collection].update_one({"_id": key}, counted, session=self.session)
        return "update"

    def replace(self, collection: str, document: Document) -> str:
        """Replace a document by another state of it."""
        self.database[collection].replace_one({"_id": document["_id"]}, document, session=self.session)
        return "replace"

    def delete(self, collection: str) -> str:
        """Delete a document."""
        keys = self.keys[collection]
        key = keys.pop(self.rng.randrange(len(keys)))
        self.database[collection].delete_one({"_id": key}, session=self.session)
        return "delete"

    def _all_keys(self, collection: str) -> list[Any]:
        found = self.database[collection].find({}, {"_id": 1}, session=self.session).sort("_id")
        return [document["_id"] for document in found]
