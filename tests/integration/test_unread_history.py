"""What is said where the source's history cannot be read: the reason is the server's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from distributary.operate.check import Finding, Level, Preflight
from distributary.operate.status import workers
from tests.conftest import Databases
from tests.fault.deployment import failing
from tests.harness import Harness

#: The name under which the failpoint knows who asks.
ASKS = "asks"

UNAUTHORIZED, INTERRUPTED = 13, 11601


@pytest.fixture
def harness(databases: Databases, tmp_path: Path) -> Harness:
    """Give a worker with the orders module."""
    return Harness(databases, tmp_path / "modules")


@contextmanager
def refused(databases: Databases, code: int) -> Iterator[Databases]:
    """Give databases whose server refuses to read the oplog."""
    fault = {"appName": ASKS, "errorCode": code, "namespace": "local.oplog.rs"}
    with (
        MongoClient[dict[str, Any]](databases.uri, appName=ASKS) as client,
        failing(databases.client, ["find"], "alwaysOn", fault),
    ):
        yield replace(databases, raw=client[databases.raw.name])


def preflight(databases: Databases) -> Finding:
    """Give what `check` finds of the history."""
    asked = Preflight(
        databases.raw, databases.derived, databases.state, "w", None, 1, lambda _: None, lambda _: None
    )
    (found,) = (each for each in asked.run() if each.subject == "source history")
    return found


@pytest.mark.parametrize(
    ("code", "told", "cure"),
    [(UNAUTHORIZED, "nobody knows", "Grant find"), (INTERRUPTED, "error 11601", "server's log")],
    ids=["denied", "interrupted"],
)
def test_check_tells_a_missing_privilege_from_other_failures(
    databases: Databases, code: int, told: str, cure: str
) -> None:
    """Both are warnings; a privilege is asked for only where it is missing."""
    with refused(databases, code) as asked:
        found = preflight(asked)
    assert found.level is Level.WARNING
    assert told in found.message
    assert cure in found.cure


@pytest.mark.parametrize(
    ("code", "told"),
    [(UNAUTHORIZED, "may not read"), (INTERRUPTED, "error 11601")],
    ids=["denied", "interrupted"],
)
def test_status_tells_a_missing_privilege_from_other_failures(harness: Harness, code: int, told: str) -> None:
    """The headroom is unknown for the reason that the server gives."""
    harness.catch_up()
    with refused(harness.databases, code) as asked:
        (status,) = workers(asked.raw, asked.state, "default", None)
    assert status.headroom_seconds is None
    assert told in status.unknown
