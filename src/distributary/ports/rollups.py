"""Groups of rollups: pending ones, and who computes them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from pymongo.client_session import ClientSession

from distributary.ports.records import Behind


class RollupRefused(Exception):
    """MongoDB cannot compute or store groups of a rollup: the records, or what they come to, are not right for it."""

    def __init__(self, rollup: str, reason: str) -> None:
        super().__init__(reason)
        self.rollup = rollup
        self.reason = reason


class Group(NamedTuple):
    """One group of one rollup; `key` is canonical."""

    rollup: str
    key: Any


class PendingGroup(NamedTuple):
    """A group that is to be computed.

    `since` is another one after every time that it was not pending in between; `rev` changes with every touch.
    `error` says why it could not be computed.
    """

    group: Group
    since: Any
    rev: int
    error: str = ""


class Drained(NamedTuple):
    """What a pending group came to: its document, None without records, and their number; or why it has none."""

    pending: PendingGroup
    document: Mapping[str, Any] | None
    records: int = 0
    error: str = ""


class GroupReader(Protocol):
    """Computes pending groups beside the stream, without a bound on their records."""

    def read(self, after: Behind, limit: int) -> tuple[list[Drained], Behind]:
        """Compute the next pending groups as of one moment, and give where to go on; empty at the end.

        What was pending, and with which `since` and `rev`, is of the same moment.
        """


class PendingStore(Protocol):
    """Where it lies which groups are to be computed. The holder of the lease alone writes it."""

    def mark(self, groups: Sequence[Group], session: ClientSession) -> None:
        """Let groups be pending; those that are already are touched once more, and lose their error."""

    def settle(self, groups: Sequence[Group], session: ClientSession) -> None:
        """Let groups that were computed in this transaction be pending no more."""

    def known(self, groups: Sequence[Group], session: ClientSession) -> list[PendingGroup]:
        """Give those of these groups that are pending."""

    def fail(self, errors: Sequence[tuple[Group, str]], session: ClientSession) -> None:
        """Note why groups cannot be computed; they are tried again after a while, or when they are touched."""

    def next(self, after: Behind, limit: int, session: ClientSession) -> tuple[list[PendingGroup], Behind]:
        """Give the next groups that are worth computing, in a fixed order, and where to go on; empty at the end."""


class Marked(NamedTuple):
    """How many records were looked at for their groups, and where to go on; empty at the end."""

    documents: int
    behind: Behind
