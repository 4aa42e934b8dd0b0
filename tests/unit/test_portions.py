"""How many changes one commit holds, and where a batch is cut."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from bson import Timestamp

from distributary.change import Change, Operation, Position
from distributary.engine.portions import LEAST, Portion, joined, portioned
from distributary.ports.source import Batch


def batch(times: Sequence[int], *, torn: bool = False) -> Batch:
    """Give a batch of changes with these cluster times."""
    changes = [_change(number, time) for number, time in enumerate(times)]
    return Batch(changes, Position.of_token(changes[-1].token), 100, torn=torn)


def _change(number: int, time: int) -> Change:
    token = f"82{time:08X}{1:08X}{number:04X}"
    return Change("orders", number, Timestamp(time, 1), Operation.INSERT, {"_id": number}, token)


def test_a_long_commit_makes_the_next_ones_as_large_as_would_have_been_quick_enough() -> None:
    """Whatever took ten times too long has a tenth as many changes the next time."""
    portion = Portion(5000, seconds=1.0)
    portion.took(5000, 10.0)
    assert portion.size == 500
    portion.took(500, 1.1)
    assert portion.size == 250


def test_what_counts_is_what_was_committed() -> None:
    """A commit that held less than it might says how little is quick enough."""
    portion = Portion(5000, seconds=1.0)
    portion.took(1000, 2.0)
    assert portion.size == 500


@pytest.mark.parametrize(("most", "least"), [(5000, LEAST), (50, 50)])
def test_there_is_a_least(most: int, least: int) -> None:
    """However long commits take or fail, they hold so many; a configuration with fewer is kept to."""
    portion = Portion(most, seconds=1.0)
    for _ in range(20):
        portion.failed(portion.size, 60.0)
    assert portion.size == least
    held = sizes(portion, 0.0, 1.0, 100)
    assert min(held) == least
    assert max(held) <= 1.5 * least


def sizes(portion: Portion, each: float, change: float, commits: int) -> list[int]:
    """Give how much full commits hold that take so long each, and so long for each change."""
    held = []
    for _ in range(commits):
        held.append(portion.size)
        portion.took(portion.size, each + change * portion.size)
    return held


@pytest.mark.parametrize("each", [1.2, 5.0, 40.0])
def test_what_takes_as_long_whatever_it_holds_is_not_made_small(each: float) -> None:
    """While each commit waits for a disk or another member, nearly all of them hold what they may."""
    held = sizes(Portion(5000, seconds=1.0), each, 0.0, 500)
    assert sum(held) >= 0.97 * 500 * 5000


def test_it_grows_though_each_commit_waits() -> None:
    """What made commits small ends, and each waits: they hold again what they may."""
    portion = Portion(5000, seconds=1.0)
    assert min(sizes(portion, 0.0, 0.02, 20)) == LEAST
    assert max(sizes(portion, 1.2, 0.0, 300)) == 5000


def test_a_wait_that_ends_is_forgotten() -> None:
    """Behind commits that waited, those that are long for what they hold are made smaller as ever."""
    portion = Portion(5000, seconds=1.0)
    sizes(portion, 1.2, 0.0, 20)
    held = sizes(portion, 0.0, 0.001, 200)
    assert held[0] == 5000
    assert max(held[-50:]) <= 1250


def test_light_traffic_that_waits_makes_no_portion_small() -> None:
    """A few changes whose commit waits say nothing of large commits."""
    portion = Portion(5000, seconds=1.0)
    for _ in range(100):
        portion.took(3, 1.2)
    assert portion.size == 5000


def test_what_failed_is_not_tried_again_as_large() -> None:
    """A transaction that the server ended, with smaller ones that take as long, is no reason to go back."""
    portion = Portion(5000, seconds=1.0)
    portion.failed(5000, 60.0)
    portion.took(LEAST, 50.0)
    assert portion.size == LEAST


def test_it_grows_slowly_behind_quick_and_full_commits_up_to_its_bound() -> None:
    """It takes several quick commits to double, and it never exceeds what the configuration allows."""
    portion = Portion(4000, seconds=1.0)
    portion.took(4000, 4.0)
    grown = [portion.size]
    while portion.size < 4000:
        portion.took(portion.size, 0.1)
        grown.append(portion.size)
    assert grown[0] == 1000
    assert all(before < after <= before * 1.2 for before, after in pairwise(grown))
    assert portion.size == 4000


@pytest.mark.parametrize(("changes", "seconds"), [(500, 0.1), (1000, 0.9)])
def test_it_stays_where_a_commit_says_nothing(changes: int, seconds: float) -> None:
    """Commits that held less, or that were nearly too long, let it be as it is."""
    portion = Portion(4000, seconds=1.0)
    portion.took(4000, 4.0)
    portion.took(changes, seconds)
    assert portion.size == 1000


def test_what_is_full_whatever_it_held_lets_it_grow() -> None:
    """Slices are cut by memory and by filters, too."""
    portion = Portion(4000, seconds=1.0)
    portion.took(4000, 4.0)
    portion.took(1, 0.1, full=True)
    assert portion.size > 1000


def test_a_large_batch_is_cut() -> None:
    """Head and rest are the batch, in its order; the head ends at the position of its last change."""
    whole = batch(range(1, 11), torn=True)
    head, rest = portioned(whole, 4)
    assert head.changes == whole.changes[:4]
    assert head.position == Position.of_token(whole.changes[3].token)
    assert not head.torn
    assert rest == whole._replace(changes=whole.changes[4:])
    assert joined(head, rest) == whole


def test_a_batch_is_not_cut_for_a_small_remainder() -> None:
    """Less than twice as much stays together."""
    whole = batch(range(1, 8))
    assert portioned(whole, 4) == (whole, None)


def test_changes_of_one_cluster_time_stay_together() -> None:
    """A source transaction is not torn, however small the portion."""
    whole = batch([1, 2, 2, 2, 3, 4])
    head, rest = portioned(whole, 2)
    assert [each.time.time for each in head.changes] == [1, 2, 2, 2]
    assert rest is not None
    assert [each.time.time for each in rest.changes] == [3, 4]
    transaction = batch([1] * 10)
    assert portioned(transaction, 2) == (transaction, None)
