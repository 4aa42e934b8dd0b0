"""Writing shared records: as the plan changes their parts, or whole from what the parts are."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from distributary.change import identity
from distributary.chunks import chunks
from distributary.derive.plan import Plan
from distributary.derive.records import ENGINE_FIELD
from distributary.derive.shared import Delta, Whole, assembled, deltas, mark, of_keys
from distributary.derive.touched import Changed, Touched
from distributary.excerpt import key_of
from distributary.parts import is_parts, parts_of, shared_of
from distributary.ports.records import Behind
from distributary.sink.attempt import judged_shared
from distributary.sink.databases import AS_UPDATE, QUERY_KEYS, Databases, by_bytes
from distributary.sink.stored import read_parts

#: Shared records that are put together at once.
ASSEMBLED = 200

#: A shared record has its key, the engine's field, and nothing else.
_HAS_NOTHING = {"$expr": {"$lte": [{"$size": {"$objectToArray": "$$ROOT"}}, 2]}}


class SharedRecords:
    """The shared records of derived collections, beside the parts that they follow from."""

    def __init__(self, databases: Databases) -> None:
        self._databases = databases

    def follow(self, plan: Plan, shadows: Mapping[str, str], touched: Touched | None) -> None:
        """Change the shared records as the plan changes their parts; `shadows` holds where, if it is not themselves."""
        lives = {shadow: name for name, shadow in shadows.items()}
        for parts in sorted(_parts_in(plan)):
            live, changed = shared_of(lives.get(parts, parts)), deltas(plan, parts)
            keys = [delta.key for delta in changed]
            self._note_groups(live, keys, touched)
            self._send(shadows.get(live, live), changed)
            self._note_groups(live, keys, touched)

    def _send(self, collection: str, changed: Sequence[Delta]) -> None:
        """Send what changes in shared records, and remove those that have nothing left."""
        updates = [(update, delta) for delta in changed for update in delta.updates()]
        for some in by_bytes(updates, lambda each: each[1].size):
            if error := self._databases.send(collection, AS_UPDATE, [update for update, _ in some]):
                raise judged_shared(error, collection, some[error["index"]][1])
        emptied = [delta.key for delta in changed if delta.removes]
        self._databases.delete(collection, emptied, _HAS_NOTHING)

    def next(self, collection: str, after: Behind, limit: int) -> list[Any]:
        """Give the keys of the next shared records in key order."""
        query, fields = {f"{ENGINE_FIELD}.shared": True}, {"_id": 1}
        return [key_of(raw) for raw in self._databases.read_next(collection, after, limit, query, fields)]

    def assemble(
        self,
        collection: str,
        keys: Sequence[Any],
        touched: Touched | None = None,
        changed: Changed | None = None,
        parts: str | None = None,
    ) -> None:
        """Put shared records together anew from their parts; those without any are removed."""
        self._note_groups(collection, keys, touched)
        distinct = list({identity(key): key for key in keys}.values())
        for some in chunks(distinct, ASSEMBLED):
            altered = self._assemble(collection, parts or parts_of(collection), some)
            if changed is not None:
                changed.note_all(collection, altered)
        self._note_groups(collection, keys, touched)

    def _assemble(self, collection: str, parts: str, keys: Sequence[Any]) -> list[Any]:
        """Put some together; gives the keys of those that are not what they were, and of those that are gone."""
        databases = self._databases
        missing = {identity(key): key for key in keys}
        altered = []
        for whole in assembled(read_parts(databases.state, parts, of_keys(keys), databases.session)):
            del missing[identity(whole.key)]
            if self._put(collection, whole):
                altered.append(whole.key)
        gone = list(missing.values())
        databases.delete(collection, gone)
        return altered + gone

    def _put(self, collection: str, whole: Whole) -> bool:
        """Store a shared record; False when it was stored like that."""
        document = {"_id": whole.key, **whole.fields, ENGINE_FIELD: mark(whole.version)}
        done = self._databases[collection].replace_one(
            {"_id": whole.key}, document, upsert=True, session=self._databases.session
        )
        return bool(done.modified_count or done.upserted_id is not None)

    def _note_groups(self, collection: str, keys: Sequence[Any], touched: Touched | None) -> None:
        """Note the groups of rollups that shared records are in."""
        fields: Collection[str] = touched.fields(collection) if touched else ()
        if touched is None or not fields:
            return
        projection = dict.fromkeys(fields, 1)
        for some in chunks(keys, QUERY_KEYS):
            query = {"_id": {"$in": some}}
            found = self._databases[collection].find(query, projection, session=self._databases.session)
            for document in found:
                touched.note(collection, document)


def _parts_in(plan: Plan) -> set[str]:
    return {each for some in (plan.deletes, plan.replaces, plan.inserts) for each in some if is_parts(each)}
