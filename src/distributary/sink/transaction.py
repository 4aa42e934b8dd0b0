"""One transaction by MongoDB's rules: what is repeated at once, and what is left to the caller."""

from collections.abc import Callable
from typing import TypeVar

from pymongo import WriteConcern
from pymongo.client_session import ClientSession
from pymongo.errors import OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern

T = TypeVar("T")

#: Tries of a transaction that conflicts, and of a commit whose result is unknown.
TRIES = 5


def transact(session: ClientSession, work: Callable[[], T]) -> T:
    """Do the work in one transaction, with a majority of the members on return.

    What the server aborts for a conflict is repeated at once, and a commit is asked for again until its result
    is known; the driver's `with_transaction` does so for two silent minutes. Without an answer, the error goes to
    the caller, who can wait, say so, and be told to stop. It may have been committed then.
    """
    for left in reversed(range(TRIES)):
        session.start_transaction(ReadConcern("snapshot"), WriteConcern("majority"))
        try:
            result = work()
            _commit(session)
        except BaseException as error:
            if session.in_transaction:
                session.abort_transaction()
            if not (left and _answered(error, "TransientTransactionError")):
                raise
        else:
            return result
    raise AssertionError("the last try returns or raises")


def _answered(error: BaseException, label: str) -> bool:
    """Whether it is the server's answer, with this label."""
    return isinstance(error, OperationFailure) and error.has_error_label(label)


def _commit(session: ClientSession) -> None:
    """Commit; asks again while the result is unknown."""
    for left in reversed(range(TRIES)):
        try:
            session.commit_transaction()
        except PyMongoError as error:
            if not (left and _answered(error, "UnknownTransactionCommitResult")):
                raise
        else:
            return
