"""Whole derived collections: made, copied, compared, put in another's place and dropped."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from bson import encode
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo import WriteConcern
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import BulkWriteError, CollectionInvalid

from distributary.change import CODEC, identity
from distributary.derive.records import ENGINE_FIELD
from distributary.excerpt import key_of
from distributary.ports import Contrast, Copied
from distributary.sink.collections import Indexes, prepare

RAW: CodecOptions[RawBSONDocument] = CODEC.with_options(document_class=RawBSONDocument)

#: Where the engine's field begins in a record; it is the last one.
_ENGINE_ELEMENT = b"\x03" + ENGINE_FIELD.encode() + b"\0"

_DUPLICATE_KEY = 11000


class MongoShelf:
    """The collections of one derived database; `indexes` are those of the declared ones.

    Nothing here is part of a transaction: who calls it makes sure that doing it again does no harm.
    """

    def __init__(self, derived: Database[Any], indexes: Mapping[str, Indexes]) -> None:
        self._database = derived.with_options(codec_options=CODEC, write_concern=WriteConcern("majority"))
        self._indexes = indexes

    def make(self, name: str, like: str) -> UUID:
        """Create an empty collection with the indexes of a declared one, over what is there; gives its id."""
        self.drop(name)
        prepare(self._database, [(name, self._indexes.get(like, ()))])
        found = self.id_of(name)
        if found is None:
            raise CollectionInvalid(f"{name} was dropped while it was made")
        return found

    def id_of(self, name: str) -> UUID | None:
        """Give a collection's id, which it keeps when it is renamed; None when there is none of this name."""
        found = next(iter(self._database.list_collections(filter={"name": name})), None)
        return UUID(bytes=bytes(found["info"]["uuid"])) if found else None

    def put(self, name: str, onto: str) -> None:
        """Let a collection take another one's place in one step of the server."""
        self._database[name].rename(onto, dropTarget=True)

    def drop(self, name: str) -> None:
        """Drop a collection if it is there."""
        self._database.drop_collection(name)

    def names(self) -> list[str]:
        """Give the names of all collections."""
        return self._database.list_collection_names()

    def copy(self, name: str, onto: str, after: tuple[Any, ...], limit: int) -> Copied:
        """Copy the next records in key order; what lies under their keys already stays."""
        records = self._next(name, after, limit)
        if records:
            try:
                self._database[onto].insert_many(map(RawBSONDocument, records), ordered=False)
            except BulkWriteError as error:
                if any(each["code"] != _DUPLICATE_KEY for each in error.details["writeErrors"]):
                    raise
        return Copied(len(records), _behind(records))

    def compare(self, old: str, new: str, after: tuple[Any, ...], limit: int, found: Contrast) -> Copied:
        """Hold the next records of two collections in key order against each other, and count in `found`.

        The slice ends behind the last of at most `limit` keys of the new collection, or of the old one if that has
        more in between.
        """
        fresh = self._next(new, after, limit)
        behind = _behind(fresh)
        former = self._next(old, after, limit, behind)
        if former and (not fresh or len(former) >= limit):
            behind = _behind(former)
            fresh = self._next(new, after, limit, behind) if fresh else fresh
        before = {identity(key_of(each)): each for each in former}
        for record in fresh:
            _contrast(before.pop(identity(key_of(record)), None), record, found)
        for left in before.values():
            found.note("removed", key_of(left))
        return Copied(len(fresh) + len(former), behind)

    def _next(
        self, name: str, after: tuple[Any, ...], limit: int, until: tuple[Any, ...] = ()
    ) -> list[bytes]:
        """Give the next records behind a key, at most `limit`, up to and with another key."""
        collection: Collection[Any] = self._database.get_collection(name, RAW)
        query = {"_id": {"$ne": after[0]}} if after else {}
        found = collection.find(query, limit=limit).hint([("_id", 1)]).sort("_id", 1)
        if after:
            found = found.min([("_id", after[0])])
        if until:
            found = found.max([("_id", until[0])])
        records = [bytes(each.raw) for each in found]
        if until and len(records) < limit:
            records += [bytes(each.raw) for each in collection.find({"_id": until[0]})]
        return records


def _behind(records: Sequence[bytes]) -> tuple[Any, ...]:
    return (key_of(records[-1]),) if records else ()


def _contrast(old: bytes | None, new: bytes, found: Contrast) -> None:
    if old is None:
        found.note("added", key_of(new))
    elif _content(old) == _content(new):
        found.equal += 1
    else:
        found.note("changed", key_of(new), _differing(old, new))


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
