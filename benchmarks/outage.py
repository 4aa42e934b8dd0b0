"""The outage job: what a worker takes while Pub/Sub is away, and how long it takes to make good for that.

The emulator runs all the time, behind a port of its own; the worker knows the port before it, where nothing listens
in the outage. So what was published before is not lost, and nothing has to be created anew afterwards.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pymongo import MongoClient

from benchmarks import latency, process
from benchmarks.contenders import logged
from benchmarks.emulator import emulating
from benchmarks.latency import Load, Reader, until
from benchmarks.relay import Relay, relaying
from benchmarks.server import Template, fresh
from benchmarks.sides import Side
from benchmarks.subscriber import Subscriber, subscribing
from benchmarks.workload import DERIVED, Document
from distributary.errors import Failed
from distributary.store.outbox import OUTBOX, Unpublished, unpublished

#: How long everything may take to be published once Pub/Sub is back.
RECOVERY_SECONDS = 1800.0

Client = MongoClient[Document]


@dataclass(frozen=True)
class Case:
    """Whether Pub/Sub is away, and the worker's settings."""

    name: str
    away: bool
    settings: Mapping[str, str]


@dataclass(frozen=True)
class Run:
    """A steady load of writes, with Pub/Sub away meanwhile or not, and what follows until everything is published.

    `derived` counts the writes that were visible when the load ended, and latencies, in milliseconds, are theirs.
    `waiting` events were in the outbox then. `full` is when the worker began to wait for publishing, `first` when
    a page was confirmed again, `published` when all was derived and published; all in seconds, since the begin of
    the load and, the latter two, since its end, when Pub/Sub is back. `wrong` counts derived documents that are not
    as a recomputation has them, `wrong_events` those that who applies the events has otherwise.
    """

    case: str
    seconds: float
    writes: int
    derived: int
    p50: float
    p99: float
    waiting: int
    waiting_mb: float
    full: float | None
    peak_mb: float
    peak_after_mb: float
    first: float | None
    published: float
    events: int
    repeated: int
    wrong: int
    wrong_events: int


@dataclass(frozen=True)
class Loaded:
    """What there was when the load ended."""

    offered: Mapping[str, float]
    seen: Mapping[int, int]
    waiting: Unpublished
    peak_mb: float
    began: datetime
    ended: datetime

    @property
    def seconds(self) -> float:
        """How long the load lasted."""
        return (self.ended - self.began).total_seconds()


class Worker:
    """A worker that publishes, seen from outside."""

    def __init__(self, client: Client, side: Side, pid: int, log: Path) -> None:
        self.client = client
        self._state = client[side.state]
        self._pid = pid
        self._log = log

    @property
    def peak_mb(self) -> float:
        """Its peak until now."""
        return process.peak_mb(self._pid)

    @property
    def waiting(self) -> Unpublished:
        """What waits to be published."""
        return next(iter(unpublished(self._state).values()), Unpublished())

    def has_published(self) -> bool:
        """Whether nothing waits that can be published."""
        return self._state[OUTBOX].find_one({"refused": None}) is None

    def since(self, begin: datetime, action: str) -> float | None:
        """Give the seconds from then on until it first logged this."""
        later = [at for at in logged(self._log.read_text()).get(action, []) if at >= begin]
        return (later[0] - begin).total_seconds() if later else None


def measure(case: Case, side: Side, template: Template, load: Load, folder: Path) -> Run:
    """Let a worker follow the load, away from Pub/Sub if the case is so, and wait until everything is published."""
    with (
        fresh(template, folder / "data") as server,
        MongoClient[Document](server.uri) as client,
        emulating(folder / "emulator") as emulator,
        subscribing(emulator.host) as subscriber,
        relaying(emulator.port) as relay,
    ):
        side = replace(side, settings={**side.settings, **case.settings, "PUBSUB_EMULATOR_HOST": relay.host})
        with _following(side, server.uri, client, folder / "worker.log") as worker:
            return _measured(case, load, server.uri, worker, relay, subscriber)


@contextmanager
def _following(side: Side, uri: str, client: Client, log: Path) -> Iterator[Worker]:
    """Run a worker that tails and has published all that there is."""
    command = process.python("-m", "distributary", "run")
    with process.running(command, side.environment(uri), log) as pid:
        worker = Worker(client, side, pid, log)
        latency.await_tailing(side.name, client)
        _await_published(worker)
        yield worker


def _measured(case: Case, load: Load, uri: str, worker: Worker, relay: Relay, subscriber: Subscriber) -> Run:
    subscriber.drain()
    before = subscriber.messages
    if case.away:
        relay.shut()
    with Reader(worker.client) as reader:
        loaded = _loaded(load, uri, worker, reader)
        if case.away:
            relay.open()
        began = time.monotonic()
        _await_seen(reader, loaded.offered["last"])
        _await_published(worker)
        published = time.monotonic() - began
    subscriber.drain()
    p50, _, p99, _ = latency.quantiles(loaded.seen)
    return Run(
        case=case.name,
        seconds=loaded.seconds,
        writes=int(loaded.offered["sent"]),
        derived=len(loaded.seen),
        p50=p50,
        p99=p99,
        waiting=loaded.waiting.waiting,
        waiting_mb=loaded.waiting.bytes / 1e6,
        full=worker.since(loaded.began, "waiting for publishing"),
        peak_mb=loaded.peak_mb,
        peak_after_mb=worker.peak_mb,
        first=worker.since(loaded.ended, "publishing again"),
        published=published,
        events=subscriber.messages - before,
        repeated=subscriber.repeated,
        wrong=latency.differences_left(worker.client),
        wrong_events=subscriber.wrong(worker.client[DERIVED]),
    )


def _loaded(load: Load, uri: str, worker: Worker, reader: Reader) -> Loaded:
    began = datetime.now(UTC)
    offered = latency.produce(uri, load)
    return Loaded(offered, dict(reader.seen), worker.waiting, worker.peak_mb, began, datetime.now(UTC))


def _await_seen(reader: Reader, stamp: Any) -> None:
    if not until(lambda: stamp in reader.seen, RECOVERY_SECONDS):
        raise Failed(f"The last write was not derived within {RECOVERY_SECONDS:.0f} s.")


def _await_published(worker: Worker) -> None:
    if not until(worker.has_published, RECOVERY_SECONDS):
        raise Failed(f"Not everything was published within {RECOVERY_SECONDS:.0f} s.")
