"""What the processes of a worker say of themselves now and then. All times are the server's."""

from collections.abc import Mapping
from typing import Any, NamedTuple
from uuid import uuid4

from pymongo.database import Database

PROCESSES = "processes"

#: How many times in a row a process may not be heard of before it is silent.
MISSED = 3

#: Seconds after which a process that said no farewell is forgotten.
KEEP_SECONDS = 3600

Answer = Mapping[str, Any]


class Process(NamedTuple):
    """A process by the name that the lease knows it by, with its answers of `silent_seconds` ago.

    It speaks every `every` seconds, and ends with a farewell unless it is killed.
    """

    name: str
    silent_seconds: float
    every: float
    healthz: Answer
    readyz: Answer

    @property
    def is_silent(self) -> bool:
        """Whether it is killed, paused, or cut off from MongoDB."""
        return self.silent_seconds > MISSED * self.every


class Processes:
    """The word of one process of a worker, in a state database."""

    def __init__(self, state: Database[Any], worker: str, every: float) -> None:
        self._collection = state[PROCESSES]
        self._worker = worker
        self._every = every
        self._id = uuid4().hex

    def tell(self, name: str, healthz: Answer, readyz: Answer) -> None:
        """Say how this process is, under the name that the lease knows it by."""
        told = {"worker": self._worker, "name": name, "every": self._every}
        answers = {"healthz": {"$literal": dict(healthz)}, "readyz": {"$literal": dict(readyz)}}
        self._collection.update_one(
            {"_id": self._id}, [{"$set": {**told, **answers, "at": "$$NOW"}}], upsert=True
        )

    def leave(self) -> None:
        """Say farewell, and forget processes of this worker that have been silent for long."""
        old = {"$expr": {"$lt": ["$at", {"$subtract": ["$$NOW", KEEP_SECONDS * 1000]}]}}
        self._collection.delete_many({"worker": self._worker, "$or": [{"_id": self._id}, old]})


def heard(state: Database[Any]) -> dict[str, list[Process]]:
    """Give the processes that were heard of lately, by worker, the latest first."""
    age = {"$divide": [{"$subtract": ["$$NOW", "$at"]}, 1000]}
    stages: list[dict[str, Any]] = [
        {"$set": {"age": age}},
        {"$match": {"age": {"$lt": KEEP_SECONDS}}},
        {"$sort": {"age": 1, "_id": 1}},
    ]
    found: dict[str, list[Process]] = {}
    for each in state[PROCESSES].aggregate(stages):
        process = Process(each["name"], each["age"], each["every"], each["healthz"], each["readyz"])
        found.setdefault(each["worker"], []).append(process)
    return found
