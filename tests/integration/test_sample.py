"""The retail data set in a real database: loaded whole, and kept alive the same way every time."""

from collections import Counter
from itertools import pairwise
from threading import Event
from time import monotonic
from typing import Any

from bson import Timestamp
from pymongo.database import Database

from distributary.sample.retail import live, load, sizes_at, somebody, story
from tests.conftest import Databases

FAST = 1e9


def content(database: Database[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Give every document of a raw database."""
    return {name: list(database[name].find().sort("_id")) for name in sizes_at(1)}


def live_for(
    database: Database[dict[str, Any]], writes: int, seed: int
) -> tuple[Counter[str], list[Timestamp]]:
    """Apply a number of live writes and give what they were and when."""
    stop, times, operations = Event(), list[Timestamp](), Counter[str]()

    def wrote(operation: str, at: Timestamp) -> None:
        operations[operation] += 1
        times.append(at)
        if len(times) == writes:
            stop.set()

    assert live(database, seed, stop, FAST, wrote) == operations
    return operations, times


def test_all_documents_are_loaded_and_progress_is_told(databases: Databases) -> None:
    """What `load` gives is what lies in the database, and progress ends with the whole."""
    told: list[tuple[int, int]] = []
    sizes = load(databases.raw, 0.1, lambda done, whole: told.append((done, whole)))
    assert {name: databases.raw[name].count_documents({}) for name in sizes} == sizes == sizes_at(0.1)
    assert told[-1] == (sum(sizes.values()), sum(sizes.values()))


def test_live_writes_are_of_every_kind_and_come_with_their_cluster_times(databases: Databases) -> None:
    """There are inserts, updates, replaces and deletes, each later than the one before."""
    load(databases.raw, 0.02)
    operations, times = live_for(databases.raw, 200, seed=1)
    assert set(operations) == {"insert", "update", "replace", "delete"}
    assert all(before < after for before, after in pairwise(times))


def test_the_cluster_times_are_those_of_the_change_stream(databases: Databases) -> None:
    """A reader that has reached the last time that was told has seen every write."""
    load(databases.raw, 0.01)
    with databases.raw.watch() as stream:
        _, times = live_for(databases.raw, 50, seed=1)
        seen = [change["clusterTime"] for _, change in zip(times, stream, strict=False)]
    assert seen == times


def test_live_writes_depend_on_the_seed_alone(databases: Databases) -> None:
    """The same seed leaves the same documents behind, another seed leaves others."""
    ends = []
    for database, seed in ((databases.raw, 3), (databases.derived, 3), (databases.state, 4)):
        load(database, 0.01)
        live_for(database, 100, seed)
        ends.append(content(database))
    assert ends[0] == ends[1]
    assert ends[0] != ends[2]


def test_it_stops_at_once_when_it_is_told_before_it_begins(databases: Databases) -> None:
    """No write follows a stop."""
    load(databases.raw, 0.01)
    stop = Event()
    stop.set()
    assert live(databases.raw, 1, stop, FAST) == {}


def test_the_rate_is_kept(databases: Databases) -> None:
    """Writes are spread over time: 25 of them at 50 per second take half a second, not less."""
    load(databases.raw, 0.01)
    stop = Event()
    times: list[float] = []

    def wrote(_operation: str, _at: Timestamp) -> None:
        times.append(monotonic())
        if len(times) == 26:
            stop.set()

    live(databases.raw, 1, stop, 50, wrote)
    assert times[-1] - times[0] > 0.9 * 25 / 50


def test_a_story_changes_what_is_known_of_one_user(databases: Databases) -> None:
    """Its writes are told with their times; the user has a visit, a new order, one cancelled and one taken over."""
    load(databases.raw, 0.02)
    key = somebody(databases.raw)
    orders = databases.raw["orders"]
    before = list(orders.find({"userId": key, "status": {"$ne": "cancelled"}}).sort("_id"))
    count = orders.count_documents({"userId": key})
    told = list(story(databases.raw, key))
    assert len({act for act, _ in told}) == len(told) == 5
    assert all(earlier < later for (_, earlier), (_, later) in pairwise(told))
    after = {each["_id"]: each["status"] for each in orders.find({"userId": key})}
    assert len(after) == count + 2
    assert after[before[-1]["_id"]] == "cancelled"
    assert (
        databases.raw["clickstream"].count_documents({"userId": key, "gaSessionId": f"S{max(after):07}"}) == 1
    )


def test_life_goes_on_after_a_story(databases: Databases) -> None:
    """What a story inserted is in nobody's way."""
    load(databases.raw, 0.01)
    list(story(databases.raw, somebody(databases.raw)))
    operations, _ = live_for(databases.raw, 100, seed=1)
    assert operations.total() == 100


def test_the_smallest_shop_has_somebody_with_a_story(databases: Databases) -> None:
    """Also where nobody has a few orders."""
    load(databases.raw, 0.0001)
    assert list(story(databases.raw, somebody(databases.raw)))
