"""The worker on a real MongoDB: whatever happens to documents and collections, derived equals recomputed."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from bson import Binary, Decimal128, Int64, ObjectId, Timestamp, encode
from bson.raw_bson import RawBSONDocument

from distributary.errors import Failed
from tests.conftest import Databases, eventually
from tests.harness import ORDERS, Harness

Make = Callable[..., Harness]


@pytest.fixture
def harness(databases: Databases, tmp_path: Path) -> Harness:
    """Give a worker with the orders module."""
    return Harness(databases, tmp_path / "modules")


def order(number: Any, *skus: str, **fields: Any) -> dict[str, Any]:
    """Give a raw order."""
    return {"_id": number, "customer": f"c{number}", "total": 10, "skus": list(skus), **fields}


def test_existing_documents_are_derived_at_the_first_start(harness: Harness) -> None:
    """Without a checkpoint, `backfill` derives what is there, whatever the types of the keys."""
    keys: list[Any] = [
        None,
        1,
        2.5,
        Int64(2**40),
        Decimal128("1E+3"),
        "x",
        {"a": 1, "b": 2},
        {"b": 2, "a": 1},
    ]
    keys += [
        Binary(b"x", 0),
        ObjectId(),
        True,
        datetime(2026, 1, 1, tzinfo=UTC),
        Timestamp(1, 1),
        float("nan"),
    ]
    harness.databases.raw.orders.insert_many([order(key, "s") for key in keys if key is not None])
    harness.settings = {"worker.scan_documents": "3"}
    harness.catch_up()
    harness.assert_equal()
    assert harness.databases.derived.orders_by_customer.count_documents({}) == len(keys) - 1


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"$set": {"skus": ["a"]}}, id="the fan-out shrinks"),
        pytest.param({"$set": {"skus": []}}, id="the fan-out disappears"),
        pytest.param({"$set": {"code": "k2"}}, id="a key moves"),
        pytest.param({"$unset": {"code": ""}}, id="a condition fails"),
        pytest.param({"$set": {"unused": 1}}, id="nothing derived changes"),
    ],
)
def test_updates_leave_no_stale_record(harness: Harness, change: dict[str, Any]) -> None:
    """Without pre-images, what a document yielded before and no longer does is gone."""
    orders = harness.databases.raw.orders
    orders.insert_one(order(1, "a", "b", "c", code="k1"))
    harness.catch_up()
    orders.update_one({"_id": 1}, change)
    harness.catch_up()
    harness.assert_equal()


def test_replaces_deletes_and_inserts_again(harness: Harness) -> None:
    """Every operation of a live stream ends in a state that equals a recomputation."""
    orders = harness.databases.raw.orders
    with harness.running():
        orders.insert_many([order(n, "a", "b", code=n) for n in range(50)])
        orders.delete_many({"_id": {"$lt": 20}})
        orders.insert_many([order(n, "z") for n in range(10)])
        orders.replace_one({"_id": 30}, order(30, "r"))
        orders.update_many({"_id": {"$gte": 40}}, {"$set": {"skus": ["u"] * 4}})
        eventually(lambda: harness.derived() == harness.recomputed())


def test_stopping_and_starting_again_continues(harness: Harness) -> None:
    """A second run continues at the position of the first and misses nothing in between."""
    harness.catch_up()
    harness.databases.raw.orders.insert_one(order(1, "a"))
    harness.catch_up()
    harness.databases.raw.orders.delete_one({"_id": 1})
    harness.databases.raw.orders.insert_one(order(2, "b"))
    harness.catch_up()
    harness.assert_equal()


def test_code_that_changed_in_between_leaves_no_stale_record(harness: Harness) -> None:
    """A document that changes under new code loses the records that only the old code yielded."""
    orders = harness.databases.raw.orders
    orders.insert_one(order(1, "a", "b", code="k"))
    harness.catch_up()
    harness.write({"orders": ORDERS.replace('if "code" in order', 'if "other" in order')})
    orders.update_one({"_id": 1}, {"$set": {"total": 99}})
    harness.catch_up()
    harness.assert_equal()


def test_a_new_transform_gets_its_backfill_by_itself(harness: Harness) -> None:
    """A transform that is new to a checkpoint is derived for every existing document."""
    harness.databases.raw.orders.insert_one(order(1, "a"))
    harness.databases.raw.users.insert_many([{"_id": n, "name": f"n{n}"} for n in range(5)])
    harness.catch_up()
    users = """
        from distributary import DerivedCollection, transform
        names = DerivedCollection("names")

        @transform("users")
        def users(user):
            yield names.record(user["_id"], {"name": user["name"]})
    """
    harness.write({"orders": ORDERS, "users": users})
    harness.databases.raw.orders.insert_one(order(2, "b"))
    harness.catch_up()
    harness.assert_equal()
    assert harness.databases.derived.names.count_documents({}) == 5


def test_a_transform_that_was_away_is_derived_anew(harness: Harness) -> None:
    """What changed while a transform was left out by `only` is made up for when it is back."""
    users = """
        from distributary import DerivedCollection, transform
        names = DerivedCollection("names")

        @transform("users")
        def users(user):
            yield names.record(user["_id"], {"name": user["name"]})
    """
    harness.write({"orders": ORDERS, "users": users})
    harness.databases.raw.users.insert_many([{"_id": n, "name": "x"} for n in range(3)])
    harness.catch_up()
    harness.settings = {"worker.only": "orders"}
    harness.databases.raw.users.delete_one({"_id": 0})
    harness.databases.raw.users.update_one({"_id": 1}, {"$set": {"name": "y"}})
    harness.catch_up()
    harness.settings = {}
    harness.catch_up()
    harness.assert_equal()


def test_two_transforms_of_one_source_do_not_disturb_each_other(harness: Harness) -> None:
    """Each gets a document of its own, and each owns its records, even when one changes what it got."""
    rude = """
        from distributary import DerivedCollection, transform
        totals = DerivedCollection("totals")

        @transform("orders", name="a_rude_one")
        def rude(order):
            order["skus"].clear()
            order["customer"] = "changed"
            yield totals.record(order["_id"], {"total": order["total"]})
    """
    harness.write({"a": rude, "orders": ORDERS})
    harness.databases.raw.orders.insert_one(order(1, "a", "b"))
    harness.catch_up()
    assert harness.databases.derived.order_lines.count_documents({}) == 2
    harness.databases.raw.orders.update_one({"_id": 1}, {"$set": {"total": 3}})
    harness.databases.raw.orders.insert_one(order(2, "c"))
    harness.catch_up()
    harness.assert_equal()


def test_large_documents_are_read_instead_of_carried(harness: Harness) -> None:
    """Documents up to MongoDB's limit, inserted, replaced and updated, pass through the stream."""
    orders = harness.databases.raw.orders
    harness.catch_up()
    orders.insert_one(order(1, "a", blob="x" * (16 * 1024 * 1024 - 4096)))
    orders.insert_one(order(2, "b", blob="y" * 1024 * 1024))
    orders.replace_one({"_id": 2}, order(2, "c", blob="z" * 1024 * 1024))
    orders.update_one({"_id": 1}, {"$set": {"skus": ["d", "e"]}})
    harness.catch_up()
    harness.assert_equal()


def test_a_source_transaction_is_committed_whole(harness: Harness) -> None:
    """All records of a transaction that is larger than a batch carry the same commit's checkpoint."""
    harness.settings = {"worker.batch_changes": "10"}
    harness.catch_up()
    client, orders = harness.databases.client, harness.databases.raw.orders
    harness.databases.raw.create_collection("orders")
    with client.start_session() as session, session.start_transaction():
        orders.insert_many([order(n, "a") for n in range(35)], session=session)
    seen: set[int] = set()
    with harness.running():
        derived = harness.databases.derived.orders_by_customer

        def complete() -> bool:
            seen.add(derived.count_documents({}))
            return max(seen) == 35

        eventually(complete)
    assert seen <= {0, 35}


def test_an_idle_source_moves_the_position(harness: Harness) -> None:
    """While only others write, the saved position advances."""
    harness.catch_up()
    before = harness.databases.state.checkpoints.find_one({"_id": "default"})
    assert before is not None
    with harness.running():
        harness.databases.raw.other.insert_one({})

        def advanced() -> bool:
            now = harness.databases.state.checkpoints.find_one({"_id": "default"})
            return now is not None and bool(now["position"]["time"] > before["position"]["time"])

        eventually(advanced)


def test_a_dropped_collection_is_kept_and_derived_anew_when_it_is_back(harness: Harness) -> None:
    """`keep` leaves the records and says that the source is detached; created again, it is swept."""
    orders = harness.databases.raw.orders
    orders.insert_many([order(n, "a") for n in range(5)])
    harness.catch_up()
    orders.drop()
    harness.catch_up()
    assert harness.databases.derived.orders_by_customer.count_documents({}) == 5
    checkpoint = harness.databases.state.checkpoints.find_one({"_id": "default"})
    assert checkpoint is not None
    assert list(checkpoint["detached"]) == ["orders"]
    orders.insert_one(order(3, "b"))
    harness.catch_up()
    harness.assert_equal()


def test_a_dropped_collection_is_purged(harness: Harness) -> None:
    """`purge` removes what a dropped collection yielded."""
    harness.settings = {"worker.on_source_drop": "purge"}
    harness.databases.raw.orders.insert_many([order(n, "a") for n in range(5)])
    harness.catch_up()
    harness.databases.raw.orders.drop()
    harness.catch_up()
    harness.assert_equal()


def test_a_rename_onto_a_watched_name_is_a_new_collection(harness: Harness) -> None:
    """What the old collection yielded is swept, what the new one holds is derived."""
    harness.databases.raw.orders.insert_many([order(n, "a") for n in range(5)])
    harness.catch_up()
    harness.databases.raw.staging.insert_many([order(n, "b") for n in range(3, 8)])
    harness.databases.raw.staging.rename("orders", dropTarget=True)
    harness.catch_up()
    harness.assert_equal()


def test_a_dropped_database_ends_nothing(harness: Harness) -> None:
    """After `dropDatabase` the stream opens again behind the invalidation and goes on."""
    harness.databases.raw.orders.insert_many([order(n, "a") for n in range(5)])
    with harness.running():
        eventually(lambda: harness.databases.derived.orders_by_customer.count_documents({}) == 5)
        harness.databases.client.drop_database(harness.databases.raw.name)
        harness.databases.raw.orders.insert_one(order(7, "n"))
        eventually(lambda: harness.derived() == harness.recomputed())


def test_a_contested_key_is_derived_when_its_owner_leaves(harness: Harness) -> None:
    """The second document that yields a key is parked, naming both, and derived once the key is free."""
    orders, letters = harness.databases.raw.orders, harness.databases.state.dead_letters
    orders.insert_one(order(1, code="k"))
    harness.catch_up()
    orders.insert_one(order(2, code="k"))
    harness.catch_up()
    letter = letters.find_one({})
    assert letter is not None
    assert (letter["kind"], letter["key"]) == ("contested", 2)
    assert "orders_by_code['k']" in letter["reason"]
    orders.delete_one({"_id": 1})
    harness.catch_up()
    harness.assert_equal()
    assert letters.count_documents({}) == 0


def test_unique_values_move_between_documents(harness: Harness) -> None:
    """Two documents that swap values of a unique index of the user's are both stored."""
    orders = harness.databases.raw.orders
    orders.insert_many([order(1), order(2)])
    harness.catch_up()
    harness.databases.derived.orders_by_customer.create_index("customer", unique=True)
    with harness.databases.client.start_session() as session, session.start_transaction():
        orders.update_one({"_id": 1}, {"$set": {"customer": "c2"}}, session=session)
        orders.update_one({"_id": 2}, {"$set": {"customer": "c1"}}, session=session)
    harness.catch_up()
    harness.assert_equal()
    assert harness.databases.state.dead_letters.count_documents({}) == 0


def test_invalid_utf8_is_parked_or_derived_never_a_crash(harness: Harness) -> None:
    """A document with bytes that are no UTF-8 is derived where its records leave them out, else parked."""
    raw = harness.databases.raw.orders
    harness.catch_up()
    bad = encode({"_id": 1, "customer": "XX", "skus": [], "total": 1}).replace(b"XX", b"\xff\xfe")
    fine = encode({"_id": 2, "customer": "c", "skus": [], "total": 1, "note": "XX"}).replace(
        b"XX", b"\xff\xfe"
    )
    key = encode({"_id": "XX", "customer": "c", "skus": [], "total": 1}).replace(b"XX", b"\xff\xfe")
    raw.insert_many([RawBSONDocument(bad), RawBSONDocument(fine), RawBSONDocument(key)])
    raw.update_one({"_id": 1}, {"$set": {"total": 2}})
    raw.update_many({"total": 1}, {"$set": {"total": 3}})
    harness.catch_up()
    assert harness.databases.derived.orders_by_customer.distinct("_id") == [2]
    assert harness.databases.state.dead_letters.count_documents({}) == 2


def test_a_checkpoint_of_another_source_is_refused(harness: Harness) -> None:
    """A position means nothing on another deployment: the worker says so instead of skipping."""
    harness.catch_up()
    other = {"$set": {"source.set_id": "000000000000000000000000"}}
    harness.databases.state.checkpoints.update_one({"_id": "default"}, other)
    with pytest.raises(Failed, match="belongs to another source"):
        harness.catch_up()


def test_a_lost_position_is_made_good(harness: Harness) -> None:
    """`resync` starts a new epoch, derives everything again and sweeps what lost its source."""
    orders = harness.databases.raw.orders
    orders.insert_many([order(n, "a") for n in range(5)])
    harness.catch_up()
    orders.delete_one({"_id": 0})
    orders.update_one({"_id": 1}, {"$set": {"skus": []}})
    lost = _token_of_another_history(harness)
    harness.databases.state.checkpoints.update_one({"_id": "default"}, {"$set": {"position.token": lost}})
    harness.catch_up()
    harness.assert_equal()
    checkpoint = harness.databases.state.checkpoints.find_one({"_id": "default"})
    assert checkpoint is not None
    assert checkpoint["epoch"] == 2


def _token_of_another_history(harness: Harness) -> str:
    """Give the token of a change that this server does not have: a real one, of another collection."""
    with harness.databases.raw.orders.watch() as stream:
        harness.databases.raw.orders.insert_one({"_id": "token"})
        token: str = stream.next()["_id"]["_data"]
    harness.databases.raw.orders.delete_one({"_id": "token"})
    return token[:60] + ("0" if token[60] != "0" else "1") + token[61:]


def test_keys_that_are_uuids(harness: Harness) -> None:
    """A UUID is a key like any other: in a scan of several slices, read behind the stream, and swept."""
    harness.settings = {"worker.scan_documents": "3"}
    orders = harness.databases.raw.orders
    keys = [UUID(int=number) for number in range(10)]
    orders.insert_many([{"_id": key, "customer": key, "skus": ["a"]} for key in keys])
    harness.catch_up()
    harness.assert_equal()
    orders.update_one({"_id": keys[0]}, {"$set": {"skus": ["b", "c"]}})
    orders.delete_one({"_id": keys[1]})
    harness.catch_up()
    harness.assert_equal()


def test_a_uuid_that_is_none(harness: Harness) -> None:
    """Binary of the UUIDs' subtype with another length is a value like any other, in the stream and in a scan."""
    harness.databases.raw.orders.insert_one({"_id": 1, "customer": Binary(b"short", 4), "skus": ["a"]})
    harness.catch_up()
    odd = Binary(b"", 4)
    harness.databases.raw.orders.insert_many([{"_id": odd, "customer": odd}, {"_id": 2, "customer": "c"}])
    harness.databases.raw.orders.update_one({"_id": 1}, {"$set": {"skus": ["b"]}})
    harness.catch_up()
    derived = harness.databases.client.get_database(harness.databases.derived.name)
    found = {bytes(each["customer"]) for each in derived.orders_by_customer.find() if each["_id"] != 2}
    assert found == {b"short", b""}
    assert harness.databases.state.dead_letters.count_documents({}) == 0
    assert [each["sku"] for each in harness.databases.derived.order_lines.find()] == ["b"]
