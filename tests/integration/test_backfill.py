"""`backfill`: what exists is derived again, with a worker and without, and what lost its source goes."""

import json
from pathlib import Path
from subprocess import PIPE

import pytest
from bson import json_util

from distributary.state import Job, JobKind
from tests.conftest import Databases, eventually
from tests.harness import Harness

ORDERS = """
    from distributary import DerivedCollection, transform

    codes = DerivedCollection("codes")
    names = DerivedCollection("names")

    @transform("orders")
    def coded(order):
        yield codes.record(order["_id"], {"code": order["code"]})

    @transform("customers")
    def named(customer):
        yield names.record(customer["_id"], {"name": customer["name"]})
"""


@pytest.fixture
def harness(databases: Databases, tmp_path: Path) -> Harness:
    """Give a worker that has derived some orders and a customer."""
    made = Harness(databases, tmp_path / "modules", {"orders": ORDERS})
    databases.raw.orders.insert_many([{"_id": number, "code": f"c{number}"} for number in range(20)])
    databases.raw.customers.insert_one({"_id": "a", "name": "Ann"})
    made.catch_up()
    return made


def backfill(harness: Harness, *arguments: str, code: int = 0) -> str:
    """Give what the verb says."""
    with harness.process("backfill", *arguments, stdout=PIPE, stderr=PIPE) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    return out if code == 0 else err


def damage(harness: Harness) -> None:
    """Take a record, change one, and add one whose source never was."""
    codes = harness.databases.derived.codes
    codes.delete_one({"_id": 3})
    codes.update_one({"_id": 4}, {"$set": {"code": "by hand"}})
    source = codes.find_one({"_id": 5})
    assert source is not None
    codes.insert_one({**source, "_id": 99, "_src": {**source["_src"], "key": 99}})


@pytest.mark.parametrize("alive", [True, False], ids=["beside a worker", "without one"])
def test_everything_is_derived_again(harness: Harness, alive: bool) -> None:  # noqa: FBT001 - a parameter
    """Records that are gone come back, and those without a source go; the answer counts both."""
    damage(harness)
    if alive:
        with harness.running() as worker:
            eventually(lambda: (found := worker.holder()) is not None and found.alive)
            said = backfill(harness)
    else:
        said = backfill(harness)
    assert "orders through coded: 20 documents, 2 records written, 1 removed" in said
    assert "customers through named: 1 documents, 0 records written, 0 removed" in said
    harness.assert_equal()


def test_one_transform_is_derived_again(harness: Harness) -> None:
    """`--transform` leaves the others alone; the answer is there for programs, too."""
    harness.databases.derived.names.delete_many({})
    damage(harness)
    answer = json.loads(backfill(harness, "--transform", "coded", "--json"))
    assert answer["jobs"] == [
        {
            "source": "orders",
            "transforms": ["coded"],
            "documents": 20,
            "written": 2,
            "removed": 1,
            "cancelled": False,
        }
    ]
    assert harness.databases.derived.names.count_documents({}) == 0


def test_what_was_skipped_at_the_first_start_is_built(databases: Databases, tmp_path: Path) -> None:
    """After `start = "now"` the transforms are not built; a backfill builds them."""
    harness = Harness(databases, tmp_path / "modules", {"orders": ORDERS}, {"worker.start": "now"})
    databases.raw.orders.insert_one({"_id": 1, "code": "c"})
    harness.catch_up()
    assert databases.derived.codes.count_documents({}) == 0
    backfill(harness)
    harness.assert_equal()
    entry = databases.state.checkpoints.find_one({"_id": "default"})
    assert entry is not None
    assert all(each["built"] for each in entry["transforms"].values())


def test_a_transform_that_the_worker_does_not_know(harness: Harness) -> None:
    """The worker derives with the code that it began with: a new transform is refused, with what to do."""
    harness.write(
        {
            "orders": ORDERS
            + ORDERS.replace("codes", "more")
            .replace("coded", "new")
            .replace("names", "o")
            .replace("named", "p")
        }
    )
    said = backfill(harness, "--transform", "new", code=1)
    assert "has not begun to derive with new" in said
    assert "a new transform gets its backfill by itself" in said


def test_nothing_to_do_before_the_first_start(databases: Databases, tmp_path: Path) -> None:
    """Without a checkpoint there is no worker to hand the work to."""
    assert "has not begun" in backfill(Harness(databases, tmp_path / "modules", {"orders": ORDERS}), code=1)


def test_a_part_of_a_collection(harness: Harness) -> None:
    """`--filter` derives what matches and nothing else, and removes nothing whose source is gone."""
    damage(harness)
    said = backfill(harness, "--transform", "coded", "--filter", '{"_id": {"$gte": 4, "$lt": 8}}')
    assert "orders through coded: 4 documents, 1 records written, 0 removed" in said
    codes = harness.databases.derived.codes
    assert codes.find_one({"_id": 3}) is None
    assert codes.count_documents({"_id": 99}) == 1
    found = codes.find_one({"_id": 4})
    assert found is not None
    assert found["code"] == "c4"


def test_a_part_is_walked_in_slices(databases: Databases, tmp_path: Path) -> None:
    """What matches is found whatever lies in between, also with keys of several types."""
    harness = Harness(databases, tmp_path / "modules", {"orders": ORDERS}, {"worker.scan_documents": "3"})
    keys = [*range(10), *(f"k{number}" for number in range(10)), {"a": 1}, {"a": 2}]
    databases.raw.orders.insert_many(
        [{"_id": key, "code": "c", "odd": bool(n % 2)} for n, key in enumerate(keys)]
    )
    harness.catch_up()
    databases.derived.codes.delete_many({})
    said = backfill(harness, "--transform", "coded", "--filter", '{"odd": true}')
    assert f"{len(keys) // 2} documents" in said
    assert databases.derived.codes.count_documents({}) == len(keys) // 2


@pytest.mark.parametrize(
    ("only", "reason"),
    [
        ("{", "is no JSON"),
        ("[1]", "is no query"),
        ('{"$foo": 1}', "is no query: unknown top level operator: $foo"),
    ],
    ids=["no JSON", "no object", "no operator"],
)
def test_a_filter_that_is_none(harness: Harness, only: str, reason: str) -> None:
    """It is refused before anything is asked for."""
    assert reason in backfill(harness, "--transform", "coded", "--filter", only, code=2)
    assert harness.databases.state.jobs.count_documents({"reason": "asked for"}) == 0


def test_a_filter_wants_one_source(harness: Harness) -> None:
    """A query belongs to one source collection; the answer says which there are."""
    said = backfill(harness, "--filter", "{}", code=2)
    assert "--filter needs transforms of one source collection" in said
    assert "customers, orders" in said


def test_a_rate_is_kept(databases: Databases, tmp_path: Path) -> None:
    """A backfill goes no faster than it may, and the stream goes on meanwhile."""
    harness = Harness(
        databases, tmp_path / "modules", {"orders": ORDERS}, {"worker.job_documents_per_second": "5"}
    )
    databases.raw.orders.insert_many([{"_id": number, "code": f"c{number}"} for number in range(1000)])
    with harness.running():
        eventually(lambda: databases.derived.codes.count_documents({}) >= 5)
        databases.raw.orders.insert_one({"_id": "late", "code": "late"})
        eventually(lambda: databases.derived.codes.find_one({"_id": "late"}))
        assert databases.derived.codes.count_documents({}) < 500


@pytest.mark.parametrize(
    ("only", "reason"),
    [
        ('{"$expr": {"$gt": [{"$divide": [1, "$none"]}, 0]}}', "can't $divide by zero"),
        ('{"$where": "while (this._id == 7) {}"}', "time limit"),
    ],
    ids=["an error", "no end"],
)
def test_a_filter_that_goes_wrong_does_not_harm_the_worker(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, only: str, reason: str
) -> None:
    """One that fails for a document, or never ends, ends its job and nothing else."""
    monkeypatch.setattr("distributary.source.documents.ONLY_MS", 500 if "$where" in only else 30_000)
    harness.databases.raw.orders.update_one({"_id": 7}, {"$set": {"none": 0}})
    job = Job(None, JobKind.BACKFILL, "orders", ("coded",), "test", only=json_util.loads(only))
    with harness.running() as worker:
        (asked,) = worker.jobs().ask([job])
        eventually(lambda: (found := worker.jobs().get(asked.id)) is not None and found.done)
        found = worker.jobs().get(asked.id)
        assert found is not None
        assert reason in found.failure
        harness.databases.raw.orders.insert_one({"_id": "late", "code": "late"})
        eventually(lambda: harness.databases.derived.codes.find_one({"_id": "late"}))
    harness.assert_equal()
