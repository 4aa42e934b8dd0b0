"""Dead letters: what cannot be derived is parked with all that is known of it, and shown."""

import json
import os
from dataclasses import replace
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

import pytest
from bson import ObjectId

from distributary.errors import Failed
from distributary.operate.dead_letters import listing, one
from distributary.state import LetterKind
from tests.conftest import Databases, eventually
from tests.harness import Harness

CODES = """
    from distributary import DerivedCollection, transform

    codes = DerivedCollection("codes")

    @transform("orders")
    def coded(order):
        if order.get("bad"):
            raise ValueError(f"bad order {order['_id']}")
        yield codes.record(order["code"], {"order": order["_id"]})
"""


@pytest.fixture
def harness(databases: Databases, tmp_path: Path) -> Harness:
    """Give a worker that fails for bad orders and lets two orders contest a code."""
    return Harness(databases, tmp_path / "modules", {"coded": CODES})


@pytest.fixture
def parked(harness: Harness) -> Harness:
    """Give a worker that parked order 1, which is bad, and order 3, which has the code of order 2."""
    orders = harness.databases.raw.orders
    orders.insert_many([{"_id": 1, "bad": True}, {"_id": 2, "code": "a"}, {"_id": 3, "code": "a"}])
    harness.catch_up()
    return harness


def answer(harness: Harness, *arguments: str) -> Any:
    """Give what a verb says in JSON."""
    with harness.process("dead-letters", *arguments, "--json", stdout=PIPE) as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return json.loads(out)


def page(harness: Harness, *arguments: str) -> str:
    """Give what a verb says to a person."""
    with harness.process("dead-letters", *arguments, stdout=PIPE) as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return out


def test_list_names_each_parked_document(parked: Harness) -> None:
    """Transform, key, kind and reason are there, and the number of all."""
    found = answer(parked, "list")
    letters = {each["key"]: each for each in found["letters"]}
    assert (found["schema"], found["total"], set(letters)) == (1, 2, {1, 3})
    assert (letters[1]["transform"], letters[1]["kind"]) == ("coded", "failed")
    assert letters[1]["reason"] == "ValueError: bad order …"
    assert (letters[3]["kind"], letters[3]["waits_for"]) == ("contested", {"collection": "codes", "key": "a"})


def test_list_filters_and_says_how_many_more_there_are(parked: Harness) -> None:
    """`--transform` and `--kind` choose, `--limit` bounds what is shown and not what is counted."""
    state = parked.databases.state
    assert listing(state, "no such", None, 10).total == 0
    assert [each.letter.key for each in listing(state, "coded", LetterKind.CONTESTED, 10).letters] == [3]
    out = page(parked, "list", "--limit", "1")
    assert len(out.splitlines()) == 3
    assert "1 of 2" in out


def test_an_empty_list_is_said(harness: Harness) -> None:
    """Nothing parked is an answer."""
    assert page(harness, "list") == "No dead letters.\n"


def test_show_tells_everything_and_what_to_do(parked: Harness) -> None:
    """Error, traceback, position, attempts, fingerprint and times are shown under the id that `list` gave."""
    (letter,) = answer(parked, "list", "--kind", "failed")["letters"]
    shown = answer(parked, "show", letter["id"])["letter"]
    assert shown == letter
    assert shown["position"]["token"].startswith("82")
    assert shown["attempts"] == 1
    assert shown["first_at"] == shown["last_at"]
    assert shown["fingerprint"] == parked.registry.transforms["coded"].fingerprint
    assert "coded.py" in shown["traceback"]
    text = page(parked, "show", letter["id"])
    assert "bad order …" in text
    assert "Traceback" in text
    assert "distributary dead-letters retry" in text


def test_show_names_what_a_contested_document_waits_for(parked: Harness) -> None:
    """The record that another document owns is named."""
    (letter,) = answer(parked, "list", "--kind", "contested")["letters"]
    text = page(parked, "show", letter["id"])
    assert 'codes "a"' in text
    assert "owns" in text


def test_an_id_is_short_and_stays(parked: Harness) -> None:
    """A document that fails again keeps its id and its first time, and counts one more attempt."""
    before = listing(parked.databases.state, None, LetterKind.FAILED, 1).letters[0]
    parked.databases.raw.orders.update_one({"_id": 1}, {"$set": {"again": 1}})
    parked.catch_up()
    after = one(parked.databases.state, before.id)
    assert len(after.id) == 12
    assert (after.attempts, after.first_at) == (2, before.first_at)
    assert after.last_at > before.last_at


def test_an_unknown_id_is_refused_with_a_cure(parked: Harness) -> None:
    """It may have been resolved meanwhile; `list` is the way on."""
    with pytest.raises(Failed, match="dead-letters list"):
        one(parked.databases.state, "0123456789ab")


def test_a_later_success_resolves_the_letter(parked: Harness) -> None:
    """A corrected document is derived and its letter is gone; so is a contested one when the owner leaves."""
    orders = parked.databases.raw.orders
    orders.update_one({"_id": 1}, {"$unset": {"bad": 1}, "$set": {"code": "b"}})
    orders.delete_one({"_id": 2})
    parked.catch_up()
    assert listing(parked.databases.state, None, None, 10).total == 0
    parked.assert_equal()


def test_a_document_that_turns_bad_keeps_its_records(harness: Harness) -> None:
    """What was derived before stays until the document can be derived again."""
    orders = harness.databases.raw.orders
    orders.insert_one({"_id": 1, "code": "a"})
    harness.catch_up()
    before = list(harness.databases.derived.codes.find())
    orders.update_one({"_id": 1}, {"$set": {"bad": True}})
    harness.catch_up()
    assert list(harness.databases.derived.codes.find()) == before
    assert listing(harness.databases.state, None, None, 10).total == 1


def test_a_reason_that_quotes_a_huge_document_is_cut(harness: Harness) -> None:
    """A letter never grows over MongoDB's limit, whatever an exception says."""
    harness.write({"coded": CODES.replace("bad order {order['_id']}", "{order}")})
    harness.databases.raw.orders.insert_one({"_id": ObjectId(), "bad": True, "text": "x" * 9_000_000})
    harness.catch_up()
    (stored,) = listing(harness.databases.state, None, None, 10).letters
    assert len(stored.letter.reason) < 10_000
    assert len(stored.letter.traceback) < 100_000


# --- retry ------------------------------------------------------------------------------------------------------


def retried(harness: Harness, *arguments: str, code: int) -> str:
    """Give what `retry` says."""
    with harness.process("dead-letters", "retry", *arguments, stdout=PIPE, stderr=PIPE) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    return out or err


def corrected(harness: Harness) -> None:
    """Correct the transform, without anything that would derive the parked document by itself."""
    harness.write(
        {
            "coded": CODES.replace('if order.get("bad")', "if False").replace(
                'order["code"]', 'order.get("code", "b")'
            )
        }
    )


@pytest.mark.parametrize("alive", [True, False], ids=["beside a worker", "without one"])
def test_a_retry_derives_what_can_be_derived_now(parked: Harness, alive: bool) -> None:  # noqa: FBT001
    """The corrected one is derived, the contested one stays, and the answer names it."""
    corrected(parked)
    if alive:
        with parked.running() as worker:
            eventually(lambda: (found := worker.holder()) is not None and found.alive)
            said = retried(parked, "--all", code=1)
    else:
        said = retried(parked, "--all", code=1)
    assert "2 tried, 1 resolved, 1 still parked" in said
    assert "coded 3: yields codes" in said
    assert parked.databases.derived.codes.find_one({"_id": "b"}, {"order": 1}) == {"_id": "b", "order": 1}


def test_a_retry_by_id_and_by_kind(parked: Harness) -> None:
    """Only those that are chosen are tried; none that is left over ends with 0."""
    ids = {each["key"]: each["id"] for each in answer(parked, "list")["letters"]}
    assert "1 tried, 0 resolved, 1 still parked" in retried(parked, ids[1], code=1)
    corrected(parked)
    assert "1 tried, 0 resolved" in retried(parked, "--kind", "contested", code=1)
    assert "1 tried, 1 resolved, 0 still parked" in retried(parked, ids[1], code=0)
    assert "0 tried" in retried(parked, "--kind", "failed", code=0)


def test_a_document_that_is_gone_is_parked_no_more(parked: Harness) -> None:
    """A retry reads the document as it is now, so what was deleted unseen leaves nothing behind."""
    parked.databases.raw.orders.delete_one({"_id": 1})
    assert "1 tried, 1 resolved, 0 still parked" in retried(parked, "--kind", "failed", code=0)
    assert parked.databases.state.dead_letters.count_documents({}) == 1


def test_a_retry_says_what_it_needs(parked: Harness) -> None:
    """Nothing chosen is a usage error, an unknown id a failure; neither tries anything."""
    assert "Give the ids" in retried(parked, code=2)
    assert "There is no dead letter 'abc'" in retried(parked, "abc", code=1)
    assert "--transform" in retried(parked, "--transform", "codde", code=2)


# --- discard ----------------------------------------------------------------------------------------------------


def discarded(harness: Harness, *arguments: str, code: int = 0) -> str:
    """Give what `discard` says, without a terminal to ask on."""
    options = {"stdin": DEVNULL, "stdout": PIPE, "stderr": PIPE}
    with harness.process("dead-letters", "discard", *arguments, **options) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    return out + err


def parked_keys(harness: Harness) -> list[Any]:
    """Give the keys of the documents that are parked."""
    return sorted(each.letter.key for each in listing(harness.databases.state, None, None, 0).letters)


def verified(harness: Harness) -> Any:
    """Give what `verify` finds."""
    with harness.process("verify", "--json", stdout=PIPE) as process:
        out, _ = process.communicate(timeout=100)
    return json.loads(out)


def test_a_discard_says_what_becomes_of_the_documents(parked: Harness) -> None:
    """Each document is named, and per kind what follows; then the letters are gone, and records as they were."""
    before = list(parked.databases.derived.codes.find())
    out = discarded(parked, "--all", "--yes")
    assert "coded 1: ValueError: bad order …" in out
    assert "1 failed: left underived" in out
    assert "1 contested: no longer derived by itself" in out
    assert out.endswith("2 discarded\n")
    assert parked_keys(parked) == []
    assert list(parked.databases.derived.codes.find()) == before
    assert discarded(parked, "--all", "--yes") == "No dead letters to discard.\n"


def test_verify_finds_what_was_discarded(parked: Harness) -> None:
    """A document that cannot be derived is failing, and a contested one differs, as the warning says."""
    assert (verified(parked)["failing"], verified(parked)["stale"]) == (0, 0)
    discarded(parked, "--all", "--yes")
    found = verified(parked)
    assert (found["failing"], found["stale"], found["parked"], found["contested"]) == (1, 1, 0, 0)


def test_a_discard_by_id_kind_and_transform(parked: Harness) -> None:
    """Only those that are chosen are discarded, also of a transform that is not plugged in any more."""
    (letter,) = answer(parked, "list", "--kind", "failed")["letters"]
    said = json.loads(discarded(parked, letter["id"], "--yes", "--json"))
    assert (said["discarded"], [each["key"] for each in said["letters"]]) == (1, [1])
    assert parked_keys(parked) == [3]
    assert "No dead letters to discard." in discarded(parked, "--kind", "failed", "--yes")
    parked.write({"coded": CODES.replace("def coded", "def renamed")})
    assert "1 discarded" in discarded(parked, "--transform", "coded", "--yes")
    assert parked_keys(parked) == []


def test_a_discard_says_what_it_needs(parked: Harness) -> None:
    """Nothing chosen, nobody to ask and an unknown transform end with 2, an unknown id with 1; nothing goes."""
    assert "Give the ids" in discarded(parked, "--yes", code=2)
    assert "give --yes" in discarded(parked, "--all", code=2)
    assert "coded 1: ValueError" in discarded(parked, "--all", code=2)
    assert "--yes" in discarded(parked, "--all", "--json", code=2)
    assert "Did you mean 'coded'" in discarded(parked, "--transform", "codde", "--yes", code=2)
    assert "There is no dead letter 'abc'" in discarded(parked, "abc", "--yes", code=1)
    assert parked_keys(parked) == [1, 3]


@pytest.mark.parametrize(("reply", "left"), [("y", []), ("n", [1, 3])])
def test_a_discard_asks_on_a_terminal(parked: Harness, reply: str, left: list[int]) -> None:
    """The effect is shown before the question; only a yes discards."""
    ours, theirs = os.openpty()
    with parked.process("dead-letters", "discard", "--all", stdin=theirs, stdout=PIPE) as process:
        os.write(ours, f"{reply}\n".encode())
        out, _ = process.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    assert out.index("bad order …") < out.index("Discard 2 dead letters?")
    assert process.returncode == bool(left)
    assert parked_keys(parked) == left


def test_another_worker_s_letter_is_not_discarded(parked: Harness) -> None:
    """An id of another worker is refused, and `--all` means this worker's."""
    (letter,) = answer(parked, "list", "--kind", "failed")["letters"]
    other = replace(parked, settings={"worker.name": "other"})
    assert "belongs to worker 'default'" in discarded(other, letter["id"], "--yes", code=1)
    assert discarded(other, "--all", "--yes") == "No dead letters to discard.\n"
    assert parked_keys(parked) == [1, 3]


def test_a_running_worker_goes_on_without_what_was_discarded(parked: Harness) -> None:
    """It parks the document anew when it changes and fails again, and derives it when it can."""
    orders, state = parked.databases.raw.orders, parked.databases.state
    with parked.running() as worker:
        eventually(lambda: (found := worker.holder()) is not None and found.alive)
        orders.insert_one({"_id": 4, "code": "d"})
        eventually(lambda: parked.databases.derived.codes.find_one({"_id": "d"}))
        discarded(parked, "--all", "--yes")
        orders.update_one({"_id": 1}, {"$set": {"again": 1}})
        eventually(lambda: parked_keys(parked) == [1])
        (letter,) = listing(state, None, None, 0).letters
        assert letter.attempts == 1
        discarded(parked, "--all", "--yes")
        orders.delete_one({"_id": 2})
        orders.update_one({"_id": 1}, {"$set": {"bad": False, "code": "b"}})
        orders.update_one({"_id": 3}, {"$set": {"again": 1}})
        eventually(lambda: {each["_id"] for each in parked.databases.derived.codes.find()} == {"a", "b", "d"})
        eventually(lambda: parked_keys(parked) == [])
    parked.assert_equal()


def test_nobody_waits_for_a_contest_that_was_discarded(harness: Harness) -> None:
    """A running worker that remembers a discarded contest does not try again and again who waits behind it."""
    orders, state = harness.databases.raw.orders, harness.databases.state
    orders.insert_many([{"_id": 1, "code": "a"}, {"_id": 2, "code": "b"}])
    harness.catch_up()
    with harness.running():
        orders.update_one({"_id": 2}, {"$set": {"code": "a"}})
        eventually(lambda: parked_keys(harness) == [2])
        orders.insert_one({"_id": 3, "code": "b"})
        eventually(lambda: parked_keys(harness) == [2, 3])
        eventually(lambda: not any(each.letter.due for each in listing(state, None, None, 0).letters))
        third, second = sorted(listing(state, None, None, 0).letters, key=lambda each: -each.letter.key)
        discarded(harness, second.id, "--yes")
        orders.update_one({"_id": 3}, {"$set": {"again": 1}})
        eventually(lambda: one(state, third.id).attempts > third.attempts)
        eventually(lambda: not one(state, third.id).letter.due)
        assert one(state, third.id).attempts == third.attempts + 1
