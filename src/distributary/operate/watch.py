"""The worker as another process sees it: whether it is alive, and how far it is."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from bson import Timestamp

from distributary.errors import Failed
from distributary.state import Checkpoint
from distributary.store.lease import Holder

#: Seconds between two looks at what another process does.
LOOK_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Watch:
    """Waits for a worker by its checkpoint.

    `patience` is how many seconds the position of a living worker may stand still; an idle one saves it only
    every `worker.idle_save_seconds`.
    """

    holder: Callable[[], Holder | None]
    checkpoint: Callable[[], Checkpoint]
    patience: float
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def alive(self) -> bool:
        """Whether a process holds the lease."""
        holder = self.holder()
        return holder is not None and holder.alive

    def passed(self, at: Timestamp) -> bool:
        """Wait until the worker has committed everything up to `at`; False as soon as no worker is alive.

        Raises `Failed` when one is, and does not move.
        """
        seen, since = None, self.clock()
        while self.alive():
            checkpoint = self.checkpoint()
            if checkpoint.has_passed(at):
                return True
            if checkpoint.position != seen:
                seen, since = checkpoint.position, self.clock()
            elif self.clock() - since > self.patience:
                raise Failed(
                    f"A worker holds the lease, but its position stood still for {self.patience:.0f} s.",
                    "Look at its log, start it again if need be, and run `distributary verify` again.",
                )
            self.sleep(LOOK_SECONDS)
        return False
