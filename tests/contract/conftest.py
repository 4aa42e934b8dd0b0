"""With least privilege, what keeps a contract is the worker's user, and only the source is written by the admin."""

from collections.abc import Iterator
from typing import Any

import pytest
from pymongo import MongoClient

from distributary.change import CODEC
from tests.conftest import Client, Databases
from tests.least import LEAST


@pytest.fixture
def databases(databases: Databases) -> Iterator[Databases]:
    """Give a test's databases as distributary sees them, but for `raw`."""
    if not LEAST:
        yield databases
        return
    with MongoClient[dict[str, Any]](databases.uri) as client:
        derived, state = (
            client.get_database(each.name, CODEC) for each in (databases.derived, databases.state)
        )
        yield Databases(databases.uri, client, databases.raw, derived, state)


@pytest.fixture
def client(databases: Databases) -> Client:
    """Give the client of these databases."""
    return databases.client
