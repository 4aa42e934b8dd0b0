"""Pending groups: which groups of rollups are to be computed, one document per worker, rollup and group."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from bson import ObjectId
from pymongo import UpdateOne
from pymongo.client_session import ClientSession
from pymongo.database import Database

from distributary.change import CODEC
from distributary.chunks import chunks
from distributary.ports.records import Behind
from distributary.ports.rollups import Group, PendingGroup
from distributary.quoting import bare

PENDING = "pending"

#: How long a group that cannot be computed waits before it is tried again, in milliseconds of the server's clock.
RETRY_MS = 60_000

#: Groups in one query, and in one command that writes.
CHUNK = 5000


class Pending:
    """The pending groups of one worker in a state database."""

    def __init__(self, state: Database[Any], worker: str) -> None:
        self._collection = state.get_collection(PENDING, CODEC)
        self._worker = worker

    def prepare(self) -> None:
        """Create the index."""
        self._collection.create_index([("worker", 1), ("_id", 1)], name="worker")

    def mark(self, groups: Sequence[Group], session: ClientSession) -> None:
        """Let groups be pending; those that are already are touched once more, and lose their error."""
        for some in chunks(groups, CHUNK):
            writes = [UpdateOne({"_id": self._id(each)}, self._touch(), upsert=True) for each in some]
            self._collection.bulk_write(writes, session=session)

    def settle(self, groups: Sequence[Group], session: ClientSession) -> None:
        """Let groups that were computed in this transaction be pending no more."""
        if not groups or self._collection.find_one({"worker": self._worker}, session=session) is None:
            return
        for some in chunks(groups, CHUNK):
            self._collection.delete_many({"_id": {"$in": list(map(self._id, some))}}, session=session)

    def known(self, groups: Sequence[Group], session: ClientSession) -> list[PendingGroup]:
        """Give those of these groups that are pending."""
        return [
            _pending(each)
            for some in chunks(groups, CHUNK)
            for each in self._collection.find({"_id": {"$in": list(map(self._id, some))}}, session=session)
        ]

    def fail(self, errors: Sequence[tuple[Group, str]], session: ClientSession) -> None:
        """Note why groups cannot be computed, without field values.

        They are tried again after a while, or when they are touched.
        """
        for group, error in errors:
            noted = {"$set": {"error": {"$literal": bare(error)}, "again_at": {"$add": ["$$NOW", RETRY_MS]}}}
            self._collection.update_one({"_id": self._id(group)}, [noted], session=session)

    def next(self, after: Behind, limit: int, session: ClientSession) -> tuple[list[PendingGroup], Behind]:
        """Give the next groups that are worth computing, in a fixed order, and where to go on; empty at the end."""
        behind = {"_id": {"$gt": after[0]}} if after else {}
        query = {"worker": self._worker, "$expr": {"$lte": ["$again_at", "$$NOW"]}, **behind}
        found = list(self._collection.find(query, session=session).sort("_id", 1).limit(limit))
        return [_pending(each) for each in found], (found[-1]["_id"],) if len(found) == limit else ()

    def count(self) -> int:
        """Count the groups that are to be computed."""
        return self._collection.count_documents({"worker": self._worker})

    def has_others(self, plugged: Sequence[str]) -> bool:
        """Whether there are groups of rollups that are not plugged in."""
        return self._collection.find_one(self._others(plugged), {"_id": 1}) is not None

    def forget(self, plugged: Sequence[str], session: ClientSession) -> None:
        """Forget some groups of rollups that are not plugged in: when they are again, they are built anew."""
        found = self._collection.find(self._others(plugged), {"_id": 1}, session=session).limit(CHUNK)
        self._collection.delete_many({"_id": {"$in": [each["_id"] for each in found]}}, session=session)

    def _others(self, plugged: Sequence[str]) -> dict[str, Any]:
        return {"worker": self._worker, "_id.rollup": {"$nin": list(plugged)}}

    def _id(self, group: Group) -> dict[str, Any]:
        return {"worker": self._worker, "rollup": group.rollup, "group": group.key}

    def _touch(self) -> dict[str, Any]:
        return {
            "$setOnInsert": {"worker": self._worker, "since": ObjectId()},
            "$inc": {"rev": 1},
            "$unset": {"error": "", "again_at": ""},
        }


class PendingGroups(NamedTuple):
    """How many groups are pending, and how many of these cannot be computed from the records as they are."""

    groups: int = 0
    failing: int = 0


def count_pending(state: Database[Any]) -> dict[str, PendingGroups]:
    """Count the pending groups of each worker."""
    failing = {"$sum": {"$cond": [{"$gt": ["$error", None]}, 1, 0]}}
    counted = {"$group": {"_id": "$worker", "groups": {"$sum": 1}, "failing": failing}}
    return {
        each["_id"]: PendingGroups(each["groups"], each["failing"])
        for each in state[PENDING].aggregate([counted])
    }


def _pending(document: dict[str, Any]) -> PendingGroup:
    place = document["_id"]
    group = Group(place["rollup"], place["group"])
    return PendingGroup(group, document["since"], document["rev"], document.get("error", ""))
