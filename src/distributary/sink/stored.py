"""Reading what is stored: derived records and parts of shared ones, byte for byte."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from bson import Regex, decode_all, encode
from bson.errors import BSONError, InvalidBSON
from bson.raw_bson import RawBSONDocument
from pymongo.client_session import ClientSession
from pymongo.cursor import Cursor
from pymongo.database import Database

from distributary.change import CODEC, RAW, Version, decoded
from distributary.derive.batch import is_storable
from distributary.derive.plan import Stored, stored, version_in
from distributary.derive.records import ENGINE_FIELD
from distributary.derive.shared import Part, part_of
from distributary.excerpt import excerpt, key_of
from distributary.parts import names_part
from distributary.ports.records import Behind, TooMuch

#: The index by which the records of a document are found.
OWNER_INDEX = [("_src.by", 1), ("_src.key", 1)]

#: Records in one reply, at most.
REPLY_RECORDS = 100_000

#: Bytes of stored records that one transaction learns; where the documents of a batch have more, it is halved.
LEARN_BYTES = 32 * 1024 * 1024

#: Bytes of a reply up to which its records are decoded, all at once; of a larger one only what is looked at.
DECODE_BYTES = 4 * 1024 * 1024

Document = dict[str, Any]


def read_record(collection: str, document: Document) -> Stored:
    """Read a derived document that is decoded; of what no encoder takes (invalid UTF-8) the bytes are not had."""
    try:
        return stored(collection, document, encode(document, codec_options=CODEC))
    except (BSONError, UnicodeError):
        return stored(collection, document, b"")


def is_foreign(collection: str, document: Mapping[str, Any], known: Mapping[str, Collection[str]]) -> bool:
    """Whether a derived document names no owner that may have written it, so that nothing would ever remove it.

    `known` holds the collections that each transform may have written. No document has a list or a regular
    expression as its key.
    """
    origin = document.get(ENGINE_FIELD)
    if not isinstance(origin, dict) or not isinstance(origin.get("by"), str) or "key" not in origin:
        return True
    key = origin["key"]
    may_write = collection in known.get(origin["by"], ())
    return not may_write or isinstance(key, list | Regex) or not is_storable(key)


def read_records(
    database: Database[Any],
    collection: str,
    query: Document,
    session: ClientSession | None = None,
) -> Iterator[Stored]:
    """Read derived documents as they are stored, byte for byte."""
    for batch in replies(database, collection, query, session):
        yield from _decoded(collection, batch)


def read_parts(
    state: Database[Any], parts: str, query: Document, session: ClientSession | None = None
) -> Iterator[tuple[Part, Version]]:
    """Read parts in the order of their keys, with their versions, and nothing that only lies beside them."""
    found: Any = state.get_collection(parts, RAW)
    for each in found.find(query, session=session).sort("_id", 1):
        raw = bytes(each.raw)
        key = key_of(raw)
        if not names_part(key):
            continue
        yield part_of(key, raw), version_in(excerpt(raw, (ENGINE_FIELD,)).get(ENGINE_FIELD))


def read_next(
    database: Database[Any],
    collection: str,
    after: Behind,
    limit: int,
    session: ClientSession,
    query: Mapping[str, Any] | None = None,
    fields: Mapping[str, int] | None = None,
) -> Iterator[bytes]:
    """Read the next documents behind a key in key order; `min` bounds the index whatever the type of the key."""
    wanted = {**(query or {}), **({"_id": {"$ne": after[0]}} if after else {})}
    source: Any = database.get_collection(collection, RAW)
    found: Cursor[RawBSONDocument] = source.find(wanted, fields, limit=limit, session=session)
    found = found.hint([("_id", 1)]).sort("_id", 1)
    for each in found.min([("_id", after[0])]) if after else found:
        yield bytes(each.raw)


def replies(
    database: Database[Any], collection: str, query: Document, session: ClientSession | None
) -> Iterator[bytes]:
    """Give the server's replies as they come, each the bytes of many documents."""
    found = database.get_collection(collection, CODEC)
    yield from found.find_raw_batches(query, batch_size=REPLY_RECORDS, session=session)


def documents_in(reply: bytes) -> Iterator[bytes]:
    """Cut a reply into documents; each begins with its length (bsonspec.org)."""
    start = 0
    while start < len(reply):
        end = start + int.from_bytes(reply[start : start + 4], "little")
        yield reply[start:end]
        start = end


def looked_at(document: bytes) -> Document:
    """Decode what says whose a record is, and nothing else."""
    return excerpt(document, ("_id", ENGINE_FIELD))


def within_bounds(records: Iterable[Stored], documents: int) -> list[Stored]:
    """Give the records of so many documents; refuses to hold more than the bound, unless it is one document's."""
    known: list[Stored] = []
    size = 0
    for record in records:
        known.append(record)
        size += len(record.raw)
        refuse_more(size, documents)
    return known


def refuse_more(size: int, documents: int) -> None:
    """Raise `TooMuch` where that many bytes are stored for several documents; they are to be halved."""
    if size > LEARN_BYTES and documents > 1:
        raise TooMuch(documents // 2)


def up_to_bound(raws: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Give documents until they are more than may be held, each with whether it is the one that reached the bound."""
    size = 0
    for raw in raws:
        size += len(raw)
        yield raw, size > LEARN_BYTES
        if size > LEARN_BYTES:
            return


def _decoded(collection: str, reply: bytes) -> Iterator[Stored]:
    whole = len(reply) <= DECODE_BYTES
    try:
        documents: Iterable[Document] = (
            decode_all(reply, CODEC) if whole else map(looked_at, documents_in(reply))
        )
    except InvalidBSON:
        documents = map(decoded, documents_in(reply))
    for document, raw in zip(documents, documents_in(reply), strict=True):
        yield stored(collection, document, raw)
