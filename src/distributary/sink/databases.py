"""The databases that a sink writes, in one session, by commands that keep the server's bounds."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import OperationFailure

from distributary.change import CODEC
from distributary.chunks import chunks
from distributary.derive.plan import Stored
from distributary.derive.records import EncodedRecord, RawDocument
from distributary.parts import is_parts
from distributary.ports.records import Behind
from distributary.sink.stored import Document, read_next, read_records, replies

#: A command's bounds: MongoDB takes 100,000 statements, the driver 16 MB in a command that is not its own.
COMMAND_WRITES = 10_000
COMMAND_BYTES = 12 * 1024 * 1024

#: What a statement takes beside its document: operators, the index in the array.
STATEMENT_BYTES = 64

#: Keys in one `$in`.
QUERY_KEYS = 5000

T = TypeVar("T")


class Form(NamedTuple):
    """How something is written: the command, where its statements lie in it, and one statement."""

    verb: str
    section: str
    statement: Callable[[Any], Any]


def _insert(record: EncodedRecord) -> RawDocument:
    return RawDocument(record.document)


def _replace(record: EncodedRecord) -> Document:
    return {"q": {"_id": record.key}, "u": RawDocument(record.document), "upsert": True}


AS_NEW = Form("insert", "documents", _insert)
AS_REPLACED = Form("update", "updates", _replace)
AS_STORED = Form("insert", "documents", RawDocument)
AS_UPDATE = Form("update", "updates", lambda update: update)


class Databases:
    """The derived database and that of the state, which holds the parts of shared records, in one session."""

    def __init__(self, derived: Database[Any], state: Database[Any], session: ClientSession) -> None:
        self.derived = derived.with_options(codec_options=CODEC)
        self.state = state.with_options(codec_options=CODEC)
        self.session = session

    def __getitem__(self, collection: str) -> Collection[Any]:
        return self._of(collection)[collection]

    def _of(self, collection: str) -> Database[Any]:
        return self.state if is_parts(collection) else self.derived

    def read(self, collection: str, query: Document) -> Iterator[Stored]:
        """Read records as they are stored."""
        return read_records(self._of(collection), collection, query, self.session)

    def replies(self, collection: str, query: Document) -> Iterator[bytes]:
        """Read records in the server's replies, each the bytes of many."""
        return replies(self._of(collection), collection, query, self.session)

    def read_next(
        self,
        collection: str,
        after: Behind,
        limit: int,
        query: Document | None = None,
        fields: Document | None = None,
    ) -> Iterator[bytes]:
        """Read the next records behind a key in key order."""
        return read_next(self._of(collection), collection, after, limit, self.session, query, fields)

    def send(self, collection: str, form: Form, statements: Sequence[Any]) -> Document | None:
        """Send statements in one command, in order; gives the error of the first that fails."""
        command = {
            form.verb: collection,
            "ordered": True,
            form.section: list(map(form.statement, statements)),
        }
        reply = self._of(collection).command(command, codec_options=CODEC, session=self.session)
        errors = reply.get("writeErrors")
        return errors[0] if errors else None

    def insert(self, collection: str, records: Iterable[bytes]) -> None:
        """Insert records as they are; raises the server's error."""
        for some in by_bytes(records, len):
            if error := self.send(collection, AS_STORED, some):
                raise OperationFailure(error["errmsg"], error["code"], error)

    def delete(self, collection: str, keys: Sequence[Any], query: Document | None = None) -> None:
        """Delete the records with these keys, or those of them that a query finds."""
        for some in chunks(keys, QUERY_KEYS):
            self[collection].delete_many({"_id": {"$in": some}, **(query or {})}, session=self.session)


def by_bytes(items: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """Cut statements into commands that keep the bounds on count and bytes."""
    some: list[T] = []
    taken = 0
    for item in items:
        more = size(item) + STATEMENT_BYTES
        if some and (len(some) >= COMMAND_WRITES or taken + more > COMMAND_BYTES):
            yield some
            some, taken = [], 0
        taken += more
        some.append(item)
    if some:
        yield some
