"""What tests share: a real MongoDB, fresh databases in it, and waiting on conditions."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import settings
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import PyMongoError
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from distributary.change import CODEC
from distributary.testing import server as testing_server
from distributary.testing.server import missing
from tests.least import LEAST, forget_worker, secured_or_skip, worker_uri

__all__ = ["SOAK", "Client", "Databases", "embedded_or_skip", "eventually"]

#: Runs a private MongoDB, or skips the test.
embedded_or_skip = secured_or_skip if LEAST else testing_server.embedded_or_skip

#: Names a replica set to test against instead of an embedded one; with least privilege, by an admin's connection.
URI_VARIABLE = "DISTRIBUTARY_TEST_URI"

#: How many times as long `make soak` wants property and fault tests to run.
SOAK = int(os.environ.get("DISTRIBUTARY_SOAK", "1"))

Client = MongoClient[dict[str, Any]]

settings.register_profile(
    "distributary",
    deadline=None,
    max_examples=100 * SOAK,
    derandomize=bool(os.environ.get("CI")) and SOAK == 1,
)
settings.load_profile("distributary")


@dataclass(frozen=True)
class Databases:
    """Three databases of one test's own, decoded with the project's codec; `uri` is what distributary connects with."""

    uri: str
    client: Client
    raw: Database[dict[str, Any]]
    derived: Database[dict[str, Any]]
    state: Database[dict[str, Any]]

    def __iter__(self) -> Iterator[Database[dict[str, Any]]]:
        return iter((self.raw, self.derived, self.state))

    @property
    def source(self) -> Database[dict[str, Any]]:
        """The raw database as the client sees it, which need not be the client that fills it."""
        return self.client.get_database(self.raw.name, CODEC)

    @property
    def names(self) -> dict[str, str]:
        """The databases' names, by what they are."""
        return {"source": self.raw.name, "derived": self.derived.name, "state": self.state.name}


@pytest.fixture(scope="session")
def mongo() -> Iterator[str]:
    """Give the URI of a replica set with test commands (failpoints), one per pytest process."""
    given = os.environ.get(URI_VARIABLE)
    if given:
        yield _answering(given)
        return
    with embedded_or_skip(parameters={"enableTestCommands": "1"}) as server:
        yield server.uri


@pytest.fixture(scope="session")
def admin(mongo: str) -> Iterator[Client]:
    """Give a client of the replica set that may do anything."""
    with MongoClient[dict[str, Any]](mongo) as connected:
        yield connected


@pytest.fixture
def databases(mongo: str, admin: Client) -> Iterator[Databases]:
    """Give databases that no other test has; they are dropped afterwards."""
    unique = uuid4().hex[:12]
    raw, derived, state = (
        admin.get_database(f"{role}_{unique}", codec_options=CODEC) for role in ("raw", "derived", "state")
    )
    fresh = Databases(mongo, admin, raw, derived, state)
    yield replace(fresh, uri=worker_uri(admin, mongo, fresh.names))
    forget_worker(admin, fresh.names)
    for database in fresh:
        admin.drop_database(database.name)


def eventually(
    condition: Callable[[], object], seconds: float = 90, told: Callable[[], str] = lambda: ""
) -> None:
    """Return as soon as the condition holds; fail when it does not within the time, with what is `told` then."""
    waiting = Retrying(
        retry=retry_if_result(lambda holds: not holds),
        wait=wait_fixed(0.02),
        stop=stop_after_delay(seconds),
        retry_error_callback=lambda _: pytest.fail(
            f"not within {seconds} s: {getattr(condition, '__qualname__', condition)}\n{told()}"
        ),
    )
    waiting(condition)


def _answering(uri: str) -> str:
    with MongoClient[dict[str, Any]](uri, serverSelectionTimeoutMS=5000) as connected:
        try:
            connected.admin.command("ping")
        except PyMongoError as error:
            missing(f"{URI_VARIABLE} does not answer: {error}")
    return uri
