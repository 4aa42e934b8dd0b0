"""What is kept and told of documents: neither the log nor a dead letter has a field's value that nobody asked for."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bson import json_util

from distributary.store.letters import LETTERS
from distributary.store.outbox import OUTBOX
from tests.conftest import Client, Databases
from tests.faulty import FaultyPubSub, faulty
from tests.harness import Harness
from tests.pubsub import PROJECT

#: What a field holds, what a key holds, and a password.
VALUE, KEY, PASSWORD = "Zz81Value", "Zz82Key", "Zz83Password"

MODULE = """
    from time import sleep

    from distributary import DerivedCollection, Publish, Rollup, transform, trigger

    views = DerivedCollection("views", publish="VIEW")
    numbers = Rollup("numbers", over=views, by="group", compute={"sum": {"$sum": {"$toInt": "$number"}}})
    emails = DerivedCollection("emails")

    class Unhappy(Exception):
        def __init__(self, text):
            super().__init__(f"unhappy with {text}")

    class Gone(BaseException):
        pass

    FAULTS = {
        "key": lambda text: {}[text],
        "number": float,
        "own": lambda text: exec("raise Unhappy(text)", globals(), {"text": text}),
        "noted": lambda text: exec("raise TypeError('no') from ValueError(text)", {"text": text}),
        "group": lambda text: exec("raise ExceptionGroup('g', [ValueError(text)])", {"text": text}),
    }

    @transform("orders")
    def orders(order):
        kind, text = order["kind"], order["text"]
        if kind in FAULTS:
            FAULTS[kind](text)
        elif kind == "no record":
            yield {"text": text}
        elif kind == "no BSON":
            yield views.record(order["_id"], {"text": [text, {text}]})
        elif kind == "email":
            yield emails.record(order["_id"], {"email": text})
        elif kind == "gone":
            raise Gone(text)
        elif kind == "slow":
            sleep(3)
        else:
            yield views.record(order["_id"], {"text": text, "group": text, "number": order.get("number", 1)})

    @trigger("orders", operations=["insert"])
    def told(change):
        if change.document["kind"] == "triggered":
            raise ValueError(f"not told of {change.document['text']}")
        if change.document["kind"] == "no effect":
            yield change.document
        if change.document["kind"] == "message":
            yield Publish("EVENTS", {"text": change.document["text"]})
"""

#: Kinds of documents that are parked for the transform or the trigger.
PARKED = ["key", "number", "own", "noted", "group", "no record", "no BSON", "email", "triggered", "no effect"]


@pytest.fixture
def service() -> Iterator[FaultyPubSub]:
    """Give a Pub/Sub that takes no event with the value in it, and says so with the value."""
    with faulty(*(f"projects/{PROJECT}/topics/{name}" for name in ("VIEW", "EVENTS"))) as service:
        service.refuses = lambda message: VALUE.encode() in message.data
        yield service


@pytest.fixture
def harness(databases: Databases, tmp_path: Path, service: FaultyPubSub, admin: Client) -> Iterator[Harness]:
    """Give a worker with a password, and documents of which much goes wrong."""
    assert service.topics
    user = databases.raw.name
    admin.admin.command("createUser", user, pwd=PASSWORD, roles=["root"])
    harness = Harness(databases, tmp_path / "modules", {"orders": MODULE})
    uri = re.sub("//([^/@]*@)?", f"//{user}:{PASSWORD}@", databases.uri, count=1)
    harness.settings = {
        "source.uri": f"{uri}&authSource=admin&serverSelectionTimeoutMS=3000",
        "pubsub.project": PROJECT,
        "worker.slow_transform_seconds": "0.3",
        "dead_letters.max_in_window": "0",
    }
    databases.derived.emails.create_index("email", unique=True)
    databases.derived.emails.insert_one({"_id": "by hand", "email": VALUE})
    harness.catch_up()
    kinds = [*PARKED, "slow", "message", "fine"]
    databases.raw.orders.insert_many(
        [{"_id": f"{KEY}-{kind}", "kind": kind, "text": VALUE} for kind in kinds]
    )
    databases.raw.orders.insert_one({"_id": 1, "kind": "fine", "text": f"{VALUE} 2", "number": VALUE})
    yield harness
    admin.admin.command("dropUser", user)


def ran(harness: Harness, *arguments: str, **settings: str) -> tuple[int, str, str]:
    """Run a verb, and give its exit code, its answer and its log."""
    before = harness.settings
    harness.settings = {**before, **{name.replace("__", "."): value for name, value in settings.items()}}
    try:
        with harness.process(*arguments, stdout=-1, stderr=-1) as process:
            out, err = process.communicate(timeout=90)
    finally:
        harness.settings = before
    return process.returncode, out, err


def stored(harness: Harness, collection: str, *left_out: str) -> str:
    """Give what lies in a collection of the state database as text, without some fields."""
    found: list[Any] = list(harness.databases.state[collection].find({}, dict.fromkeys(left_out, 0)))
    return str(json_util.dumps(found))


def _state_has_keys_and_errors(harness: Harness) -> None:
    """Fail unless letters tell what went wrong and where, and only what is done again as it was has its content."""
    letters = list(harness.databases.state[LETTERS].find())
    documents = {f"{KEY}-{kind}" for kind in PARKED}
    assert {each["key"]["key"] if each["change"] else each["key"] for each in letters} >= documents
    assert VALUE not in stored(harness, LETTERS, "change")
    assert VALUE in stored(harness, LETTERS)  # the change of a trigger
    assert VALUE not in stored(harness, OUTBOX, "data")
    assert {each["refused"] for each in harness.databases.state[OUTBOX].find()} == {"INVALID_ARGUMENT: …"}
    reasons = {each["key"]: each["reason"] for each in letters if not each["change"]}
    assert reasons[f"{KEY}-own"] == "Unhappy: unhappy with …"
    assert reasons[f"{KEY}-number"] == "ValueError: could not convert string to float: '…'"
    assert reasons[f"{KEY}-email"].endswith("index: email_1")
    assert "Failed to parse number …" in reasons[1]


@pytest.mark.parametrize("form", ["text", "json"])
def test_neither_log_nor_state_has_values_or_secrets(harness: Harness, form: str) -> None:
    """Whatever fails: transforms, records, triggers, groups of rollups, messages; and whatever takes long."""
    code, out, log = ran(harness, "run", "--until-caught-up", log__format=form)
    assert (code, out) == (0, "")
    for action in ("a transform takes long", "event refused", "tailing", "caught up"):
        assert action in log
    for hidden in (VALUE, KEY, PASSWORD):
        assert hidden not in log
    if form == "json":
        assert all({"at", "level", "action"} <= json.loads(line).keys() for line in log.splitlines())
    _state_has_keys_and_errors(harness)


def test_what_was_asked_for_has_the_values(harness: Harness) -> None:
    """With `log.values` lines name the key of a document; with `dead_letters.values` letters quote in full."""
    _, _, log = ran(harness, "run", "--until-caught-up", log__values="true", dead_letters__values="true")
    assert f"{KEY}-slow" in log
    assert PASSWORD not in log
    letters = list(harness.databases.state[LETTERS].find({"change": None}))
    assert len(letters) == len(PARKED) - 1
    assert [each for each in letters if VALUE not in each["reason"] + each["traceback"]] == []
    assert VALUE in stored(harness, OUTBOX, "data")


def test_a_worker_that_stops_says_why_without_values(harness: Harness) -> None:
    """The breaker, and an exception that nobody expected, end it with 1; the traceback names the line."""
    code, _, log = ran(harness, "run", dead_letters__max_in_window="1", dead_letters__window="10")
    assert code == 1
    assert "could not be derived" in log
    harness.databases.raw.orders.delete_many({})
    harness.databases.raw.orders.insert_one({"_id": f"{KEY}-gone", "kind": "gone", "text": VALUE})
    code, _, crash = ran(harness, "run")
    assert code == 1
    assert "unexpected Gone" in crash
    assert "raise Gone(text)" in crash
    for hidden in (VALUE, KEY, PASSWORD):
        assert hidden not in log + crash


def test_no_answer_has_a_password(harness: Harness) -> None:
    """Not `status`, not `check`, and not what is said of a user that MongoDB refuses; `status` has no values either."""
    harness.databases.raw.orders.delete_one({"kind": "slow"})
    ran(harness, "run", "--until-caught-up")
    wrong = harness.environment["DISTRIBUTARY_SOURCE__URI"].replace(PASSWORD, f"{PASSWORD}wrong")
    told = [
        ran(harness, "status", "--json"),
        ran(harness, "status"),
        ran(harness, "check"),
        ran(harness, "run", source__uri=wrong),
        ran(harness, "run", source__uri=wrong.replace("mongodb:", "mongo:")),
        ran(harness, "run", source__uri=f"{wrong}&replicaSet="),
    ]
    assert [code for code, _, _ in told] == [0, 0, 0, 3, 2, 3]
    assert PASSWORD not in "".join(out + err for _, out, err in told)
    assert VALUE not in "".join(out + err for _, out, err in told[:2])
