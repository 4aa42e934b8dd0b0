"""Reading documents of the source, each time as the state of one exactly known cluster time."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, suppress
from threading import Lock
from typing import Any

from bson import Timestamp, decode
from bson.errors import InvalidBSON
from bson.raw_bson import RawBSONDocument
from pymongo import ReadPreference
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.errors import OperationFailure, PyMongoError

from distributary.change import CODEC, RAW, decoded
from distributary.ports.records import TooMuch
from distributary.ports.source import Encoded, Snapshot
from distributary.state import BEGINNING

#: SnapshotTooOld, SnapshotUnavailable: the server no longer keeps the state of that cluster time.
GONE_SNAPSHOT = frozenset({239, 246})

#: Milliseconds for a query that somebody has given, of which nobody knows how long it takes.
ONLY_MS = 10_000

Document = dict[str, Any]


def run(
    database: Database[Any], command: Document, session: ClientSession | None = None
) -> tuple[Document, int]:
    """Run a command on the primary; gives the reply, decoded, and its size in bytes.

    Where one of several documents has a UUID that is none, changes carry no documents, so that each is read for itself.
    """
    raw = bytes(run_raw(database, command, session).raw)
    try:
        return decode(raw, CODEC), len(raw)
    except InvalidBSON:
        reply = decoded(raw)
        for change in reply["cursor"].get("nextBatch", ()):
            change.pop("fullDocument", None)
        return reply, len(raw)


def run_raw(
    database: Database[Any], command: Document, session: ClientSession | None = None
) -> RawBSONDocument:
    """Run a command on the primary; gives the reply as it came."""
    return database.command(
        command, codec_options=RAW, session=session, read_preference=ReadPreference.PRIMARY
    )


class Documents:
    """Reads the documents of one database by key or in key order.

    `most` is the number of bytes above which `fetch` raises `TooMuch` and `scan` gives fewer documents. They are
    counted after each reply of the server, of at most 16 MB, so that so much more may be held for a moment.
    """

    def __init__(self, database: Database[Any], most: int | None = None) -> None:
        self._database = database
        self._most = most
        self._scanned: dict[str, int] = {}
        self._lock = Lock()
        self._newest = BEGINNING

    def not_before(self, time: Timestamp) -> None:
        """Read nothing older than this from now on: after an election a new primary may be behind for a moment."""
        with self._lock:
            self._newest = max(self._newest, time)

    def fetch(
        self,
        collection: str,
        keys: Sequence[Any],
        at: Timestamp | None = None,
        only: Mapping[str, Any] | None = None,
    ) -> Snapshot:
        """Read the documents with these keys, that match `only`, in one query, as of `at` while the server has it.

        Without `at`, or when its state is gone, as of the newest majority-committed time; the snapshot's
        time says which it is.
        """
        query = _by_key(keys)
        if only:
            query |= {"filter": {"$and": [query["filter"], only]}, "maxTimeMS": ONLY_MS}
        return self._read(collection, query, at)

    def _read(self, collection: str, query: Document, at: Timestamp | None) -> Snapshot:
        """Read as of `at`, or as of the newest time."""
        if at is not None:
            try:
                return Snapshot(*self._find(collection, query, at, self._bound(query)))
            except OperationFailure as error:
                if error.code not in GONE_SNAPSHOT:
                    raise
                # the driver's frames keep the error, and its traceback a batch
                error.__traceback__ = None
        return Snapshot(*self._find(collection, query, most=self._bound(query)))

    def _bound(self, query: Document) -> int | None:
        """Give the bytes above which a query is too much; one reply of a scan is cut instead."""
        return None if query.get("singleBatch") else self._most

    def scan(
        self,
        collection: str,
        after: tuple[Any, ...],
        limit: int,
        skip: int = 0,
        at: Timestamp | None = None,
        until: tuple[Any, ...] = (),
    ) -> Snapshot:
        """Read at most `limit` documents behind the key in `after` and `skip` more, in BSON order of mixed types.

        As of `at` or the newest time, as in `fetch`. No documents means that the end is reached, or the key in `until`.
        One reply is read, of at most 16 MB, so that fewer documents than `limit` say nothing.
        """
        limit = min(limit, self._scanned.get(collection, limit))
        time, documents = self._read(collection, _in_order(after, limit, skip, until), at)
        assert isinstance(documents, Encoded)
        fit = documents.fit(self._most)
        self._scanned[collection] = fit if fit < len(documents) else 2 * limit
        return Snapshot(time, documents[:fit])

    def keys(
        self, collection: str, after: tuple[Any, ...], limit: int, skip: int = 0, until: tuple[Any, ...] = ()
    ) -> Snapshot:
        """Read the next keys in their order as `scan` does: documents of `_id` only."""
        query = _in_order(after, limit, skip, until) | {"projection": {"_id": 1}}
        return Snapshot(*self._find(collection, query))

    def last(self, collection: str) -> tuple[Any, ...]:
        """Give the last key in its order; nothing without one."""
        query = {"hint": {"_id": 1}, "sort": {"_id": -1}, "limit": 1, "projection": {"_id": 1}}
        return tuple(self._find(collection, query)[1].keys())

    def existing(self, collection: str, keys: Sequence[Any]) -> Snapshot:
        """Read which of these keys exist: documents of `_id` only."""
        return Snapshot(*self._find(collection, _by_key(keys) | {"projection": {"_id": 1}}))

    def exists(self, collection: str) -> bool:
        """Whether there is such a collection now."""
        return bool(self._database.list_collection_names(filter={"name": collection}))

    def count(self, collection: str) -> int:
        """Estimate the number of documents from the collection's metadata."""
        return self._database[collection].estimated_document_count()

    def _find(
        self, collection: str, query: Document, at: Timestamp | None = None, most: int | None = None
    ) -> tuple[Timestamp, Encoded]:
        """Read as of one cluster time, at `most` so many bytes.

        The server names none for a collection that does not exist: then it is that of the reply, which may be
        later than the read, and no document shows it.
        """
        concern: Document = {"level": "snapshot"}
        if at is not None:
            concern["atClusterTime"] = at
        elif self._newest > BEGINNING:
            concern["afterClusterTime"] = self._newest
        with self._database.client.start_session() as session:
            command = {"find": collection, "batchSize": 100_000, **query, "readConcern": concern}
            cursor = run_raw(self._database, command, session)["cursor"]
            documents: list[bytes] = []
            with closing(self._replies(collection, cursor, session)) as replies:
                for some in replies:
                    documents += some
                    if (fit := Encoded(documents).fit(most)) < len(documents):
                        raise TooMuch(fit)
            time: Any = cursor.get("atClusterTime") or at or session.operation_time
        self.not_before(time)
        return time, Encoded(documents)

    def _replies(
        self, collection: str, cursor: Any, session: ClientSession
    ) -> Generator[list[bytes], None, None]:
        """Give the documents of each reply; a cursor that is not read to its end is closed."""
        cursor_id = cursor["id"]
        try:
            yield [each.raw for each in cursor["firstBatch"]]
            while cursor_id:
                command = {"getMore": cursor_id, "collection": collection, "batchSize": 100_000}
                cursor = run_raw(self._database, command, session)["cursor"]
                cursor_id = cursor["id"]
                yield [each.raw for each in cursor["nextBatch"]]
        finally:
            if cursor_id:
                with suppress(PyMongoError):  # the server closes it by itself
                    self._database.command("killCursors", collection, cursors=[cursor_id], session=session)


def _in_order(after: tuple[Any, ...], limit: int, skip: int, until: tuple[Any, ...]) -> Document:
    """Give the query of a slice in key order.

    `min` and `max` bound the index whatever the key's type, which `$gt` would not.
    """
    query: Document = {"hint": {"_id": 1}, "sort": {"_id": 1}, "singleBatch": True}
    if after:
        query |= {"min": {"_id": after[0]}, "filter": {"_id": {"$ne": after[0]}}}
    if until:
        query |= {"max": {"_id": until[0]}}
    return query | {"skip": skip, "limit": limit, "batchSize": limit}


def _by_key(keys: Sequence[Any]) -> Document:
    return {"filter": {"_id": {"$in": list(keys)}}, "hint": {"_id": 1}}
