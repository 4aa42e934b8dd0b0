"""The data set of each domain in a real database: loaded whole, with a story, and kept alive the same way each time."""

from collections import Counter
from itertools import pairwise
from threading import Event
from time import monotonic
from typing import Any

import pytest
from bson import Timestamp
from pymongo.database import Database

from distributary.cli.play import PLAYS, Sample
from distributary.sample import insurance_life, retail
from tests.conftest import Databases

FAST = 1e9

Raw = Database[dict[str, Any]]


@pytest.fixture(params=sorted(PLAYS))
def sample(request: pytest.FixtureRequest) -> Sample:
    """Give each domain's functions."""
    return PLAYS[request.param].sample


def content(sample: Sample, database: Raw) -> dict[str, list[dict[str, Any]]]:
    """Give every document of a raw database."""
    return {name: list(database[name].find().sort("_id")) for name in sample.sizes_at(1)}


def live_for(sample: Sample, database: Raw, writes: int, seed: int) -> tuple[Counter[str], list[Timestamp]]:
    """Apply a number of live writes and give what they were and when."""
    stop, times, operations = Event(), list[Timestamp](), Counter[str]()

    def wrote(operation: str, at: Timestamp) -> None:
        operations[operation] += 1
        times.append(at)
        if len(times) == writes:
            stop.set()

    assert sample.live(database, seed, stop, FAST, wrote) == operations
    return operations, times


def test_all_documents_are_loaded_and_progress_is_told(databases: Databases, sample: Sample) -> None:
    """What `load` gives is what lies in the database, and progress ends with the whole."""
    told: list[tuple[int, int]] = []
    sizes = sample.load(databases.raw, 0.02, lambda done, whole: told.append((done, whole)))
    assert {name: databases.raw[name].count_documents({}) for name in sizes} == sizes
    assert sizes == sample.sizes_at(0.02)
    assert sizes.keys() == sample.sizes_at(1).keys()
    assert told[-1] == (sum(sizes.values()), sum(sizes.values()))


def test_live_writes_are_of_every_kind_and_depend_on_the_seed_alone(
    databases: Databases, sample: Sample
) -> None:
    """There are inserts, updates, replaces and deletes, each later than the one before, the same every time."""
    ends = []
    for database, seed in ((databases.raw, 3), (databases.derived, 3), (databases.state, 4)):
        sample.load(database, 0.01)
        operations, times = live_for(sample, database, 150, seed)
        assert set(operations) == {"insert", "update", "replace", "delete"}
        assert all(before < after for before, after in pairwise(times))
        ends.append(content(sample, database))
    assert ends[0] == ends[1]
    assert ends[0] != ends[2]


def test_the_cluster_times_are_those_of_the_change_stream(databases: Databases, sample: Sample) -> None:
    """A reader that has reached the last time that was told has seen every write."""
    sample.load(databases.raw, 0.01)
    with databases.raw.watch() as stream:
        _, times = live_for(sample, databases.raw, 50, seed=1)
        seen = [change["clusterTime"] for _, change in zip(times, stream, strict=False)]
    assert seen == times


def test_it_stops_at_once_when_it_is_told_before_it_begins(databases: Databases) -> None:
    """No write follows a stop."""
    retail.load(databases.raw, 0.01)
    stop = Event()
    stop.set()
    assert retail.live(databases.raw, 1, stop, FAST) == {}


def test_the_rate_is_kept(databases: Databases) -> None:
    """Writes are spread over time: 25 of them at 50 per second take half a second, not less."""
    retail.load(databases.raw, 0.01)
    stop = Event()
    times: list[float] = []

    def wrote(_operation: str, _at: Timestamp) -> None:
        times.append(monotonic())
        if len(times) == 26:
            stop.set()

    retail.live(databases.raw, 1, stop, 50, wrote)
    assert times[-1] - times[0] > 0.9 * 25 / 50


def test_life_goes_on_after_a_story(databases: Databases, sample: Sample) -> None:
    """What a story inserted is in nobody's way."""
    sample.load(databases.raw, 0.01)
    assert list(sample.story(databases.raw, sample.somebody(databases.raw)))
    assert live_for(sample, databases.raw, 100, seed=1)[0].total() == 100


def test_the_smallest_data_set_has_somebody_with_a_story(databases: Databases, sample: Sample) -> None:
    """Also where nobody has a few orders, or consents to all of it."""
    sample.load(databases.raw, 0.0001)
    databases.raw["members"].update_many({}, {"$unset": {"consent": ""}})
    assert list(sample.story(databases.raw, sample.somebody(databases.raw)))


def test_a_story_changes_what_is_known_of_one_user(databases: Databases) -> None:
    """Its writes are told with their times; the user has a visit, a new order, one cancelled and one taken over."""
    retail.load(databases.raw, 0.02)
    key = retail.somebody(databases.raw)
    orders = databases.raw["orders"]
    before = list(orders.find({"userId": key, "status": {"$ne": "cancelled"}}).sort("_id"))
    count = orders.count_documents({"userId": key})
    told = list(retail.story(databases.raw, key))
    assert len({act for act, _ in told}) == len(told) == 5
    assert all(earlier < later for (_, earlier), (_, later) in pairwise(told))
    after = {each["_id"]: each["status"] for each in orders.find({"userId": key})}
    assert len(after) == count + 2
    assert after[before[-1]["_id"]] == "cancelled"
    assert (
        databases.raw["clickstream"].count_documents({"userId": key, "gaSessionId": f"S{max(after):07}"}) == 1
    )


def test_a_story_changes_what_is_known_of_one_member(databases: Databases) -> None:
    """A policy has another holder, consent is withdrawn, a form was begun and abandoned."""
    raw = databases.raw
    insurance_life.load(raw, 0.02)
    key = insurance_life.somebody(raw)
    before = raw.members.find_one({"_id": key})
    assert before
    assert before["consent"] | {"email": True, "health": True} == before["consent"]
    held = raw.policies.count_documents({"holder_id": key})
    assert held > 0
    told = list(insurance_life.story(raw, key))
    assert len({act for act, _ in told}) == len(told) == 5
    assert all(earlier < later for (_, earlier), (_, later) in pairwise(told))
    assert raw.policies.count_documents({"holder_id": key}) == held + 1
    after = raw.members.find_one({"_id": key})
    assert after == before | {"consent": before["consent"] | {"email": False, "health": False}}
    newest = raw.web_visits.find_one({}, sort=[("_id", -1)])
    assert newest
    assert (newest["post_evar5"], newest["form"]["state"]) == (key, "abandoned")
