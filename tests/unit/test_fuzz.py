"""The targets of `make fuzz` take the inputs that they begin with."""

import pytest

from fuzz.targets import TARGETS, seeds


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_takes_its_seeds(name: str) -> None:
    """Each has some, and none of them raises."""
    given = seeds(name)
    assert given
    for seed in given:
        TARGETS[name](seed)
