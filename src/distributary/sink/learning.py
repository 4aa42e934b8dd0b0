"""Learning what is stored before a batch is planned: only what documents may have, and only what is looked at."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from bson import Int64, ObjectId

from distributary.chunks import chunks
from distributary.derive.plan import Desired, Stored, stored
from distributary.derive.records import Place
from distributary.sink.databases import QUERY_KEYS, Databases
from distributary.sink.familiar import Familiar
from distributary.sink.stored import Document, documents_in, looked_at

#: Source keys of one type from which on it is asked first whether there is anything in their range, and those types.
SEEK_KEYS = 100
_ORDERED = frozenset({str, int, Int64, ObjectId})


class Learning:
    """Reads records inside the caller's transaction; `first` is entered for what keeps the server waiting."""

    def __init__(self, databases: Databases, first: AbstractContextManager[None]) -> None:
        self._databases = databases
        self._first = first

    def owned(
        self, desired: Iterable[Desired], collections: Mapping[str, Collection[str]]
    ) -> Iterator[Stored]:
        """Read what the owners have stored: one query per transform and derived collection."""
        keys: dict[str, list[Any]] = defaultdict(list)
        known = [item for item in desired if not item.fresh]
        for item in known:
            keys[item.transform].append(item.key)
        familiar = Familiar(known)
        for transform, owned in keys.items():
            for collection in collections.get(transform, ()):
                if self._is_empty(collection, transform, owned):
                    continue
                for some in chunks(owned, QUERY_KEYS):
                    query = {"_src.by": transform, "_src.key": {"$in": some}}
                    yield from self._find(collection, query, familiar)

    def _is_empty(self, collection: str, transform: str, keys: Sequence[Any]) -> bool:
        """Whether a transform has no record of any source key in the range of many: one look at the index tells.

        A backfill goes through the keys in their order, mostly where nothing is stored yet.
        """
        if len(keys) < SEEK_KEYS or len(types := set(map(type, keys))) > 1 or not types <= _ORDERED:
            return False
        query = {"_src.by": transform, "_src.key": {"$gte": min(keys), "$lte": max(keys)}}
        return (
            self._databases[collection].find_one(query, {"_id": 1}, session=self._databases.session) is None
        )

    def under_keys(self, desired: Iterable[Desired]) -> Iterator[Stored]:
        """Read what lies under the keys that the batch yields."""
        keys: dict[str, dict[Place, Any]] = defaultdict(dict)
        for item in desired:
            for record in item.records:
                keys[record.collection][record.collection, record.identity] = record.key
        for collection, wanted in keys.items():
            for some in chunks(list(wanted.values()), QUERY_KEYS):
                yield from self._databases.read(collection, {"_id": {"$in": some}})

    def _find(self, collection: str, query: Document, familiar: Familiar) -> Iterator[Stored]:
        for batch in self._databases.replies(collection, query):
            with self._first:
                for raw in documents_in(batch):
                    yield familiar.stored(collection, raw) or stored(collection, looked_at(raw), raw)
