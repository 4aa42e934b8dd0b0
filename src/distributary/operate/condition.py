"""How a worker is, from its lease and from what its processes say: for somebody who is woken up at night."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from distributary.engine.observer import Phase
from distributary.store.lease import Holder
from distributary.store.processes import Process


class Condition(StrEnum):
    """How a worker is, in a word.

    `active`: it works. `waiting`: it holds the lease, or wants it, and cannot go on for a reason that is no fault of
    the process. `stuck`: `/healthz` says that a restart would help. `silent`: who had the lease is not heard of any
    more. `starting`, `standby` and `stopping`: a process is, and none works. `stopped`: there is no process, and the
    last one ended in order. `never started`: nor is there a checkpoint.
    """

    ACTIVE = "active"
    WAITING = "waiting"
    STUCK = "stuck"
    SILENT = "silent"
    STARTING = "starting"
    STANDBY = "standby"
    STOPPING = "stopping"
    STOPPED = "stopped"
    NEVER = "never started"


class Judgement(NamedTuple):
    """A condition, why it is so, and what to do next; both empty where nothing needs to be said."""

    condition: Condition
    why: str = ""
    cure: str = ""


#: Nothing needs to be said.
FINE = Judgement(Condition.ACTIVE)

_OF_PHASE: Mapping[str, Condition] = {
    Phase.WAITING: Condition.WAITING,
    Phase.OPENING: Condition.STARTING,
    Phase.STARTING: Condition.STARTING,
    Phase.STANDBY: Condition.STANDBY,
    Phase.STOPPING: Condition.STOPPING,
    Phase.ACTIVE: Condition.ACTIVE,
}

_RESTART = "Restart the process; keep its log, and what /healthz says, for whoever looks for the cause."
_TAKEN_OVER = "A standby takes over when the lease runs out; without one, start the worker again."
_START = "Start the worker again (`distributary run`): it goes on where it was."
_BY_ITSELF = "It goes on by itself as soon as that is over; the log has more."
_PUBLISHING = (
    "It goes on once some are published; `distributary check` looks at the topics, and the log has more."
)
_TRANSFORM = "Mend the transform, or the document; the worker waits for it, and so would another one."


def judged(holder: Holder | None, processes: Sequence[Process], *, begun: bool) -> Judgement:
    """Say how a worker is; `begun` tells that it has a checkpoint."""
    if holder is not None and holder.alive:
        return _of_holder(holder, next((each for each in processes if each.name == holder.name), None))
    heard = [each for each in processes if not each.is_silent]
    if heard:
        return _of_waiting(heard)
    if holder is not None:
        return Judgement(
            Condition.SILENT, f"{holder.name} was killed, paused, or cut off from MongoDB", _START
        )
    return Judgement(Condition.STOPPED if begun else Condition.NEVER)


def _of_holder(holder: Holder, process: Process | None) -> Judgement:
    """Judge who holds the lease; a verb that works without a worker says nothing of itself, and is fine."""
    if process is None:
        return _held_up(holder) or FINE
    if process.is_silent:
        why = (
            f"it has not been heard of for {process.silent_seconds:.0f} s: it was killed, paused, or cut off"
        )
        return Judgement(Condition.SILENT, f"{why} from MongoDB", _TAKEN_OVER)
    return _stuck(process) or _held_up(holder) or _of_word(process, Condition.ACTIVE)


def _stuck(process: Process) -> Judgement | None:
    if process.healthz["healthy"]:
        return None
    return Judgement(Condition.STUCK, process.healthz["reason"], _RESTART)


def _held_up(holder: Holder) -> Judgement | None:
    if not holder.slow:
        return None
    return Judgement(Condition.WAITING, "a transform takes long for one document", _TRANSFORM)


def _of_word(process: Process, ready: Condition) -> Judgement:
    """Take a process that is not stuck at its word; in a phase of another release it is `ready` or waits."""
    said = process.readyz
    condition, why = _OF_PHASE.get(said["phase"]), said["why"] or ""
    if condition is None:
        return Judgement(ready if said["ready"] else Condition.WAITING, said["reason"])
    if why and condition is Condition.ACTIVE:
        return Judgement(Condition.WAITING, why, _PUBLISHING)
    return Judgement(condition, why, _BY_ITSELF if condition is Condition.WAITING else "")


def _of_waiting(heard: Sequence[Process]) -> Judgement:
    """Judge processes of which none holds the lease: by the one that tells most."""
    found = [_stuck(each) or _of_word(each, Condition.STANDBY) for each in heard]
    return min(found, key=lambda each: list(Condition).index(each.condition))
