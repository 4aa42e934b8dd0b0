"""How every domain's documents come into a raw database: loaded, told as a story, and written as life goes on."""

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby, islice
from random import Random
from threading import Event
from typing import Any

from bson import Timestamp
from pymongo import DeleteOne, InsertOne, ReplaceOne, UpdateOne
from pymongo.client_session import ClientSession
from pymongo.database import Database

from distributary.sample.dirt import Customers, Write, arrival
from distributary.sample.people import SEED, Document, chance, few

BATCH = 2_000

_KINDS = ("insert", "replace", "update", "delete")

#: A write that is still to be done, and what there is to tell of it.
Chapter = tuple[str, Callable[[], object]]

#: Is told after every batch how many documents lie in the database, of how many.
Progress = Callable[[int, int], object]


#: Gives the collections with their documents as they are in the end, in the sizes that are asked for.
DataSet = Callable[[Mapping[str, int]], Iterable[tuple[str, Iterable[Document]]]]


def load(
    sizes_at: Callable[[float], dict[str, int]],
    data_set: DataSet,
    customers: Customers,
    database: Database[Document],
    scale: float = 1.0,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Insert a data set and give the number of documents by collection.

    `scale` multiplies the sizes. The collections must be empty. `progress` is told after every batch how many documents
    lie in the database, of how many.
    """
    sizes = sizes_at(scale)
    _fill(database, arrival(data_set(sizes), customers, SEED), sum(sizes.values()), progress)
    return sizes


def _fill(
    database: Database[Document],
    writes: Iterable[Write],
    whole: int,
    progress: Progress | None,
) -> None:
    """Do writes, which leave `whole` documents behind, batch by batch.

    Within a batch inserts go first and deletes last, as those of `arrival` may: a command for each run of one kind.
    """
    loaded, rest = 0, iter(writes)
    while batch := list(islice(rest, BATCH)):
        batch.sort(key=lambda write: _KINDS.index(write.operation))
        for name, some in groupby(batch, lambda write: write.collection):
            done = database[name].bulk_write([*map(_request, some)])
            loaded += done.inserted_count - done.deleted_count
        if progress:
            progress(min(loaded, whole), whole)


def _request(
    write: Write,
) -> InsertOne[Document] | ReplaceOne[Document] | UpdateOne | DeleteOne:
    """Give a write as the driver takes it."""
    if write.operation == "insert":
        return InsertOne(write.document)
    if write.operation == "replace":
        return ReplaceOne({"_id": write.key}, write.document)
    if write.operation == "update":
        return UpdateOne({"_id": write.key}, {"$set": write.document})
    return DeleteOne({"_id": write.key})


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
    acting: "Callable[[Database[Document], ClientSession, Random], Acting]",
    database: Database[Document],
    seed: int,
    stop: Event,
    rate: float,
    wrote: Callable[[str, Timestamp], object] | None = None,
) -> dict[str, int]:
    """Let who acts on a data set that is loaded write until `stop` is set: `rate` writes per second, one by one.

    `wrote` is told each write's operation and cluster time, in the thread of the caller, once the write is
    acknowledged. When the server cannot keep up, writes follow without a pause. Gives the number of writes by
    operation.
    """
    counts: Counter[str] = Counter()
    with database.client.start_session() as session:
        act, started = acting(database, session, chance(seed, "live")).act, time.monotonic()
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
        self._merging: Iterator[str] = iter(())

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
        return self._delete(collection, self._forget(collection))

    def merge(self, customers: Customers) -> str:
        """Do the next write by which two customers become one: their documents move, then one of the two is gone."""
        if (done := next(self._merging, None)) is None:
            self._merging = self._merge(customers)
            done = next(self._merging)
        return done

    def _merge(self, customers: Customers) -> Iterator[str]:
        gone, stays = self._forget(customers.collection), self.any_of(customers.collection)
        for name, link in customers.links.items():
            found = self.database[name].find({link: gone}, {"_id": 1}, session=self.session).sort("_id")
            for key in [each["_id"] for each in found]:
                yield self.update(name, key, {"$set": {link: stays}})
        yield self._delete(customers.collection, gone)

    def _forget(self, collection: str) -> Any:
        """Draw the key of a document to which nothing more happens than that it goes."""
        keys = self.keys[collection]
        return keys.pop(self.rng.randrange(len(keys)))

    def _delete(self, collection: str, key: Any) -> str:
        self.database[collection].delete_one({"_id": key}, session=self.session)
        return "delete"

    def _all_keys(self, collection: str) -> list[Any]:
        found = self.database[collection].find({}, {"_id": 1}, session=self.session).sort("_id")
        return [document["_id"] for document in found]
