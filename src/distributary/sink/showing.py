"""Reading records for those who are told of them."""

from collections.abc import Iterator, Sequence
from typing import Any

from distributary.change import identity
from distributary.chunks import chunks
from distributary.derive.touched import Changed
from distributary.excerpt import key_of
from distributary.ports.records import Behind, RecordState, Shown
from distributary.sink.databases import QUERY_KEYS, Databases
from distributary.sink.stored import LEARN_BYTES, documents_in, refuse_more, up_to_bound


class Showing:
    """Gives the states of records inside the caller's transaction."""

    def __init__(self, databases: Databases) -> None:
        self._databases = databases

    def next(self, collection: str, after: Behind, limit: int) -> Shown:
        """Give the next records in key order, as many as may be held."""
        states: list[RecordState] = []
        behind: Behind = ()
        for raw, full in up_to_bound(self._databases.read_next(collection, after, limit)):
            states.append(RecordState(collection, key_of(raw), raw))
            behind = (states[-1].key,) if full or len(states) == limit else ()
        return Shown(states, behind)

    def some(self, collection: str, keys: Sequence[Any], limit: int) -> Shown:
        """Give the records with the first of these keys, as many as may be held."""
        states: list[RecordState] = []
        size = 0
        for key in keys[:limit]:
            states.append(self._one(collection, key))
            size += len(states[-1].document or b"")
            if size > LEARN_BYTES:
                break
        return Shown(states, tuple(keys[len(states) :]))

    def _one(self, collection: str, key: Any) -> RecordState:
        for raw in self._databases.read_next(collection, (), 1, {"_id": key}):
            return RecordState(collection, key_of(raw), raw)
        return RecordState(collection, key, None)

    def changed(self, changed: Changed, documents: int = 1) -> list[RecordState]:
        """Give the records that changed, each with its key, or without content when it is gone.

        Raises `TooMuch` where those of several documents are more than may be held.
        """
        states: list[RecordState] = []
        size = 0
        for collection, keys in changed.keys.items():
            for some in chunks(list(keys.values()), QUERY_KEYS):
                for state in self._states(collection, some):
                    states.append(state)
                    size += len(state.document or b"")
                    refuse_more(size, documents)
        return states

    def _states(self, collection: str, keys: Sequence[Any]) -> Iterator[RecordState]:
        gone = {identity(key): key for key in keys}
        for reply in self._databases.replies(collection, {"_id": {"$in": list(keys)}}):
            for raw in documents_in(reply):
                key = key_of(raw)
                del gone[identity(key)]
                yield RecordState(collection, key, raw)
        for key in gone.values():
            yield RecordState(collection, key, None)
