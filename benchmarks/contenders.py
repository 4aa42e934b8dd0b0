"""Who is measured, and how each is started."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from benchmarks.contender import ENDLESS
from benchmarks.process import ROOT, Finished, python
from benchmarks.workload import DERIVED, RAW


@dataclass(frozen=True)
class Launch:
    """How a process is started."""

    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Contender:
    """One way to do the work.

    `catch_up(uri, token, changes)` ends when the changes after the token are derived; `follow(uri, token)`
    runs until it is terminated. `tailing` tells from what was printed for how many seconds it tailed.
    """

    name: str
    catch_up: Callable[[str, str, int], Launch]
    follow: Callable[[str, str], Launch]
    tailing: Callable[[Finished], float]


def script(name: str) -> Contender:
    """Give a hand-written contender: `benchmarks/NAME.py`."""

    def launch(uri: str, token: str, changes: int) -> Launch:
        return Launch(python("-m", f"benchmarks.{name}", uri, token, str(changes)))

    return Contender(name, launch, lambda uri, token: launch(uri, token, ENDLESS), _reported)


def _reported(finished: Finished) -> float:
    clock = json.loads(finished.output.splitlines()[-1])
    return float(clock["ended"] - clock["started"])


def logged(output: str) -> dict[str, list[datetime]]:
    """Give when a worker printed what: the times of its lines, by action."""
    found: dict[str, list[datetime]] = {}
    for line in output.splitlines():
        if line.startswith("{"):
            told = json.loads(line)
            found.setdefault(told["action"], []).append(datetime.fromisoformat(told["at"]))
    return found


def _logged(finished: Finished) -> float:
    """Give the seconds between the worker's lines `tailing` and `caught up`, the last ones."""
    at = logged(finished.output)
    return (at["caught up"][-1] - at["tailing"][-1]).total_seconds()


def _worker(uri: str, token: str, *options: str) -> Launch:
    environment = {
        "DISTRIBUTARY_SOURCE__URI": uri,
        "DISTRIBUTARY_SOURCE__DATABASE": RAW,
        "DISTRIBUTARY_DERIVED__DATABASE": DERIVED,
        "DISTRIBUTARY_WORKER__START": token,
        "DISTRIBUTARY_WORKER__TRANSFORMERS": json.dumps([str(ROOT / "benchmarks" / "transformers")]),
        "DISTRIBUTARY_HTTP__PORT": "0",
        "DISTRIBUTARY_LOG__FORMAT": "json",
    }
    return Launch(python("-m", "distributary", "run", *options), environment)


DISTRIBUTARY = Contender(
    "distributary",
    lambda uri, token, _changes: _worker(uri, token, "--until-caught-up"),
    _worker,
    _logged,
)

#: In the order in which they run within a round.
CONTENDERS = {contender.name: contender for contender in (script("naive"), script("optimised"), DISTRIBUTARY)}
