"""Records that differ in a shadow: they are told of once it has taken its collection's place."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from bson import ObjectId, encode
from pymongo.client_session import ClientSession
from pymongo.database import Database

from distributary.change import LENIENT
from distributary.ports.events import UntoldChunk

UNTOLD = "untold"

#: Keys in one chunk, and their bytes; a chunk is a document, and the one at hand lies in its job, too.
CHUNK_KEYS = 1000
CHUNK_BYTES = 4 * 1024 * 1024


class MongoUntold:
    """The keys that one worker has to tell of, in a state database; see `Untold`."""

    def __init__(self, state: Database[Any], worker: str) -> None:
        self._collection = state.get_collection(UNTOLD, LENIENT)
        self._worker = worker

    def prepare(self) -> None:
        """Create the collection, and its index."""
        self._collection.create_index([("worker", 1), ("shadow", 1), ("_id", 1)], name="shadow")

    def note(self, shadow: str, keys: Sequence[Any], session: ClientSession) -> None:
        """Keep keys of a shadow in the session's transaction."""
        self._collection.insert_many(
            (
                {"_id": ObjectId(), "worker": self._worker, "shadow": shadow, "keys": some}
                for some in _cut(keys)
            ),
            session=session,
        )

    def next(self, shadow: str, after: tuple[Any, ...]) -> UntoldChunk | None:
        """Give the next keys of a shadow; None at the end."""
        query: dict[str, Any] = {"worker": self._worker, "shadow": shadow}
        if after:
            query["_id"] = {"$gt": after[0]}
        found = self._collection.find_one(query, sort=[("_id", 1)])
        return UntoldChunk((found["_id"],), found["keys"]) if found else None

    def forget(self, shadow: str, session: ClientSession) -> None:
        """Forget the keys of a shadow, in the session's transaction."""
        self._collection.delete_many({"worker": self._worker, "shadow": shadow}, session=session)

    def others(self, shadows: Collection[str]) -> bool:
        """Whether there are keys of other shadows than these."""
        return self._collection.find_one(self._beside(shadows), {"_id": 1}) is not None

    def keep(self, shadows: Collection[str], session: ClientSession) -> None:
        """Forget the keys of other shadows than these, in the session's transaction."""
        self._collection.delete_many(self._beside(shadows), session=session)

    def _beside(self, shadows: Collection[str]) -> dict[str, Any]:
        return {"worker": self._worker, "shadow": {"$nin": list(shadows)}}


def _cut(keys: Sequence[Any]) -> Iterator[list[Any]]:
    """Cut keys into chunks."""
    some: list[Any] = []
    size = 0
    for key in keys:
        size += len(encode({"": key}, codec_options=LENIENT))
        if some and (len(some) >= CHUNK_KEYS or size > CHUNK_BYTES):
            yield some
            some, size = [], 0
        some.append(key)
    if some:
        yield some
