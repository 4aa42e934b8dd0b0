"""Checkpoints: how far each worker is. One document per worker's name, written in every commit."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bson import Timestamp
from pymongo import ReturnDocument
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError
from pymongo.read_concern import ReadConcern

from distributary.change import CODEC, Position
from distributary.errors import CheckpointMoved, Failed, LeaseLost
from distributary.state import (
    BEGINNING,
    FORMAT,
    Built,
    Checkpoint,
    Gap,
    Rebuilding,
    Shadow,
    SourceIdentity,
    TriggerStream,
)

CHECKPOINTS = "checkpoints"

Document = Mapping[str, Any]


def to_document(checkpoint: Checkpoint) -> dict[str, Any]:
    """Give the stored form, without the worker's name and the fence."""
    return {
        "format": FORMAT,
        "position": {"token": checkpoint.position.token, "time": checkpoint.position.time},
        "ahead": checkpoint.ahead,
        "source": {
            "set_name": checkpoint.source.set_name,
            "set_id": checkpoint.source.set_id,
            "database": checkpoint.source.database,
        },
        "epoch": checkpoint.epoch,
        "watched": list(checkpoint.watched),
        "transforms": {name: _built_document(built) for name, built in checkpoint.transforms.items()},
        "detached": dict(checkpoint.detached),
        "revision": checkpoint.revision,
        "rebuilding": checkpoint.rebuilding and _rebuilding_document(checkpoint.rebuilding),
        "rollups": dict(checkpoint.rollups),
        "triggers": checkpoint.triggers and _triggers_document(checkpoint.triggers),
        "torn": checkpoint.torn,
    }


def _rebuilding_document(rebuilding: Rebuilding) -> dict[str, Any]:
    return {
        "job": rebuilding.job,
        "shadows": {name: shadow._asdict() for name, shadow in rebuilding.shadows.items()},
        "swapping": rebuilding.swapping,
    }


def _triggers_document(stream: TriggerStream) -> dict[str, Any]:
    return {
        "position": {"token": stream.position.token, "time": stream.position.time},
        "filter": stream.filter,
        "gaps": [gap._asdict() for gap in stream.gaps],
        "collections": sorted(stream.collections),
    }


def _triggers(entry: Document | None) -> TriggerStream | None:
    if entry is None:
        return None
    gaps = tuple(Gap(**each) for each in entry["gaps"])
    collections = frozenset(entry.get("collections", ()))
    return TriggerStream(Position(**entry["position"]), entry["filter"], gaps, collections)


def _built_document(built: Built) -> dict[str, Any]:
    return {
        "source": built.source,
        "fingerprint": built.fingerprint,
        "collections": sorted(built.collections),
        "built": built.built,
        "unplugged": built.unplugged,
        "shared": sorted(built.shared),
        "shared_by": built.shared_by,
    }


def from_document(document: Document) -> Checkpoint:
    """Read the stored form; a newer format than this release knows is refused."""
    _refuse_newer(document)
    return Checkpoint(
        worker=document["_id"],
        position=Position(**document["position"]),
        ahead=document.get("ahead", BEGINNING),
        source=SourceIdentity(**document["source"]),
        epoch=document["epoch"],
        watched=tuple(document["watched"]),
        transforms={name: _built(entry) for name, entry in document["transforms"].items()},
        detached=dict(document.get("detached", {})),
        revision=document.get("revision", 0),
        rebuilding=_rebuilding(document.get("rebuilding")),
        rollups=dict(document.get("rollups", {})),
        triggers=_triggers(document.get("triggers")),
        torn=document.get("torn", False),
    )


def _refuse_newer(document: Document) -> None:
    if document["format"] > FORMAT:
        raise Failed(
            f"The checkpoint of worker {document['_id']!r} has format {document['format']}; "
            f"this release reads up to {FORMAT}.",
            "Run the newer release again. To stay with this one, restore the state and the derived database as an "
            "older release left them, or empty both: everything is derived anew.",
        )


def _rebuilding(entry: Document | None) -> Rebuilding | None:
    if entry is None:
        return None
    shadows = {name: Shadow(**each) for name, each in entry["shadows"].items()}
    return Rebuilding(entry["job"], shadows, entry["swapping"])


def _built(entry: Document) -> Built:
    return Built(
        entry["source"],
        entry["fingerprint"],
        frozenset(entry["collections"]),
        entry["built"],
        entry.get("unplugged", False),
        frozenset(entry.get("shared", ())),
        entry.get("shared_by", ""),
    )


class Checkpoints:
    """The checkpoints in a state database."""

    def __init__(self, state: Database[Any]) -> None:
        self._collection = state.get_collection(CHECKPOINTS, CODEC, read_concern=ReadConcern("majority"))

    def load(self, worker: str) -> Checkpoint | None:
        """Give a worker's checkpoint; None before its first commit."""
        document = self._collection.find_one({"_id": worker, "position": {"$exists": True}})
        return from_document(document) if document else None

    def all(self) -> list[Checkpoint]:
        """Give every worker's checkpoint."""
        return [
            from_document(each)
            for each in self._collection.find({"position": {"$exists": True}}).sort("_id", 1)
        ]

    def refuse_newer(self) -> None:
        """Raise `Failed` where a newer release wrote: everything in the state database is of its format."""
        for each in self._collection.find({"format": {"$gt": FORMAT}}, {"format": 1}):
            _refuse_newer(each)

    def claimed(self, worker: str) -> dict[str, str]:
        """Give the derived collections that other workers write, with the worker's name."""
        others = [each for each in self.all() if each.worker != worker]
        plugged = [
            (each.worker, built)
            for each in others
            for built in each.transforms.values()
            if not built.unplugged
        ]
        rollups = {name: each.worker for each in others for name in each.rollups}
        filled = {name: each.worker for each in others if each.triggers for name in each.triggers.collections}
        return rollups | filled | {name: owner for owner, built in plugged for name in built.collections}

    def raise_fence(self, worker: str) -> int:
        """Raise the fence; from now on no holder of an older one can commit. Durable on return.

        Raises `Failed` when a newer release wrote the checkpoint, which is left as it is.
        """
        try:
            document = self._raise(worker)
        except DuplicateKeyError:  # it is a newer release's, or two first holders raced and it is there now
            self.refuse_newer()
            document = self._raise(worker)
        return int(document["fence"])

    def _raise(self, worker: str) -> Any:
        readable = {"_id": worker, "format": {"$not": {"$gt": FORMAT}}}
        return self._collection.find_one_and_update(
            readable, {"$inc": {"fence": 1}}, upsert=True, return_document=ReturnDocument.AFTER
        )

    def save(self, checkpoint: Checkpoint, fence: int, session: ClientSession | None = None) -> Checkpoint:
        """Write the checkpoint as the holder of `fence`, over the revision that it knows; gives the next one.

        Raises `LeaseLost` when there is a newer fence and `CheckpointMoved` when there is another revision. The
        fence is written, not only read: two transactions that write one document conflict.
        """
        known = {"$in": [None, 0]} if checkpoint.revision == 0 else checkpoint.revision
        following = replace(checkpoint, revision=checkpoint.revision + 1)
        written = _literal(to_document(following)) | {"saved_at": "$$NOW", "fence": fence}
        result = self._collection.update_one(
            {"_id": checkpoint.worker, "fence": fence, "revision": known},
            [{"$set": written}],
            session=session,
        )
        if not result.matched_count:
            raise self._refused(checkpoint.worker, fence, session)
        return following

    def _refused(self, worker: str, fence: int, session: ClientSession | None) -> Failed:
        found = self._collection.find_one({"_id": worker}, {"fence": 1}, session=session)
        if found is not None and found["fence"] == fence:
            return CheckpointMoved(f"The checkpoint of worker {worker!r} moved on.", "It is loaded again.")
        return LeaseLost(
            f"Another process took over worker {worker!r}; this one committed nothing more.",
            "Nothing is lost: the new holder goes on from the last commit.",
        )


def _literal(document: Document) -> dict[str, Any]:
    return {name: {"$literal": value} for name, value in document.items()}


def lag_seconds(head: Timestamp, position: Position) -> int:
    """Give the seconds of source time between a position and the newest operation."""
    return max(0, head.time - position.time.time)
