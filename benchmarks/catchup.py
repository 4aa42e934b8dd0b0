"""The catch-up job: how fast is a backlog of changes in the history derived."""

from dataclasses import dataclass
from pathlib import Path

from pymongo import MongoClient

from benchmarks import process
from benchmarks.compare import State, differences, expected
from benchmarks.contenders import Contender
from benchmarks.server import Template, fresh, prepare
from benchmarks.workload import FAST, RAW, SOURCE, Document, Orders, apply, token_now

RUN_SECONDS = 300.0


@dataclass(frozen=True)
class Backlog:
    """A stopped server that holds a backlog of so many changes, and what they must come to."""

    changes: int
    template: Template
    state: State


@dataclass(frozen=True)
class Run:
    """One contender's catch-up.

    Rates are changes per second, `rate` from the start of tailing to the last commit, `whole_rate` from
    the start of the process to its end; CPU in microseconds per change; `wrong` counts the documents that
    differ from a recomputation.
    """

    contender: str
    round: int
    changes: int
    rate: float
    whole_rate: float
    client_cpu: float
    server_cpu: float
    peak_mb: float
    wrong: int


def load(folder: Path, changes: int) -> Backlog:
    """Fill a server with the workload and recompute what it must come to."""
    states: list[State] = []

    def fill(client: MongoClient[Document]) -> str:
        token = token_now(client[RAW])
        apply(Orders().operations(changes), client[RAW][SOURCE].with_options(write_concern=FAST))
        states.append(expected(client))
        return token

    template = prepare(folder, fill)
    return Backlog(changes, template, states[0])


def measure(contender: Contender, backlog: Backlog, folder: Path, number: int) -> Run:
    """Let a contender catch up on a copy of the backlog, and check what it leaves."""
    with fresh(backlog.template, folder) as server:
        before = process.cpu_seconds(server.pid)
        launch = contender.catch_up(server.uri, backlog.template.token, backlog.changes)
        finished = process.run(launch.command, launch.environment, RUN_SECONDS)
        used = process.cpu_seconds(server.pid) - before
        client: MongoClient[Document] = MongoClient(server.uri)
        with client:
            wrong = differences(client, backlog.state)
    return Run(
        contender=contender.name,
        round=number,
        changes=backlog.changes,
        rate=backlog.changes / contender.tailing(finished),
        whole_rate=backlog.changes / (finished.ended - finished.started),
        client_cpu=1e6 * finished.cpu / backlog.changes,
        server_cpu=1e6 * used / backlog.changes,
        peak_mb=finished.peak_mb,
        wrong=wrong,
    )
