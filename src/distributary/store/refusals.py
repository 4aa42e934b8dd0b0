"""Messages in the outbox that never can be published: kept until their record is told of anew, or told what to do."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pymongo.client_session import ClientSession
from pymongo.collection import Collection

from distributary.chunks import chunks
from distributary.events.keys import record_key
from distributary.ports.events import Held
from distributary.store.letters import REASON_CHARACTERS, short_id

#: What a message takes beside its data, in bytes, as far as the bounds of the outbox go.
BESIDE = 500

#: What tells a message that was refused.
IS_REFUSED = {"refused": {"$type": "string"}}

#: Values in one `$in`.
_CHUNK = 1000

#: Where an entry is in the order of a worker's entries: revision and number.
Order = tuple[int, int]


class Place(NamedTuple):
    """A record: its derived collection, and its key as text that is the same for keys that MongoDB takes for equal."""

    collection: str
    key: str


def place(collection: str, key: Any) -> Place:
    """Give the place of a record."""
    return Place(collection, record_key(key))


class Refusals:
    """The refused messages of one worker; a record has at most one.

    Only the holder of the lease adds any. Nothing is asked while it has added none and the last `look` found none.
    """

    def __init__(self, collection: Collection[Any], worker: str) -> None:
        self._collection = collection
        self._worker = worker
        self._found = True
        self._added = False

    def prepare(self) -> None:
        """Create the index, which has nothing of what waits."""
        self._collection.create_index("id", name="short_id", sparse=True)

    def look(self) -> None:
        """See whether there are any; those of an open transaction are not seen, and known already."""
        self._found = (
            self._collection.find_one({"worker": self._worker, **IS_REFUSED}, {"_id": 1}) is not None
        )

    @property
    def _any(self) -> bool:
        return self._found or self._added

    def refused(self, where: Place, reason: str) -> dict[str, Any]:
        """Give the fields of a record's entry that is refused; its data is not kept, since the record has it."""
        self._added = True
        return {"refused": reason[:REASON_CHARACTERS], "id": self._id(where), "data": "", "size": BESIDE}

    def refuse(self, entry_id: Mapping[str, Any], reason: str) -> None:
        """Take an entry out of the order, and remove what was refused of its record before."""
        found = self._collection.find_one({"_id": entry_id}, {"of": 1, "key": 1})
        if found is None:
            return
        self._added = True
        where = _place_of(found)
        fields = {"refused": reason[:REASON_CHARACTERS], "id": short_id(entry_id)}
        if where is not None:
            fields = self.refused(where, reason)
        self._collection.update_one({"_id": entry_id}, {"$set": fields, "$unset": {"again": ""}})
        if where is not None:
            self._remove({where: order(entry_id)})

    def resolve(self, places: Iterable[Place], session: ClientSession) -> None:
        """Remove what was refused of records that are told of anew, in the session's transaction."""
        if self._any:
            self._remove(dict.fromkeys(places), session)

    def resolve_before(self, published: Mapping[str, Any]) -> None:
        """Remove what was refused of records before entries that a query names, which are published."""
        if not self._any:
            return
        query = {**published, "key": {"$exists": True}}
        bounds: dict[Place, Order | None] = {}
        for each in self._collection.find(query, {"of": 1, "key": 1}, sort=[("_id", 1)]):
            bounds[place(each["of"], each["key"]["of"])] = order(each["_id"])
        self._remove(bounds)

    def readmit(self, ids: Sequence[str], session: ClientSession) -> Held:
        """Let refused events of triggers, by their short ids, be sent again in their places."""
        query = {"worker": self._worker, "id": {"$in": list(ids)}, "key": None, **IS_REFUSED}
        found = list(self._collection.find(query, {"size": 1}, session=session))
        entries = {"_id": {"$in": [each["_id"] for each in found]}}
        admitted = {"$unset": {"refused": "", "id": ""}, "$set": {"again": True}}
        self._collection.update_many(entries, admitted, session=session)
        return Held(len(found), sum(each["size"] for each in found))

    def _remove(self, bounds: Mapping[Place, Order | None], session: ClientSession | None = None) -> None:
        """Remove the refused entries of records, those that come before a bound if there is one."""
        asked = {self._id(where): where for where in bounds}
        gone = [
            each["_id"]
            for some in chunks(list(asked), _CHUNK)
            for each in self._collection.find(
                {"id": {"$in": some}}, {"of": 1, "key": 1, "id": 1}, session=session
            )
            if _place_of(each) == (where := asked[each["id"]])
            and ((bound := bounds[where]) is None or order(each["_id"]) < bound)
        ]
        if gone:
            self._collection.delete_many({"_id": {"$in": gone}, **IS_REFUSED}, session=session)

    def _id(self, where: Place) -> str:
        return short_id({"worker": self._worker, "of": where.collection, "key": where.key})


def order(entry_id: Mapping[str, Any]) -> Order:
    """Give where an entry is."""
    return entry_id["revision"], entry_id["number"]


def _place_of(entry: Mapping[str, Any]) -> Place | None:
    """Give the record of an entry; None of a trigger's event."""
    return place(entry["of"], entry["key"]["of"]) if "key" in entry else None
