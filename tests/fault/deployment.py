"""What fault tests share: databases on a server of their own, failpoints, and a worker that serves beside the test."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Thread
from typing import Any
from uuid import uuid4

from pymongo import MongoClient

from distributary.assemble import Assembled
from distributary.change import CODEC
from distributary.engine.wiring import Goal
from tests.conftest import Client, Databases
from tests.harness import Harness
from tests.least import worker_uri

#: The name under which the worker is known to the server; failpoints are limited to it.
WORKER = "distributary"

#: A failpoint says "not the primary" without an election that the driver would be told of: it looks again soon.
PROMPT = "heartbeatFrequencyMS=500"


@contextmanager
def databases_of(uri: str) -> Iterator[Databases]:
    """Give fresh databases on a server; the server is expected to be thrown away."""
    unique = uuid4().hex[:12]
    with MongoClient[dict[str, Any]](uri) as client:
        names = [f"{role}_{unique}" for role in ("raw", "derived", "state")]
        raw, derived, state = (client.get_database(name, CODEC) for name in names)
        fresh = Databases(f"{uri}&{PROMPT}", client, raw, derived, state)
        yield replace(fresh, uri=worker_uri(client, fresh.uri, fresh.names))


@dataclass(frozen=True)
class Failpoint:
    """A `failCommand` failpoint that is set."""

    client: Client
    before: int

    @property
    def hits(self) -> int:
        """How often it was hit since it was set."""
        found = self.client.admin.command({"getParameter": 1, "failpoint.failCommand": 1})
        return int(found["failpoint.failCommand"]["timesEntered"]) - self.before


@contextmanager
def failing(
    client: Client, commands: Sequence[str], mode: Any, fault: Mapping[str, Any]
) -> Iterator[Failpoint]:
    """Let a worker's commands fail inside; `mode` is the failpoint's."""
    data = {"failCommands": list(commands), "appName": WORKER, **fault}
    set_so = client.admin.command("configureFailPoint", "failCommand", mode=mode, data=data)
    try:
        yield Failpoint(client, set_so["count"])
    finally:
        client.admin.command("configureFailPoint", "failCommand", mode="off")


@contextmanager
def serving(harness: Harness) -> Iterator[Assembled]:
    """Run a worker beside the test as `distributary run` does; what it dies of fails the test."""
    with harness.assembled() as assembled:
        died: list[BaseException] = []
        thread = Thread(target=_serve, args=(assembled, died), daemon=True)
        thread.start()
        try:
            yield assembled
        finally:
            assembled.stop.set()
            thread.join(60)
            if died:
                raise died[0]
    assert not thread.is_alive()


def _serve(assembled: Assembled, died: list[BaseException]) -> None:
    try:
        assembled.serve(Goal())
    except BaseException as error:  # noqa: BLE001 - raised again by the test
        died.append(error)
