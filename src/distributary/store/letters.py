"""Dead letters: documents that could not be derived, parked durably before the checkpoint passes them."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any, NamedTuple

from bson import encode
from bson.binary import Binary
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument
from pymongo import DeleteMany, DeleteOne, UpdateOne
from pymongo.client_session import ClientSession
from pymongo.database import Database

from distributary.change import CODEC, RAW, Identity, Position, decoded, identity
from distributary.chunks import chunks
from distributary.derive.trigger import Seen
from distributary.ports.stores import ParkedChange
from distributary.quoting import bare
from distributary.state import Letter, LetterKey, LetterKind, ParkedLetter

LETTERS = "dead_letters"

#: Values in one `$in`: a key may be large, and a command holds 16 MB.
_CHUNK = 1000

#: Characters of a reason and of a traceback's end that are kept: an exception may quote a whole document.
REASON_CHARACTERS = 2_000
TRACEBACK_CHARACTERS = 20_000

#: Hexadecimal digits of a letter's short id.
ID_DIGITS = 12


class Unsent(NamedTuple):
    """The message of a letter of kind `unpublished`; of one that tells of a record, the data is not kept."""

    topic: str
    ordering_key: str
    is_event: bool
    data: str = ""


class StoredLetter(NamedTuple):
    """A letter as it lies in the state database; `id` is what a person calls it by.

    One of a `message` that cannot be published is of the derived collection or trigger that its `transform` names.
    """

    id: str
    worker: str
    letter: Letter
    attempts: int
    first_at: datetime
    last_at: datetime
    message: Unsent | None = None


#: What tells the letter of a change from that of a document.
_IS_CHANGE = {"change": {"$type": "object"}}

#: What of a parked change may be large, beside the documents themselves.
_LARGE = {"change.document": 0, "change.before": 0, "change.updated": 0}


def stored_letters(
    state: Database[Any], where: Mapping[str, Any], limit: int, *, whole: bool = False
) -> list[StoredLetter]:
    """Give letters of all workers that match a query, those that failed last first; 0 means all of them.

    Of the changes in them, only what is small, unless they are wanted `whole`.
    """
    shown = None if whole else _LARGE
    found = state.get_collection(LETTERS, CODEC).find(where, shown).sort("last_at", -1).limit(limit)
    return [_stored(each) for each in found]


def count_letters(state: Database[Any], where: Mapping[str, Any]) -> int:
    """Count the letters of all workers that match a query."""
    return state.get_collection(LETTERS, CODEC).count_documents(where)


def stored_letter(state: Database[Any], worker: str, transform: str, key: Any) -> StoredLetter | None:
    """Give the letter of one document; None when it is not parked."""
    found = stored_letters(state, {"_id": _long_id(worker, transform, key)}, 1)
    return found[0] if found else None


def discard_letters(state: Database[Any], worker: str, ids: Sequence[str]) -> int:
    """Remove letters of a worker by their short ids, and give how many there were; durable on return."""
    collection = state.get_collection(LETTERS, CODEC)
    return sum(
        collection.delete_many({"worker": worker, "id": {"$in": some}}).deleted_count
        for some in chunks(ids, _CHUNK)
    )


def short_id(long_id: Mapping[str, Any]) -> str:
    """Give the short id of a letter; the same worker, transform and key always have the same one."""
    return sha256(encode(long_id, codec_options=CODEC)).hexdigest()[:ID_DIGITS]


def _stored(document: dict[str, Any]) -> StoredLetter:
    counted = (document[name] for name in ("attempts", "first_at", "last_at"))
    return StoredLetter(document["id"], document["worker"], letter(document), *counted)


class Letters:
    """The dead letters of one worker in a state database.

    Reasons and tracebacks are kept with the field values that they quote only if `values` is set.
    """

    def __init__(self, state: Database[Any], worker: str, *, values: bool = False) -> None:
        self._collection = state.get_collection(LETTERS, CODEC)
        self._worker = worker
        self._told: Callable[[str], str] = str if values else bare

    def prepare(self) -> None:
        """Create the indexes."""
        self._collection.create_index([("worker", 1), ("waits_for", 1)], name="waits_for")
        self._collection.create_index([("worker", 1), ("due", 1)], name="due")
        self._collection.create_index("id", name="short_id")
        self._collection.create_index(
            [("worker", 1), ("transform", 1), ("key.key", 1), ("position.token", 1)],
            name="queues",
            partialFilterExpression=_IS_CHANGE,
        )

    def parked(self) -> list[ParkedLetter]:
        """Give what is parked."""
        found = self._collection.find({"worker": self._worker}, {"transform": 1, "key": 1, "kind": 1})
        return [
            ParkedLetter(LetterKey(each["transform"], each["key"]), LetterKind(each["kind"]))
            for each in found
        ]

    def count(self) -> dict[str, int]:
        """Count what is parked, by transform and trigger."""
        grouped = {"$group": {"_id": "$transform", "count": {"$sum": 1}}}
        found = self._collection.aggregate([{"$match": {"worker": self._worker}}, grouped])
        return {each["_id"]: each["count"] for each in found}

    def due(self, transforms: Sequence[str], limit: int) -> list[LetterKey]:
        """Give keys of these transforms that are worth trying again now: what they waited for was released."""
        query = {"worker": self._worker, "due": True, "transform": {"$in": list(transforms)}}
        found = self._collection.find(query, {"transform": 1, "key": 1}).limit(limit)
        return [LetterKey(each["transform"], each["key"]) for each in found]

    def still_parked(self, keys: Sequence[LetterKey], session: ClientSession) -> list[LetterKey]:
        """Give those of these keys that are parked: an operator may have discarded the letters of others."""
        ids = [self._id(*key) for key in keys]
        return [
            LetterKey(each["transform"], each["key"])
            for some in chunks(ids, _CHUNK)
            for each in self._collection.find(
                {"_id": {"$in": some}}, {"transform": 1, "key": 1}, session=session
            )
        ]

    def make_due(self, keys: Sequence[LetterKey], session: ClientSession) -> None:
        """Mark letters as worth trying again."""
        ids = [self._id(*key) for key in keys]
        for some in chunks(ids, _CHUNK):
            self._collection.update_many({"_id": {"$in": some}}, {"$set": {"due": True}}, session=session)

    def put(self, letters: Sequence[Letter], session: ClientSession) -> None:
        """Park documents; a document that was parked before counts one more attempt."""
        if letters:
            self._collection.bulk_write([self._upsert(letter) for letter in letters], session=session)

    def resolve(self, keys: Iterable[LetterKey], session: ClientSession) -> None:
        """Remove the letters of documents that were derived."""
        deletes: list[DeleteOne | DeleteMany] = [DeleteOne({"_id": self._id(*key)}) for key in keys]
        if deletes:
            self._collection.bulk_write(deletes, session=session)

    def changes(self, trigger: str, key: Any) -> list[ParkedChange]:
        """Give the changes of one document that are parked for a trigger, in the source's order.

        Their contents are left out: they may be large.
        """
        query = {**self._changes_for(trigger), "key.key": {"$eq": _storable(key)}}
        found = self._collection.with_options(RAW).find(query, _LARGE).sort("position.token", 1)
        return [_parked_change(each) for each in found]

    def tokens(self, trigger: str, keys: Sequence[Any] | None = None) -> Mapping[Identity, set[str]]:
        """Give the positions of changes that are parked for a trigger, of these documents or of all, by document."""
        query = self._changes_for(trigger)
        if keys is None:
            return self._tokens([query])
        some = chunks(list(map(_storable, keys)), _CHUNK)
        return self._tokens({**query, "key.key": {"$in": each}} for each in some)

    def _tokens(self, queries: Iterable[Mapping[str, Any]]) -> Mapping[Identity, set[str]]:
        found: dict[Identity, set[str]] = defaultdict(set)
        for query in queries:
            for each in self._collection.with_options(RAW).find(query, {"key": 1, "position.token": 1}):
                read = decoded(bytes(each.raw))
                found[identity(_document_key(read["key"]))].add(read["position"]["token"])
        return found

    def ready(self, trigger: str) -> list[Any]:
        """Give the keys of documents of which the first change that is parked for a trigger may be tried again.

        It is due, or waits for one that is parked no more. In the source's order.
        """
        first = {name: {"$first": f"${name}"} for name in ("key", "kind", "due")}
        stages: list[Mapping[str, Any]] = [
            {"$match": self._changes_for(trigger)},
            {"$sort": {"key.key": 1, "position.token": 1}},
            {"$group": {"_id": "$key.key", **first, "token": {"$first": "$position.token"}}},
            {"$match": {"$or": [{"due": True}, {"kind": LetterKind.WAITING.value}]}},
            {"$sort": {"token": 1}},
        ]
        found = self._collection.with_options(RAW).aggregate(stages)
        return [_document_key(decoded(bytes(each.raw))["key"]) for each in found]

    def _changes_for(self, trigger: str) -> dict[str, Any]:
        return {"worker": self._worker, "transform": trigger, **_IS_CHANGE}

    def change(self, key: LetterKey) -> ParkedChange | None:
        """Give one parked change with its content; None when it is not parked any more."""
        found = self._collection.with_options(RAW).find_one({"_id": self._id(*key), **_IS_CHANGE})
        return None if found is None else _parked_change(found)

    def release(self, places: Iterable[tuple[str, Any]], session: ClientSession) -> int:
        """Mark the contested documents that wait for these (derived collection, key) as due; gives their number."""
        waited = [{"collection": collection, "key": key} for collection, key in places]
        return sum(self._released(some, session) for some in chunks(waited, _CHUNK))

    def _released(self, waited: list[dict[str, Any]], session: ClientSession) -> int:
        query = {"worker": self._worker, "waits_for": {"$in": waited}}
        return self._collection.update_many(query, {"$set": {"due": True}}, session=session).matched_count

    def _id(self, transform: str, key: Any) -> dict[str, Any]:
        return _long_id(self._worker, transform, key)

    def _upsert(self, letter: Letter) -> UpdateOne:
        long_id = self._id(letter.transform, letter.key)
        waits = letter.waits_for and {"collection": letter.waits_for[0], "key": letter.waits_for[1]}
        fields = {
            "id": short_id(long_id),
            "worker": self._worker,
            "transform": letter.transform,
            "source": letter.source,
            "key": _storable(letter.key),
            "kind": letter.kind.value,
            "reason": _printable(self._told(letter.reason))[:REASON_CHARACTERS],
            "traceback": _printable(self._told(letter.traceback))[-TRACEBACK_CHARACTERS:],
            "position": {"token": letter.position.token, "time": letter.position.time},
            "fingerprint": letter.fingerprint,
            "waits_for": waits,
            "due": letter.due,
            "change": letter.change,
        }
        literal = {name: {"$literal": value} for name, value in fields.items()}
        counted = {
            "attempts": {"$add": [{"$ifNull": ["$attempts", 0]}, 1]},
            "first_at": {"$ifNull": ["$first_at", "$$NOW"]},
            "last_at": "$$NOW",
        }
        return UpdateOne({"_id": long_id}, [{"$set": literal | counted}], upsert=True)


def _parked_change(document: RawBSONDocument) -> ParkedChange:
    """Read a change; its content stays in BSON, so that what nothing encodes is kept."""
    read = decoded(bytes(document.raw))
    position = read["position"]
    seen = Seen(
        read["transform"],
        read["source"],
        _document_key(read["key"]),
        position["time"],
        position["token"],
        document["change"].raw,
    )
    return ParkedChange(seen, LetterKind(read["kind"]), read["due"])


def _document_key(key: Mapping[str, Any]) -> Any:
    """Give the document's key of that of a change's letter, or the text of one that nothing encodes."""
    return key.get("key", key)


def _long_id(worker: str, transform: str, key: Any) -> dict[str, Any]:
    return {"worker": worker, "transform": transform, "key": _storable(key)}


def _storable(key: Any) -> Any:
    """Give the key itself, or its text as bytes where it is not valid UTF-8 and no encoder takes it."""
    try:
        encode({"key": key}, codec_options=CODEC)
    except (BSONError, UnicodeError):
        return {"invalid": Binary(repr(key).encode("utf-8", "backslashreplace"))}
    return key


def is_legible(key: Any) -> bool:
    """Whether the key of a stored letter is the document's key, and not the text of one that nothing encodes."""
    return not (isinstance(key, dict) and key.keys() == {"invalid"} and isinstance(key["invalid"], bytes))


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def letter(document: dict[str, Any]) -> Letter:
    """Read a stored letter."""
    waits = document.get("waits_for")
    return Letter(
        transform=document["transform"],
        key=document["key"],
        source=document["source"],
        kind=LetterKind(document["kind"]),
        reason=document["reason"],
        traceback=document["traceback"],
        position=Position(**document["position"]),
        fingerprint=document["fingerprint"],
        waits_for=waits and (waits["collection"], waits["key"]),
        due=document["due"],
        change=document.get("change"),
    )
