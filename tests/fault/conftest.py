"""What all tests of faults share."""

from collections.abc import Iterator

import pytest

from tests.fault.launcher import Launcher


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Give what starts workers."""
    with Launcher(tmp_path_factory.mktemp("workers")) as started:
        yield started
