"""Whether a transform is pure, as far as two calls with the same document can tell."""

from typing import Any, NamedTuple

from bson import decode, encode
from bson.errors import BSONError

from distributary.change import CODEC
from distributary.derive.records import EncodedRecord, Place
from distributary.derive.transform import Failure, Transform, derive_or_raise, failure_of

#: What is told of a transform that is not pure, and what to do about it.
UNSTABLE = "yields something else the second time"
UNSTABLE_CURE = "Derive from the document alone: no clock, no chance, no state."
CHANGES = "changes the document that it is given."
CHANGES_CURE = "Build new values, or work on a copy.deepcopy of the document."

#: What a document yields, in a form to be compared.
Output = dict[Place, bytes] | Failure


class Call(NamedTuple):
    """One call of a transform: the records, or the error that parks the document.

    `changed` says that the transform left its document other than it was.
    """

    records: list[EncodedRecord]
    error: Exception | SystemExit | None
    changed: bool

    @property
    def output(self) -> Output:
        """What it yielded, to be compared."""
        if self.error is not None:
            return failure_of(self.error)
        return {record.place: record.body for record in self.records}


def call(transform: Transform, document: bytes, limit: int) -> Call:
    """Derive a document, given in BSON, as a worker would."""
    given = decode(document, CODEC)
    before = _encoded(given)
    records: list[EncodedRecord] = []
    failed: Exception | SystemExit | None = None
    try:
        records = derive_or_raise(transform, given, limit)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code may raise anything
        failed = error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
    return Call(records, failed, changed=before is not None and _encoded(given) != before)


def differ(first: Output, second: Output) -> bool:
    """Whether two calls with one document gave something else; two failures count as the same."""
    return first != second and not (isinstance(first, Failure) and isinstance(second, Failure))


def _encoded(document: dict[str, Any]) -> bytes | None:
    """Give the BSON of a document; None when it cannot be encoded, as with invalid UTF-8 in it."""
    try:
        return encode(document, codec_options=CODEC)
    except (BSONError, ValueError, TypeError, OverflowError):
        return None
