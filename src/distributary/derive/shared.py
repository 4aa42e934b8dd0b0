"""Shared records: one document of what several owners yield, kept beside their parts.

Each part, a section or an item, is a record of its own in the collection of parts: with its owner, its version and
one key that one owner can have. So all that holds for records holds for parts, and the shared record follows from
them: in a batch by what changed (`deltas`), anew from all of them (`assembled`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

from bson import MaxKey, MinKey, encode

from distributary.change import CODEC, Identity, Version, identity
from distributary.derive.plan import UNKNOWN_VERSION, Desired, Plan
from distributary.derive.records import ENGINE_FIELD, EncodedRecord, RawDocument
from distributary.excerpt import behind_key

#: Replaced items of one list that are put in their places one by one; more are taken out and put in together.
IN_PLACE = 3

Update = dict[str, Any]

#: The stage behind which a document is a shared record, or empty.
_ANEW = {"$replaceWith": {"$cond": [{"$eq": [f"${ENGINE_FIELD}.shared", True]}, "$$ROOT", {"_id": "$_id"}]}}


class Part(NamedTuple):
    """A section (`item` is empty) or an item of a shared record, `shown` as the record shows it."""

    key: Any
    name: str
    item: tuple[Any, ...]
    shown: RawDocument


def part_of(key: Mapping[str, Any], document: bytes) -> Part:
    """Read a part, of which the key is decoded already."""
    return Part(key["k"], key["s"], (key["i"],) if "i" in key else (), RawDocument(behind_key(document)))


class Whole(NamedTuple):
    """A shared record: its fields without `_id` and the engine's, and the newest version of its parts."""

    key: Any
    fields: dict[str, Any]
    version: Version


@dataclass(slots=True)
class Delta:
    """What a batch changes in one shared record; `culprits` are the documents that do so."""

    key: Any
    version: Version = UNKNOWN_VERSION
    culprits: list[Desired] = field(default_factory=list)
    removed: dict[str, list[Any]] = field(default_factory=dict)
    replaced: dict[str, list[tuple[Any, RawDocument]]] = field(default_factory=dict)
    added: dict[str, list[RawDocument]] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    sections: dict[str, RawDocument] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """What its statements take at most, in bytes, about."""
        items = [item for some in self.added.values() for item in some]
        replaced = [item for some in self.replaced.values() for _, item in some]
        return sum(len(each.raw) for each in [*items, *replaced, *self.sections.values()])

    @property
    def removes(self) -> bool:
        """Whether the record may have nothing left."""
        return bool(self.gone or self.removed)

    def updates(self) -> Iterator[Update]:
        """Give the statements of an `update` command: one for items that are replaced in place, one for the rest.

        The rest is a pipeline, of which the server's history keeps what differs and not whole lists. A record of its
        own under this key, which other code has left, gives way; where nothing is added, it stays as it is.
        """
        if self.replaced:
            yield self._replacing()
        if self.sections or self.added:
            yield {"q": {"_id": self.key}, "u": [_ANEW, *self._stages()], "upsert": True}
        elif self.gone or self.removed or not self.replaced:
            yield {"q": {"_id": self.key, f"{ENGINE_FIELD}.shared": True}, "u": list(self._stages())}

    def _replacing(self) -> Update:
        values: dict[str, Any] = {ENGINE_FIELD: mark(self.version)}
        filters: list[dict[str, Any]] = []
        for name, items in self.replaced.items():
            for key, item in items:
                place = f"i{len(filters)}"
                values[f"{name}.$[{place}]"] = item
                filters.append({f"{place}._id": key})
        return {"q": {"_id": self.key}, "u": {"$set": values}, "arrayFilters": filters}

    def _stages(self) -> Iterator[dict[str, Any]]:
        if self.gone:
            yield {"$unset": self.gone}
        values: dict[str, Any] = {name: {"$literal": value} for name, value in self.sections.items()}
        for name in dict.fromkeys([*self.removed, *self.added]):
            values[name] = _list(name, self.removed.get(name, ()), self.added.get(name, ()))
        yield {"$set": {**values, ENGINE_FIELD: {"$literal": mark(self.version)}}}


def _list(name: str, removed: Sequence[Any], added: Sequence[RawDocument]) -> dict[str, Any]:
    """Give the expression for a list without some items and with others; an empty one is absent.

    Items are mostly added behind all others, in which case nothing has to be sorted.
    """
    before: Any = {"$cond": [{"$isArray": f"${name}"}, f"${name}", []]}
    if removed:
        kept = {"$not": [{"$in": ["$$this._id", {"$literal": removed}]}]}
        before = {"$filter": {"input": before, "cond": kept}}
    if not added:
        return _let({"before": before}, {"$cond": [{"$eq": ["$$before", []]}, "$$REMOVE", "$$before"]})
    new: Any = {"$literal": added}
    if len(added) > 1:
        new = {"$sortArray": {"input": new, "sortBy": {"_id": 1}}}
    last, first = (
        _let({"item": {"$last": "$$before"}}, "$$item._id"),
        _let({"item": {"$first": "$$new"}}, "$$item._id"),
    )
    head = {"$filter": {"input": "$$before", "cond": {"$lt": ["$$this._id", "$$first"]}}}
    tail = {"$filter": {"input": "$$before", "cond": {"$gte": ["$$this._id", "$$first"]}}}
    between = {"$sortArray": {"input": {"$concatArrays": [tail, "$$new"]}, "sortBy": {"_id": 1}}}
    behind = {"$concatArrays": ["$$before", "$$new"]}
    merged = _let({"first": first}, {"$concatArrays": [head, between]})
    return _let({"before": before, "new": new}, {"$cond": [{"$lt": [last, first]}, behind, merged]})


def _let(variables: dict[str, Any], within: Any) -> dict[str, Any]:
    return {"$let": {"vars": variables, "in": within}}


def deltas(plan: Plan, parts: str) -> list[Delta]:
    """Give what a plan for a collection of parts changes in the shared records, removals first."""
    found: dict[Identity, Delta] = {}
    for key, desired in zip(plan.deletes.get(parts, ()), plan.removers.get(parts, ()), strict=True):
        _remove(_of(found, key["k"], desired), key)
    for record, desired in plan.replaces.get(parts, ()):
        _replace(_of(found, record.key["k"], desired), record)
    for record, desired in plan.inserts.get(parts, ()):
        _add(_of(found, record.key["k"], desired), record)
    for delta in found.values():
        _together(delta)
    return sorted(found.values(), key=lambda delta: not delta.removes)


def _of(found: dict[Identity, Delta], key: Any, desired: Desired) -> Delta:
    delta = found.setdefault(identity(key), Delta(key))
    delta.version = max(delta.version, desired.version)
    delta.culprits.append(desired)
    return delta


def _remove(delta: Delta, key: Mapping[str, Any]) -> None:
    if "i" in key:
        delta.removed.setdefault(key["s"], []).append(key["i"])
    else:
        delta.gone.append(key["s"])


def _replace(delta: Delta, record: EncodedRecord) -> None:
    part = part_of(record.key, record.document)
    if part.item:
        delta.replaced.setdefault(part.name, []).append((part.item[0], part.shown))
    else:
        delta.sections[part.name] = part.shown


def _add(delta: Delta, record: EncodedRecord) -> None:
    part = part_of(record.key, record.document)
    if part.item:
        delta.added.setdefault(part.name, []).append(part.shown)
    else:
        delta.sections[part.name] = part.shown


def _together(delta: Delta) -> None:
    """Take replaced items out and put them in again where they are many, or where others of their list go."""
    for name in list(delta.replaced):
        if len(delta.replaced[name]) > IN_PLACE or name in delta.removed:
            for key, item in delta.replaced.pop(name):
                delta.removed.setdefault(name, []).append(key)
                delta.added.setdefault(name, []).append(item)


def mark(version: Version) -> dict[str, Any]:
    """Give the engine's field of a shared record; who owns what of it is told with the parts."""
    return {"shared": True, "at": version.time, "epoch": version.epoch}


def is_shared(document: Mapping[str, Any]) -> bool:
    """Whether a derived document is a shared record, going by its engine's field."""
    origin = document.get(ENGINE_FIELD)
    return isinstance(origin, Mapping) and origin.get("shared") is True


def assembled(parts: Iterable[tuple[Part, Version]]) -> Iterator[Whole]:
    """Give each shared record; the parts come in the order of their keys, which is that of the items in a list."""
    for _, some in groupby(parts, key=lambda each: identity(each[0].key)):
        whole: Whole | None = None
        for part, version in some:
            whole = whole or Whole(part.key, {}, version)
            whole = whole._replace(version=max(whole.version, version))
            if part.item:
                whole.fields.setdefault(part.name, []).append(part.shown)
            else:
                whole.fields[part.name] = part.shown
        if whole is not None:
            yield whole


def encoded(record: Mapping[str, Any]) -> dict[str, bytes]:
    """Give the fields of a shared record in BSON, without the engine's, to be compared in any order."""
    return {
        name: encode({"": value}, codec_options=CODEC)
        for name, value in record.items()
        if name not in {"_id", ENGINE_FIELD}
    }


def differing(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[str, ...]:
    """Name the sections and lists of a shared record that differ."""
    before, after = encoded(stored), encoded(wanted)
    return tuple(name for name in after | before if before.get(name) != after.get(name))


def of_keys(keys: Sequence[Any]) -> dict[str, Any]:
    """Give the query for all parts of some shared records."""
    return {
        "$or": [{"_id": {"$gt": {"k": key, "s": MinKey()}, "$lt": {"k": key, "s": MaxKey()}}} for key in keys]
    }


def between(after: tuple[Any, ...], until: tuple[Any, ...]) -> dict[str, Any]:
    """Give the query for all parts of shared records behind one key, up to and with another one."""
    low = {"k": after[0], "s": MaxKey()} if after else MinKey()
    return {"_id": {"$gt": low, "$lt": {"k": until[0], "s": MaxKey()} if until else MaxKey()}}
