"""Rollups, kept by a worker on a real server."""

import json
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from bson import Decimal128, ObjectId

from distributary.engine import rollups as engine_rollups
from distributary.engine.rollups import Builds, rollup_job
from distributary.errors import ConfigurationError
from distributary.sink import rollups as sink_rollups
from distributary.sink.rollups import Reader, Server
from distributary.state import Job
from distributary.store.jobs import Jobs
from tests.conftest import Databases, eventually
from tests.harness import Harness

MODULE = """
    from distributary import DerivedCollection, Rollup, transform

    by_customer = DerivedCollection("orders_by_customer")
    ROLLUP

    @transform("orders")
    def orders(order):
        yield by_customer.record(order["_id"], {name: each for name, each in order.items() if name != "_id"})
"""


SPEND = """spend = Rollup(
        "customer_spend",
        over=by_customer,
        by="customer",
        compute={"orders": {"$sum": 1}, "spent": {"$sum": "$total"}, "tags": {"$addToSet": "$tag"}},
        indexes=["-spent"],
    )"""


def module(rollup: str = SPEND) -> dict[str, str]:
    """Give the transform module with a rollup, or what stands in its place."""
    return {"orders": MODULE.replace("ROLLUP", rollup)}


def spend(by: str = '"customer"', compute: str = '{"orders": {"$sum": 1}}', more: str = "") -> str:
    """Give the source of a rollup."""
    return f'spend = Rollup("customer_spend", over=by_customer, by={by}, compute={compute}{more})'


@pytest.fixture
def harness(databases: Databases, tmp_path: Path) -> Harness:
    """Give a worker with one rollup."""
    return Harness(databases, tmp_path / "transformers", module())


def stored(harness: Harness, name: str = "customer_spend") -> dict[Any, dict[str, Any]]:
    """Give what is stored of a rollup, without the engine's field."""
    found = {}
    for each in harness.databases.derived[name].find():
        each.pop("_src")
        key = each.pop("_id")
        found[tuple(key.items()) if isinstance(key, dict) else key] = each
    return found


def totals(harness: Harness) -> dict[Any, tuple[int, Any]]:
    """Give the number of orders and the sum of each customer."""
    return {key: (each["orders"], each["spent"]) for key, each in stored(harness).items()}


def test_a_record_that_moves_leaves_no_stale_total(harness: Harness) -> None:
    """A record that moves between groups is counted in the new one only, and an empty group is gone."""
    orders = harness.databases.raw["orders"]
    orders.insert_many(
        [
            {"_id": 1, "customer": "a", "total": 5},
            {"_id": 2, "customer": "a", "total": 7},
            {"_id": 3, "customer": "b", "total": 1},
        ]
    )
    harness.catch_up()
    assert totals(harness) == {"a": (2, 12), "b": (1, 1)}
    orders.update_one({"_id": 2}, {"$set": {"customer": "b"}})
    orders.update_one({"_id": 1}, {"$set": {"customer": "c", "total": 6}})
    harness.catch_up()
    assert totals(harness) == {"b": (2, 8), "c": (1, 6)}
    orders.delete_many({"customer": "b"})
    harness.catch_up()
    assert totals(harness) == {"c": (1, 6)}


def pending(harness: Harness) -> list[dict[str, Any]]:
    """Give what is to be computed."""
    return list(harness.databases.state["pending"].find())


def letters(harness: Harness) -> dict[Any, str]:
    """Give the reasons of the dead letters by their source keys."""
    return {each["key"]: each["reason"] for each in harness.databases.state["dead_letters"].find()}


def test_a_group_can_have_several_fields(harness: Harness) -> None:
    """With a list of fields the group is a document, whose names have no dots."""
    harness.write(module(spend('["customer", "at.year"]')))
    orders = harness.databases.raw["orders"]
    orders.insert_many(
        [
            {"_id": 1, "customer": "a", "at": {"year": 2024}},
            {"_id": 2, "customer": "a", "at": {"year": 2025}},
            {"_id": 3, "customer": "a", "at": {"year": 2025}},
            {"_id": 4, "customer": "a"},
        ]
    )
    harness.catch_up()
    first, second = (("customer", "a"), ("at_year", 2024)), (("customer", "a"), ("at_year", 2025))
    assert stored(harness) == {first: {"orders": 1}, second: {"orders": 2}}
    orders.update_one({"_id": 1}, {"$set": {"at": {"year": 2025}}})
    harness.catch_up()
    assert stored(harness) == {second: {"orders": 3}}


def test_only_records_that_match_are_counted(harness: Harness) -> None:
    """A group exists as long as a record in it matches."""
    harness.write(module(spend(more=', match={"paid": True}')))
    orders = harness.databases.raw["orders"]
    orders.insert_many([{"_id": n, "customer": "a", "paid": n > 1} for n in range(4)])
    harness.catch_up()
    assert stored(harness) == {"a": {"orders": 2}}
    orders.update_many({}, {"$set": {"paid": False}})
    harness.catch_up()
    assert stored(harness) == {}


def test_a_record_without_the_field_is_in_no_group(harness: Harness) -> None:
    """Missing and null are no group, neither in the stream nor when a rollup is built."""
    orders = harness.databases.raw["orders"]
    harness.catch_up()
    orders.insert_many([{"_id": 1}, {"_id": 2, "customer": None}, {"_id": 3, "customer": "a"}])
    harness.catch_up()
    assert totals(harness) == {"a": (1, 0)}
    harness.write(module(spend('"customer"', '{"n": {"$count": {}}}')))
    harness.catch_up()
    assert stored(harness) == {"a": {"n": 1}}


def test_a_record_that_fits_no_group_is_parked(harness: Harness) -> None:
    """A list, a regular expression or a document with operators as a group is a dead letter that says so."""
    orders = harness.databases.raw["orders"]
    orders.insert_one({"_id": 0, "customer": 1, "total": 3})
    harness.catch_up()
    orders.insert_one({"_id": 1, "customer": [1, 2], "total": 5})
    orders.insert_one({"_id": 2, "customer": {"$gt": 1}})
    harness.catch_up()
    assert totals(harness) == {1: (1, 3)}
    reasons = letters(harness)
    assert reasons.keys() == {1, 2}
    assert "orders_by_customer[1]" in reasons[1]
    assert "'customer'" in reasons[1]
    assert "'customer_spend'" in reasons[1]


def test_a_list_that_was_there_before_is_in_no_group(harness: Harness) -> None:
    """`{by: 1}` finds a list with a 1 in it; a record of an earlier module has one, and is not counted."""
    harness.write(module(""))
    orders = harness.databases.raw["orders"]
    orders.insert_many([{"_id": 1, "customer": [1, 2], "total": 5}, {"_id": 2, "customer": 1, "total": 3}])
    harness.catch_up()
    harness.write(module())
    harness.catch_up()
    assert totals(harness) == {1: (1, 3)}
    orders.insert_one({"_id": 3, "customer": 1, "total": 4})
    harness.catch_up()
    assert totals(harness) == {1: (2, 7)}


def test_equal_numbers_are_one_group_of_one_type(harness: Harness) -> None:
    """Whatever type comes first, the group's key is an integer where it can be one."""
    orders = harness.databases.raw["orders"]
    orders.insert_one({"_id": 1, "customer": Decimal128("1.0"), "total": 1})
    harness.catch_up()
    orders.insert_many([{"_id": 2, "customer": 1.0, "total": 2}, {"_id": 3, "customer": 1, "total": 3}])
    harness.catch_up()
    orders.insert_one({"_id": 4, "customer": {"n": -0.0, "of": [Decimal128("2.50")]}, "total": 4})
    harness.catch_up()
    keys = [each["_id"] for each in harness.databases.derived["customer_spend"].find().sort("_id", 1)]
    assert keys == [1, {"n": 0, "of": [2.5]}]
    assert [type(keys[0]), type(keys[1]["n"]), type(keys[1]["of"][0])] == [int, int, float]
    assert harness.databases.derived["customer_spend"].find_one({"_id": 1}, {"spent": 1}) == {
        "_id": 1,
        "spent": 6,
    }


def test_sets_are_sorted(harness: Harness) -> None:
    """What `$addToSet` gives is in one order, so that nothing is written again for another one."""
    orders = harness.databases.raw["orders"]
    orders.insert_many([{"_id": n, "customer": "a", "tag": tag} for n, tag in enumerate("dbacb")])
    harness.catch_up()
    assert stored(harness)["a"]["tags"] == ["a", "b", "c", "d"]
    before = harness.databases.derived["customer_spend"].find_one()
    orders.insert_one({"_id": 9, "customer": "b", "tag": "z"})
    orders.update_one({"_id": 2}, {"$set": {"total": 0}})
    harness.catch_up()
    assert harness.databases.derived["customer_spend"].find_one({"_id": "a"}) == before


def test_what_the_server_refuses_is_told_at_the_start(harness: Harness) -> None:
    """An accumulator or a query that MongoDB does not take is a fault with the place of the rollup."""
    harness.write(module(spend(compute='{"best": {"$maxN": {"input": "$total"}}}')))
    with pytest.raises(
        ConfigurationError, match=r"orders\.py:5: rollup 'customer_spend' is refused by MongoDB: .*"
    ):
        harness.catch_up()
    harness.write(module(spend(more=', match={"total": {"$nonsense": 1}}')))
    with pytest.raises(ConfigurationError, match="nonsense"):
        harness.catch_up()


def test_a_document_that_breaks_the_computation_is_parked(harness: Harness) -> None:
    """Only the document is parked whose record cannot be computed, and the batch goes on without it."""
    harness.write(module(spend(compute='{"spent": {"$sum": {"$toInt": "$total"}}}')))
    orders = harness.databases.raw["orders"]
    harness.catch_up()
    orders.insert_many([{"_id": n, "customer": "a", "total": "x" if n == 7 else str(n)} for n in range(20)])
    harness.catch_up()
    assert stored(harness) == {"a": {"spent": sum(range(20)) - 7}}
    reasons = letters(harness)
    assert reasons.keys() == {7}
    assert "customer_spend" in reasons[7]
    orders.update_one({"_id": 7}, {"$set": {"total": "7"}})
    harness.catch_up()
    assert stored(harness) == {"a": {"spent": sum(range(20))}}
    assert letters(harness) == {}


def test_a_group_that_was_broken_before_holds_nothing_up(harness: Harness) -> None:
    """Records that were stored before a rollup can break it: the group stays pending with its error."""
    harness.write(module(""))
    orders = harness.databases.raw["orders"]
    orders.insert_many([{"_id": 1, "customer": "a", "total": "x"}, {"_id": 2, "customer": "b", "total": "2"}])
    harness.catch_up()
    harness.write(module(spend(compute='{"spent": {"$sum": {"$toInt": "$total"}}}')))
    harness.catch_up()
    assert stored(harness) == {"b": {"spent": 2}}
    assert [(each["_id"]["group"], "x" in each["error"]) for each in pending(harness)] == [("a", True)]
    orders.insert_many([{"_id": 3, "customer": "a", "total": "3"}, {"_id": 4, "customer": "b", "total": "4"}])
    harness.catch_up()
    assert stored(harness) == {"b": {"spent": 6}}
    assert letters(harness) == {}
    orders.update_one({"_id": 1}, {"$set": {"total": "1"}})
    harness.catch_up()
    assert stored(harness) == {"a": {"spent": 4}, "b": {"spent": 6}}
    assert pending(harness) == []


def test_a_new_rollup_is_built_and_a_changed_one_anew(harness: Harness) -> None:
    """Groups of what is there already are computed, and those that a changed definition has no more are gone."""
    harness.write(module(""))
    orders = harness.databases.raw["orders"]
    orders.insert_many([{"_id": n, "customer": n % 3, "city": "xy"[n % 2], "total": n} for n in range(30)])
    harness.catch_up()
    harness.write(module())
    harness.catch_up()
    assert totals(harness) == {n: (10, sum(range(n, 30, 3))) for n in range(3)}
    harness.write(module(spend('"city"')))
    harness.catch_up()
    assert stored(harness) == {"x": {"orders": 15}, "y": {"orders": 15}}
    checkpoint = harness.databases.state["checkpoints"].find_one()
    assert checkpoint is not None
    assert list(checkpoint["rollups"]) == ["customer_spend"]
    harness.write(module(""))
    harness.catch_up()
    checkpoint = harness.databases.state["checkpoints"].find_one()
    assert checkpoint is not None
    assert checkpoint["rollups"] == {}


def test_many_groups_are_drained_beside_the_stream(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, drained: list[Any]
) -> None:
    """A transaction computes so many groups and no more, however small they are."""
    monkeypatch.setattr(sink_rollups, "ROLLUP_GROUPS", 5)
    harness.catch_up()
    harness.databases.raw["orders"].insert_many([{"_id": n, "customer": n, "total": 1} for n in range(20)])
    harness.catch_up()
    assert totals(harness) == dict.fromkeys(range(20), (1, 1))
    assert len(drained) == 15


def test_indexes_lead_to_the_groups(harness: Harness) -> None:
    """The records' collection has an index on the field of the groups, the rollup's its own."""
    harness.catch_up()
    derived = harness.databases.derived
    assert "customer_1" in derived["orders_by_customer"].index_information()
    assert set(derived["customer_spend"].index_information()) == {"_id_", "spent_-1"}


@pytest.fixture
def drained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Give the keys of the groups that are computed beside the stream, as they come."""
    read, groups = Reader.read, list[Any]()

    def noted(self: Reader, after: Any, limit: int) -> Any:
        given, behind = read(self, after, limit)
        groups.extend(each.pending.group.key for each in given)
        return given, behind

    monkeypatch.setattr(Reader, "read", noted)
    return groups


def test_a_large_group_is_drained_beside_the_stream(
    harness: Harness, drained: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group that is too large for a transaction is computed behind it, and the others at once."""
    monkeypatch.setattr(sink_rollups, "ROLLUP_RECORDS", 50)
    monkeypatch.setattr(sink_rollups, "LARGE_GROUP", 20)
    orders = harness.databases.raw["orders"]
    harness.catch_up()
    orders.insert_many([{"_id": n, "customer": "hot", "total": 1} for n in range(200)])
    with harness.running():
        eventually(lambda: totals(harness) == {"hot": (200, 200)} and not pending(harness))
        assert set(drained) == {"hot"}
        drained.clear()
        for n in range(200, 230):
            orders.insert_one({"_id": n, "customer": "hot" if n % 2 else f"c{n}", "total": 1})
        eventually(lambda: totals(harness).get("hot") == (215, 215) and len(totals(harness)) == 16)
        eventually(lambda: not pending(harness))
    assert set(drained) == {"hot"}
    orders.delete_many({"customer": "hot"})
    harness.catch_up()
    assert "hot" not in totals(harness)


def test_what_was_touched_while_it_was_computed_is_computed_again(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result of before a touch is stored, and the group stays pending until it is computed once more."""
    monkeypatch.setattr(sink_rollups, "ROLLUP_RECORDS", 5)
    orders = harness.databases.raw["orders"]
    orders.insert_many([{"_id": n, "customer": "hot", "total": 1} for n in range(10)])
    harness.catch_up()
    read = Reader.read
    seen: list[dict[Any, tuple[int, Any]]] = []

    def touching(self: Reader, after: Any, limit: int) -> Any:
        drained, behind = read(self, after, limit)
        if drained and len(seen) < 3:
            rev = drained[0].pending.rev
            orders.insert_one({"_id": ObjectId(), "customer": "hot", "total": 1})
            eventually(lambda: pending(harness)[0]["rev"] > rev)
            seen.append(totals(harness))
        return drained, behind

    monkeypatch.setattr(Reader, "read", touching)
    orders.insert_one({"_id": 10, "customer": "hot", "total": 1})
    with harness.running():
        eventually(lambda: totals(harness) == {"hot": (14, 14)})
        eventually(lambda: not pending(harness))
    assert seen == [{"hot": (10, 10)}, {"hot": (11, 11)}, {"hot": (12, 12)}]


def test_a_backfill_leaves_its_groups_to_be_drained(
    harness: Harness, drained: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slices of a job compute no group themselves, and all are computed when the worker is done."""
    at_once: list[Any] = []
    monkeypatch.setattr(Server, "compute_within", lambda *given: at_once.append(given))
    harness.settings = {"worker.scan_documents": "50"}
    orders = harness.databases.raw["orders"]
    orders.insert_many([{"_id": n, "customer": n % 7, "total": n} for n in range(700)])
    harness.catch_up()
    assert totals(harness) == {n: (100, sum(range(n, 700, 7))) for n in range(7)}
    assert pending(harness) == []
    assert (set(drained), at_once) == (set(range(7)), [])


def test_a_rebuild_builds_the_rollups_as_well(harness: Harness) -> None:
    """When collections are swapped, what is computed over them follows."""
    harness.settings = {"worker.on_change": "rebuild"}
    orders = harness.databases.raw["orders"]
    orders.insert_many([{"_id": n, "customer": "a", "total": 1} for n in range(5)])
    harness.catch_up()
    changed = module()["orders"].replace(
        "name: each for", "name: each + each if name == 'total' else each for"
    )
    harness.write({"orders": changed})
    harness.catch_up()
    assert totals(harness) == {"a": (5, 10)}


def test_status_counts_what_is_pending(harness: Harness) -> None:
    """`status` says how many groups are to be computed, and how many cannot be."""
    harness.write(module(""))
    orders = harness.databases.raw["orders"]
    orders.insert_one({"_id": 1, "customer": "a", "total": "x"})
    harness.catch_up()
    harness.write(module(spend(compute='{"spent": {"$sum": {"$toInt": "$total"}}}')))
    harness.catch_up()
    answer = json.loads(harness.said("status", "--json"))
    assert answer["workers"][0]["pending_groups"] == {"groups": 1, "failing": 1}
    assert "groups that are still to be computed: 1, and 1 of them cannot be" in harness.said("status")


def test_check_names_rollups(harness: Harness) -> None:
    """`check` tells which rollups there are, and which ones the server does not take."""
    with harness.process("check", stdout=PIPE) as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "customer_spend (orders_by_customer by customer) is taken by the server" in out
    harness.write(module(spend(more=', match={"total": {"$nonsense": 1}}')))
    with harness.process("check", stdout=PIPE) as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "nonsense" in out


def test_a_first_start_computes_groups_once(harness: Harness) -> None:
    """As long as a backfill goes on, groups of a rollup that comes after it are neither computed nor marked."""
    orders = harness.databases.raw["orders"]
    orders.insert_many([{"_id": number, "customer": number % 7, "total": 1} for number in range(400)])
    harness.settings = {"worker.job_documents_per_second": "20"}
    with harness.running():
        eventually(lambda: harness.databases.derived["orders_by_customer"].count_documents({}) > 10)
        orders.insert_one({"_id": 1000, "customer": 1, "total": 5})
        eventually(
            lambda: harness.databases.derived["orders_by_customer"].find_one({"_id": 1000}) is not None
        )
        assert harness.databases.state["pending"].count_documents({}) == 0
        assert harness.databases.derived["customer_spend"].count_documents({}) == 0
        assert harness.databases.derived["orders_by_customer"].count_documents({}) < 401
    harness.settings = {}
    harness.catch_up()
    assert sum(each["orders"] for each in stored(harness).values()) == 401
    assert stored(harness)[1]["spent"] == 57 + 5


def halt(monkeypatch: pytest.MonkeyPatch, harness: Harness, *, begun: bool) -> None:
    """Let an operator pause jobs of rollups before their first slice, or behind it."""
    jobs, work = Jobs(harness.databases.state, "default"), Builds.run

    def run(self: Builds, job: Job) -> Job:
        if begun and not job.stage:
            return work(self, job)
        jobs.pause(job.id, paused=True)
        return job

    monkeypatch.setattr(Builds, "run", run)


def is_paused(harness: Harness) -> bool:
    """Whether a job of a rollup is paused."""
    return harness.databases.state["jobs"].count_documents({"kind": "rollup", "paused": True}) > 0


def test_a_definition_that_is_taken_back_is_built_anew(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups that another definition has computed meanwhile are computed again, though no job of it was done."""
    orders, jobs = harness.databases.raw["orders"], Jobs(harness.databases.state, "default")
    orders.insert_many([{"_id": n, "customer": n % 3, "total": 10} for n in range(9)])
    harness.catch_up()
    harness.write(module(spend(compute='{"orders": {"$sum": "$total"}}')))
    with monkeypatch.context() as patch:
        halt(patch, harness, begun=False)
        with harness.running():
            orders.update_one({"_id": 0}, {"$set": {"total": 11}})
            eventually(lambda: is_paused(harness) and stored(harness)[0]["orders"] == 31)
    for job in jobs.open():
        jobs.cancel(job.id)
    harness.write(module())
    harness.catch_up()
    assert totals(harness) == {0: (3, 31), 1: (3, 30), 2: (3, 30)}


@pytest.mark.parametrize("other", ["without", "with"])
def test_a_halted_job_begins_anew(harness: Harness, monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    """What came behind a job that was halted half-way is in its group, whoever worked in the meantime."""
    orders, jobs = harness.databases.raw["orders"], Jobs(harness.databases.state, "default")
    monkeypatch.setattr(engine_rollups, "SLICE", 2)
    orders.insert_many([{"_id": n, "customer": n, "total": 1} for n in range(9)])
    harness.write(module(""))
    harness.catch_up()
    harness.write(module())
    with monkeypatch.context() as patch:
        halt(patch, harness, begun=True)
        with harness.running():
            eventually(lambda: is_paused(harness))
    (halted,) = jobs.open()
    if other == "without":
        harness.write(module(""))
    else:
        (second,) = jobs.ask([rollup_job("customer_spend", "behind a rebuild")])
        jobs.pause(second.id, paused=True)
    with harness.running():
        orders.insert_one({"_id": -1, "customer": "late", "total": 1})
        eventually(lambda: harness.databases.derived["orders_by_customer"].find_one({"_id": -1}) is not None)
        if other == "with":
            jobs.cancel(second.id)
    harness.write(module())
    jobs.pause(halted.id, paused=False)
    harness.catch_up()
    assert stored(harness)["late"]["orders"] == 1
