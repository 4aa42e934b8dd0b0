"""The pytest plugin, which pytest finds by itself where distributary is installed."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def distributary_mongo() -> Iterator[str]:
    """Give the URI of a private MongoDB, a replica set of one member that is gone after the session.

    Where none can be had, the tests that want it are skipped, and fail where the environment variable CI is set.
    """
    from distributary.testing.server import embedded_or_skip  # noqa: PLC0415 - the driver is slow to import

    with embedded_or_skip() as server:
        yield server.uri
