"""`replay`: what changed in a part of the history is derived again, from its current state."""

import json
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from distributary.change import Position
from tests.conftest import Databases, eventually
from tests.harness import Harness

CODE = """
    from distributary import DerivedCollection, transform

    codes = DerivedCollection("codes")
    names = DerivedCollection("names")

    @transform("orders")
    def coded(order):
        if order["code"] != "none":
            yield codes.record(order["code"], {"order": order["_id"], "form": "old"})

    @transform("customers")
    def named(customer):
        yield names.record(customer["_id"], {"name": customer["name"]})
"""


@pytest.fixture
def harness(databases: Databases, tmp_path: Path) -> Harness:
    """Give a worker that has derived some orders and a customer."""
    made = Harness(databases, tmp_path / "modules", {"orders": CODE})
    databases.raw.orders.insert_many([{"_id": number, "code": f"c{number}"} for number in range(20)])
    databases.raw.customers.insert_one({"_id": "a", "name": "Ann"})
    made.catch_up()
    return made


def replay(harness: Harness, *arguments: str, code: int = 0) -> str:
    """Give what the verb says."""
    with harness.process("replay", *arguments, stdout=PIPE, stderr=PIPE) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == code, out + err
    return out if code == 0 else err


def position(harness: Harness) -> Position:
    """Give the worker's position."""
    with harness.assembled() as assembled:
        checkpoint = assembled.checkpoint()
    assert checkpoint is not None
    return checkpoint.position


def change(harness: Harness) -> None:
    """Change some orders after the bug came in: move keys, delete, insert."""
    orders = harness.databases.raw.orders
    orders.update_one({"_id": 1}, {"$set": {"code": "m1"}})
    orders.update_one({"_id": 1}, {"$set": {"code": "m1b"}})
    orders.update_one({"_id": 2}, {"$set": {"code": "none"}})
    orders.delete_one({"_id": 3})
    orders.insert_one({"_id": 100, "code": "c100"})
    harness.catch_up()


def forms(harness: Harness) -> dict[Any, str]:
    """Give the code's version of each record, by its order."""
    return {each["order"]: each["form"] for each in harness.databases.derived.codes.find()}


@pytest.mark.parametrize("alive", [True, False], ids=["beside a worker", "without one"])
def test_what_changed_is_derived_again(harness: Harness, alive: bool) -> None:  # noqa: FBT001 - a parameter
    """After a bug is mended, what changed since it came in is as the mended code has it; the rest stays."""
    since = position(harness)
    change(harness)
    harness.write({"orders": CODE.replace('"old"', '"new"')})
    if alive:
        with harness.running() as worker:
            eventually(lambda: (found := worker.holder()) is not None and found.alive)
            answer = json.loads(replay(harness, "--from", since.token, "--json"))
    else:
        answer = json.loads(replay(harness, "--from", since.token, "--json"))
    assert answer["documents"] == 4
    assert answer["written"] == 2
    found = forms(harness)
    assert {order for order, form in found.items() if form == "new"} == {1, 100}
    assert len(found) == 19


def test_the_position_stays(harness: Harness) -> None:
    """A replay is not a jump: the worker goes on where it was."""
    since = position(harness)
    change(harness)
    before = position(harness)
    replay(harness, "--from", since.token)
    assert position(harness).time >= before.time
    harness.catch_up()
    harness.assert_equal()


def test_it_ends_where_it_is_told(harness: Harness) -> None:
    """`--to` leaves out what changed later; `--transform` what others read."""
    since = position(harness)
    change(harness)
    until = position(harness)
    harness.databases.raw.orders.update_one({"_id": 5}, {"$set": {"code": "later"}})
    harness.databases.raw.customers.update_one({"_id": "a"}, {"$set": {"name": "Anna"}})
    harness.catch_up()
    harness.databases.derived.codes.delete_many({})
    said = replay(harness, "--from", since.token, "--to", until.token, "--transform", "coded")
    assert "through coded: 4 documents, 2 records written" in said
    assert set(forms(harness)) == {1, 100}


def test_a_dry_run_tells_and_writes_nothing(harness: Harness) -> None:
    """What would be written, changed and removed is counted by collection and shown, and stays as it is."""
    since = position(harness)
    change(harness)
    derived = harness.databases.derived
    derived.codes.delete_one({"_id": "m1b"})
    derived.codes.update_one({"_id": "c100"}, {"$set": {"form": "by hand"}})
    kept = derived.codes.find_one({"_id": "c7"})
    assert kept is not None
    derived.codes.insert_one({**kept, "_id": "c2", "_src": {**kept["_src"], "key": 2}})
    before = list(derived.codes.find().sort("_id", 1))
    answer = json.loads(replay(harness, "--from", since.token, "--dry-run", "--json"))
    assert answer["changes"] == 5
    assert answer["documents"] == 4
    assert answer["collections"] == {"codes": {"write": 1, "change": 1, "remove": 1}}
    assert {(each["effect"], each["key"]) for each in answer["samples"]} == {
        ("write", "m1b"),
        ("change", "c100"),
        ("remove", "c2"),
    }
    said = replay(harness, "--from", since.token, "--dry-run")
    assert "codes: 1 to write, 1 to change, 1 to remove" in said
    assert "Nothing was written." in said
    assert list(derived.codes.find().sort("_id", 1)) == before
    assert harness.databases.state.jobs.count_documents({"kind": "replay"}) == 0


@pytest.mark.parametrize("since", ["-1h", "oldest"])
def test_from_a_duration_or_the_oldest(harness: Harness, since: str) -> None:
    """All that the history has is derived again; documents whose records were lost have them again."""
    harness.databases.derived.codes.delete_many({})
    if since == "-1h":  # a server that is younger than that has no such time
        said = replay(harness, "--from", since, code=4)
        assert "does not reach back" in said
        assert "`oldest`" in said
        return
    replay(harness, "--from", since)
    harness.assert_equal()


def test_a_token_that_is_too_old(harness: Harness) -> None:
    """It says what the oldest is, and what to run instead; nothing is asked for."""
    old = "82" + "00000001" + "00000001" + "2B0229296E04"
    said = replay(harness, "--from", old, code=4)
    assert "oldest operation is of" in said
    assert harness.databases.state.jobs.count_documents({"kind": "replay"}) == 0


def test_an_end_before_the_beginning(harness: Harness) -> None:
    """It is refused."""
    said = replay(harness, "--from", "now", "--to", "oldest", code=2)
    assert "lies before --from" in said


def test_nothing_that_was_deleted_comes_back(harness: Harness) -> None:
    """Not even for a moment: a document that was inserted and deleted in that time yields nothing."""
    since = position(harness)
    orders = harness.databases.raw.orders
    for number in range(200, 260):
        orders.insert_one({"_id": number, "code": f"c{number}"})
    orders.delete_many({"_id": {"$gte": 200}})
    harness.catch_up()
    stream = harness.databases.derived.codes.watch([{"$match": {"operationType": "insert"}}])
    replay(harness, "--from", since.token)
    harness.databases.derived.codes.insert_one({"_id": "end"})
    assert stream.next()["documentKey"]["_id"] == "end"
    stream.close()
