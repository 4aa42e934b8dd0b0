"""The breaker: documents that fail at a rate are a bug in a transform, not data."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from distributary.errors import TooManyDeadLetters
from distributary.quoting import quoting, together
from distributary.state import Letter


@dataclass(slots=True)
class Breaker:
    """Stops the worker when more than `limit` of the last `window` changes failed; a limit of 0 never does."""

    limit: int
    window: int
    _seen: deque[tuple[int, int]] = field(default_factory=deque)

    def check(self, changes: int, letters: Sequence[Letter]) -> None:
        """Count changes and those of them that failed, before they are committed; raises `TooManyDeadLetters`.

        Nothing of these changes is committed then: with the transform corrected, they are derived as usual.
        """
        self._seen.append((changes, len(letters)))
        while len(self._seen) > 1 and sum(each for each, _ in self._seen) - self._seen[0][0] >= self.window:
            self._seen.popleft()
        seen, failed = sum(each for each, _ in self._seen), sum(each for _, each in self._seen)
        if self.limit and letters and failed * self.window > self.limit * max(seen, self.window):
            raise self._error(letters[-1], failed, seen)

    def _error(self, letter: Letter, failed: int, seen: int) -> TooManyDeadLetters:
        where = quoting(f"{letter.source}[", f"{letter.key!r:.80}", "]: ")
        return TooManyDeadLetters(
            together(
                f"{failed:,} of the last {seen:,} changes could not be derived, the last one by transform "
                f"{letter.transform!r} from ",
                where,
                letter.reason,
            ),
            "Correct the transform and start again: nothing was skipped. To park them instead, raise "
            "dead_letters.max_in_window (0: never stop).",
        )
