"""`preview`: what a transform yields, held against what is stored, with nothing written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId, encode
from bson.raw_bson import RawBSONDocument

from distributary.operate.preview import DocumentDiff, Preview, State
from tests.conftest import Databases
from tests.harness import ORDERS, Harness

CHANGED = ORDERS.replace('"total": order.get("total", 0)', '"total": order["total"] * 2, "vip": True')

CODES = """
    from distributary import DerivedCollection, transform

    made = DerivedCollection("codes")

    @transform("orders")
    def orders(order):
        for code in order.get("codes", []):
            yield made.record(code, {"order": order["_id"]})
"""

IMPURE = """
    import itertools

    from distributary import DerivedCollection, transform

    made = DerivedCollection("made")
    numbers = itertools.count()

    @transform("orders")
    def clock(order):
        yield made.record(order["_id"], {"number": next(numbers)})

    @transform("orders")
    def eater(order):
        order.clear()
"""

Records = dict[tuple[str, Any], str]


@pytest.fixture
def harness(databases: Databases, tmp_path: Path) -> Harness:
    """Give a worker that never ran, and some orders."""
    databases.raw.orders.insert_many(
        [
            {"_id": 1, "customer": "ann", "total": 5, "skus": ["a", "b"], "code": "x"},
            {"_id": 2, "customer": "bob", "total": 7},
            {"_id": "3", "customer": "cid"},
        ]
    )
    return Harness(databases, tmp_path / "modules")


def previewed(
    harness: Harness, *asked: list[Any], sample: int = 0, name: str = "orders"
) -> list[DocumentDiff]:
    """Preview in this process."""
    with harness.assembled() as assembled:
        preview = Preview(assembled.sides(), name)
        return list(preview.of_sample(sample) if sample else preview.of_keys(asked))


def states(diff: DocumentDiff) -> Records:
    """Give the state of each record of a document."""
    return {(each.collection, repr(each.key)): each.state.value for each in diff.records}


def answered(harness: Harness, *arguments: str, code: int = 0) -> Any:
    """Give what the verb says in JSON."""
    return json.loads(harness.said("preview", *arguments, "--json", code=code))


def written(harness: Harness) -> Mapping[str, Any]:
    """Give everything that lies in the derived and the state database."""
    return {
        f"{database.name}.{name}": list(database[name].find())
        for database in (harness.databases.derived, harness.databases.state)
        for name in database.list_collection_names()
    }


def test_a_transform_that_was_never_deployed_is_shown_whole(harness: Harness) -> None:
    """Without a checkpoint or any database of ours every record is added with its fields, and none is made."""
    answer = answered(harness, "orders", "--id", "1")
    (document,) = answer["documents"]
    assert (answer["schema"], answer["transform"], answer["source"]) == (1, "orders", "orders")
    assert answer["fingerprint"] == harness.registry.transforms["orders"].fingerprint
    assert document["records"][0] == {
        "state": "added",
        "collection": "orders_by_customer",
        "key": 1,
        "fields": [{"name": "customer", "new": "ann"}, {"name": "total", "new": 5}],
        "holder": None,
    }
    assert answer["totals"] == {
        "order_lines": {"added": 2},
        "orders_by_code": {"added": 1},
        "orders_by_customer": {"added": 1},
    }
    assert written(harness) == {}


def test_changed_code_is_shown_as_a_diff_and_writes_nothing(harness: Harness) -> None:
    """Fields that change, come and go have their values; what is equal is counted; nothing is written."""
    harness.catch_up()
    before = written(harness)
    harness.write(
        {"orders": CHANGED.replace('["skus"]', '["skus"][:1]').replace('"skus", [])', '"skus", [])[:1]')}
    )
    out = harness.said("preview", "orders", "--id", "1", "--id", "2").splitlines()
    assert written(harness) == before
    assert out[2:] == [
        "orders 1",
        "  ~ orders_by_customer 1",
        "      ~ total: 5 -> 10",
        "      + vip: true",
        '  - order_lines {"order": 1, "line": 2}',
        "  = 2 unchanged",
        "",
        "orders 2",
        "  ~ orders_by_customer 2",
        "      ~ total: 7 -> 14",
        "      + vip: true",
        "",
        "2 documents: order_lines 1 removed, 1 unchanged; orders_by_code 1 unchanged; orders_by_customer 2 changed",
    ]


def test_what_the_present_code_built_is_unchanged(harness: Harness) -> None:
    """Every record of every document is equal to what is stored."""
    harness.catch_up()
    found = previewed(harness, sample=10)
    assert {state for diff in found for state in states(diff).values()} == {"unchanged"}
    assert [diff.key for diff in found] == [1, 2, "3"]


def test_records_in_a_collection_that_is_no_longer_named_are_removed(harness: Harness) -> None:
    """What the checkpoint says was ever written is compared, too."""
    harness.catch_up()
    harness.write(
        {
            "orders": "from distributary import DerivedCollection, transform\n"
            "all = DerivedCollection('orders_by_customer')\n"
            "@transform('orders')\n"
            "def orders(order):\n"
            "    yield all.record(order['_id'], {'customer': order.get('customer'), 'total': order.get('total', 0)})\n"
        }
    )
    (diff,) = previewed(harness, [1])
    assert sorted(states(diff).values()) == ["removed", "removed", "removed", "unchanged"]


def test_a_sample_is_five_documents_in_the_order_of_their_keys(harness: Harness) -> None:
    """Without anything said five are drawn, with `--sample` so many; each comes once, sorted."""
    harness.databases.raw.orders.insert_many([{"_id": number} for number in range(10, 30)])
    keys = [each["key"] for each in answered(harness, "orders")["documents"]]
    assert len(keys) == 5
    assert keys == sorted(keys, key=lambda key: (isinstance(key, str), key))
    assert len(previewed(harness, sample=8)) == 8
    assert len(previewed(harness, sample=100)) == 23


def test_a_collection_without_documents_is_said(harness: Harness) -> None:
    """Nothing to draw from is an answer."""
    harness.databases.raw.orders.drop()
    assert "orders has no documents." in harness.said("preview", "orders")


def test_a_document_that_cannot_be_derived_has_reason_and_traceback(harness: Harness) -> None:
    """It says what the dead letter would, and that the records stay; the exit code is 1."""
    harness.catch_up()
    harness.write({"orders": CHANGED})
    out = harness.said("preview", "orders", "--id", "3", "--id", "1", code=1)
    assert 'orders "3": it cannot be derived, and keeps its 1 record' in out
    assert "KeyError: 'total'" in out
    assert "orders.py" in out
    assert "2 documents, 1 cannot be derived: " in out
    answer = answered(harness, "orders", "--id", "3", code=1)
    (document,) = answer["documents"]
    assert (answer["failed"], document["failure"]["reason"]) == (1, "KeyError: 'total'")
    assert [each["state"] for each in document["records"]] == ["kept"]


def test_a_document_that_does_not_exist_is_said_with_what_would_go(harness: Harness) -> None:
    """The records that are stored for it are removed; where there are none, that is said."""
    harness.catch_up()
    harness.databases.raw.orders.delete_one({"_id": 1})
    out = harness.said("preview", "orders", "--id", "1", "--id", "nope")
    assert "orders 1: there is no such document\n" in out
    assert "  - orders_by_customer 1" in out
    assert 'orders "nope": there is no such document, and nothing is stored for it' in out


def test_a_key_that_another_document_has_is_contested(harness: Harness) -> None:
    """The holder is named, whether it is stored or comes earlier in the same preview; the exit code is 1."""
    harness.catch_up()
    harness.databases.raw.orders.insert_one({"_id": 4, "code": "x"})
    out = harness.said("preview", "orders", "--id", "4", code=1)
    assert '! orders_by_code "x": contested, orders has it from 1' in out
    assert "1 document, 1 contested: " in out
    harness.databases.raw.orders.insert_many([{"_id": 5, "code": "y"}, {"_id": 6, "code": "y"}])
    first, second = previewed(harness, [6], [5])
    assert (first.key, first.contested) == (5, False)
    (contest,) = second.of(State.CONTESTED)
    assert (second.key, contest.holder) == (6, ("orders", 5))


def test_a_contested_document_takes_no_key_from_others(harness: Harness) -> None:
    """It would be parked, so what it yields beside the contested record is free for a later document."""
    harness.write({"codes": CODES})
    orders = harness.databases.raw.orders
    orders.insert_many(
        [{"_id": 4, "codes": ["x"]}, {"_id": 5, "codes": ["x", "y"]}, {"_id": 6, "codes": ["y"]}]
    )
    assert [diff.contested for diff in previewed(harness, [4], [5], [6])] == [False, True, False]


def test_who_is_not_plugged_in_holds_nothing(harness: Harness) -> None:
    """Records of a transform that the worker knows and that is gone give way, and so do nobody's."""
    harness.catch_up()
    harness.databases.derived.order_lines.update_one(
        {"_id": {"order": 1, "line": 1}}, {"$unset": {"_src": 1}}
    )
    harness.write({"orders": ORDERS.replace('@transform("orders")', '@transform("orders", name="renamed")')})
    (diff,) = previewed(harness, [1], name="renamed")
    assert set(states(diff).values()) == {"changed"}
    assert all([each.name for each in record.fields] == ["_src"] for record in diff.records)


def test_impure_transforms_are_told(harness: Harness) -> None:
    """One that yields something else the second time and one that changes its document are named as such."""
    harness.write({"impure": IMPURE})
    assert "clock yields something else the second time" in harness.said("preview", "clock", "--id", "1")
    (document,) = answered(harness, "eater", "--id", "1")["documents"]
    assert (document["unstable"], document["changes_document"]) == (False, True)


def test_values_that_decode_oddly_do_no_harm(harness: Harness) -> None:
    """Invalid UTF-8 in keys and values and dates outside Python's range are shown or named, never a crash."""
    orders, broken = harness.databases.raw.orders, b"\xff\xfe"
    for document in ({"_id": "??", "customer": "ann"}, {"_id": 8, "customer": "??"}):
        orders.insert_one(RawBSONDocument(encode(document).replace(b"??", broken)))
    far = encode({"_id": 9, "customer": "date"})
    far = far.replace(
        b"\x02customer\x00\x05\x00\x00\x00date\x00", b"\x09customer\x00" + (2**62).to_bytes(8, "little")
    )
    far = len(far).to_bytes(4, "little") + far[4:]
    orders.insert_one(RawBSONDocument(far))
    harness.catch_up()
    record = encode({"_id": 1, "customer": "??", "total": 5, "_src": {"by": "orders", "key": 1}}).replace(
        b"??", broken
    )
    harness.databases.derived.orders_by_customer.delete_one({"_id": 1})
    harness.databases.derived.orders_by_customer.insert_one(RawBSONDocument(record))
    found = {repr(diff.key): diff for diff in previewed(harness, sample=50)}
    assert [name for name, diff in found.items() if diff.failure] == ["8", repr("\udcff\udcfe")]
    assert states(found["9"]) == {("orders_by_customer", "9"): "unchanged"}
    (changed,) = found["1"].of(State.CHANGED)
    assert [(each.name, each.old, each.new) for each in changed.fields] == [
        ("customer", ("\udcff\udcfe",), ("ann",))
    ]
    for options in ((), ("--json",)):
        assert harness.said("preview", "orders", "--sample", "50", *options, code=1)


def test_a_key_is_taken_as_what_exists(harness: Harness) -> None:
    """A number may be meant as text, 24 hex digits as an ObjectId, and Extended JSON as what it says."""
    object_id = ObjectId()
    harness.databases.raw.orders.insert_many([{"_id": object_id}, {"_id": {"a": 1, "b": 2}}])
    asked = ["--id", "3", "--id", "2", "--id", str(object_id), "--id", '{"a": 1, "b": 2}']
    documents = answered(harness, "orders", *asked)["documents"]
    assert [each["key"] for each in documents] == [2, "3", {"a": 1, "b": 2}, {"$oid": str(object_id)}]
    assert all(each["exists"] for each in documents)


def test_what_cannot_be_meant_is_refused(harness: Harness) -> None:
    """An unknown transform, and documents that are named and drawn at once, end with 2."""
    assert "no transform is called 'order'" in harness.said("preview", "order", code=2)
    assert "Did you mean 'orders'" in harness.said("preview", "order", code=2)
    assert "--sample" in harness.said("preview", "orders", "--id", "1", "--sample", "2", code=2)
