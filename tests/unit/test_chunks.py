"""Cutting what is too much for one query."""

import pytest

from distributary.chunks import chunks


@pytest.mark.parametrize(
    ("items", "cut"), [([], []), ([1], [[1]]), ([1, 2], [[1, 2]]), ((1, 2, 3), [[1, 2], [3]])]
)
def test_everything_is_in_one_list(items: list[int], cut: list[list[int]]) -> None:
    """All come in their order, no list is empty or too long, whatever kind of sequence it was."""
    assert list(chunks(items, 2)) == cut
