"""`verify` and rollups: damage is found and repaired, and what is pending is none."""

from pathlib import Path
from typing import Any

import pytest
from pymongo.database import Database

from distributary.assemble import Assembled
from distributary.derive.plan import Stored
from distributary.engine.rollups import rollup_job
from distributary.operate.jobs import carry_out
from distributary.operate.trace import Agreement, GroupTrace, Tracer
from distributary.operate.verify import Verification, Verifier
from distributary.state import Job, JobKind
from distributary.store.jobs import Jobs
from tests.conftest import Databases
from tests.harness import Harness

MODULE = """
    from distributary import DerivedCollection, Rollup, transform

    by_customer = DerivedCollection("orders_by_customer")
    spend = Rollup(
        "customer_spend",
        over=by_customer,
        by={by},
        compute={{"orders": {{"$sum": 1}}, "spent": {{"$sum": "$total"}}}},
    )

    @transform("orders")
    def orders(order):
        yield by_customer.record(order["_id"], {{"customer": order.get("customer"), "total": order.get("total")}})
"""


def module(by: str = '"customer"') -> dict[str, str]:
    """Give the module with a rollup by a field, or some fields."""
    return {"orders": MODULE.format(by=by)}


@pytest.fixture
def harness(databases: Databases, tmp_path: Path) -> Harness:
    """Give a worker that has derived some orders, with sums of doubles, and is not running."""
    made = Harness(databases, tmp_path / "modules", module())
    databases.raw.orders.insert_many(
        [{"_id": n, "customer": n % 5 if n else None, "total": n / 10} for n in range(100)]
    )
    made.catch_up()
    return made


def verify(harness: Harness, **options: Any) -> Verification:
    """Verify in this process."""
    with harness.assembled() as assembled:
        if options.pop("repair", False):
            options["repair"] = lambda jobs: carry_out(assembled, jobs)
        transforms = assembled.registry.transforms
        return Verifier(assembled.sides(), transforms, assembled.watch(), **options).run()


def damage(derived: Database[dict[str, Any]]) -> None:
    """Change a group, remove one, and add one."""
    spend = derived["customer_spend"]
    spend.update_one({"_id": 1}, {"$inc": {"orders": 1}})
    spend.delete_one({"_id": 2})
    spend.insert_one({"_id": "nobody", "orders": 1})


def told(found: Verification) -> set[tuple[str, str, Any, tuple[str, ...], bool]]:
    """Give what is told of each difference."""
    return {
        (each.kind.value, each.collection, each.key, each.fields, each.repaired) for each in found.differences
    }


def test_without_damage_nothing_differs(harness: Harness) -> None:
    """Groups count as records, and sums of doubles may differ in their last digits."""
    harness.databases.derived["customer_spend"].update_one({"_id": 1}, {"$mul": {"spent": 1 + 1e-12}})
    found = verify(harness)
    assert found.equal
    assert (found.records, found.collections, found.unsettled) == (105, 2, 0)


@pytest.mark.parametrize("by", ['"customer"', '["customer", "total"]'])
def test_damage_is_found_and_repaired(harness: Harness, by: str) -> None:
    """What a hand changed, removed or added is named, and as it was after the repair."""
    harness.write(module(by))
    harness.catch_up()
    spend = harness.databases.derived["customer_spend"]
    before = list(spend.find().sort("_id", 1))
    first, second = before[1]["_id"], before[2]["_id"]
    spend.update_one({"_id": first}, {"$inc": {"orders": 1}})
    spend.delete_one({"_id": second})
    spend.insert_one({"_id": "nobody", "orders": 1})
    found = verify(harness)
    kinds = [(each.kind.value, each.key, each.fields, each.transform) for each in found.differences]
    assert sorted(kinds, key=repr) == sorted(
        [
            ("stale", first, ("orders",), "customer_spend"),
            ("missing", second, (), "customer_spend"),
            ("orphaned", "nobody", (), "customer_spend"),
        ],
        key=repr,
    )
    repaired = verify(harness, repair=True)
    assert repaired.equal
    assert repaired.repaired == 3
    after = list(spend.find().sort("_id", 1))
    assert [without_origin(each) for each in after] == [without_origin(each) for each in before]
    assert verify(harness).repaired == 0


def test_damage_is_repaired_by_the_running_worker(harness: Harness) -> None:
    """Beside a living worker the repair is its job."""
    damage(harness.databases.derived)
    with harness.running():
        repaired = verify(harness, repair=True)
    assert (repaired.equal, repaired.repaired) == (True, 3)
    assert {each[:3] for each in told(repaired)} == {
        ("stale", "customer_spend", 1),
        ("missing", "customer_spend", 2),
        ("orphaned", "customer_spend", "nobody"),
    }


def test_a_sample_is_compared(harness: Harness) -> None:
    """A sample of groups finds what differs in it."""
    harness.databases.derived["customer_spend"].update_many({}, {"$inc": {"orders": 1}})
    found = verify(harness, sample=2)
    assert found.stale == 2


def test_what_is_pending_is_unsettled(harness: Harness) -> None:
    """A group that waits to be computed is no difference."""
    damage(harness.databases.derived)
    state = harness.databases.state
    state["pending"].insert_many(
        [
            {
                "_id": {"worker": "default", "rollup": "customer_spend", "group": group},
                "worker": "default",
                "since": 1,
                "rev": 1,
            }
            for group in (1, 2, "nobody")
        ]
    )
    found = verify(harness)
    assert (found.equal, found.unsettled) == (True, 3)
    harness.catch_up()
    assert verify(harness).unsettled == 0


def test_a_rollup_that_is_being_built_is_apart(harness: Harness) -> None:
    """One that the worker has not built yet, or builds anew, is named and not compared."""
    harness.write(module('"total"'))
    assert verify(harness).not_built == ("customer_spend",)
    harness.write(module())
    with harness.assembled() as assembled:
        (job,) = assembled.jobs().ask([_build()])
    damage(harness.databases.derived)
    assert verify(harness).not_built == ("customer_spend",)
    Jobs(harness.databases.state, "default").cancel(job.id)
    assert verify(harness).remaining == 3


def _build() -> Job:
    job = rollup_job("customer_spend", "behind a rebuild")
    assert job.kind is JobKind.ROLLUP
    return job


def test_a_group_is_traced_as_of_one_moment(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker commits while a group is traced does not make it differ: all of it is read at one moment."""
    read = Tracer._stored

    def read_and_go_on(*arguments: Any) -> Stored:
        found = read(*arguments)
        harness.databases.raw.orders.insert_one({"_id": 101, "customer": 1, "total": 1})
        harness.catch_up()
        return found

    with harness.assembled() as assembled, monkeypatch.context() as patched:
        patched.setattr(Tracer, "_stored", read_and_go_on)
        before = traced(assembled)
    assert (before.held.agreement, before.held.fields, before.records) == (Agreement.EQUAL, (), 20)
    with harness.assembled() as assembled:
        now = traced(assembled)
    assert (now.held.agreement, now.records) == (Agreement.EQUAL, 21)


def test_a_group_that_cannot_be_computed_is_traced(harness: Harness) -> None:
    """It says so, and not that it differs."""
    harness.write({"orders": module()["orders"].replace('"$total"', '{"$toDouble": "$total"}')})
    harness.catch_up()
    assert verify(harness).equal
    harness.databases.derived["orders_by_customer"].insert_one({"_id": "x", "customer": 1, "total": "x"})
    with harness.assembled() as assembled:
        found = traced(assembled)
    assert (found.held.agreement, found.held.fields) == (Agreement.FAILING, ())


def traced(assembled: Assembled) -> GroupTrace:
    """Trace the group of customer 1."""
    found = Tracer(assembled.sides()).record("customer_spend", [1])
    assert isinstance(found, GroupTrace)
    return found


def without_origin(document: dict[str, Any]) -> dict[str, Any]:
    """Give a group without the engine's field."""
    return {name: value for name, value in document.items() if name != "_src"}
