"""Changes of a batch, collapsed per document: what counts is the latest state."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from bson import Timestamp

from distributary.change import Change, Identity, Operation, identity, new_tuple


class Latest(NamedTuple):
    """What a batch knows about one document after its last change in the batch.

    `document` is None when it has to be read, or when it is `gone`. `fresh` says that the document did
    not exist before the batch and changed once in it, so that nothing can be stored for it.
    """

    collection: str
    key: Any
    identity: Identity
    time: Timestamp
    document: dict[str, Any] | None
    gone: bool
    fresh: bool
    token: str

    @property
    def unread(self) -> bool:
        """Whether the document's state has to be read from the source."""
        return self.document is None and not self.gone


Place = tuple[str, Identity]  # source collection, identity of the document's key


def collapse(changes: Iterable[Change], shown: Callable[[Place], Timestamp] | None) -> list[Latest]:
    """Reduce changes, in the source's order, to one `Latest` per document.

    `shown` gives the newest cluster time as of which an earlier commit may already show a document. Up to it a
    change says only *that* its document changed: the state it carries may be older, so the document is read.
    None: nothing is shown ahead of these changes.
    """
    latest: dict[tuple[str, Identity], Latest] = {}
    for collection, key, time, operation, document, token in changes:
        ident = identity(key)
        place = (collection, ident)
        if shown is not None and time <= shown(place):
            latest[place] = new_tuple(Latest, (collection, key, ident, time, None, False, False, token))
            continue
        gone = operation is Operation.DELETE
        fresh = operation is Operation.INSERT and place not in latest
        latest[place] = new_tuple(Latest, (collection, key, ident, time, document, gone, fresh, token))
    return list(latest.values())
