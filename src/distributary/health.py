"""Whether a process should be restarted, and whether it does its share of the work.

Restarting helps against a thread that hangs or is gone. It does not help a worker that is behind, waits for MongoDB or
Pub/Sub, or is held up by a transform, which would hold up the next process at the same document.
"""

import sys
from collections.abc import Callable
from threading import get_ident
from time import monotonic
from traceback import walk_stack
from typing import Any, NamedTuple

from distributary.engine.observer import Observer, Part, Phase
from distributary.log import without_credentials

#: Seconds without a step, and without anything that explains it, after which a part is stuck.
STUCK_SECONDS = 120.0

#: Seconds without a step from which on it is asked what the part waits for.
SILENT_SECONDS = 5.0

#: What a thread waits for that is in code of these modules.
_WAITED_FOR = {
    "pymongo": "MongoDB",
    "distributary.pubsub": "Pub/Sub",
    "google": "Pub/Sub",
    "grpc": "Pub/Sub",
    "distributary.derive": "a transform",
}

GOES_ON = "every part goes on, or waits for others"

#: Phases in which a process does its share: it works, or takes over as soon as the lease is free.
_READY = {
    Phase.ACTIVE: "active: it holds the lease",
    Phase.STANDBY: "standing by: another process holds the lease",
}


class Verdict(NamedTuple):
    """Yes or no, and why."""

    good: bool
    why: dict[str, Any]


class _Beat(NamedTuple):
    """The last step of a part, and the thread that made it."""

    time: float
    thread: int


class Health(Observer):
    """Judges by the steps of the parts and the phase of the process; `explain` says what a thread waits for."""

    def __init__(
        self,
        explain: Callable[[int], str] | None = None,
        clock: Callable[[], float] = monotonic,
        stuck: float = STUCK_SECONDS,
    ) -> None:
        self._explain = explain or waits_for
        self._clock = clock
        self._stuck = stuck
        self._beats: dict[Part, _Beat] = {}
        self._explained: dict[Part, float] = {}
        self._phase, self._why, self._since = Phase.STARTING, "", clock()
        self._blocked = ""

    @property
    def phase(self) -> Phase:
        """Where the process is."""
        return self._phase

    def beat(self, part: Part) -> None:
        """Note a step of a part."""
        self._beats[part] = _Beat(self._clock(), get_ident())

    def rest(self, part: Part) -> None:
        """Expect no more steps of a part."""
        self._beats.pop(part, None)
        self._explained.pop(part, None)

    def enter(self, phase: Phase, why: str = "") -> None:
        """Note where the process is; from `stopping` it goes nowhere else."""
        self._blocked = ""
        if self._phase is Phase.STOPPING or (self._phase, self._why) == (phase, why):
            return
        if self._phase is not phase:
            self._since = self._clock()
        self._phase, self._why = phase, without_credentials(why)

    def blocked(self, why: str) -> None:
        """Note why nothing is committed for now, though the process does its share."""
        self._blocked = why

    def healthy(self) -> Verdict:
        """Say no when a restart would help: a part made no step for long, and nothing explains that."""
        parts = {part.value: self._part(part, beat) for part, beat in list(self._beats.items())}
        stuck = [name for name, each in parts.items() if each["stuck"]]
        good = not stuck or self._phase is Phase.STOPPING
        reason = GOES_ON if good else f"stuck without a reason: {', '.join(stuck)}"
        return Verdict(good, {"healthy": good, "reason": reason, **self._told(), "parts": parts})

    def ready(self) -> Verdict:
        """Say yes when the process works, or stands by and could take over."""
        good = self._phase in _READY
        reason = _READY.get(self._phase, f"not ready: {self._phase.value}")
        if why := self._blocked or ("" if good else self._why):
            reason = f"{reason}, {why}"
        return Verdict(good, {"ready": good, "reason": reason, **self._told()})

    def _told(self) -> dict[str, Any]:
        seconds = round(self._clock() - self._since, 1)
        return {
            "phase": self._phase.value,
            "phase_seconds": seconds,
            "why": self._blocked or self._why or None,
        }

    def _part(self, part: Part, beat: _Beat) -> dict[str, Any]:
        silent = self._clock() - beat.time
        waits = self._explain(beat.thread) if silent >= SILENT_SECONDS else ""
        if waits:
            self._explained[part] = self._clock()
        unexplained = self._clock() - max(beat.time, self._explained.get(part, beat.time))
        return {
            "silent_seconds": round(silent, 1),
            "waits_for": waits or None,
            "stuck": unexplained >= self._stuck,
        }


def waits_for(thread: int) -> str:
    """Say what a thread waits for, by the code that it is in; nothing for one that is gone or in our own code."""
    frame = sys._current_frames().get(thread)  # noqa: SLF001 - documented for finding out what hangs
    for each, _ in walk_stack(frame) if frame else ():
        module = str(each.f_globals.get("__name__", ""))
        for name, what in _WAITED_FOR.items():
            if module == name or module.startswith(f"{name}."):
                return what
    return ""
