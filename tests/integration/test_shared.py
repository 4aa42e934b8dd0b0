"""Shared records on a real MongoDB: several owners, one document."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bson import Decimal128

from distributary.parts import shared_of
from tests.conftest import Databases, eventually
from tests.harness import Harness

CUSTOMERS = """
    from distributary import DerivedCollection, transform

    customer = DerivedCollection("customer", indexes=["profile.city"])

    @transform("users")
    def users(user):
        yield customer.section(user["_id"], "profile", {"name": user["name"], "city": user.get("city")})
        if "phone" in user:
            yield customer.section(user["_id"], "contact", {"phone": user["phone"]})

    @transform("orders")
    def orders(order):
        if order["status"] != "cancelled":
            fields = {"status": order["status"], "total": order.get("total", 0)}
            yield customer.item(order["user"], "orders", order["_id"], fields)
"""


@pytest.fixture
def harness(databases: Databases, tmp_path: Path) -> Harness:
    """Give a worker with two transforms that contribute to one collection."""
    return Harness(databases, tmp_path / "modules", {"customers": CUSTOMERS})


def user(key: Any, **fields: Any) -> dict[str, Any]:
    """Give a raw user."""
    return {"_id": key, "name": f"name of {key}", **fields}


def order(key: Any, of: Any, status: str = "paid", **fields: Any) -> dict[str, Any]:
    """Give a raw order."""
    return {"_id": key, "user": of, "status": status, **fields}


def seen(harness: Harness, key: Any) -> dict[str, Any] | None:
    """Give a customer as an application reads it."""
    found = harness.databases.derived.customer.find_one({"_id": key}, {"_src": 0})
    return found and {name: value for name, value in found.items() if name != "_id"}


def test_one_document_shows_what_several_transforms_yield(harness: Harness) -> None:
    """Sections and items of several source collections are read with one `find_one`, lists in key order."""
    raw = harness.databases.raw
    raw.users.insert_many([user(1, city="Bern", phone="1"), user(2)])
    raw.orders.insert_many([order(20, 1), order(3, 1, total=5), order(7, 2), order(9, 3)])
    harness.catch_up()
    harness.assert_equal()
    assert seen(harness, 1) == {
        "profile": {"name": "name of 1", "city": "Bern"},
        "contact": {"phone": "1"},
        "orders": [{"_id": 3, "status": "paid", "total": 5}, {"_id": 20, "status": "paid", "total": 0}],
    }
    assert seen(harness, 3) == {"orders": [{"_id": 9, "status": "paid", "total": 0}]}


def test_contributions_come_and_go_with_their_sources(harness: Harness) -> None:
    """Each part follows its own source; a list without items is absent, and so is a record without parts."""
    raw = harness.databases.raw
    harness.catch_up()
    with harness.running():
        raw.orders.insert_one(order(1, "c"))
        eventually(lambda: seen(harness, "c") is not None)
        raw.users.insert_one(user("c", phone="1"))
        raw.orders.insert_many([order(number, "c") for number in range(2, 9)])
        eventually(lambda: len((seen(harness, "c") or {}).get("orders", ())) == 8)
        raw.orders.update_many({"_id": {"$lte": 6}}, {"$set": {"status": "sent"}})
        raw.users.update_one({"_id": "c"}, {"$unset": {"phone": ""}})
        eventually(lambda: "contact" not in (seen(harness, "c") or {"contact": 1}))
        raw.orders.update_many({}, {"$set": {"status": "cancelled"}})
        eventually(lambda: (seen(harness, "c") or {}).keys() == {"profile"})
        raw.users.delete_one({"_id": "c"})
        eventually(lambda: seen(harness, "c") is None)
    harness.assert_equal()


def test_a_policy_that_changes_its_holder_leaves_one_customer_and_joins_another(harness: Harness) -> None:
    """An item whose shared key moves is in one record only, in the same transaction."""
    raw = harness.databases.raw
    raw.users.insert_many([user(1), user(2)])
    raw.orders.insert_many([order(5, 1), order(6, 1), order(7, 2)])
    harness.catch_up()
    raw.orders.update_one({"_id": 6}, {"$set": {"user": 2}})
    raw.orders.update_one({"_id": 7}, {"$set": {"user": 3}})
    harness.catch_up()
    harness.assert_equal()
    assert [each["_id"] for each in (seen(harness, 2) or {})["orders"]] == [6]


def test_a_second_owner_of_a_section_is_contested(harness: Harness) -> None:
    """One section has one owner; the second document is parked, named as it is seen, and takes over later."""
    module = (
        CUSTOMERS
        + """
    @transform("imports")
    def imports(each):
        yield customer.section(each["user"], "profile", {"name": each["name"], "city": None})
    """
    )
    harness.write({"customers": module})
    raw = harness.databases.raw
    raw.users.insert_one(user(1))
    harness.catch_up()
    raw.imports.insert_one({"_id": "i", "user": 1, "name": "another"})
    harness.catch_up()
    (letter,) = harness.databases.state.dead_letters.find()
    assert letter["kind"] == "contested"
    assert "customer[1].profile" in letter["reason"]
    raw.users.delete_one({"_id": 1})
    harness.catch_up()
    assert harness.databases.state.dead_letters.count_documents({}) == 0
    assert seen(harness, 1) == {"profile": {"name": "another", "city": None}}
    harness.assert_equal()


def test_keys_are_compared_as_mongodb_does(harness: Harness) -> None:
    """`1`, `1.0` and `Decimal128("1")` are one customer and one item; documents are keys, too."""
    raw = harness.databases.raw
    raw.users.insert_one(user(1))
    raw.orders.insert_many([order(2, 1.0), order({"a": 1, "b": 2}, Decimal128("1"))])
    harness.catch_up()
    raw.orders.update_one({"_id": {"a": 1, "b": 2}}, {"$set": {"total": 3}})
    harness.catch_up()
    found = seen(harness, 1)
    assert found is not None
    assert [each["_id"] for each in found["orders"]] == [2, {"a": 1, "b": 2}]
    assert harness.databases.derived.customer.count_documents({}) == 1
    raw.orders.delete_many({})
    harness.catch_up()
    assert seen(harness, 1) == {"profile": {"name": "name of 1", "city": None}}


def test_code_that_yields_records_into_shared_records_is_refused(harness: Harness) -> None:
    """A collection holds records or shared records; who yields the other is parked, and says so."""
    harness.write(
        {
            "customers": CUSTOMERS
            + """
    make = customer.record
    name = "profile"

    @transform("wrong")
    def wrong(each):
        yield make(each["_id"], {}) or customer

    @transform("list")
    def a_list(each):
        yield customer.item(each["_id"], name, 1, {})
    """
        }
    )
    raw = harness.databases.raw
    raw.users.insert_one(user(1))
    harness.catch_up()
    raw.wrong.insert_one({"_id": 5})
    raw.users.insert_one(user(2))
    raw.list.insert_one({"_id": 6})
    harness.catch_up()
    reasons = sorted(each["reason"] for each in harness.databases.state.dead_letters.find())
    assert len(reasons) == 2, reasons
    assert "'customer' is shared records elsewhere" in reasons[0]
    assert "'customer.profile' is a section elsewhere" in reasons[1]
    assert harness.databases.derived.customer.count_documents({}) == 2


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ('section(1, "a.b", {})', "has a dot"),
        ('section(1, "", {})', "is empty"),
        ('section(1, "_src", {})', "not the author's"),
        ('section(1, "$a", {})', "dollar"),
        ("section(1, 5, {})", "must be a string"),
        ('section(None, "a", {})', "has no key"),
        ('section(1, "a", [])', "fields must be a dict"),
        ('section(1, "a", {"$b": 1})', "dollar"),
        ('item(1, "a", None, {})', "has no key"),
        ('item(1, "a", [1], {})', "no list"),
        ('item(1, "a", 1, {"_id": 2})', "_id"),
    ],
)
def test_malformed_contributions_are_parked_with_the_reason(harness: Harness, call: str, reason: str) -> None:
    """What no shared record can hold becomes a dead letter that says why; other documents go on."""
    harness.write(
        {
            "bad": f"""
    from distributary import DerivedCollection, transform

    customer = DerivedCollection("customer")

    @transform("users")
    def users(user):
        yield customer.section(user["_id"], "good", {{}})
        if user["_id"] == "bad":
            made = customer
            yield made.{call}
    """
        }
    )
    harness.databases.raw.users.insert_many([{"_id": "bad"}, {"_id": "fine"}])
    harness.catch_up()
    (letter,) = harness.databases.state.dead_letters.find()
    assert reason in letter["reason"], letter["reason"]
    assert seen(harness, "fine") == {"good": {}}
    assert seen(harness, "bad") is None


def test_a_record_that_outgrows_mongodb_parks_who_made_it_so(harness: Harness) -> None:
    """An item that does not fit into its shared record any more is parked; all others are kept."""
    raw = harness.databases.raw
    harness.write(
        {
            "bad": """
    from distributary import DerivedCollection, transform

    customer = DerivedCollection("customer")

    @transform("orders")
    def orders(order):
        yield customer.item(order["user"], "orders", order["_id"], {"text": order["text"]})
    """
        }
    )
    raw.orders.insert_many([{"_id": n, "user": 1, "text": "x" * 6_000_000} for n in range(2)])
    harness.catch_up()
    raw.orders.insert_many(
        [{"_id": 5, "user": 1, "text": "x" * 6_000_000}, {"_id": 6, "user": 1, "text": ""}]
    )
    harness.catch_up()
    (letter,) = harness.databases.state.dead_letters.find()
    assert (letter["key"], letter["kind"]) == (5, "refused")
    assert "shared record customer[1]" in letter["reason"]
    assert [each["_id"] for each in (seen(harness, 1) or {})["orders"]] == [0, 1, 6]


def test_shared_records_that_outlived_their_state_are_made_anew(harness: Harness) -> None:
    """After the state database was dropped, a first start leaves nothing of what was there before."""
    raw = harness.databases.raw
    raw.users.insert_many([user(1), user(2)])
    raw.orders.insert_many([order(1, 1), order(2, 1), order(3, 2)])
    harness.catch_up()
    client = harness.databases.raw.client
    client.drop_database(harness.databases.state.name)
    raw.users.delete_one({"_id": 2})
    raw.orders.delete_one({"_id": 2})
    harness.catch_up()
    harness.assert_equal()


# --- looked at, repaired, built anew -----------------------------------------------------------------------------


def filled(harness: Harness) -> Harness:
    """Give a worker that has caught up with three customers and some orders."""
    raw = harness.databases.raw
    raw.users.insert_many([user(1, phone="1"), user(2), user(3)])
    raw.orders.insert_many([order(number, 1 + number % 3) for number in range(12)])
    harness.catch_up()
    harness.assert_equal()
    return harness


DAMAGES: dict[str, Callable[[Databases], object]] = {
    "a section was changed": lambda on: on.derived.customer.update_one(
        {"_id": 1}, {"$set": {"profile.name": "x"}}
    ),
    "a section was added": lambda on: on.derived.customer.update_one({"_id": 1}, {"$set": {"extra": {}}}),
    "an item was removed": lambda on: on.derived.customer.update_one(
        {"_id": 1}, {"$pull": {"orders": {"_id": 3}}}
    ),
    "a list was reversed": lambda on: on.derived.customer.update_one(
        {"_id": 1}, {"$push": {"orders": {"$each": [], "$sort": {"_id": -1}}}}
    ),
    "a record was removed": lambda on: on.derived.customer.delete_one({"_id": 1}),
    "a record was added": lambda on: on.derived.customer.insert_one({"_id": 9, "profile": {}}),
    "all were removed": lambda on: on.derived.customer.delete_many({}),
    "a part was changed": lambda on: on.state["parts/customer"].update_one(
        {"_id": {"k": 1, "s": "profile"}}, {"$set": {"f.name": "x"}}
    ),
    "a part was removed": lambda on: on.state["parts/customer"].delete_one({"_id": {"k": 1, "s": "profile"}}),
    "a part was added": lambda on: on.state["parts/customer"].insert_one(
        {"_id": {"k": 1, "s": "hand"}, "f": {"a": 1}}
    ),
    "what is no part was added": lambda on: on.state["parts/customer"].insert_many(
        [{"_id": 5}, {"_id": {"k": 1}}, {"_id": {"k": 1, "s": 2}, "f": {}}, {"_id": {"s": "profile"}}]
    ),
    "all parts were removed": lambda on: on.state["parts/customer"].delete_many({}),
}


#: Damages that are repaired beside a worker, too.
BESIDE = ("an item was removed", "a record was added", "a part was removed")


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_repaired(harness: Harness, damage: str) -> None:
    """Whatever a hand does to shared records or their parts is named, and can be made good."""
    filled(harness)
    assert harness.verified().equal
    DAMAGES[damage](harness.databases)
    found = harness.verified()
    assert {shared_of(each.collection) for each in found.differences} == {"customer"}
    repaired = harness.verified(repair=True)
    assert repaired.repaired
    assert repaired.equal
    assert harness.verified().equal
    harness.assert_equal()


@pytest.mark.parametrize("damage", BESIDE)
def test_damage_is_found_and_repaired_beside_a_worker(harness: Harness, damage: str) -> None:
    """`verify` names it in its answer and ends with 1, and `--repair` lets the worker make it good."""
    filled(harness)
    DAMAGES[damage](harness.databases)
    with harness.running():
        found = json.loads(harness.said("verify", "--json", code=1))
        assert found["differences"]
        assert {each["collection"] for each in found["differences"]} == {"customer"}
        repaired = json.loads(harness.said("verify", "--repair", "--json"))
        assert repaired["repaired"], repaired
        assert json.loads(harness.said("verify", "--json"))["equal"]
    harness.assert_equal()


def test_a_shared_record_is_one_record_whatever_its_parts(harness: Harness) -> None:
    """`verify` counts what is in the derived collection, and what should be; parts are not counted beside it."""
    filled(harness)
    stored = harness.databases.derived.customer.count_documents({})
    assert 0 < stored < harness.databases.state["parts/customer"].count_documents({})
    assert harness.verified().records == stored
    DAMAGES["a record was removed"](harness.databases)
    DAMAGES["a record was added"](harness.databases)
    assert harness.verified().records == stored


def test_a_sample_is_of_shared_records_too(harness: Harness) -> None:
    """As many are compared as were drawn, by their own keys and by their parts', and no more."""
    harness.databases.raw.users.insert_many([user(number) for number in range(60)])
    harness.catch_up()
    found = harness.verified(sample=5)
    assert found.equal
    assert found.documents == 5
    assert 5 <= found.records <= 10


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_sample_of_all_finds_every_damage(harness: Harness, damage: str) -> None:
    """A sample as large as what there is finds what a full verification finds."""
    filled(harness)
    DAMAGES[damage](harness.databases)
    full, sample = harness.verified(), harness.verified(sample=1000)
    assert not full.equal
    assert sorted(sample.differences, key=repr) == sorted(full.differences, key=repr)


def test_a_list_that_a_hand_removed_is_back_with_the_next_change(harness: Harness) -> None:
    """A shared record that is found not to be what its parts say is put together anew, and nothing is parked."""
    filled(harness)
    harness.databases.derived.customer.update_one({"_id": 1}, {"$unset": {"orders": ""}})
    harness.databases.raw.orders.update_one({"_id": 3}, {"$set": {"total": 9}})
    harness.catch_up()
    harness.assert_equal()
    assert harness.databases.state.dead_letters.count_documents({}) == 0


@pytest.mark.parametrize("keep", [False, True], ids=["", "kept"])
def test_shared_records_are_built_anew_and_brought_back(harness: Harness, *, keep: bool) -> None:
    """`rebuild` makes whole shared records by the new code, and `--undo` those of the former one."""
    filled(harness)
    harness.write({"customers": CUSTOMERS.replace('"name": user["name"]', '"name": user["name"].upper()')})
    harness.said("rebuild", "users", "orders", *(["--keep-previous"] if keep else []))
    harness.assert_equal()
    assert (seen(harness, 1) or {})["profile"]["name"] == "NAME OF 1"
    names = harness.databases.state.list_collection_names()
    assert sum("parts" in name for name in names) == 1 + keep, names
    if keep:
        harness.write({"customers": CUSTOMERS})
        harness.databases.raw.users.insert_one(user(7))
        harness.said("rebuild", "users", "orders", "--undo")
        harness.assert_equal()
        assert (seen(harness, 1) or {})["profile"]["name"] == "name of 1"
    assert "equal" in harness.said("verify")


def test_a_rebuild_is_done_beside_what_is_no_part(harness: Harness) -> None:
    """Whatever a hand put among the parts."""
    filled(harness)
    DAMAGES["what is no part was added"](harness.databases)
    harness.write({"customers": CUSTOMERS.replace('"name": user["name"]', '"name": user["name"].upper()')})
    harness.said("rebuild", "users", "orders")
    assert (seen(harness, 1) or {})["profile"]["name"] == "NAME OF 1"
    harness.said("verify", "--repair")
    harness.assert_equal()


def test_records_become_sections_by_a_rebuild_and_back(harness: Harness) -> None:
    """Code that makes another kind of collection is deployed like any other code."""
    filled(harness)
    records = CUSTOMERS.replace('customer.section(user["_id"], "profile",', 'customer.record(user["_id"],')
    records = records.partition('        if "phone"')[0]
    harness.write({"customers": records})
    harness.said("rebuild", "users")
    assert harness.databases.derived.customer.find_one({"_id": 1}, {"_src": 0}) == {
        "_id": 1,
        "name": "name of 1",
        "city": None,
    }
    harness.write({"customers": CUSTOMERS})
    harness.catch_up()
    harness.said("rebuild", "users", "orders")
    harness.assert_equal()


def test_a_contribution_is_backfilled_while_others_stream(harness: Harness) -> None:
    """A new contributor joins records that others keep changing."""
    only_users = CUSTOMERS.partition('    @transform("orders")')[0]
    harness.write({"customers": only_users})
    raw = harness.databases.raw
    raw.users.insert_many([user(number) for number in range(50)])
    raw.orders.insert_many([order(number, number % 60) for number in range(600)])
    harness.catch_up()
    harness.write({"customers": CUSTOMERS})
    harness.settings = {"worker.scan_documents": "20", "worker.job_documents_per_second": "20"}
    with harness.running() as assembled:
        eventually(lambda: any(job.documents for job in assembled.jobs().open()))
        for number in range(50):
            raw.users.update_one({"_id": number}, {"$set": {"city": f"city {number}"}})
            raw.orders.update_one({"_id": number}, {"$set": {"user": 99}})
            raw.orders.delete_one({"_id": 300 + number})
        eventually(lambda: (seen(harness, 49) or {}).get("profile", {}).get("city") == "city 49")
        assert assembled.jobs().open(), "the job was done before the others changed"
    harness.settings = {"worker.scan_documents": "20"}
    harness.catch_up()
    harness.assert_equal()


def test_parts_are_previewed_and_traced_as_they_are_seen(harness: Harness) -> None:
    """`preview` names sections and items, and `trace` gives every part of a shared record with its document."""
    filled(harness)
    harness.write({"customers": CUSTOMERS.replace('"status": order["status"]', '"state": order["status"]')})
    shown = harness.said("preview", "orders", "--id", "3")
    assert "~ customer 1 orders 3" in shown
    assert "+ state" in shown
    (document,) = json.loads(harness.said("preview", "orders", "--id", "3", "--json"))["documents"]
    (record,) = document["records"]
    assert (record["collection"], record["key"], record["part"]) == (
        "customer",
        1,
        {"list": "orders", "item": 3},
    )
    traced = harness.said("trace", "customer", "1")
    assert "customer 1: a shared record of 6 parts" in traced
    assert "customer 1 contact" in traced
    assert "orders 3, which exists" in traced
    answer = json.loads(harness.said("trace", "customer", "1", "--json"))["record"]
    assert answer["parts_count"] == 6
    assert [each["part"] for each in answer["parts"][:2]] == [
        {"section": "contact"},
        {"list": "orders", "item": 0},
    ]


def test_rollups_over_shared_records_follow_them(harness: Harness) -> None:
    """A rollup counts shared records by what a section says; a customer who moves leaves no stale count."""
    cities = """
    from distributary import Rollup

    cities = Rollup("cities", over=customer, by="profile.city", compute={"customers": {"$sum": 1}})
    """
    harness.write({"customers": CUSTOMERS + cities})
    raw, derived = harness.databases.raw, harness.databases.derived

    def counted() -> dict[str, int]:
        return {each["_id"]: each["customers"] for each in derived.cities.find()}

    raw.users.insert_many([user(number, city="Bern" if number % 2 else "Thun") for number in range(10)])
    raw.orders.insert_many([order(number, number) for number in range(12)])
    harness.catch_up()
    assert counted() == {"Bern": 5, "Thun": 5}
    raw.users.update_many({"_id": {"$lt": 4}}, {"$set": {"city": "Genf"}})
    raw.users.delete_many({"_id": {"$gte": 8}})
    raw.users.update_many({"_id": {"$in": [4, 6]}}, {"$unset": {"city": ""}})
    harness.catch_up()
    assert counted() == {"Bern": 2, "Genf": 4}
    traced = harness.said("trace", "cities", "Genf")
    assert "over customer by profile.city" in traced
    assert "4 now" in traced
    assert "equal to what its records come to now" in traced
    assert "equal" in harness.said("verify")


def test_a_replay_tells_and_makes_what_it_would_do_to_parts(harness: Harness) -> None:
    """A dry run counts sections and items under their collection, and a replay makes them right."""
    harness.catch_up()
    since = harness.databases.state.checkpoints.find_one({})["position"]["token"]  # type: ignore[index]
    raw = harness.databases.raw
    raw.users.insert_one(user(1))
    raw.orders.insert_many([order(number, 1) for number in range(3)])
    harness.catch_up()
    harness.write(
        {"customers": CUSTOMERS.replace('"total": order.get("total", 0)', '"sum": order.get("total", 0)')}
    )
    harness.catch_up()
    found = json.loads(harness.said("replay", "--from", since, "--dry-run", "--json"))
    assert found["collections"] == {"customer": {"write": 0, "change": 3, "remove": 0}}
    assert found["samples"][0]["part"]["list"] == "orders"
    harness.said("replay", "--from", since)
    harness.assert_equal()
