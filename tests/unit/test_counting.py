"""Numbers of things, as people are told of them."""

import pytest

from distributary.cli.check import _summary
from distributary.counting import counted
from distributary.operate.check import Finding, Level


@pytest.mark.parametrize(
    ("count", "told"), [(0, "0 faults"), (1, "1 fault"), (2, "2 faults"), (1234, "1,234 faults")]
)
def test_one_is_no_plural(count: int, told: str) -> None:
    """And thousands are set apart."""
    assert counted(count, "fault") == told


@pytest.mark.parametrize(
    ("levels", "told"),
    [
        ([Level.OK], "Ready to run."),
        ([Level.OK, Level.WARNING], "Ready to run, 1 warning."),
        ([Level.FAULT, Level.WARNING, Level.WARNING], "Not ready: 1 fault, 2 warnings."),
    ],
    ids=str,
)
def test_the_last_line_of_check_counts_what_was_found(levels: list[Level], told: str) -> None:
    """Faults come first, and what is as it should be is not counted."""
    assert _summary([Finding(each, "subject", "message") for each in levels]) == told
