"""A private MongoDB for tests: without one they are skipped on a laptop, and fail in CI."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import pytest

from distributary.embedded import EmbeddedMongo
from distributary.errors import EnvironmentFault


@contextmanager
def embedded_or_skip(**options: Any) -> Iterator[EmbeddedMongo]:
    """Run a private MongoDB; where none can be had the test is skipped on a laptop and fails in CI."""
    server = EmbeddedMongo(**options)
    try:
        server.start()
    except EnvironmentFault as fault:
        missing(str(fault))
    try:
        yield server
    finally:
        server.stop()


def missing(reason: str, what: str = "a MongoDB") -> NoReturn:
    """Skip the test for want of a server or program; fail it where the environment variable CI is set."""
    if os.environ.get("CI"):
        pytest.fail(f"CI needs {what}: {reason}")
    pytest.skip(f"without {what}: {reason}")
