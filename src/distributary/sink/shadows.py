"""What goes into the shadows of collections from the collections themselves, record by record."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from distributary.change import Identity, identity
from distributary.chunks import chunks
from distributary.excerpt import key_of
from distributary.parts import is_parts, names_part, shared_of
from distributary.ports.records import Behind
from distributary.sink.databases import QUERY_KEYS, Databases
from distributary.sink.shared import SharedRecords
from distributary.sink.stored import up_to_bound, within_bounds


class Shadows:
    """Carries records from collections into others, inside the caller's transaction."""

    def __init__(self, databases: Databases, shared: SharedRecords) -> None:
        self._databases = databases
        self._shared = shared

    def carry(
        self, transform: str, keys: Sequence[Any], shadows: Mapping[str, str], *, missing: bool
    ) -> None:
        """Let documents have in the shadows what they have in the collections; see `Sink.carry`."""
        for some in chunks(keys, QUERY_KEYS):
            wanted = self._without(transform, some, shadows.values()) if missing else some
            query = {"_src.by": transform, "_src.key": {"$in": wanted}}
            for collection, shadow in shadows.items():
                self._carry(query, len(wanted), collection, shadow, shadows)

    def _without(self, transform: str, keys: Sequence[Any], collections: Iterable[str]) -> list[Any]:
        """Give those of the source keys for which a transform has no record in these collections."""
        left = {identity(key): key for key in keys}
        for collection in collections:
            query = {"_src.by": transform, "_src.key": {"$in": list(left.values())}}
            found = self._databases[collection].find(query, {"_src.key": 1}, session=self._databases.session)
            for each in found:
                left.pop(identity(each["_src"]["key"]), None)
        return list(left.values())

    def _carry(
        self, query: dict[str, Any], documents: int, collection: str, shadow: str, shadows: Mapping[str, str]
    ) -> None:
        databases = self._databases
        before = list(databases.read(shadow, query)) if is_parts(collection) else []
        databases[shadow].delete_many(query, session=databases.session)
        records = within_bounds(databases.read(collection, query), documents)
        there = {"_id": {"$in": [each.key for each in records]}}
        taken = {each.place[1] for each in databases.read(shadow, there)}
        databases.insert(shadow, [each.raw for each in records if each.place[1] not in taken])
        if is_parts(collection):
            keys = [each.key["k"] for each in before + records]
            self._shared.assemble(shadows[shared_of(collection)], keys, parts=shadow)

    def copy(self, name: str, onto: str, after: Behind, limit: int, shared: str | None) -> Behind:
        """Copy the next records into another collection; see `Sink.copy`."""
        records: dict[Identity, bytes] = {}
        behind: Behind = ()
        for raw, full in up_to_bound(self._databases.read_next(name, after, limit)):
            key = key_of(raw)
            records[identity(key)] = raw
            behind = (key,) if full or len(records) == limit else ()
        keys = [key_of(raw) for raw in records.values()]
        self._databases.insert(onto, self._new(onto, records, keys))
        if shared is not None:
            self._shared.assemble(shared, [key["k"] for key in keys if names_part(key)], parts=onto)
        return behind

    def _new(self, onto: str, records: dict[Identity, bytes], keys: Sequence[Any]) -> list[bytes]:
        """Give those of the records whose key is free in a collection."""
        query = {"_id": {"$in": list(keys)}}
        found = self._databases[onto].find(query, {"_id": 1}, session=self._databases.session)
        taken = {identity(each["_id"]) for each in found}
        return [raw for key, raw in records.items() if key not in taken]
