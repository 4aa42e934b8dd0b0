"""Comparing what documents yield with what is stored for them, one slice at a time; no I/O."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from bson import decode, encode

from distributary.change import CODEC, Version, identity
from distributary.derive.plan import Desired, Owner, Stored
from distributary.derive.records import ENGINE_FIELD, EncodedRecord, Place
from distributary.parts import is_parts
from distributary.sink.stored import is_foreign


class Kind(StrEnum):
    """How stored differs from yielded.

    `missing`: yielded and not stored. `stale`: stored under its key with another content or owner.
    `orphaned`: stored, and yielded by nobody. `failing`: the document cannot be derived and is not parked.
    """

    MISSING = "missing"
    STALE = "stale"
    ORPHANED = "orphaned"
    FAILING = "failing"


class Difference(NamedTuple):
    """One record that is not as a recomputation has it.

    `transform` and `source_key` own it, or should; there is no transform where nobody does. `fields` are the
    names of those that differ. `holder` is the transform and source key that it is wrongly stored for.
    `foreign` says that the engine would not replace or remove it by itself. One that is failing has no record.
    """

    kind: Kind
    collection: str
    key: Any
    transform: str | None = None
    source_key: Any = None
    fields: tuple[str, ...] = ()
    holder: tuple[str, Any] | None = None
    foreign: bool = False
    repaired: bool = False

    @property
    def place(self) -> Place:
        """Where it is; of one that is failing, who does."""
        if self.kind is Kind.FAILING:
            return ("", (self.transform, identity(self.source_key)))
        return (self.collection, identity(self.key))

    def owners(self) -> Iterator[tuple[str, Any]]:
        """Give everyone who has to do with it: who wrongly holds it, and whose it is."""
        if self.holder is not None:
            yield self.holder
        if self.transform is not None:
            yield (self.transform, self.source_key)


class Found(NamedTuple):
    """A stored record; `holder` is the transform and source key in it, None where it has no usable ones."""

    record: Stored
    holder: tuple[str, Any] | None

    @classmethod
    def of(cls, record: Stored, known: Mapping[str, Collection[str]]) -> "Found":
        """Read who holds a record; `known` are the collections that each transform may have written."""
        document = decode(record.raw, CODEC)
        if is_foreign(record.collection, document, known):
            return cls(record, None)
        origin = document[ENGINE_FIELD]
        return cls(record, (origin["by"], origin["key"]))


class _Wanted(NamedTuple):
    item: Desired
    record: EncodedRecord


class Comparison:
    """What some documents yield, held against what is stored.

    First it is given every record that is stored for these documents, then those that lie under the keys in
    `unseen`. `newest` is the newest version that anything stored can have. `records` are all that is yielded, of
    which so many are `parts` of shared records.
    """

    def __init__(self, desired: Iterable[Desired], newest: Version) -> None:
        self._newest = newest
        self._items = {item.owner: item for item in desired}
        self._unseen = {
            (item.owner, record.place): _Wanted(item, record)
            for item in self._items.values()
            for record in item.records
        }
        self.records = len(self._unseen)
        self.parts = sum(is_parts(place[0]) for _, place in self._unseen)
        self.found: dict[Owner, list[Difference]] = {}

    def owned(self, record: Stored) -> None:
        """Compare a record that is stored for one of the documents; others are ignored."""
        item = self._items.get(record.owner) if record.owner else None
        if item is None:
            return
        wanted = self._unseen.pop((item.owner, record.place), None)
        frozen = record.version > self._newest
        fields = differing(record, wanted.record) if wanted else ()
        if wanted is None or fields or frozen:
            kind = Kind.ORPHANED if wanted is None else Kind.STALE
            self._add(item, kind, record, fields + (ENGINE_FIELD,) * frozen, foreign=frozen)

    def unseen(self) -> dict[str, list[Any]]:
        """Give the keys, by derived collection, of what is yielded and was not among the documents' records."""
        keys: dict[str, dict[Place, Any]] = {}
        for (_, place), wanted in self._unseen.items():
            keys.setdefault(place[0], {})[place] = wanted.record.key
        return {collection: list(some.values()) for collection, some in keys.items()}

    def under(self, found: Iterable[Found]) -> None:
        """Compare what lies under the unseen keys, all of it; what is not there is missing."""
        there = {each.record.place: each for each in found}
        for (_, place), wanted in self._unseen.items():
            other = there.get(place)
            if other is None:
                self._add(wanted.item, Kind.MISSING, wanted.record)
            else:
                fields = (ENGINE_FIELD, *differing(other.record, wanted.record))
                self._add(wanted.item, Kind.STALE, wanted.record, fields, other.holder, other.holder is None)

    def _add(
        self,
        item: Desired,
        kind: Kind,
        record: Stored | EncodedRecord,
        fields: tuple[str, ...] = (),
        holder: tuple[str, Any] | None = None,
        foreign: bool = False,  # noqa: FBT001, FBT002 - a field of the difference
    ) -> None:
        difference = Difference(
            kind, record.collection, record.key, item.transform, item.key, fields, holder, foreign
        )
        self.found.setdefault(item.owner, []).append(difference)


def differing(stored: Stored, wanted: EncodedRecord) -> tuple[str, ...]:
    """Name the fields that differ, in value, type or the order within; all of them when only their order does."""
    if stored.shows(wanted):
        return ()
    body, end = stored.body, len(wanted.document) - wanted.tail
    if body == wanted.body and stored.raw[4 : end - 1] == wanted.document[4 : end - 1]:
        return ()
    before, after = decode(body, CODEC) if body else {}, decode(wanted.body, CODEC)
    names = [name for name in after | before if _encoded(before, name) != _encoded(after, name)]
    return tuple(names or after)


def _encoded(document: Mapping[str, Any], name: str) -> bytes | None:
    return encode({name: document[name]}, codec_options=CODEC) if name in document else None
