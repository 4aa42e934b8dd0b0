"""The change stream: one per worker, on the source database, lean and filtered on the server."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from pymongo.database import Database
from pymongo.errors import OperationFailure, PyMongoError

from distributary.change import Change, CollectionChange, Operation, Position, new_tuple
from distributary.errors import POSITION_CURE, PositionLost
from distributary.ports.source import Batch, Start
from distributary.source.documents import Document, run

#: ChangeStreamHistoryLost, InvalidResumeToken, ChangeStreamFatalError: the position can't be opened.
LOST = frozenset({286, 260, 280})

#: A source transaction of up to this many times the batch's changes, and up to its bytes, is kept in one batch.
WHOLE = 4

#: A reply should have at most this part of a batch's bytes; decoded, it takes many times that. How many changes that
#: is, the reply before tells: where documents suddenly are larger, a reply may have up to 16 MB.
PART = 4

#: BSONObjectTooLarge: a change with what it carries is more than a reply holds.
_TOO_LARGE = 10334

#: A reply is at most 16 MB; above this the server may have stopped for its size and not for want of changes.
FULL_REPLY = 12 * 1024 * 1024

_OPERATIONS = {item.value: item for item in Operation}


def pipeline(collections: Sequence[str], start: Start, carry_bytes: int) -> list[Document]:
    """Give the stream's pipeline: literal namespaces, and only the fields that the engine reads.

    What ends a stream or replaces a collection passes the filter too. Documents over `carry_bytes` are left
    out, so that an event never grows over MongoDB's limit; they are read instead.
    """
    named = {"$in": list(collections)}
    ends = {"$in": ["dropDatabase", "invalidate"]}
    match = {"$or": [{"ns.coll": named}, {"to.coll": named}, {"operationType": ends}]}
    large = {"$gt": [{"$bsonSize": "$fullDocument"}, carry_bytes]}
    shape = {
        "operationType": 1,
        "clusterTime": 1,
        "documentKey": 1,
        "ns.coll": 1,
        "to.coll": 1,
        "fullDocument": {"$cond": [large, "$$REMOVE", "$fullDocument"]},
    }
    return [{"$changeStream": opening(start)}, {"$match": match}, {"$project": shape}]


def opening(start: Start) -> Document:
    """Give the options of `$changeStream`; `startAfter` also opens behind an `invalidate`."""
    if start.token is not None:
        return {"startAfter": {"_data": start.token}}
    if start.time is not None:
        return {"startAtOperationTime": start.time}
    return {}


class Stream:
    """Tails the changes of some collections of one database, one server reply at a time."""

    def __init__(
        self,
        database: Database[Any],
        collections: Sequence[str],
        *,
        carry_bytes: int,
        batch_changes: int,
        batch_bytes: int = 16 * 1024 * 1024,
    ) -> None:
        self._database = database
        self._collections = frozenset(collections)
        self._carry_bytes = carry_bytes
        self._batch_changes = batch_changes
        self._batch_bytes = batch_bytes
        self._count = self._bounded(batch_bytes // PART // max(1, carry_bytes))
        self._session = database.client.start_session()
        self._cursor_id = 0
        self._token = ""
        self._held: list[Document] = []
        self._held_bytes = 0
        self._torn = False

    def open(self, start: Start) -> Position:
        """Open at `start` and give the position there; raises `PositionLost`."""
        command = {
            "aggregate": 1,
            "pipeline": pipeline(sorted(self._collections), start, self._carry_bytes),
            "cursor": {"batchSize": 0},
        }
        try:
            cursor = run(self._database, command, self._session)[0]["cursor"]
        except OperationFailure as error:
            raise judged(error) from error
        self._cursor_id = cursor["id"]
        self._held, self._held_bytes = [], 0
        self._token = cursor["postBatchResumeToken"]["_data"]
        return Position.of_token(self._token)

    def read(self, wait_ms: int) -> list[Batch]:
        """Give the next changes, waiting up to `wait_ms` for one; without any, a batch with a position only.

        Changes of one cluster time stay in one batch, as far as one batch may be: the last ones of a reply
        that the server cut short are held back until the next reply.
        """
        command = {
            "getMore": self._cursor_id,
            "collection": "$cmd.aggregate",
            "batchSize": self._count,
            "maxTimeMS": wait_ms,
        }
        try:
            reply, size = run(self._database, command, self._session)
        except OperationFailure as error:
            if error.code == _TOO_LARGE and self._carry_bytes:
                return self._carry_nothing()
            raise judged(error) from error
        cursor = reply["cursor"]
        cut_short = len(cursor["nextBatch"]) >= self._count or size > FULL_REPLY
        self._expect(len(cursor["nextBatch"]), size)
        events, size = self._held + cursor["nextBatch"], self._held_bytes + size
        self._held, self._held_bytes = [], 0
        token = cursor["postBatchResumeToken"]["_data"]
        if cursor["id"] and cut_short:
            events, token, size = self._hold_back(events, token, size)
        self._cursor_id, self._token = cursor["id"], token
        return list(self._batches(events, token, size))

    def _expect(self, changes: int, size: int) -> None:
        """Ask next for as many changes as may fill a part of a batch's bytes, going by the last reply's."""
        if changes:
            self._count = self._bounded(changes * self._batch_bytes // PART // size)

    def _bounded(self, changes: int) -> int:
        return min(self._batch_changes, max(2, changes))

    def _carry_nothing(self) -> list[Batch]:
        """Open the stream again without documents: all of them are read instead."""
        self._carry_bytes = 0
        return [Batch([], self.open(Start(token=self._token)), 0)]

    @property
    def ended(self) -> bool:
        """Whether the server closed the stream (after an `invalidate`); open it again at the last position."""
        return not self._cursor_id

    def close(self) -> None:
        """Free the server's cursor; an unreachable server frees it by itself."""
        with suppress(PyMongoError):
            if self._cursor_id:
                self._database.command("killCursors", "$cmd.aggregate", cursors=[self._cursor_id])
        self._cursor_id = 0
        self._session.end_session()

    def _hold_back(self, events: list[Document], token: str, size: int) -> tuple[list[Document], str, int]:
        """Hold back the changes of the last cluster time, unless they are too many; sizes are estimates."""
        last = events[-1]["clusterTime"]
        start = len(events)
        while start and events[start - 1]["clusterTime"] == last:
            start -= 1
        held = size * (len(events) - start) // len(events)
        if len(events) - start >= WHOLE * self._batch_changes or held >= self._batch_bytes:
            self._torn = True
            return events, token, size
        self._held, self._held_bytes = events[start:], held
        token = events[start - 1]["_id"]["_data"] if start else self._token
        return events[:start], token, size - held

    def _batches(self, events: Sequence[Document], token: str, size: int) -> Iterator[Batch]:
        changes: list[Change] = []
        for event in events:
            operation = _OPERATIONS.get(event["operationType"])
            if operation is not None:
                changes.append(_change(event, operation))
            elif collection_changes := tuple(self._collection_changes(event)):
                position = Position.of_token(event["_id"]["_data"])
                yield Batch(changes, position, size, collection_changes)
                changes, size = [], 0
        torn, self._torn = self._torn, False
        yield Batch(changes, Position.of_token(token), size, torn=torn)

    def _collection_changes(self, event: Document) -> Iterable[CollectionChange]:
        time = event["clusterTime"]
        kind = event["operationType"]
        name, target = event.get("ns", {}).get("coll"), event.get("to", {}).get("coll")
        if kind in {"drop", "rename"} and name in self._collections:
            yield CollectionChange(name, time, gone=True)
        if kind == "rename" and target in self._collections:
            yield CollectionChange(target, time, gone=False)
        if kind == "dropDatabase":
            yield from (CollectionChange(each, time, gone=True) for each in sorted(self._collections))


def _change(event: Document, operation: Operation) -> Change:
    key, document = event["documentKey"]["_id"], event.get("fullDocument")
    return new_tuple(
        Change, (event["ns"]["coll"], key, event["clusterTime"], operation, document, event["_id"]["_data"])
    )


def judged(error: OperationFailure) -> Exception:
    """Give what a failure of a stream means: the position is lost, or the failure itself."""
    if error.code == _TOO_LARGE:
        return PositionLost(
            f"The next change is larger than any change stream may report: {_told(error)}",
            POSITION_CURE,
        )
    if error.code in LOST:
        return PositionLost(
            f"The stream cannot be opened at this position any more: {_told(error)}",
            POSITION_CURE,
        )
    return error


def _told(error: OperationFailure) -> Any:
    return error.details and error.details.get("errmsg")
