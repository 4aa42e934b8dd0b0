"""The lease: the right to be the one writer of a worker's name. All its times are the server's."""

import os
import socket
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import uuid4

from bson.binary import Binary
from pymongo import ReturnDocument
from pymongo.database import Database
from pymongo.errors import OperationFailure

from distributary.change import CODEC
from distributary.state import SlowTransform

LEASES = "leases"

_UNAUTHORIZED = 13


class Holder(NamedTuple):
    """Who holds a lease; `alive` says whether it has not expired, `slow` what held it up when it last renewed.

    `code` are the fingerprints of the transforms that it runs.
    """

    name: str
    alive: bool
    slow: tuple[SlowTransform, ...] = ()
    code: Mapping[str, str] = MappingProxyType({})


class Lease:
    """The lease of one worker's name, as seen by one process."""

    def __init__(self, state: Database[Any], worker: str, seconds: float) -> None:
        self._collection = state.get_collection(LEASES, CODEC)
        self._worker = worker
        self._ms = int(seconds * 1000)
        self.me = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"

    def acquire(self) -> bool:
        """Take the lease if it is free or expired; kills what the last holder's session still has open.

        A lease that another process holds is only read, which may be done often.
        """
        free = {"$or": [{"$in": ["$holder", [None, self.me]]}, {"$lte": ["$expires", "$$NOW"]}]}
        found = self._collection.find_one({"_id": self._worker}, {"free": free})
        if found is not None and not found["free"]:
            return False
        self._collection.update_one({"_id": self._worker}, {"$setOnInsert": {"holder": None}}, upsert=True)
        before = self._collection.find_one_and_update(
            {"_id": self._worker, "$expr": free},
            [{"$set": {"holder": self.me, "expires": self._expiry(), "taken_at": "$$NOW", "slow": []}}],
            return_document=ReturnDocument.BEFORE,
        )
        if before is None:
            return False
        self._kill(before.get("session"))
        return True

    def announce(self, session_id: Mapping[str, Any], code: Mapping[str, str]) -> None:
        """Say which session writes under this lease, so that the next holder can end it, and with what code."""
        told = {"session": session_id["id"], "code": dict(code)}
        self._collection.update_one({"_id": self._worker, "holder": self.me}, {"$set": told})

    def renew(self, slow: Sequence[SlowTransform] = ()) -> bool:
        """Push the expiry out, and say what holds the work up; False when someone else holds the lease."""
        told = {"$literal": [each._asdict() for each in slow]}
        result = self._collection.update_one(
            {"_id": self._worker, "holder": self.me}, [{"$set": {"expires": self._expiry(), "slow": told}}]
        )
        return bool(result.matched_count)

    def release(self, *, working: bool = False) -> None:
        """Give the lease back, so that a standby takes it at once.

        A holder that is still `working` leaves its session to be ended by the next one: it may have a transaction open.
        """
        ended = {} if working else {"session": None}
        self._collection.update_one(
            {"_id": self._worker, "holder": self.me}, {"$set": {"holder": None, "slow": [], **ended}}
        )

    def holder(self) -> Holder | None:
        """Give who holds the lease."""
        alive = {"$gt": ["$expires", "$$NOW"]}
        found = self._collection.find_one(
            {"_id": self._worker}, {"holder": 1, "alive": alive, "slow": 1, "code": 1}
        )
        if not found or not found.get("holder"):
            return None
        slow = tuple(SlowTransform(**each) for each in found.get("slow", []))
        return Holder(found["holder"], found["alive"], slow, found.get("code", {}))

    def _expiry(self) -> dict[str, Any]:
        return {"$add": ["$$NOW", self._ms]}

    def _kill(self, session: Binary | None) -> None:
        """End the last holder's session with its open transaction; without the privilege the fence does alone."""
        if session is None:
            return
        try:
            self._collection.database.command("killSessions", [{"id": session}], codec_options=CODEC)
        except OperationFailure as error:
            if error.code != _UNAUTHORIZED:
                raise
