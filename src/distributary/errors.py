"""Every error that leaves distributary, with the exit code of the command line and its cure.

DistributaryError             exit code 1
├── Failed                    1: the work was done and its result is bad, or it cannot go on
│   ├── LeaseLost             1: another holder may write this worker's collections
│   ├── CheckpointMoved       1: the checkpoint is not the one that this process wrote last
│   └── TooManyDeadLetters    1: so many documents fail that it is a bug, not data
├── ConfigurationError        2: configuration, usage or transform modules; holds all faults at once
├── EnvironmentFault          3: MongoDB cannot be reached, is not a replica set, lacks a privilege
└── PositionLost              4: the position is no longer in the source's history
"""

from collections.abc import Sequence
from dataclasses import dataclass


class DistributaryError(Exception):
    """Base of all; `cure` says what to do next."""

    exit_code = 1

    def __init__(self, message: str, cure: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.cure = cure

    def __str__(self) -> str:
        return f"{self.message} {self.cure}".strip()


class Failed(DistributaryError):
    """The work cannot go on."""


class LeaseLost(Failed):
    """Another holder took the lease; nothing more was committed under the old one."""


class CheckpointMoved(Failed):
    """The checkpoint is newer than this process knows: a commit came through whose answer was lost."""


class TooManyDeadLetters(Failed):
    """Documents fail at a rate that points at a bug in a transform."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong in configuration or a transform module: `place` is a key or `file:line`."""

    place: str
    problem: str
    cure: str

    def __str__(self) -> str:
        return f"{self.place}: {self.problem} {self.cure}".strip()


class ConfigurationError(DistributaryError):
    """Configuration, usage or transform modules are wrong; every fault that was found is in `faults`."""

    exit_code = 2

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults = tuple(faults)


class EnvironmentFault(DistributaryError):
    """The environment cannot do the work: unreachable, not a replica set, a missing privilege."""

    exit_code = 3


#: What to do about a position that is lost, where it is not made good by itself.
POSITION_CURE = (
    'Set worker.on_lost_position = "resync" to derive everything again, or start anew with an empty state '
    "database and an empty derived database."
)


class PositionLost(DistributaryError):
    """The position is no longer, or never was, in the history of this source."""

    exit_code = 4
