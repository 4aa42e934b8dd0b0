"""Topics side by side: one whose messages are not taken rests, and does not hold up the others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic

#: Seconds for which a topic rests behind its first failure; twice as long behind each further one, up to the most.
LEAST_SECONDS = 0.1
MOST_SECONDS = 5.0

#: How many times as long as the try itself a topic rests at least: others have the most of the time.
PROPORTION = 2

#: Refused messages in a row, and none that is taken, of which not all can be bad in themselves.
MANY = 100

_UNBOUNDED = 1 << 62


@dataclass(slots=True)
class _Lane:
    """A topic of which something failed: how often so far, until when it rests, and how many are tried then.

    `refused` messages are the last that it answered, and none of them was taken.
    """

    failures: int = 0
    until: float = 0.0
    trial: int = 0
    refused: int = 0


class Lanes:
    """Which topics may be sent to, and how much. Topics that nothing failed of are not remembered."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._lanes: dict[str, _Lane] = {}
        self._last = ""

    @property
    def are_open(self) -> bool:
        """Whether no topic rests or is on trial."""
        return not any(lane.trial for lane in self._lanes.values())

    def turns(self, topics: Sequence[str]) -> list[str]:
        """Give those of the topics that do not rest, the one that was served last in the end."""
        now = self._clock()
        ready = sorted(name for name in topics if name not in self._lanes or self._lanes[name].until <= now)
        return [name for name in ready if name > self._last] + [name for name in ready if name <= self._last]

    def limit(self, topic: str, most: int) -> int:
        """Give how many messages of a topic are sent at once: a few where it is tried whether they are taken."""
        lane = self._lanes.get(topic)
        return min(most, lane.trial) if lane and lane.trial else most

    def served(self, topic: str) -> None:
        """Note that it was a topic's turn."""
        self._last = topic

    def judge(self, topic: str, *, taken: int, refused: int) -> bool:
        """Note how many messages were taken and refused; whether the topic may be at fault, not what it refused.

        So it is where it refused many and took none, and for what it refuses when it takes some again.
        """
        lane = self._lanes.setdefault(topic, _Lane())
        before, lane.refused = lane.refused, 0 if taken else lane.refused + refused
        return max(before, lane.refused) >= MANY

    def passed(self, topic: str) -> None:
        """Note that nothing of what was sent to a topic is left."""
        lane = self._lanes.setdefault(topic, _Lane())
        if not lane.trial and not lane.refused:
            del self._lanes[topic]
        lane.trial = 0

    def failed(self, topic: str, took: float) -> None:
        """Let a topic rest whose messages were not taken.

        One is tried the next time, but as many as before where it refused many: one alone would seem to be at fault.
        """
        lane = self._lanes.setdefault(topic, _Lane())
        rest = min(MOST_SECONDS, LEAST_SECONDS * 2.0 ** min(lane.failures, 10))
        lane.failures += 1
        lane.until = self._clock() + max(rest, PROPORTION * took)
        lane.trial = _UNBOUNDED if lane.refused >= MANY else 1

    def pause(self, most: float) -> float:
        """Give the seconds until the next topic has rested, `most` at most."""
        now = self._clock()
        return min([most, *(max(0.0, lane.until - now) for lane in self._lanes.values() if lane.trial)])

    def keep(self, topics: Sequence[str]) -> None:
        """Forget topics of which nothing waits any more."""
        self._lanes = {name: lane for name, lane in self._lanes.items() if name in topics}
