"""Moves of a worker's position by hand: who moved it, when, from where to where."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from bson import ObjectId
from pymongo.client_session import ClientSession
from pymongo.database import Database

from distributary.change import CODEC, Position

POSITION_MOVES = "position_moves"


class Move(NamedTuple):
    """A worker's position is moved by `by` (user@host); `at` is the server's time, once it is recorded."""

    worker: str
    by: str
    old: Position
    new: Position
    at: datetime | None = None

    @property
    def seconds(self) -> int:
        """The seconds of source time from the old position to the new one; negative when it goes back."""
        return self.new.time.time - self.old.time.time

    @property
    def is_forward(self) -> bool:
        """Whether changes are skipped; tokens have the order of the history."""
        return self.new.token.upper() > self.old.token.upper()


class Moves:
    """The moves of one worker's position in a state database."""

    def __init__(self, state: Database[Any], worker: str) -> None:
        self._collection = state.get_collection(POSITION_MOVES, CODEC)
        self._worker = worker

    def record(self, move: Move, session: ClientSession) -> None:
        """Record a move in the session's transaction."""
        document = {"worker": move.worker, "by": move.by, "old": _place(move.old), "new": _place(move.new)}
        written = {name: {"$literal": value} for name, value in document.items()} | {"at": "$$NOW"}
        self._collection.update_one({"_id": ObjectId()}, [{"$set": written}], upsert=True, session=session)

    def latest(self) -> Move | None:
        """Give the last move; None when there was none."""
        found = self._collection.find_one({"worker": self._worker}, sort=[("at", -1), ("_id", -1)])
        return _move(found) if found else None


def _place(position: Position) -> dict[str, Any]:
    return {"token": position.token, "time": position.time}


def _move(document: Mapping[str, Any]) -> Move:
    old, new = Position(**document["old"]), Position(**document["new"])
    return Move(document["worker"], document["by"], old, new, document["at"])
