"""Workers as real processes that die, or stop, at a chosen step of their loop.

`Launcher` is the tests' side. Behind it runs one process of this module that has imported the worker; it forks
for every worker that is asked for, so that a start costs milliseconds instead of a second. What such a worker
does from there on is `distributary.cli`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from importlib import import_module
from itertools import count
from pathlib import Path
from threading import Lock, get_ident
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, Self

from pymongo.client_session import ClientSession

from distributary.cli import command_line
from distributary.engine.derivation import Derivation
from distributary.engine.publishing import Tellings
from distributary.engine.reactions import Reactions
from distributary.engine.rebuild import Rebuilds
from distributary.engine.replay import Replays
from distributary.engine.slices import Slices
from distributary.engine.triggers import Reader
from distributary.pubsub.publisher import PubSubPublisher
from distributary.sink import rollups
from distributary.sink.mongo import MongoSink
from distributary.sink.shelf import MongoShelf
from distributary.source.stream import Stream
from distributary.store.checkpoints import Checkpoints
from distributary.store.lease import Lease
from distributary.store.letters import Letters
from distributary.store.outbox import MongoOutbox
from distributary.store.pending import Pending
from distributary.store.untold import MongoUntold
from tests.conftest import eventually

ROOT = Path(__file__).parents[2]

#: Seconds that a loaded machine may take for what takes milliseconds otherwise.
PATIENCE = 60.0

#: The bounds of a worker here, so that small loads leave groups of rollups pending, and compute others at once.
ROLLUP_RECORDS, LARGE_GROUP = 40, 12


class Step(NamedTuple):
    """A step of the worker: before or after a call of a method; `counts` says which calls are meant."""

    owner: type
    method: str
    after: bool
    counts: Callable[..., bool] = lambda *_, **__: True


def _writes(_: MongoSink, plan: Any, **__: Any) -> bool:
    return bool(plan.inserts or plan.replaces or plan.deletes)


def _some(_: object, items: Sequence[Any], *__: Any) -> bool:
    return bool(items)


def _in_transaction(_: Checkpoints, __: Any, ___: int, session: ClientSession | None = None) -> bool:
    return session is not None


def _alone(_: Checkpoints, __: Any, ___: int, session: ClientSession | None = None) -> bool:
    return session is None


STEPS = {
    "lease taken": Step(Lease, "announce", after=False),
    "fence raised": Step(Checkpoints, "raise_fence", after=True),
    "before it is prepared": Step(Pending, "prepare", after=False),
    "read": Step(Stream, "read", after=True),
    "derived": Step(Derivation, "prepare", after=True),
    "before the transaction": Step(MongoSink, "write", after=False),
    "before the records": Step(MongoSink, "_apply", after=False, counts=_writes),
    "records written": Step(MongoSink, "_apply", after=True, counts=_writes),
    "letters written": Step(Letters, "put", after=True, counts=_some),
    "checkpoint written": Step(Checkpoints, "save", after=True, counts=_in_transaction),
    "before the commit": Step(ClientSession, "commit_transaction", after=False),
    "after the commit": Step(ClientSession, "commit_transaction", after=True),
    "after the transaction": Step(MongoSink, "write", after=True),
    "position saved": Step(Checkpoints, "save", after=True, counts=_alone),
    "swept": Step(Slices, "_sweep", after=True),
    "scanned": Step(Slices, "_scan", after=True),
    "stage ended": Step(Slices, "_advance", after=True),
    "job done": Step(Slices, "_finish", after=True),
    "repaired": Step(Slices, "_derive", after=True),
    "before a retry": Step(Slices, "retry", after=False),
    "retried": Step(Slices, "retry", after=True),
    "shadow made": Step(MongoShelf, "make", after=True),
    "shadow filled": Step(Rebuilds, "_scan", after=True),
    "shadow verified": Step(Rebuilds, "_verify", after=True),
    "before a swap": Step(MongoShelf, "put", after=False),
    "after a swap": Step(MongoShelf, "put", after=True),
    "rebuilt": Step(Rebuilds, "_swap", after=True),
    "keys kept": Step(MongoUntold, "note", after=True),
    "what differs told": Step(Tellings, "_differing", after=True),
    "dropped": Step(MongoShelf, "drop", after=False),
    "replayed": Step(Replays, "_batch", after=True),
    "before the effects": Step(Reactions, "commit", after=False, counts=_some),
    "events written": Step(MongoOutbox, "put", after=True, counts=_some),
    "effects committed": Step(Reactions, "commit", after=True, counts=_some),
    "triggers called": Step(Reader, "react", after=True),
    "parked change done": Step(Reactions, "again", after=True),
    "page read": Step(MongoOutbox, "next", after=True),
    "page sent": Step(PubSubPublisher, "send", after=True),
    "before a page is removed": Step(MongoOutbox, "remove", after=False),
    "page removed": Step(MongoOutbox, "remove", after=True),
}


@dataclass(frozen=True)
class Trap:
    """At the step's `number`-th time the process gets a signal: SIGKILL, or SIGSTOP."""

    step: str
    number: int = 1
    signal: int = signal.SIGKILL


class Launcher:
    """Starts workers; ends those that are left when it is closed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = count(1)
        self._lock = Lock()
        self._forks = subprocess.Popen(
            [sys.executable, "-m", "tests.fault.launcher"],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._forks.communicate()
        assert self._forks.returncode == 0

    def start(
        self, environment: Mapping[str, str], *traps: Trap, verb: Sequence[str] = ("run",), clock: float = 0
    ) -> "Worker":
        """Start a worker; `clock` are the seconds by which its machine's clock is wrong."""
        log = self._folder / f"{next(self._numbers)}.log"
        order = {
            "environment": dict(environment),
            "arguments": list(verb),
            "log": str(log),
            "traps": [[trap.step, trap.number, int(trap.signal)] for trap in traps],
            "clock": clock,
        }
        return Worker(self, self.ask({"start": order}), log)

    @contextmanager
    def running(self, environment: Mapping[str, str], *traps: Trap, **options: Any) -> Iterator["Worker"]:
        """Start a worker that is killed at the end, unless it has ended before."""
        worker = self.start(environment, *traps, **options)
        try:
            yield worker
        finally:
            worker.kill()

    def ask(self, order: Mapping[str, Any]) -> Any:
        """Send one order and give the answer."""
        assert self._forks.stdin is not None
        assert self._forks.stdout is not None
        with self._lock:
            self._forks.stdin.write(json.dumps(order) + "\n")
            self._forks.stdin.flush()
            return json.loads(self._forks.stdout.readline())


@dataclass
class Worker:
    """A process that was started."""

    launcher: Launcher
    pid: int
    log: Path
    _code: int | None = field(default=None)

    @property
    def code(self) -> int | None:
        """The exit code, the negative number of the signal that killed it, or None while it runs."""
        if self._code is None:
            self._code = self.launcher.ask({"code": self.pid})
        return self._code

    @property
    def said(self) -> str:
        """What it wrote to stdout and stderr."""
        return self.log.read_text(encoding="utf-8") if self.log.exists() else ""

    def ended(self, seconds: float = PATIENCE) -> int:
        """Wait for its end and give the exit code."""
        eventually(lambda: self.code is not None, seconds, lambda: self.said)
        assert self.code is not None
        return self.code

    def says(self, words: str, times: int = 1) -> None:
        """Wait until it has written these words."""
        eventually(lambda: self.said.count(words) >= times or self._died(), PATIENCE)

    def send(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.code is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it and wait for its end."""
        self.send(signal.SIGKILL)
        self.ended()

    @property
    def stopped(self) -> bool:
        """Whether it is stopped by SIGSTOP."""
        return self.launcher.ask({"stopped": self.pid}) is True

    def _died(self) -> bool:
        assert self.code is None, f"ended with {self.code}:\n{self.said}"
        return False


# --- the process that forks ---------------------------------------------------------------------------------


class _Forks:
    """Answers orders, one JSON value a line each; kills its children when nobody orders any more."""

    def __init__(self) -> None:
        self._children: set[int] = set()

    def serve(self) -> None:
        rollups.ROLLUP_RECORDS, rollups.LARGE_GROUP = ROLLUP_RECORDS, LARGE_GROUP
        for line in sys.stdin:
            ((verb, value),) = json.loads(line).items()
            print(json.dumps(self._answer(verb, value)), flush=True)  # noqa: T201 - the answer
        for child in self._children:
            os.kill(child, signal.SIGKILL)

    def _answer(self, verb: str, value: Any) -> Any:
        match verb:
            case "start":
                return self._start(value)
            case "code":
                return self._code(value)
            case _:
                return self._stopped(value)

    def _start(self, order: dict[str, Any]) -> int:
        child = os.fork()
        if child == 0:
            _become(order)
        self._children.add(child)
        return child

    def _code(self, child: int) -> int | None:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid == 0:
            return None
        self._children.discard(child)
        return os.waitstatus_to_exitcode(status)

    def _stopped(self, child: int) -> bool:
        status = os.waitid(os.P_PID, child, os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
        return status is not None


def _become(order: dict[str, Any]) -> NoReturn:
    """Become a worker: never returns."""
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for target, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
        os.dup2(source, target)
    os.environ.update(order["environment"])
    for step, number, what in order["traps"]:
        _set(STEPS[step], number, what)
    if order["clock"]:
        _shift_clock(order["clock"])
    sys.exit(command_line(order["arguments"]))


def _set(step: Step, number: int, what: int) -> None:
    """Replace the method by one that sends this very thread a signal at its `number`-th call."""
    original = getattr(step.owner, step.method)
    calls = count(1)

    def met() -> None:
        if next(calls) == number:
            signal.pthread_kill(get_ident(), what)

    @wraps(original)
    def trapped(*arguments: Any, **options: Any) -> Any:
        counts = step.counts(*arguments, **options)
        if counts and not step.after:
            met()
        result = original(*arguments, **options)
        if counts and step.after:
            met()
        return result

    setattr(step.owner, step.method, trapped)


def _shift_clock(seconds: float) -> None:
    """Make the machine's clock wrong, as far as Python code asks it."""
    right = time.time
    time.time = lambda: right() + seconds


if __name__ == "__main__":
    import_module("distributary.cli.run")
    import_module("distributary.pubsub.publisher")
    _Forks().serve()
