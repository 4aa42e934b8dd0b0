"""What writes touch: groups of rollups, of records as they were and as they are, and records that are published."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from distributary.change import Identity, identity
from distributary.derive.plan import Desired, Plan, Stored
from distributary.derive.rollup import Rollup, group_of
from distributary.excerpt import excerpt
from distributary.parts import is_parts, names_part, shared_of

#: Groups by their identity.
Groups = dict[Identity, Any]


class Touched:
    """Collects the groups of rollups whose records are written or removed: those of before and of now."""

    def __init__(self, rollups: Iterable[Rollup]) -> None:
        self._over: dict[str, list[Rollup]] = defaultdict(list)
        for rollup in rollups:
            self._over[rollup.over.name].append(rollup)
        self._fields = {
            name: {path.partition(".")[0] for each in some for path in each.paths}
            for name, some in self._over.items()
        }
        self.groups: dict[str, Groups] = defaultdict(dict)

    def fields(self, collection: str) -> Collection[str]:
        """Give the top-level fields of a collection's records that say in which groups they are."""
        return self._fields.get(collection, ())

    def note(self, collection: str, document: Mapping[str, Any] | bytes) -> None:
        """Note the groups of a record, decoded or in BSON, as it was or as it is."""
        rollups = self._over.get(collection)
        if not rollups or not document:
            return
        fields = excerpt(document, self._fields[collection]) if isinstance(document, bytes) else document
        for rollup in rollups:
            group = group_of(rollup, fields)
            if group is not None:
                self.groups[rollup.name][identity(group)] = group

    def note_plan(self, plan: Plan, known: Iterable[Stored]) -> None:
        """Note the groups of what a plan writes and removes; `known` has what it replaces and deletes."""
        before = {record.place: record.raw for record in known if record.place[0] in self._over}
        for name in self._over:
            for record, _ in plan.inserts.get(name, ()):
                self.note(name, record.document)
            for record, _ in plan.replaces.get(name, ()):
                self.note(name, record.document)
                self.note(name, before.get(record.place, b""))
            for key in plan.deletes.get(name, ()):
                self.note(name, before.get((name, identity(key)), b""))


class Changed:
    """Collects the keys of records that are written or removed, in the derived collections that are published."""

    def __init__(self, published: Collection[str]) -> None:
        self._published = published
        self.keys: dict[str, dict[Identity, Any]] = defaultdict(dict)

    def note(self, collection: str, key: Any) -> None:
        """Note a record, or the shared record of a part."""
        if is_parts(collection):
            if not names_part(key):
                return
            collection, key = shared_of(collection), key["k"]
        if collection in self._published:
            self.keys[collection][identity(key)] = key

    def note_all(self, collection: str, keys: Iterable[Any]) -> None:
        """Note some records."""
        for key in keys:
            self.note(collection, key)

    def note_plan(self, plan: Plan) -> None:
        """Note what a plan writes and removes."""
        for written in (plan.inserts, plan.replaces) if self._published else ():
            for collection, writes in written.items():
                for record, _ in writes:
                    self.note(collection, record.key)
        for collection, keys in plan.deletes.items() if self._published else ():
            self.note_all(collection, keys)

    def note_desired(self, desired: Iterable[Desired]) -> None:
        """Note what documents yield, changed or not."""
        for each in desired:
            for record in each.records:
                self.note(record.collection, record.key)
