"""The insurer's data set in a real database: loaded whole, with a story to tell, and kept alive."""

from collections import Counter
from itertools import pairwise
from threading import Event
from typing import Any

from bson import Timestamp
from pymongo.database import Database

from distributary.sample.insurance import sizes_at
from distributary.sample.insurance_life import live, load, somebody, story
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
    sizes = load(databases.raw, 0.02, lambda done, whole: told.append((done, whole)))
    assert {name: databases.raw[name].count_documents({}) for name in sizes} == sizes == sizes_at(0.02)
    assert told[-1] == (sum(sizes.values()), sum(sizes.values()))


def test_live_writes_are_of_every_kind_and_depend_on_the_seed_alone(databases: Databases) -> None:
    """There are inserts, updates, replaces and deletes, each later than the one before, the same every time."""
    ends = []
    for database, seed in ((databases.raw, 3), (databases.derived, 3), (databases.state, 4)):
        load(database, 0.01)
        operations, times = live_for(database, 150, seed)
        assert set(operations) == {"insert", "update", "replace", "delete"}
        assert all(before < after for before, after in pairwise(times))
        ends.append(content(database))
    assert ends[0] == ends[1]
    assert ends[0] != ends[2]


def test_a_story_changes_what_is_known_of_one_member(databases: Databases) -> None:
    """A policy has another holder, consent is withdrawn, a form was begun and abandoned; life goes on after it."""
    raw = databases.raw
    load(raw, 0.02)
    key = somebody(raw)
    before = raw.members.find_one({"_id": key})
    assert before
    assert before["consent"] | {"email": True, "health": True} == before["consent"]
    held = raw.policies.count_documents({"holder_id": key})
    assert held > 0
    told = list(story(raw, key))
    assert len({act for act, _ in told}) == len(told) == 5
    assert all(earlier < later for (_, earlier), (_, later) in pairwise(told))
    assert raw.policies.count_documents({"holder_id": key}) == held + 1
    after = raw.members.find_one({"_id": key})
    assert after == before | {"consent": before["consent"] | {"email": False, "health": False}}
    newest = raw.web_visits.find_one({}, sort=[("_id", -1)])
    assert newest
    assert (newest["post_evar5"], newest["form"]["state"]) == (key, "abandoned")
    assert live_for(raw, 100, seed=1)[0].total() == 100


def test_the_smallest_insurer_has_somebody_with_a_story(databases: Databases) -> None:
    """Also where nobody consents to all of it."""
    load(databases.raw, 0.0001)
    databases.raw.members.update_many({}, {"$unset": {"consent": ""}})
    assert list(story(databases.raw, somebody(databases.raw)))
