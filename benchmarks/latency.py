"""The steady-state job: how long it takes from a raw write until its last derived document is visible.

One clock, the machine's monotonic one: the producer stamps each operation as it sends it, the fan-out
carries the stamp, and a reader here notes when a change stream on the derived database shows it.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Self

from bson import ObjectId
from pymongo import MongoClient

from benchmarks import process
from benchmarks.compare import differences, expected
from benchmarks.contenders import Contender
from benchmarks.server import Template, fresh, prepare
from benchmarks.stream import tail_in_batches
from benchmarks.workload import DERIVED, OWNERS, RAW, SOURCE, Document, Orders, token_now

READY_SECONDS = 60.0
BEHIND_SECONDS = 30.0  # that the last operation may take to be seen
SETTLE_SECONDS = 10.0  # that its last derived document may take after that
POLL_SECONDS = 0.05

#: Each change of a derived document becomes the stamp that it was written with.
_STAMPS: list[Document] = [
    {"$match": {"ns.coll": {"$in": list(OWNERS)}, "operationType": {"$in": ["insert", "update", "replace"]}}},
    {"$project": {"sent": {"$ifNull": ["$fullDocument.sent", "$updateDescription.updatedFields.sent"]}}},
]


@dataclass(frozen=True)
class Load:
    """Operations per second, for so many seconds."""

    rate: int
    seconds: int


@dataclass(frozen=True)
class Run:
    """One contender's steady state.

    Latencies in milliseconds, CPU in percent of one core. `unseen` counts operations that were never
    visible: those that a later one on the same order overtook, and those still to come when it was given up.
    """

    contender: str
    round: int
    offered: float
    p50: float
    p95: float
    p99: float
    worst: float
    client_cpu: float
    server_cpu: float
    peak_mb: float
    unseen: int
    wrong: int


class Reader:
    """Notes when a stamp is last seen in a derived document, until it is stopped."""

    def __init__(self, client: MongoClient[Document]) -> None:
        self.seen: dict[int, int] = {}
        self._client = client
        self._ready = Event()
        self._stop = Event()
        self._thread = Thread(target=self._read)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _read(self) -> None:
        for changes, _ in tail_in_batches(self._client, DERIVED, _STAMPS, 10_000):
            now = time.monotonic_ns()
            self.seen.update((change["sent"], now) for change in changes if change.get("sent"))
            self._ready.set()
            if self._stop.is_set():
                return


def empty(folder: Path) -> Template:
    """Make a server without data."""
    return prepare(folder, lambda client: token_now(client[RAW]))


def measure(contender: Contender, template: Template, load: Load, folder: Path, number: int) -> Run:
    """Let a contender follow a steady load, and check what it leaves."""
    with fresh(template, folder) as server, MongoClient[Document](server.uri) as client:
        launch = contender.follow(server.uri, template.token)
        with process.running(launch.command, launch.environment) as pid:
            await_tailing(contender.name, client)
            with Reader(client) as reader:
                clock = process.Clock(pid, server.pid)
                offered = produce(server.uri, load)
                until(lambda: offered["last"] in reader.seen, BEHIND_SECONDS)
                client_cpu, server_cpu = clock.percent()
            wrong = differences_left(client)
            peak = process.peak_mb(pid)
    p50, p95, p99, worst = quantiles(reader.seen)
    return Run(
        contender=contender.name,
        round=number,
        offered=offered["rate"],
        p50=p50,
        p95=p95,
        p99=p99,
        worst=worst,
        client_cpu=client_cpu,
        server_cpu=server_cpu,
        peak_mb=peak,
        unseen=int(offered["sent"]) - len(reader.seen),
        wrong=wrong,
    )


def await_tailing(name: str, client: MongoClient[Document]) -> None:
    """Write an order and wait until it is derived."""
    order = Orders().operation().document or {}
    order["_id"] = ObjectId()
    client[RAW][SOURCE].insert_one(order)
    derived = client[DERIVED]["order_status"]
    if not until(lambda: derived.count_documents({"order": order["_id"]}) > 0, READY_SECONDS):
        raise process.ContenderFailed(f"{name} derived nothing within {READY_SECONDS:.0f} s.")


def produce(uri: str, load: Load) -> dict[str, float]:
    """Offer the load; gives how many operations were `sent`, at which `rate`, and the stamp of the `last`."""
    command = process.python("-m", "benchmarks.producer", uri, str(load.rate), str(load.seconds))
    finished = process.run(command, {}, load.seconds * 10 + 60)
    figures: dict[str, float] = json.loads(finished.output)
    return figures


def differences_left(client: MongoClient[Document]) -> int:
    """Count what differs once the contender had the time to write all of it."""
    wanted = expected(client)
    until(lambda: differences(client, wanted) == 0, SETTLE_SECONDS)
    return differences(client, wanted)


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Tell whether the condition came to hold in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def quantiles(seen: Mapping[int, int]) -> tuple[float, float, float, float]:
    """Give p50, p95, p99 and the worst in milliseconds."""
    waits = sorted((at - sent) / 1e6 for sent, at in seen.items())
    p50, p95, p99 = (waits[int(len(waits) * share)] for share in (0.50, 0.95, 0.99))
    return p50, p95, p99, waits[-1]
