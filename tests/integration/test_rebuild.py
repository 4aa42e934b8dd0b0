"""`rebuild`: changed code goes live without a reader who notices, beside live writes and after every kill."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE
from threading import Event, Thread
from typing import Any

import pytest
from bson import encode
from bson.raw_bson import RawBSONDocument
from pymongo.errors import OperationFailure

from distributary.state import Job, JobKind
from tests.conftest import Databases, eventually
from tests.harness import Harness

#: Each order yields a record by its key and one by its code; `{form}` is the code's version.
CODE = """
    from distributary import DerivedCollection, transform

    orders_view = DerivedCollection("orders_view", indexes=["form"])
    codes = DerivedCollection("codes")

    @transform("orders")
    def view(order):
        if "poison" in order and {form!r} == "new":
            raise ValueError("poison")
        yield orders_view.record(order["_id"], {{"form": {form!r}, "total": order["total"]}})
        if order["total"] % 2 or {form!r} == "old":
            yield codes.record(f"{form}-{{order['code']}}", {{"order": order["_id"]}})
"""

OLD, NEW = CODE.format(form="old"), CODE.format(form="new")

#: Another transform with a share in the same collection.
SHARED = """
    from distributary import transform
    from .orders import codes

    @transform("customers")
    def customer_codes(customer):
        yield codes.record(customer["_id"], {"customer": True})
"""

ORDERS = 300


@pytest.fixture
def harness(databases: Databases, tmp_path: Path) -> Harness:
    """Give a worker whose code changed since it derived some orders."""
    made = Harness(databases, tmp_path / "modules", {"orders": OLD}, {"worker.scan_documents": "50"})
    databases.raw.orders.insert_many(
        [{"_id": number, "code": f"c{number}", "total": number} for number in range(ORDERS)]
    )
    made.catch_up()
    made.write({"orders": NEW})
    return made


def rebuild(harness: Harness, *arguments: str, code: int = 0) -> str:
    """Give what the verb says."""
    with harness.process("rebuild", *arguments, stdout=PIPE, stderr=PIPE) as process:
        out, err = process.communicate(timeout=90)
    assert process.returncode == code, out + err
    return out if code == 0 else err


def collections(harness: Harness) -> set[str]:
    """Give the names of the derived database's collections."""
    return set(harness.databases.derived.list_collection_names())


@contextmanager
def held(harness: Harness) -> Iterator[None]:
    """Run a worker that holds the lease."""
    with harness.running() as worker:
        eventually(lambda: (found := worker.holder()) is not None and found.alive)
        yield


@pytest.mark.parametrize("alive", [True, False], ids=["beside a worker", "without one"])
def test_changed_code_goes_live(harness: Harness, alive: bool) -> None:  # noqa: FBT001 - a parameter
    """Everything is as the present code yields it, the answer says what changed, and nothing is left behind."""
    if alive:
        with held(harness):
            answer = json.loads(rebuild(harness, "view", "--json"))
    else:
        answer = json.loads(rebuild(harness, "view", "--json"))
    harness.assert_equal()
    assert collections(harness) == {"orders_view", "codes"}
    assert answer["verified"] == ORDERS
    assert answer["differing"] == 0
    view, codes = (answer["collections"][name] for name in ("orders_view", "codes"))
    assert (view["changed"], view["added"], view["removed"]) == (ORDERS, 0, 0)
    assert (codes["changed"], codes["added"], codes["removed"]) == (0, ORDERS // 2, ORDERS)
    assert view["samples"][0] == {"kind": "changed", "key": 0, "fields": ["form"]}
    names = {index["name"] for index in harness.databases.derived.orders_view.list_indexes()}
    assert names == {"_id_", "form_1", "distributary_owner"}
    entry = harness.databases.state.checkpoints.find_one({"_id": "default"})
    assert entry is not None
    assert entry["transforms"]["view"]["fingerprint"] == harness.registry.transforms["view"].fingerprint
    assert entry["rebuilding"] is None


@contextmanager
def beside(work: Callable[[], None]) -> Iterator[None]:
    """Do something again and again beside the test; what it fails of fails the test."""
    stop, failed = Event(), list[BaseException]()

    def repeat() -> None:
        try:
            while not stop.wait(0.002):
                work()
        except BaseException as error:  # noqa: BLE001 - raised again by the test
            failed.append(error)

    thread = Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if failed:
        raise failed[0]


def test_a_reader_sees_a_complete_old_or_a_complete_new_collection(harness: Harness) -> None:
    """Beside inserts, updates, deletes and moving keys, records that nobody touches are all old or all new."""
    raw, derived = harness.databases.raw.orders, harness.databases.derived
    forms: list[set[str]] = []
    number = iter(range(1000, 100_000))

    def write() -> None:
        key = next(number)
        raw.insert_one({"_id": key, "code": f"c{key}", "total": key})
        raw.update_one({"_id": key - 3}, {"$set": {"code": f"m{key}", "total": key + 1}})
        raw.delete_one({"_id": key - 7})

    def read() -> None:
        try:
            records = list(derived.orders_view.find({"_id": {"$lt": ORDERS}}))
            codes = list(derived.codes.find({"order": {"$lt": ORDERS}}, {"_id": 1}))
        except OperationFailure as error:
            if error.code == 175:  # QueryPlanKilled: the collection was swapped while it was read
                return
            raise
        assert len(records) == ORDERS
        forms.append({each["form"] for each in records})
        forms.append({each["_id"].partition("-")[0] for each in codes})
        assert len(codes) == (ORDERS if forms[-1] == {"old"} else ORDERS // 2)

    with held(harness), beside(write), beside(read):
        rebuild(harness, "view")
        seen = len(forms)
        eventually(lambda: len(forms) > seen + 3)
    harness.catch_up()
    harness.assert_equal()
    assert {frozenset(each) for each in forms} == {frozenset({"old"}), frozenset({"new"})}


def test_a_parked_document_keeps_its_records(harness: Harness) -> None:
    """What the new code cannot derive keeps all that it had, and is told; mended, it is derived."""
    orders = harness.databases.raw.orders
    harness.write({"orders": OLD})
    orders.update_one({"_id": 7}, {"$set": {"poison": True}})
    harness.catch_up()
    harness.write({"orders": NEW})
    rebuild(harness, "view")
    derived = harness.databases.derived
    kept = derived.orders_view.find_one({"_id": 7})
    assert kept is not None
    assert kept["form"] == "old"
    assert [each["_id"] for each in derived.codes.find({"order": 7})] == ["old-c7"]
    assert derived.orders_view.count_documents({"form": "new"}) == ORDERS - 1
    assert harness.databases.state.dead_letters.count_documents({"key": 7}) == 1
    orders.update_one({"_id": 7}, {"$unset": {"poison": ""}})
    harness.catch_up()
    harness.assert_equal()


def test_what_the_old_code_contested_is_derived(harness: Harness) -> None:
    """A document that was parked because of what the old code yields is derived when that is gone."""
    shared = OLD.replace("order['code']", "order['total'] // 2")
    harness.write({"orders": shared})
    harness.databases.state.checkpoints.drop()
    harness.catch_up()
    assert harness.databases.state.dead_letters.count_documents({"kind": "contested"}) > 0
    harness.write({"orders": NEW})
    rebuild(harness, "view")
    harness.assert_equal()
    assert harness.databases.state.dead_letters.count_documents({}) == 0


def test_the_previous_collections_come_back(harness: Harness) -> None:
    """`--keep-previous` and `--undo`: with the old code plugged in again, all is as if there had been no new one."""
    rebuild(harness, "view", "--keep-previous")
    assert collections(harness) == {"orders_view", "codes", "orders_view__previous", "codes__previous"}
    orders = harness.databases.raw.orders
    orders.delete_one({"_id": 3})
    orders.insert_one({"_id": 999, "code": "late", "total": 1})
    orders.update_one({"_id": 4}, {"$set": {"code": "moved"}})
    harness.catch_up()
    harness.write({"orders": OLD})
    answer = json.loads(rebuild(harness, "view", "--undo", "--json"))
    harness.catch_up()
    harness.assert_equal()
    assert answer["written"] < 10  # the rest is as it was kept
    assert collections(harness) == {"orders_view", "codes"}


def test_what_a_hand_left_is_neither_put_over_nor_dropped(harness: Harness) -> None:
    """`--keep-previous` refuses a name that somebody else's collection has; names like a shadow's are left alone."""
    derived = harness.databases.derived
    names = {"codes__previous", "codes__rebuild_notes", "codes__rebuild_0a1b2c3d_copy"}
    for name in names:
        derived[name].insert_one({"_id": "mine"})
    said = rebuild(harness, "view", "--keep-previous", code=1)
    assert (
        "No rebuild of this worker kept codes__previous, which would be put over: rename or drop it" in said
    )
    rebuild(harness, "view")
    assert collections(harness) == {"orders_view", "codes", *names}
    derived.codes__previous.drop()
    for _ in range(2):
        rebuild(harness, "view", "--keep-previous")
    assert collections(harness) == {"orders_view", "codes", *names, "orders_view__previous"}
    assert derived.codes__previous.find_one({"_id": "mine"}) is None


def test_nothing_can_come_back_that_was_not_kept(harness: Harness) -> None:
    """`--undo` says so, and the live collections stay."""
    before = harness.derived()
    said = rebuild(harness, "view", "--undo", code=1)
    assert "Nothing was kept of codes, orders_view" in said
    assert harness.derived() == before
    assert collections(harness) == {"orders_view", "codes"}


def test_a_shared_collection_is_rebuilt_for_all_or_not_at_all(harness: Harness) -> None:
    """One of two transforms is refused with the command for both, which then works."""
    harness.write({"orders": NEW, "customers": SHARED})
    harness.databases.raw.customers.insert_one({"_id": "ann"})
    harness.catch_up()
    said = rebuild(harness, "view", code=1)
    assert "'codes' is also filled by customer_codes" in said
    assert "distributary rebuild customer_codes view" in said
    rebuild(harness, "view", "customer_codes")
    harness.assert_equal()


def test_collections_that_are_left_behind_are_listed_and_dropped(harness: Harness) -> None:
    """What no transform names any more is in `status` until it is dropped; nothing else is."""
    harness.write({"orders": NEW.replace('"codes"', '"tokens"')})
    rebuild(harness, "view")
    harness.catch_up()
    assert collections(harness) == {"orders_view", "tokens", "codes"}
    with harness.process("status", "--json", stdout=PIPE) as process:
        (worker,) = json.loads(process.communicate(timeout=60)[0])["workers"]
    assert worker["left_behind"] == ["codes"]
    assert json.loads(rebuild(harness, "--drop-left-behind", "--json"))["dropped"] == ["codes"]
    assert collections(harness) == {"orders_view", "tokens"}
    assert "No collection is left behind" in rebuild(harness, "--drop-left-behind")
    harness.assert_equal()


def test_a_source_that_is_gone_is_not_rebuilt(harness: Harness) -> None:
    """The records of a dropped collection are kept: building them anew would lose them."""
    harness.databases.raw.orders.drop()
    before = harness.derived()
    assert "Source collection 'orders' is gone" in rebuild(harness, "view", code=1)
    assert harness.derived() == before


def test_a_rebuild_that_is_cancelled_leaves_nothing(harness: Harness) -> None:
    """Its shadows go, the live collections stay, and the worker goes on."""
    jobs = harness.databases.state.jobs
    harness.settings = {**harness.settings, "worker.job_documents_per_second": "5"}
    with held(harness):
        asked = harness.process("rebuild", "view", stdout=PIPE, stderr=PIPE)
        eventually(lambda: jobs.find_one({"kind": "rebuild", "stage": {"$regex": "scan|again"}}))
        found = jobs.find_one({"kind": "rebuild"})
        assert found is not None
        with harness.process("jobs", "cancel", str(found["_id"]), stdout=PIPE) as process:
            process.communicate(timeout=60)
        with asked:
            asked.communicate(timeout=60)
        assert asked.returncode == 1
        eventually(lambda: collections(harness) == {"orders_view", "codes"})
    entry = harness.databases.state.checkpoints.find_one({"_id": "default"})
    assert entry is not None
    assert entry["rebuilding"] is None


def test_a_shadow_that_somebody_dropped_is_noticed(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A collection that is not the one that was filled never takes a place: all is built anew."""
    from distributary.engine.rebuild import Rebuilds  # noqa: PLC0415 - to interfere with it

    swap, dropped = Rebuilds._swap, list[str]()

    def interfere(self: Rebuilds, job: Any) -> Any:
        if not dropped:
            shadow = self._committer.checkpoint.shadows["codes"]
            harness.databases.derived[shadow].drop()
            harness.databases.derived[shadow].insert_one({"_id": "foreign"})
            dropped.append(shadow)
        return swap(self, job)

    monkeypatch.setattr(Rebuilds, "_swap", interfere)
    with harness.assembled() as assembled:
        assembled.jobs().ask([rebuild_job()])
        assert assembled.work_off()
    assert dropped
    harness.assert_equal()
    assert collections(harness) == {"orders_view", "codes"}


def rebuild_job() -> Job:
    """Give the job that the verb asks for."""
    return Job(None, JobKind.REBUILD, "orders", ("view",), "test")


def test_changed_code_is_rebuilt_by_itself(harness: Harness) -> None:
    """With `on_change = "rebuild"` the worker asks for it at its start."""
    harness.settings = {**harness.settings, "worker.on_change": "rebuild"}
    harness.catch_up()
    harness.assert_equal()
    job = harness.databases.state.jobs.find_one({"kind": "rebuild"})
    assert job is not None
    assert job["reason"] == "changed code"
    assert job["report"]["verified"] == ORDERS


def test_code_that_the_running_worker_does_not_have(harness: Harness) -> None:
    """A rebuild with code that is not deployed yet is refused: the worker would use its own."""
    with held(harness):
        harness.write({"orders": NEW.replace("new", "newer")})
        said = rebuild(harness, "view", code=1)
    assert "The running worker has other code of view" in said
    assert "start the worker again" in said


@pytest.mark.parametrize(
    "arguments", [[], ["view", "--drop-left-behind"], ["view", "--undo", "--keep-previous"]], ids=str
)
def test_what_does_not_go_together(harness: Harness, arguments: list[str]) -> None:
    """A command line that means nothing is a usage error."""
    assert "Give transforms" in rebuild(harness, *arguments, code=2)


def test_what_a_hand_added_to_a_collection_is_taken_along(harness: Harness) -> None:
    """An index and a validator of the operator's are there after the swap."""
    derived = harness.databases.derived
    derived.codes.create_index("order", name="by_hand", unique=True)
    derived.command("collMod", "codes", validator={"order": {"$type": "number"}})
    rebuild(harness, "view")
    assert {index["name"] for index in derived.codes.list_indexes()} == {
        "_id_",
        "by_hand",
        "distributary_owner",
    }
    (info,) = derived.list_collections(filter={"name": "codes"})
    assert info["options"]["validator"] == {"order": {"$type": "number"}}
    harness.assert_equal()


def test_two_rebuilds_of_one_transform(harness: Harness) -> None:
    """One that was paused does not go on with the other one's shadows."""
    with harness.assembled() as assembled:
        first, second = assembled.jobs().ask([rebuild_job(), rebuild_job()])
        assembled.jobs().pause(first.id, paused=True)
        assert assembled.work_off()
    with harness.assembled() as assembled:
        assembled.jobs().pause(first.id, paused=False)
        assert assembled.work_off()
        assert all((job := assembled.jobs().get(each.id)) and job.done for each in (first, second))
    harness.assert_equal()
    assert collections(harness) == {"orders_view", "codes"}


def test_an_undo_with_the_new_code_is_refused(harness: Harness) -> None:
    """What was kept stays until the former code is there to go on with."""
    rebuild(harness, "view", "--keep-previous")
    assert "deploy the former code first" in rebuild(harness, "view", "--undo", code=1)
    assert "codes__previous" in collections(harness)


def test_keys_that_nothing_encodes_end_no_rebuild(harness: Harness) -> None:
    """A document whose key is not valid UTF-8, the last in its order, is parked and the rebuild goes on."""
    bad = encode({"_id": "XX", "code": "bad", "total": 1}).replace(b"XX", b"\xff\xfe")
    harness.databases.raw.orders.insert_one(RawBSONDocument(bad))
    harness.settings = {**harness.settings, "worker.scan_documents": "1"}
    rebuild(harness, "view")
    assert harness.databases.derived.orders_view.count_documents({"form": "new"}) == ORDERS
    assert harness.databases.state.dead_letters.count_documents({}) == 1


def test_what_vanishes_is_counted_to_the_end(harness: Harness) -> None:
    """The answer counts records of the old collection behind the last of the new one, too."""
    harness.write({"orders": NEW.replace("yield orders_view", "if order['_id'] < 7: yield orders_view")})
    answer = json.loads(rebuild(harness, "view", "--json"))
    view = answer["collections"]["orders_view"]
    assert (view["changed"], view["removed"]) == (7, ORDERS - 7)
