"""Values that contract suites are made of, and transactions on both sides."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

from bson import Timestamp
from pymongo.client_session import ClientSession

from distributary.change import Position, Version, identity
from distributary.derive.plan import Desired, Owner
from distributary.derive.records import DerivedCollection, encode_record, origin, tail_of
from distributary.state import Built, Checkpoint, Job, JobKind, Letter, LetterKind, SourceIdentity
from tests.conftest import Client

#: Gives a transaction; an exception inside aborts it.
Transaction = Callable[[], AbstractContextManager[ClientSession]]

POSITION = Position("8200000001000000010000", Timestamp(1, 1))


class Abort(Exception):
    """A reason to abort a transaction."""


def transactions(client: Client) -> Transaction:
    """Give the transactions of a real deployment."""

    @contextmanager
    def transaction() -> Iterator[ClientSession]:
        with client.start_session() as session, session.start_transaction():
            yield session

    return transaction


@contextmanager
def aborted(transaction: Transaction) -> Iterator[ClientSession]:
    """Give a transaction that is aborted at the end."""
    with suppress(Abort), transaction() as session:
        yield session
        raise Abort


def checkpoint(worker: str = "w", revision: int = 0, **fields: Any) -> Checkpoint:
    """Give a checkpoint with one transform that writes one collection."""
    entries = {"f": Built("raw", "code", frozenset({"a"}), built=True)}
    whole: dict[str, Any] = {
        "position": POSITION,
        "ahead": Timestamp(1, 1),
        "source": SourceIdentity("rs", None, "raw"),
        "epoch": 1,
        "watched": ("raw",),
        "transforms": entries,
    }
    return Checkpoint(worker=worker, revision=revision, **(whole | fields))


def letter(key: Any, kind: LetterKind = LetterKind.FAILED, **fields: Any) -> Letter:
    """Give the letter of a document of transform `f`."""
    return Letter("f", key, "raw", kind, "reason", "", POSITION, "code", **fields)


def change(key: Any, token: str, kind: LetterKind = LetterKind.FAILED) -> Letter:
    """Give the letter of a change of a document that trigger `f` failed for."""
    content = {"operation": "update", "key": key, "document": {"_id": key, "token": token}}
    position = Position(token, POSITION.time)
    named = {"key": key, "position": token}
    return Letter("f", named, "raw", kind, "reason", "", position, "code", change=content)


def waiting(key: Any, collection: str, wanted: Any) -> Letter:
    """Give the letter of a document that waits for a key."""
    return letter(key, LetterKind.CONTESTED, waits_for=(collection, wanted))


def job(source: str = "raw", **fields: Any) -> Job:
    """Give a backfill."""
    return Job(None, JobKind.BACKFILL, source, ("f",), "reason", **fields)


def desired(
    key: Any, *records: tuple[str, Any, int], time: int = 1, by: str = "f", fresh: bool = False
) -> Desired:
    """Give what a document yields: (derived collection, key, value) each."""
    version = Version(1, Timestamp(time, 1))
    source = origin(by, key, version)
    encoded = [
        encode_record(DerivedCollection(name).record(record_key, {"v": value}), source, tail_of(source))
        for name, record_key, value in records
    ]
    return Desired(by, key, Owner(by, identity(key)), version, encoded, fresh)
