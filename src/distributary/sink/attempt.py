"""A batch that is written again and again, each time more carefully, until MongoDB takes what is left of it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from distributary.change import Version
from distributary.derive.plan import UNKNOWN_VERSION, Desired, Write
from distributary.derive.shared import Delta
from distributary.parts import called
from distributary.quoting import said_by_server
from distributary.sink.stored import Document

_BAD_VALUE, _DUPLICATE_KEY = 2, 11000


class Taken(Exception):
    """A key that was thought to be new exists: the batch is repeated with what lies under its keys."""


class Refused(Exception):
    """MongoDB refused one write."""

    def __init__(self, desired: Desired, reason: str, *, unique: bool) -> None:
        super().__init__(reason)
        self.desired = desired
        self.reason = reason
        self.unique = unique


class Damaged(Exception):
    """A shared record is not what its parts say: the batch is repeated with the record put together anew."""

    def __init__(self, place: tuple[str, Any], refusal: Refused) -> None:
        super().__init__(called(*place))
        self.place = place
        self.refusal = refusal


@dataclass(slots=True)
class Attempt:
    """What is left to write of a batch, and how carefully."""

    desired: list[Desired]
    foreign: Sequence[tuple[str, Any]]
    unplugged: Collection[str]
    shadows: Mapping[str, str]
    alone: bool
    states: bool = False
    by_key: bool = False
    apart: bool = False
    refused: list[tuple[Desired, str]] = field(default_factory=list)
    deferred: set[str] = field(default_factory=set)

    @property
    def version(self) -> Version:
        """The newest version of what is written."""
        return max((item.version for item in self.desired), default=UNKNOWN_VERSION)

    def look(self) -> None:
        """Learn from a key that exists: nothing is taken for new any more."""
        self.by_key = True
        self.desired = [replace(item, fresh=False) for item in self.desired]

    def heal(self, damaged: Damaged) -> None:
        """Put a shared record together anew first; where that was of no use, go on without the document."""
        if damaged.place in self.foreign:
            self.after(damaged.refusal)
        else:
            self.foreign = [*self.foreign, damaged.place]

    def after(self, refusal: Refused) -> None:
        """Learn from a refusal: first write replaced records as new ones, then go on without the document."""
        if refusal.unique and not self.apart:
            self.apart = True
            return
        culprit = next(item for item in self.desired if item.owner == refusal.desired.owner)
        self.refused.append((culprit, refusal.reason))
        self.desired = [item for item in self.desired if item is not culprit]

    def without(self, rollup: str, culprits: Sequence[tuple[Desired, str]]) -> None:
        """Go on without the documents that a rollup cannot be computed with; without any, leave its groups pending."""
        self.refused += culprits
        taken = {id(item) for item, _ in culprits}
        self.desired = [item for item in self.desired if id(item) not in taken]
        if not culprits:
            self.deferred.add(rollup)


def judged(error: Document, writes: Sequence[Write], *, by_key: bool) -> Exception:
    """Turn the first write error into what the batch does next."""
    record, desired = writes[error["index"]]
    unique = error["code"] == _DUPLICATE_KEY
    if unique and "_id" in error.get("keyPattern", {"_id": 1}) and not by_key:
        return Taken()
    name = called(record.collection, record.key)
    reason = said_by_server(f"MongoDB refuses the record {name}: ", error["errmsg"], error["code"])
    return Refused(desired, reason, unique=unique)


def judged_shared(error: Document, collection: str, delta: Delta) -> Exception:
    """Turn the first error of a shared record into what the batch does next.

    A list that is not there was changed by a hand. Else the document that yields most is taken out.
    """
    name = called(collection, delta.key)
    reason = said_by_server(f"MongoDB refuses the shared record {name}: ", error["errmsg"], error["code"])
    culprit = max(delta.culprits, key=lambda desired: desired.size)
    refusal = Refused(culprit, reason, unique=False)
    return Damaged((collection, delta.key), refusal) if error["code"] == _BAD_VALUE else refusal
