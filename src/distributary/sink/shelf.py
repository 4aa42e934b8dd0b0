"""Whole derived collections: made, compared, put in another's place and dropped."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any
from uuid import UUID

from bson import MinKey, encode
from bson.raw_bson import RawBSONDocument
from pymongo import WriteConcern
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import OperationFailure

from distributary.change import CODEC, RAW, identity
from distributary.derive.plan import Owner, stored
from distributary.derive.records import ENGINE_FIELD
from distributary.derive.shared import differing, is_shared
from distributary.errors import CheckpointMoved
from distributary.excerpt import excerpt, key_of
from distributary.parts import is_parts
from distributary.ports.records import Behind
from distributary.ports.sink import Contrast, Others
from distributary.sink.collections import Indexes, prepare

#: Where the engine's field begins in a record; it is the last one.
_ENGINE_ELEMENT = b"\x03" + ENGINE_FIELD.encode() + b"\0"

#: NamespaceNotFound, NamespaceExists, CollectionUUIDMismatch.
_MOVED = frozenset({26, 48, 361})


class MongoShelf:
    """The collections of one derived database; `indexes` are those of the declared ones.

    Nothing here is part of a transaction, and so not fenced: what is replaced or dropped is known by its id.
    """

    def __init__(self, derived: Database[Any], state: Database[Any], indexes: Mapping[str, Indexes]) -> None:
        self._derived = derived.with_options(codec_options=CODEC, write_concern=WriteConcern("majority"))
        self._state = state.with_options(codec_options=CODEC, write_concern=WriteConcern("majority"))
        self._indexes = indexes

    def _in(self, collection: str) -> Database[Any]:
        """Give the database of a collection: parts of shared records are state."""
        return self._state if is_parts(collection) else self._derived

    def ids(self) -> dict[str, UUID]:
        """Give all collections with their ids, which they keep when they are renamed."""
        return {each["name"]: UUID(bytes=bytes(each["info"]["uuid"])) for each in self._collections()}

    def _collections(self) -> Iterator[Mapping[str, Any]]:
        derived = (each for each in self._derived.list_collections() if not is_parts(each["name"]))
        parts = (each for each in self._state.list_collections() if is_parts(each["name"]))
        return (each for each in chain(derived, parts) if each["type"] == "collection")

    def make(self, name: str, like: str) -> UUID:
        """Create an empty collection with the options and indexes of another and those that are declared for it.

        Those of an operator's hand are among them: validators, indexes of other users of the collection.
        """
        options: Mapping[str, Any] = next(
            (each["options"] for each in self._collections() if each["name"] == like), {}
        )
        database = self._in(name)
        database.create_collection(name, **options, check_exists=False)
        prepare(database, [(name, self._indexes.get(like, ()))])
        there = {tuple(each["key"].items()) for each in database[name].list_indexes()}
        others = [
            {part: value for part, value in each.items() if part not in {"v", "ns"}}
            for each in database[like].list_indexes()
            if tuple(each["key"].items()) not in there
        ]
        if others:
            database.command("createIndexes", name, indexes=others)
        return self.ids()[name]

    def put(self, name: str, known: UUID, onto: str, over: UUID | None) -> None:
        """Let a collection take another one's place in one step of the server.

        Raises `CheckpointMoved` when one of the names does not have the given id any more.
        """
        database = self._in(name)
        command = {
            "renameCollection": f"{database.name}.{name}",
            "to": f"{database.name}.{onto}",
            "dropTarget": over or False,
            "collectionUUID": known,
            "writeConcern": {"w": "majority"},
        }
        try:
            database.client.admin.command(command, codec_options=CODEC)
        except OperationFailure as error:
            if error.code not in _MOVED:
                raise
            raise CheckpointMoved(
                f"Collection {name!r} is not what it was any more.", "The checkpoint is loaded again."
            ) from error

    def drop(self, name: str, known: UUID) -> None:
        """Drop a collection if it is there and has this id."""
        try:
            command = {"drop": name, "collectionUUID": known, "writeConcern": {"w": "majority"}}
            self._in(name).command(command, codec_options=CODEC)
        except OperationFailure as error:
            if error.code not in _MOVED:
                raise

    def compare(
        self,
        old: str,
        new: str,
        after: tuple[Any, ...],
        limit: int,
        found: Contrast,
        others: Others | None = None,
    ) -> Behind:
        """Hold the next records of two collections in key order against each other, and count in `found`.

        The slice ends behind the last of at most `limit` keys of the new collection, or of the old one if that has
        more in between. Their keys are added to `others`, if they are wanted.
        """
        fresh = self._next(new, after, limit)
        behind = _behind(fresh)
        former = self._next(old, after, limit, behind if len(fresh) >= limit else ())
        if len(former) >= limit:
            behind = _behind(former)
            fresh = self._next(new, after, limit, behind)
        ended = len(fresh) < limit and len(former) < limit
        before = {identity(key_of(each)): each for each in former}
        for record in fresh:
            was, key = before.pop(identity(key_of(record)), None), key_of(record)
            differs = _contrast(was, record, found)
            if others is not None and differs:
                others.differing.append(key)
            elif others is not None and _owner(was) != _owner(record):
                others.moved.append(key)
        for left in before.values():
            found.note("removed", key_of(left))
        if others is not None:
            others.differing.extend(map(key_of, before.values()))
        return () if ended else behind

    def _next(
        self, name: str, after: tuple[Any, ...], limit: int, until: tuple[Any, ...] = ()
    ) -> list[bytes]:
        """Give the next records behind a key, at most `limit`, up to and with another key."""
        collection: Collection[Any] = self._in(name).get_collection(name, RAW)
        query = {"_id": {"$ne": after[0]}} if after else {}
        found = collection.find(query, limit=limit).hint([("_id", 1)]).sort("_id", 1)
        if after:
            found = found.min([("_id", after[0])])
        if until:
            found = found.max([("_id", until[0])])
        records = [] if until and isinstance(until[0], MinKey) else [bytes(each.raw) for each in found]
        if until and len(records) < limit and until != after:
            records += [bytes(each.raw) for each in collection.find({"_id": until[0]})]
        return records


def _behind(records: Sequence[bytes]) -> tuple[Any, ...]:
    return (key_of(records[-1]),) if records else ()


def _contrast(old: bytes | None, new: bytes, found: Contrast) -> bool:
    """Count a record, and tell whether it differs."""
    if old is None:
        found.note("added", key_of(new))
    elif _content(old) == _content(new) or _equals_shared(old, new):
        found.equal += 1
        return False
    else:
        found.note("changed", key_of(new), _differing(old, new))
    return True


def _owner(record: bytes | None) -> Owner | None:
    """Give who yielded a record or part; of a shared record nobody did by himself."""
    return None if record is None else stored("", excerpt(record, ("_id", ENGINE_FIELD)), record).owner


def _equals_shared(old: bytes, new: bytes) -> bool:
    """Whether these are equal shared records: the order of their sections says nothing."""
    before, after = RawBSONDocument(old, RAW), RawBSONDocument(new, RAW)
    return is_shared(before) and is_shared(after) and not differing(before, after)


def _content(raw: bytes) -> bytes:
    """Give a record's bytes in front of the engine's field, without the length of the whole."""
    end = raw.rfind(_ENGINE_ELEMENT)
    return raw[4:end] if end >= 0 else raw[4:-1]


def _differing(old: bytes, new: bytes) -> list[str]:
    """Name the fields that differ; all of the new ones when only their order does."""
    before, after = dict(RawBSONDocument(old, RAW)), dict(RawBSONDocument(new, RAW))
    names = [name for name in (after | before) if name != ENGINE_FIELD]
    return [name for name in names if _encoded(before, name) != _encoded(after, name)] or names


def _encoded(document: Mapping[str, Any], name: str) -> bytes | None:
    return encode({name: document[name]}, codec_options=RAW) if name in document else None
