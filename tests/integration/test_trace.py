"""`trace`: from a derived record to its document, and from a document to everything derived from it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bson import encode
from bson.raw_bson import RawBSONDocument

from distributary.operate.trace import Agreement, DocumentTrace, RecordTrace, Tracer
from tests.conftest import Databases
from tests.harness import ORDERS, Harness

TOTALS = """
    from distributary import DerivedCollection, transform

    made = DerivedCollection("totals")

    @transform("orders")
    def totals(order):
        if order["total"] > 5:
            yield made.record(order["_id"], {"total": order["total"]})
"""


@pytest.fixture
def harness(databases: Databases, tmp_path: Path) -> Harness:
    """Give a worker with two transforms of one collection, which has derived some orders and parked one."""
    databases.raw.orders.insert_many(
        [
            {"_id": 1, "customer": "ann", "total": 5, "skus": ["a", "b"], "code": "x"},
            {"_id": "2", "customer": "bob", "total": 7},
            {"_id": 3, "customer": "cid"},
        ]
    )
    made = Harness(databases, tmp_path / "modules", {"orders": ORDERS, "totals": TOTALS})
    made.catch_up()
    return made


def answered(harness: Harness, *arguments: str) -> Any:
    """Give what the verb says in JSON."""
    return json.loads(harness.said("trace", *arguments, "--json"))


def record(harness: Harness, collection: str, key: Any) -> RecordTrace:
    """Trace a record in this process."""
    with harness.assembled() as assembled:
        found = Tracer(assembled.sides()).record(collection, [key])
    assert isinstance(found, RecordTrace)
    return found


def document(harness: Harness, key: Any) -> DocumentTrace:
    """Trace an order in this process."""
    with harness.assembled() as assembled:
        return Tracer(assembled.sides()).document("orders", [key])


# --- from a record to its document ------------------------------------------------------------------------------


def test_a_record_leads_to_its_document(harness: Harness) -> None:
    """Document, transform, its place, fingerprint, version and the worker's position are told."""
    found = answered(harness, "order_lines", '{"order": 1, "line": 2}')
    trace, transform = found["record"], harness.registry.transforms["orders"]
    stored = harness.databases.derived.order_lines.find_one({"_id": {"order": 1, "line": 2}})
    checkpoint = harness.databases.state.checkpoints.find_one({})
    assert stored
    assert checkpoint
    assert (found["schema"], trace["source"], trace["source_key"], trace["document_exists"]) == (
        1,
        "orders",
        1,
        True,
    )
    assert (trace["transform"], trace["place"], trace["state"]) == ("orders", transform.place, "built")
    assert trace["fingerprints"] == {"built": transform.fingerprint, "plugged_in": transform.fingerprint}
    at = stored["_src"]["at"]
    assert trace["version"]["cluster_time"] == {"$timestamp": {"t": at.time, "i": at.inc}}
    assert trace["version"]["epoch"] == stored["_src"]["epoch"]
    assert (trace["worker"], trace["position"]["token"]) == ("default", checkpoint["position"]["token"])
    assert (trace["agreement"], trace["fields"], trace["dead_letter"]) == ("equal", [], None)
    text = harness.said("trace", "order_lines", '{"order": 1, "line": 2}')
    assert "document:    orders 1, which exists" in text
    assert f"orders ({transform.place})" in text
    assert "equal to what the document yields now" in text


def test_a_record_of_other_code_is_outdated_and_compared_with_the_present_one(harness: Harness) -> None:
    """Both fingerprints are named, and the fields in which the present code differs."""
    built = harness.registry.transforms["orders"].fingerprint
    harness.write({"orders": ORDERS.replace('get("total", 0)', 'get("total", 0) * 2'), "totals": TOTALS})
    plugged = harness.registry.transforms["orders"].fingerprint
    trace = answered(harness, "orders_by_customer", "1")["record"]
    assert (trace["state"], trace["agreement"], trace["fields"]) == ("outdated", "differs", ["total"])
    assert trace["fingerprints"] == {"built": built, "plugged_in": plugged}
    assert f"{built}, {plugged} is plugged in: outdated" in harness.said("trace", "orders_by_customer", "1")


def test_a_record_that_is_no_longer_yielded_is_said(harness: Harness) -> None:
    """The document may have changed or gone since."""
    harness.databases.raw.orders.update_one({"_id": 1}, {"$set": {"skus": ["a"]}})
    found = record(harness, "order_lines", {"order": 1, "line": 2})
    assert (found.held.agreement, found.exists) == (Agreement.NOT_YIELDED, True)
    harness.databases.raw.orders.delete_one({"_id": 1})
    assert "orders 1, which does not exist any more" in harness.said("trace", "orders_by_customer", "1")
    assert "no longer yielded" in harness.said("trace", "orders_by_customer", "1")


def test_a_parked_owner_is_named_with_its_letter(harness: Harness) -> None:
    """The record is one that the document had before; the letter says why."""
    harness.databases.raw.orders.update_one({"_id": "2"}, {"$unset": {"total": 1}})
    harness.catch_up()
    text = harness.said("trace", "totals", "2")
    letter = harness.databases.state.dead_letters.find_one({"key": "2"})
    assert letter
    assert f"{letter['id']} (failed): KeyError: 'total'" in text
    assert "kept, since the document cannot be derived now: KeyError: 'total'" in text


def test_a_record_without_an_owner_is_nobody_s(harness: Harness) -> None:
    """What a hand added or stripped has no origin; `verify --repair` is the cure."""
    derived = harness.databases.derived
    derived.orders_by_customer.update_one({"_id": 1}, {"$unset": {"_src": 1}})
    derived.orders_by_customer.insert_one({"_id": "new", "_src": {"by": "nobody", "key": 1}})
    text = harness.said("trace", "orders_by_customer", "1")
    assert "nobody: it has no usable _src" in text
    assert "distributary verify --repair" in text
    assert answered(harness, "orders_by_customer", "new")["record"]["nobodys"].startswith(
        "its _src names 'nobody'"
    )


def test_a_transform_that_is_gone_leaves_what_the_checkpoint_knows(harness: Harness) -> None:
    """Its record still leads to the document, and is not compared."""
    harness.write({"orders": ORDERS})
    trace = answered(harness, "totals", '"2"')["record"]
    assert (trace["transform"], trace["state"], trace["place"]) == ("totals", "left behind", None)
    assert (trace["agreement"], trace["document_exists"], trace["source"]) == ("not known", True, "orders")
    assert {each.code.name: len(each.records) for each in document(harness, "2").descents} == {
        "orders": 1,
        "totals": 1,
    }


def test_another_worker_s_record_is_traced_by_its_checkpoint(harness: Harness) -> None:
    """A configuration that never ran knows the workers of its state database."""
    other = replace(harness, folder=harness.folder.parent / "other", settings={"worker.name": "other"})
    other.write(
        {"none": "from distributary import DerivedCollection, transform\n@transform('x')\ndef x(y): pass\n"}
    )
    trace = answered(other, "totals", "2")["record"]
    assert (trace["worker"], trace["state"], trace["document_exists"]) == ("default", "built", True)


def test_a_key_that_nothing_has_ends_with_1(harness: Harness) -> None:
    """What was looked for is named with its type, since that is what is mostly wrong."""
    text = harness.said("trace", "orders_by_customer", "17", code=1)
    assert "has no record with this key; looked for: int 17, str '17'" in text
    assert "Extended JSON" in text
    assert "has no document with this key, and nothing is left of it" in harness.said(
        "trace", "orders", "17", code=1
    )


# --- from a document to its records -----------------------------------------------------------------------------


def test_a_document_leads_to_all_that_is_derived_from_it(harness: Harness) -> None:
    """Every transform of its collection is there, with its records by collection and key, or why there are none."""
    found = answered(harness, "orders", "1")["document"]
    assert (found["collection"], found["key"], found["exists"]) == ("orders", 1, True)
    orders, totals = found["transforms"]
    assert [(each["collection"], each["key"], each["agreement"]) for each in orders["records"]] == [
        ("orders_by_customer", 1, "equal"),
        ("order_lines", {"order": 1, "line": 1}, "equal"),
        ("order_lines", {"order": 1, "line": 2}, "equal"),
        ("orders_by_code", "x", "equal"),
    ]
    assert (totals["records"], totals["nothing"]) == ([], "the transform yields nothing for the document")
    text = harness.said("trace", "orders", "1")
    assert "orders 1, which exists" in text
    assert "order_lines" in text
    assert "nothing is derived: the transform yields nothing for the document" in text


def test_why_nothing_is_derived(harness: Harness) -> None:
    """Parked, not built, not come to yet, not plugged in: each is a reason of its own."""
    reasons = {each.code.name: each.nothing for each in document(harness, 3).descents}
    assert reasons == {"orders": "", "totals": "the document is parked"}
    harness.databases.raw.orders.insert_many([{"_id": 4, "total": 9}, {"_id": 5}])
    reasons = {each.code.name: each.nothing for each in document(harness, 4).descents}
    assert all(reason.startswith("the worker has not come to it yet") for reason in reasons.values())
    (_, totals) = document(harness, 5).descents
    assert (totals.nothing, totals.failure) == (
        "the document cannot be derived, and is not parked yet",
        "KeyError: 'total'",
    )
    harness.write({"new": TOTALS.replace("totals", "fresh")})
    reasons = {each.code.name: each.nothing for each in document(harness, 4).descents}
    assert reasons == {
        "fresh": "the transform is not built yet",
        "orders": "the transform is not plugged in",
        "totals": "the transform is not plugged in",
    }


def test_what_is_left_of_a_document_that_is_gone_is_shown(harness: Harness) -> None:
    """Its records, and a letter if there is one, are there until the worker has come to the delete."""
    harness.databases.raw.orders.delete_many({})
    left = document(harness, 1)
    assert not left.exists
    assert {each.agreement for descent in left.descents for each in descent.records} == {
        Agreement.NOT_YIELDED
    }
    assert "orders 3, which does not exist any more" in harness.said("trace", "orders", "3")
    assert "dead letter: " in harness.said("trace", "orders", "3")


# --- which collection -------------------------------------------------------------------------------------------


def test_a_name_that_is_both_wants_to_be_told_apart(databases: Databases, tmp_path: Path) -> None:
    """Without an option the error names both; with one of them that side is traced."""
    module = TOTALS.replace('DerivedCollection("totals")', 'DerivedCollection("orders")')
    harness = Harness(databases, tmp_path / "modules", {"totals": module})
    databases.raw.orders.insert_one({"_id": 1, "total": 7})
    harness.catch_up()
    assert "Give --derived or --source" in harness.said("trace", "orders", "1", code=2)
    assert answered(harness, "orders", "1", "--derived")["record"]["transform"] == "totals"
    assert answered(harness, "orders", "1", "--source")["document"]["exists"] is True


def test_an_unknown_collection_is_refused(harness: Harness) -> None:
    """The known ones are named, of the side that was asked for."""
    assert "no derived or source collection is called 'order'" in harness.said("trace", "order", "1", code=2)
    assert "no derived collection is called 'orders'" in harness.said(
        "trace", "orders", "1", "--derived", code=2
    )


def test_records_that_decode_oddly_do_no_harm(harness: Harness) -> None:
    """Invalid UTF-8 in a record is a difference like any other."""
    raw = encode({"_id": 1, "customer": "??", "_src": {"by": "orders", "key": 1, "at": 1, "epoch": 1}})
    harness.databases.derived.orders_by_customer.delete_one({"_id": 1})
    harness.databases.derived.orders_by_customer.insert_one(RawBSONDocument(raw.replace(b"??", b"\xff\xfe")))
    assert record(harness, "orders_by_customer", 1).held.fields == ("customer", "total")
    assert "version:     none that can be read" in harness.said("trace", "orders_by_customer", "1")
