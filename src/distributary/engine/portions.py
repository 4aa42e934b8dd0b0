"""How many changes one commit should hold, and the cutting of a batch into as many."""

from typing import NamedTuple

from distributary.change import Change, Position
from distributary.ports.source import Batch

#: Seconds that a commit should take at most: longer ones fill MongoDB's cache and hold up what waits for them.
AIM_SECONDS = 1.0

#: A commit of so many is not made smaller: each has costs of its own, and who falls too far behind is lost.
LEAST = 200

#: A commit that is so many times as quick as it may be lets the next ones be larger, by one part in `GROWTH`.
QUICK, GROWTH = 2, 8

#: Where smaller commits take as long as large ones, so many times as long is bearable; with each commit a little less,
#: so that it is tried again now and then whether smaller ones are quicker.
BEARABLE, FADING = 2.5, 0.98

#: A commit with at most this share of another one's changes says whether smaller ones are quicker.
TELLING = 0.75


class _Slow(NamedTuple):
    """A commit that took too long: how much it held, how long it took, and what the next ones may hold if in vain."""

    size: int
    seconds: float
    before: int


class Portion:
    """How much the next commit should hold, `most` at most and `least` at least: changes, or documents of a slice.

    After a commit that took too long it is as many as would have been quick enough, half of them at most; after full
    and quick ones it grows slowly. Where smaller commits take as long, because each waits for a disk or another
    member, it is what it was. One thread tells of commits, another one may look.
    """

    def __init__(self, most: int, seconds: float = AIM_SECONDS, least: int = LEAST) -> None:
        self._most = most
        self._least = min(least, most)
        self._aim = self._bearable = seconds
        self._slow: _Slow | None = None
        self.size = most

    def took(self, size: int, seconds: float, *, full: bool = False) -> None:
        """Note how long a commit of so many took; `full` says that it held what it might, however many that were."""
        self._bearable = max(self._aim, FADING * self._bearable)
        if seconds > self._bearable:
            self._took_long(size, seconds)
            return
        self._slow = None
        if (full or size >= self.size) and QUICK * seconds < self._bearable:
            self.size = min(self._most, self.size + 1 + self.size // GROWTH)

    def failed(self, size: int, seconds: float) -> None:
        """Note that a commit of so many failed after so long: that smaller ones take as long is no way back to it."""
        if seconds > self._bearable:
            self._shrink(size, seconds)
            self._slow = None

    def _took_long(self, size: int, seconds: float) -> None:
        if self._slow and _in_vain(self._slow, size, seconds):
            self.size, self._slow = max(self.size, self._slow.before), None
            self._bearable = BEARABLE * seconds
        elif size <= self._least:
            self._bearable = BEARABLE * seconds
        else:
            self._shrink(size, seconds)

    def _shrink(self, size: int, seconds: float) -> None:
        fitting = max(self._least, min(size // 2, int(size * self._bearable / seconds)))
        if fitting < self.size:
            self._slow = _Slow(size, seconds, min(self._most, max(size, self.size)))
            self.size = fitting


def _in_vain(slow: _Slow, size: int, seconds: float) -> bool:
    """Whether a smaller commit saved less than half of the time that it should have."""
    share = size / slow.size
    return share <= TELLING and seconds / slow.seconds > (1 + share) / 2


def portioned(batch: Batch, most: int) -> tuple[Batch, Batch | None]:
    """Cut a batch behind about `most` changes, and give what is left of it, unless all may stay together.

    It is never cut inside one cluster time, and small remainders stay where they are.
    """
    changes = batch.changes
    if len(changes) < 2 * most:
        return batch, None
    cut = _behind(changes, most)
    if cut == len(changes):
        return batch, None
    head = Batch(changes[:cut], Position.of_token(changes[cut - 1].token), 0, read=batch.read)
    return head, batch._replace(changes=changes[cut:])


def joined(first: Batch | None, second: Batch | None) -> Batch | None:
    """Give two parts of one batch as one, in this order; each may be missing."""
    if first is None or second is None:
        return first or second
    return second._replace(changes=[*first.changes, *second.changes])


def _behind(changes: list[Change], cut: int) -> int:
    """Give the index behind the cluster time that a cut falls into."""
    while cut < len(changes) and changes[cut].time == changes[cut - 1].time:
        cut += 1
    return cut
