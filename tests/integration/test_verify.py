"""`verify`: every hand edit is found and made good, and what is not an error is never called one."""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from subprocess import PIPE
from threading import Event, Thread
from typing import Any

import pytest
from bson import Binary, Int64, Regex, Timestamp, encode
from bson.raw_bson import RawBSONDocument
from pymongo.collection import Collection
from pymongo.database import Database

from distributary.assemble import Assembled
from distributary.errors import Failed
from distributary.operate.jobs import carry_out
from distributary.operate.sides import Sides
from distributary.operate.verify import Verification, Verifier
from distributary.operate.watch import Watch
from distributary.source.documents import Documents
from distributary.state import Job, JobKind
from tests.conftest import Databases, eventually
from tests.harness import ORDERS, Harness

TWO = {
    "orders": ORDERS,
    "people": """
        from distributary import DerivedCollection, transform

        people = DerivedCollection("people")

        @transform("people", name="people")
        def read(person):
            yield people.record(person["_id"], {"name": person["name"].upper()})
    """,
}

FUTURE = Timestamp(2**32 - 1, 1)


@pytest.fixture
def harness(databases: Databases, tmp_path: Path) -> Harness:
    """Give a worker with two transforms that has derived some documents and is not running."""
    made = Harness(databases, tmp_path / "modules", TWO)
    databases.raw.orders.insert_many(
        [
            {"_id": 1, "customer": "ann", "total": 5, "skus": ["a", "b"], "code": "x"},
            {"_id": 2, "customer": "bob", "total": 7, "skus": ["c"]},
            {"_id": 3, "customer": "ann", "total": 1},
        ]
    )
    databases.raw.people.insert_many([{"_id": 1, "name": "Ann"}, {"_id": "bob", "name": "Bob"}])
    made.catch_up()
    return made


def verify(harness: Harness, **options: Any) -> Verification:
    """Verify in this process."""
    return harness.verified(**options)


def answered(harness: Harness, *options: str) -> tuple[int, dict[str, Any]]:
    """Give exit code and answer of `verify --json`."""
    with harness.process("verify", "--json", *options, stdout=PIPE) as process:
        out, _ = process.communicate(timeout=100)
    answer: dict[str, Any] = json.loads(out)
    return process.returncode, answer


def printed(harness: Harness, *options: str) -> tuple[int, list[str]]:
    """Give exit code and lines of `verify` for people."""
    with harness.process("verify", *options, stdout=PIPE) as process:
        out, _ = process.communicate(timeout=100)
    return process.returncode, out.splitlines()


def counts(found: Verification) -> tuple[int, int, int]:
    """Give how many are missing, stale and orphaned."""
    return found.missing, found.stale, found.orphaned


# --- hand edits ---------------------------------------------------------------------------------------------

Edit = Callable[[Database[dict[str, Any]]], object]


@dataclass
class Case:
    """What a hand does, and the one difference that it makes."""

    name: str
    edit: Edit
    kind: str
    fields: tuple[str, ...] = ()
    key: Any = 1
    collection: str = "orders_by_customer"


def setting(**fields: Any) -> Edit:
    """Give an edit that sets fields of one record; `__` stands for a dot."""
    named = {name.replace("__", "."): value for name, value in fields.items()}
    return lambda derived: derived.orders_by_customer.update_one({"_id": 1}, {"$set": named})


def replacing(record: Any) -> Edit:
    """Give an edit that puts something else under the key of a record."""

    def edit(derived: Database[dict[str, Any]]) -> None:
        derived.orders_by_customer.delete_one({"_id": 1})
        derived.orders_by_customer.insert_one(record)

    return edit


def adding(**fields: Any) -> Edit:
    """Give an edit that adds a record of its own."""
    return lambda derived: derived.orders_by_customer.insert_one({"_id": "new", **fields})


def reordered(derived: Database[dict[str, Any]]) -> None:
    """Store a record with its fields in another order."""
    found = derived.orders_by_customer.find_one_and_delete({"_id": 1})
    assert found
    derived.orders_by_customer.insert_one(
        {"_id": 1, "total": found["total"], "customer": found["customer"], "_src": found["_src"]}
    )


def adding_no_utf8(derived: Database[dict[str, Any]]) -> None:
    """Add a record with text that no encoder would write."""
    raw = encode({"_id": "new", "text": "??"}).replace(b"??", b"\xff\xfe")
    derived.orders_by_customer.insert_one(RawBSONDocument(raw))


ANN = {"_id": 1, "customer": "ann", "total": 5}
SRC = {"by": "orders", "key": 1, "at": Timestamp(1, 1), "epoch": 1}
GHOST = SRC | {"by": "nobody"}
FROZEN = SRC | {"at": FUTURE}
YIELDED = ("_src", "customer", "total")

CASES = [
    Case("a field changed", setting(total=6), "stale", ("total",)),
    Case("a field added", setting(note="hi"), "stale", ("note",)),
    Case("a number of another type", setting(total=Int64(5)), "stale", ("total",)),
    Case("a double for an integer", setting(total=5.0), "stale", ("total",)),
    Case("the order of fields changed", reordered, "stale", ("_id", "customer", "total")),
    Case("the key of another type", replacing(ANN | {"_id": 1.0, "_src": SRC}), "stale", ("_id",)),
    Case("a record deleted", lambda derived: derived.orders_by_customer.delete_one({"_id": 1}), "missing"),
    Case("the engine's field removed", replacing(ANN), "stale", ("_src",)),
    Case("the engine's field replaced", setting(_src=[1]), "stale", ("_src",)),
    Case("the transform unknown", setting(_src__by="nobody"), "stale", ("_src",)),
    Case("the transform another one that never wrote here", setting(_src__by="people"), "stale", ("_src",)),
    Case("the owner another document", setting(_src__key=2), "stale", ("_src",)),
    Case("the owner a document that does not exist", setting(_src__key=99), "stale", ("_src",)),
    Case("the owner a pattern", setting(_src__key=Regex("^b")), "stale", ("_src",)),
    Case("the owner a list", setting(_src__key=[1]), "stale", ("_src",)),
    Case("a version of the future", setting(_src__at=FUTURE), "stale", ("_src",)),
    Case("a frozen record with a changed field", setting(_src__at=FUTURE, total=6), "stale", ("total", "_src")),
    Case("an epoch of the future", setting(_src__epoch=7), "stale", ("_src",)),
    Case("a foreign record under its key", replacing({"_id": 1, "mine": 1}), "stale", (*YIELDED, "mine")),
    Case("an unknown transform's under its key", replacing({"_id": 1, "_src": GHOST}), "stale", YIELDED),
    Case("a foreign record", adding(mine=True), "orphaned", ("_src",), "new"),
    Case("an unknown transform's record", adding(_src=GHOST), "orphaned", ("_src",), "new"),
    Case("one of an owner without it", adding(_src=SRC), "orphaned", (), "new"),
    Case("one of no existing owner", adding(_src=SRC | {"key": 99}), "orphaned", (), "new"),
    Case("a frozen one of an owner without it", adding(_src=FROZEN), "orphaned", ("_src",), "new"),
    Case("a frozen one of no existing owner", adding(_src=FROZEN | {"key": 99}), "orphaned", ("_src",), "new"),
    Case("text that is no UTF-8", adding_no_utf8, "orphaned", ("_src",), "new"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_hand_edit_is_named_and_repaired(harness: Harness, case: Case) -> None:
    """One edit is one difference, with its key and fields; after the repair all equals a recomputation."""
    case.edit(harness.databases.derived)
    found = verify(harness)
    (difference,) = found.differences
    assert (difference.kind, difference.collection, difference.key) == (case.kind, case.collection, case.key)
    assert difference.fields == case.fields
    assert (found.remaining, found.equal) == (1, False)
    repaired = verify(harness, repair=True)
    assert (repaired.equal, repaired.repaired, repaired.parked, repaired.contested) == (True, 1, 0, 0)
    harness.assert_equal()


def test_invalid_text_in_a_record_of_its_own_is_made_good(harness: Harness) -> None:
    """A record whose text no encoder takes is replaced."""
    derived = harness.databases.derived.orders_by_customer
    derived.delete_one({"_id": 1})
    raw = encode({"_id": 1, "customer": "??", "total": 5, "_src": SRC}).replace(b"??", b"\xff\xfe")
    derived.insert_one(RawBSONDocument(raw))
    assert counts(verify(harness)) == (0, 1, 0)
    assert verify(harness, repair=True).repaired == 1
    harness.assert_equal()


def test_two_records_that_swapped_their_owners_are_repaired(harness: Harness) -> None:
    """Each lies under the key of the other: both are stale, and neither owner ends up contested."""
    derived = harness.databases.derived.orders_by_customer
    derived.update_one({"_id": 1}, {"$set": {"_src.key": 2}})
    derived.update_one({"_id": 2}, {"$set": {"_src.key": 1}})
    found = verify(harness, repair=True)
    assert (found.equal, found.repaired, found.contested) == (True, 2, 0)
    harness.assert_equal()


SHARED = """
    from distributary import DerivedCollection, transform

    both = DerivedCollection("both")

    @transform("orders")
    def orders(order):
        yield both.record({"order": order["_id"]}, {"total": order.get("total", 0)})

    @transform("people")
    def people(person):
        yield both.record({"person": person["_id"]}, {"name": person["name"]})
"""


def test_a_record_held_for_another_transform_is_repaired(databases: Databases, tmp_path: Path) -> None:
    """Where two transforms write one collection, who wrongly holds a record is derived again as well."""
    harness = Harness(databases, tmp_path / "modules", {"shared": SHARED})
    databases.raw.orders.insert_one({"_id": 1})
    databases.raw.people.insert_one({"_id": "bob", "name": "Bob"})
    harness.catch_up()
    held = {"_src.by": "people", "_src.key": "bob"}
    databases.derived.both.update_one({"_src.by": "orders"}, {"$set": held})
    assert counts(verify(harness)) == (0, 1, 0)
    found = verify(harness, repair=True)
    assert (found.equal, found.repaired, found.contested) == (True, 1, 0)
    harness.assert_equal()


def test_a_document_that_waits_for_a_foreign_record_is_derived_when_that_is_gone(harness: Harness) -> None:
    """A record of nobody under a new key contests whoever yields it, until the repair."""
    databases = harness.databases
    databases.derived.orders_by_code.insert_one({"_id": "y", "_src": SRC | {"by": "nobody"}})
    databases.raw.orders.update_one({"_id": 2}, {"$set": {"code": "y"}})
    harness.catch_up()
    found = verify(harness)
    assert (counts(found), found.contested) == ((0, 0, 1), 1)
    repaired = verify(harness, repair=True)
    assert (repaired.equal, repaired.contested) == (True, 0)
    harness.assert_equal()


def test_very_many_differences_are_counted_and_the_first_are_named(harness: Harness) -> None:
    """A collection that is emptied and one that is filled by hand: all is counted, some named, all repaired."""
    databases = harness.databases
    databases.raw.people.insert_many([{"_id": number, "name": "n"} for number in range(10, 6510)])
    harness.catch_up()
    databases.derived.people.delete_many({})
    databases.derived.order_lines.insert_many([{"_id": number} for number in range(1500)])
    found = verify(harness)
    assert counts(found) == (6502, 0, 1500)
    assert len(found.differences) == 100
    repaired = verify(harness, repair=True)
    assert (repaired.equal, repaired.repaired) == (True, 8002)
    harness.assert_equal()


# --- beside a worker ----------------------------------------------------------------------------------------


@contextmanager
def writing(raw: Database[dict[str, Any]]) -> Iterator[None]:
    """Change documents as fast as one thread can while the block runs."""
    stop = Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            key = number % 20
            raw.orders.delete_one({"_id": key + 1000})
            raw.orders.insert_one({"_id": key + 1000, "total": number, "skus": ["a"] * (number % 4)})
            raw.orders.update_one(
                {"_id": 2}, {"$set": {"skus": ["s"] * (number % 3), "code": f"c{number % 2}"}}
            )

    thread = Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_live_writes_beside_a_worker_are_no_differences(harness: Harness) -> None:
    """While documents change all the time, verification beside the worker finds nothing."""
    with harness.running(), writing(harness.databases.raw):
        for _ in range(5):
            found = verify(harness)
            assert (found.differences, found.unsettled, found.alive) == ([], 0, True)


def test_a_hand_edit_is_found_and_repaired_beside_a_worker(harness: Harness) -> None:
    """Under live writes the edits alone are found, and the worker repairs them."""
    derived = harness.databases.derived
    with harness.running(), writing(harness.databases.raw):
        setting(total=6)(derived)
        adding(mine=True)(derived)
        derived.people.delete_one({"_id": "bob"})
        assert counts(verify(harness)) == (1, 1, 1)
        repaired = verify(harness, repair=True)
        assert (repaired.equal, repaired.repaired, repaired.behind_seconds) == (True, 3, 0)
        assert verify(harness).equal
    harness.catch_up()
    harness.assert_equal()


def test_an_idle_worker_is_waited_for(harness: Harness) -> None:
    """What a worker has still to do when it is asked is no difference: it is waited for."""
    with harness.running() as worker:
        eventually(lambda: (holder := worker.holder()) is not None and holder.alive)
        harness.databases.raw.orders.update_many({}, {"$set": {"total": 100}})
        found = verify(harness)
        assert (found.equal, found.records) == (True, 9)


def test_a_worker_that_stands_still_is_told(harness: Harness) -> None:
    """Who holds the lease and does not move is named, rather than waited for without end."""
    databases = harness.databases
    databases.raw.people.insert_one({"_id": 5, "name": "new"})
    hold_lease(harness, seconds=600)
    with harness.assembled() as assembled:
        watch = Watch(assembled.holder, assembled.sides().checkpoint, patience=0.3)
        with pytest.raises(Failed, match="stood still"):
            Verifier(assembled.sides(), assembled.registry.transforms, watch).run()


def test_what_changed_since_a_worker_stopped_is_a_difference_and_said_to_be_behind(harness: Harness) -> None:
    """Without a worker the source of now counts; the answer tells that the position is behind."""
    databases = harness.databases
    databases.raw.orders.update_one({"_id": 1}, {"$set": {"total": 100, "skus": ["a"]}})
    databases.raw.people.delete_one({"_id": "bob"})
    databases.raw.people.insert_one({"_id": "eve", "name": "Eve"})
    move_back(harness, seconds=100)
    code, answer = answered(harness)
    assert (code, answer["missing"], answer["stale"], answer["orphaned"]) == (1, 1, 1, 2)
    assert answer["behind_seconds"] >= 100
    _, lines = printed(harness)
    assert "behind the source" in lines[-2]
    assert "distributary run" in lines[-2]


@dataclass(frozen=True)
class Restless(Sides):
    """Sides of which somebody changes a document before each look at the source."""

    people: Collection[Any]

    @property
    def documents(self) -> Documents:
        """The source's documents, one of them changed."""
        self.people.update_one({"_id": 1}, [{"$set": {"name": {"$concat": ["$name", "!"]}}}])
        return Documents(self.raw)


def test_a_document_that_keeps_changing_without_a_worker_is_unsettled(harness: Harness) -> None:
    """It is counted, and is no difference."""
    with harness.assembled() as assembled:
        sides = assembled.sides()
        given = {each.name: getattr(sides, each.name) for each in fields(sides)}
        restless = Restless(**given, people=harness.databases.raw.people)
        found = Verifier(restless, assembled.registry.transforms, assembled.watch()).run()
    assert (found.unsettled, found.equal, found.alive) == (1, True, False)


def move_back(harness: Harness, seconds: int) -> None:
    """Pretend that the worker stopped earlier."""
    checkpoints = harness.databases.state.checkpoints
    stored = checkpoints.find_one({})
    assert stored
    at = stored["position"]["time"]
    checkpoints.update_one({}, {"$set": {"position.time": Timestamp(at.time - seconds, at.inc)}})


def hold_lease(harness: Harness, seconds: int) -> None:
    """Pretend that another process holds the lease."""
    expires = {"$add": ["$$NOW", seconds * 1000]}
    harness.databases.state.leases.update_one(
        {"_id": "default"}, [{"$set": {"holder": "elsewhere:1:a", "expires": expires}}], upsert=True
    )


# --- what is apart ------------------------------------------------------------------------------------------


def test_all_that_was_derived_is_equal(harness: Harness) -> None:
    """Documents, records and collections are counted."""
    found = verify(harness)
    assert (found.equal, found.documents, found.records, found.collections) == (True, 5, 9, 4)
    assert (found.detached, found.outdated, found.not_built, found.left_behind) == ((), (), (), ())


def test_without_a_checkpoint_there_is_nothing_to_compare(databases: Databases, tmp_path: Path) -> None:
    """The cure is to run the worker."""
    with pytest.raises(Failed, match="distributary run"):
        verify(Harness(databases, tmp_path / "modules"))


def test_another_source_is_refused(harness: Harness) -> None:
    """A worker of another database is not held against this one."""
    harness.databases.state.checkpoints.update_one({}, {"$set": {"source.database": "elsewhere"}})
    with pytest.raises(Failed, match="elsewhere"):
        verify(harness)


def test_parked_documents_are_apart(harness: Harness) -> None:
    """A document that turned bad keeps its records, and is counted as parked."""
    harness.databases.raw.people.update_one({"_id": "bob"}, {"$unset": {"name": 1}})
    harness.catch_up()
    found = verify(harness)
    assert (found.equal, found.parked, found.contested) == (True, 1, 0)


def test_contested_documents_are_apart(harness: Harness) -> None:
    """Who wants a record that another document owns is counted as contested."""
    harness.databases.raw.orders.insert_one({"_id": 4, "code": "x"})
    harness.catch_up()
    found = verify(harness)
    assert (found.equal, found.parked, found.contested) == (True, 0, 1)


def test_a_failing_document_that_is_not_parked_is_a_difference_until_it_is(harness: Harness) -> None:
    """The repair parks it."""
    harness.databases.raw.people.insert_one({"_id": 7})
    found = verify(harness)
    assert (found.failing, found.equal) == (1, False)
    repaired = verify(harness, repair=True)
    assert (repaired.equal, repaired.parked) == (True, 1)


def test_a_dropped_source_is_apart_before_and_after_the_worker_knows(harness: Harness) -> None:
    """Its records are kept and not compared, and no repair removes them."""
    harness.databases.raw.people.drop()
    found = verify(harness, repair=True)
    assert (found.equal, found.detached) == (True, ("people",))
    harness.catch_up()
    found = verify(harness, repair=True)
    assert (found.equal, found.detached) == (True, ("people",))
    assert harness.databases.derived.people.count_documents({}) == 2


def test_outdated_transforms_are_apart(harness: Harness) -> None:
    """Code that changed under `warn` is named and not compared."""
    harness.write({**TWO, "people": TWO["people"].replace("upper", "lower")})
    found = verify(harness)
    assert (found.equal, found.outdated, found.documents) == (True, ("people",), 3)


def test_transforms_that_are_not_built_are_apart(harness: Harness) -> None:
    """A new transform that the worker did not run with yet has no records to compare."""
    new = TWO["people"].replace('name="people"', 'name="fresh"').replace('("people")', '("fresh")')
    harness.write({**TWO, "fresh": new})
    found = verify(harness)
    assert (found.equal, found.not_built) == (True, ("fresh",))


def test_nothing_is_called_equal_when_nothing_was_compared(databases: Databases, tmp_path: Path) -> None:
    """With `start = "now"` nothing is built, and the answer says so."""
    harness = Harness(databases, tmp_path / "modules", settings={"worker.start": "now"})
    databases.raw.orders.insert_one({"_id": 1})
    harness.catch_up()
    code, lines = printed(harness)
    assert (code, lines[0].partition(":")[0]) == (0, "nothing compared")
    assert lines[1] == "not compared: not built yet: orders"


def test_left_behind_transforms_are_apart(databases: Databases, tmp_path: Path) -> None:
    """Records of a transform that is no longer plugged in are neither compared nor removed."""
    harness = Harness(databases, tmp_path / "modules", {"shared": SHARED})
    databases.raw.people.insert_one({"_id": "bob", "name": "Bob"})
    harness.catch_up()
    harness.write({"shared": SHARED.partition('    @transform("people")')[0]})
    found = verify(harness, repair=True)
    assert (found.equal, found.left_behind) == (True, ("people",))
    assert databases.derived.both.count_documents({}) == 1


def test_records_of_another_worker_are_left_alone(harness: Harness) -> None:
    """What a transform of another worker's name wrote into the same collection is no orphan."""
    databases = harness.databases
    checkpoint = databases.state.checkpoints.find_one({})
    assert checkpoint
    others = {"other": checkpoint["transforms"]["orders"]}
    databases.state.checkpoints.insert_one(checkpoint | {"_id": "second", "transforms": others})
    adding(_src=SRC | {"by": "other"})(databases.derived)
    assert verify(harness, repair=True).equal
    assert databases.derived.orders_by_customer.count_documents({"_id": "new"}) == 1


def test_one_transform_alone_is_compared(harness: Harness) -> None:
    """Differences of others are not looked for."""
    setting(total=6)(harness.databases.derived)
    found = verify(harness, names=["people"])
    assert (found.equal, found.documents, found.records) == (True, 2, 2)
    assert not verify(harness, names=["orders"]).equal


def test_a_sample_is_of_the_size_that_was_asked_for(harness: Harness) -> None:
    """N documents and records of each collection; a sample of all finds what a full verification finds."""
    harness.databases.raw.people.insert_many([{"_id": number, "name": "n"} for number in range(10, 210)])
    harness.catch_up()
    found = verify(harness, sample=5)
    assert (found.equal, found.sampled) == (True, True)
    assert found.documents == 3 + 5
    adding(mine=True)(harness.databases.derived)
    setting(total=6)(harness.databases.derived)
    assert counts(verify(harness, sample=1000)) == (0, 1, 1)


def test_keys_of_every_type_are_walked(harness: Harness) -> None:
    """Source and derived keys of mixed types are compared, more of them than one slice holds."""
    keys = [{"a": 1}, Binary(b"x"), Int64(2**40), 0.5, True, "s", Timestamp(1, 1), None]
    databases = harness.databases
    databases.raw.orders.insert_many([{"_id": key} for key in keys if key is not None])
    databases.raw.orders.insert_many([{"_id": f"many{number}", "skus": ["a"]} for number in range(1200)])
    harness.catch_up()
    found = verify(harness)
    assert (found.equal, found.documents) == (True, 5 + len(keys) - 1 + 1200)


# --- jobs that are handed over ------------------------------------------------------------------------------


def derive_job(*keys: Any) -> Job:
    """Give a job that derives people again."""
    return Job(None, JobKind.DERIVE, "people", ("people",), "test", keys=keys)


def test_jobs_are_taken_over_when_the_worker_dies(harness: Harness) -> None:
    """A lease that expires while its holder is waited for is taken, and the jobs are done here."""
    harness.databases.derived.people.delete_many({})
    hold_lease(harness, seconds=1)
    with harness.assembled() as assembled:
        told: list[tuple[int, int]] = []
        carry_out(assembled, [derive_job(1), derive_job("bob")], lambda *each: told.append(each))
        assert assembled.jobs().open() == []
    assert told[0] == (0, 2)
    assert told[-1] == (2, 2)
    harness.assert_equal()


def test_jobs_want_a_checkpoint(databases: Databases, tmp_path: Path) -> None:
    """Where no worker ever ran there is nothing to derive again."""
    with Harness(databases, tmp_path / "modules").assembled() as assembled:
        with pytest.raises(Failed, match="distributary run"):
            carry_out(assembled, [derive_job(1)])
        assert assembled.jobs().open() == []


def test_work_that_is_stopped_leaves_its_jobs(harness: Harness) -> None:
    """A stop while this process does the work ends it; the jobs are there for the next worker."""
    with harness.assembled() as assembled:
        assembled.stop.set()
        with pytest.raises(Failed, match="jobs stay"):
            carry_out(assembled, [derive_job(1)])
        assert len(assembled.jobs().open()) == 1
    harness.catch_up()
    with harness.assembled() as assembled:
        assert assembled.jobs().open() == []


def open_jobs(assembled: Assembled) -> int:
    """Count the jobs that are not done."""
    return len(assembled.jobs().open())


def test_ctrl_c_leaves_the_repair_with_the_worker(harness: Harness) -> None:
    """The verb ends with 130 and says that the worker goes on; the worker does."""
    setting(total=6)(harness.databases.derived)
    with harness.assembled() as assembled:
        with harness.process("verify", "--repair", stdout=PIPE, stderr=PIPE) as process:
            hold_lease_once_compared(harness, assembled)
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "stay with the worker" in told
        assert open_jobs(assembled) == 1
    harness.databases.state.leases.delete_many({})
    harness.catch_up()
    harness.assert_equal()


def hold_lease_once_compared(harness: Harness, assembled: Assembled) -> None:
    """Hold the lease and keep the position moving until the repair was handed over."""

    def handed_over() -> bool:
        hold_lease(harness, seconds=600)
        head = assembled.goal_of_now().time
        harness.databases.state.checkpoints.update_one({}, {"$set": {"position.time": head}})
        return bool(open_jobs(assembled))

    eventually(handed_over)


# --- the command line ---------------------------------------------------------------------------------------


def test_the_exit_code_tells_whether_differences_remain(harness: Harness) -> None:
    """0 when equal, 1 when not, 0 when everything was repaired, 0 again afterwards."""
    code, answer = answered(harness)
    assert (code, answer["schema"], answer["equal"], answer["documents"], answer["records"]) == (
        0,
        1,
        True,
        5,
        9,
    )
    setting(total=6)(harness.databases.derived)
    code, answer = answered(harness)
    assert (code, answer["equal"], answer["stale"]) == (1, False, 1)
    assert answer["differences"] == [
        {
            "kind": "stale",
            "collection": "orders_by_customer",
            "key": 1,
            "transform": "orders",
            "source_key": 1,
            "fields": ["total"],
            "repaired": False,
        }
    ]
    code, answer = answered(harness, "--repair")
    assert (code, answer["equal"], answer["repaired"], answer["stale"]) == (0, True, 1, 0)
    assert answered(harness)[0] == 0


def test_the_lines_for_people_begin_with_the_outcome(harness: Harness) -> None:
    """One line says all; then each difference has one, and at the end is what to do next."""
    code, lines = printed(harness)
    assert (code, lines) == (
        0,
        ["equal: 9 derived records in 4 collections equal a recomputation from 5 documents"],
    )
    adding(mine=True)(harness.databases.derived)
    code, lines = printed(harness)
    assert code == 1
    assert lines[0].startswith("different: 1 orphaned (9 derived records in 4 collections compared")
    assert lines[1] == '  orphaned orders_by_customer "new" from nobody: _src'
    assert lines[-1] == "Run `distributary verify --repair` to derive again what differs."
    code, lines = printed(harness, "--repair")
    assert (code, lines[0].partition(",")[0]) == (0, "equal: 1 repaired")
    assert lines[1].startswith("  repaired: orphaned")


def test_an_unknown_transform_is_a_usage_error(harness: Harness) -> None:
    """Exit 2, with the names that there are."""
    with harness.process("verify", "--transform", "order", stdout=PIPE, stderr=PIPE) as process:
        _, told = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "orders" in told


def test_after_kill_9_and_a_restart_nothing_differs(harness: Harness) -> None:
    """Wherever the worker is killed, the next one ends up equal to a recomputation."""
    with writing(harness.databases.raw):
        for _ in range(3):
            before = position(harness)
            with harness.process("run", stderr=PIPE) as worker:
                eventually(lambda before=before: position(harness) > before)  # type: ignore[misc]
                worker.kill()
                worker.communicate()
    with harness.process("run", "--until-caught-up", stderr=PIPE) as worker:
        worker.communicate(timeout=60)
    assert worker.returncode == 0
    assert answered(harness)[0] == 0


def position(harness: Harness) -> Timestamp:
    """Give the worker's committed position."""
    found = harness.databases.state.checkpoints.find_one({})
    assert found
    time: Timestamp = found["position"]["time"]
    return time
