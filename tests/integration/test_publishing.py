"""What a worker publishes, through Google's emulator."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import Any

import grpc
import pytest
from bson import Binary, json_util
from pymongo import UpdateOne

from distributary.assemble import Assembled
from distributary.events.envelope import Message
from distributary.operate.positions import mark_of
from distributary.operate.replay import replay
from distributary.ports.events import Sent
from distributary.store import outbox as store_outbox
from distributary.store.jobs import Jobs
from tests.conftest import Databases, eventually
from tests.faulty import Fault, FaultyPubSub, faulty
from tests.harness import Harness
from tests.pubsub import PROJECT, Emulator, Received, emulating

MODULE = """
    from distributary import DerivedCollection, Publish, transform, trigger

    lines = DerivedCollection("lines", publish="LINES")
    customer = DerivedCollection("customer", publish="CUSTOMER")
    silent = DerivedCollection("silent")

    @transform("orders")
    def orders(order):
        yield silent.record(order["_id"], {"of": order["customer"]})
        for number, sku in enumerate(order["skus"]):
            yield lines.record({"order": order["_id"], "line": number}, {"sku": sku})
        yield customer.item(order["customer"], "orders", order["_id"], {"skus": len(order["skus"])})

    @transform("users")
    def users(user):
        yield customer.section(user["_id"], "profile", {"name": user["name"]})

    @trigger("orders", operations=["delete"])
    def undone(change):
        yield Publish("EVENTS", {"order": change.key}, ordering_key=str(change.key))
"""


def event_of(message: Received) -> dict[str, Any]:
    """Read a message as a CloudEvent in structured mode."""
    event: dict[str, Any] = json.loads(message.data)
    assert event["specversion"] == "1.0"
    return event


def applied(messages: list[Received]) -> dict[Any, Any]:
    """Give what somebody has who applies the events of one collection, the key as text."""
    found: dict[str, Any] = {}
    for event in map(event_of, messages):
        if event["type"] == "distributary.record.deleted":
            found.pop(event["recordkey"], None)
        else:
            found[event["recordkey"]] = json_util.loads(json.dumps(event["data"]))
    return found


def stored(databases: Databases, name: str) -> dict[Any, Any]:
    """Give a derived collection in the same form."""
    found = {}
    for each in databases.derived[name].find({}, {"_src": 0}):
        key = json_util.dumps(each["_id"], json_options=json_util.CANONICAL_JSON_OPTIONS)
        found[key.replace(": ", ":").replace(", ", ",")] = each
    return found


def equal_to(databases: Databases, name: str, messages: list[Received]) -> bool:
    """Whether who applies the messages has what is stored."""
    return applied(messages) == stored(databases, name) != {}


def has_arrived(service: FaultyPubSub, databases: Databases, name: str) -> bool:
    """Whether the service has what is stored."""
    return equal_to(databases, name, service.of(name.upper()))


class Topics:
    """Topics that only this test has, and what arrives there."""

    def __init__(self, emulator: Emulator) -> None:
        self.names = {name: emulator.topic() for name in ("LINES", "CUSTOMER", "EVENTS")}
        self.of = {name: emulator.subscribe(topic) for name, topic in self.names.items()}

    def within(self, code: str) -> str:
        """Give code with the topics' names."""
        for name, topic in self.names.items():
            code = code.replace(f'"{name}"', f'"{topic}"')
        return code


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """Give an emulator of the module's own."""
    with emulating(tmp_path_factory.mktemp("emulator")) as running:
        yield running


@pytest.fixture
def topics(emulator: Emulator) -> Topics:
    """Give fresh topics."""
    return Topics(emulator)


@pytest.fixture
def harness(databases: Databases, tmp_path: Path, topics: Topics) -> Harness:
    """Give a worker that publishes."""
    modules = {"orders": topics.within(MODULE)}
    return Harness(databases, tmp_path / "transformers", modules, {"pubsub.project": PROJECT})


def order(number: int, customer: str = "C1", *skus: str) -> dict[str, Any]:
    """Give a raw order."""
    return {"_id": number, "customer": customer, "skus": list(skus)}


def test_every_change_of_a_published_collection_arrives(
    harness: Harness, topics: Topics, databases: Databases
) -> None:
    """Who applies the events has what is derived: backfilled, changed, moved and removed, records and shared ones."""
    orders = databases.raw["orders"]
    orders.insert_many([order(1, "C1", "a", "b"), order(2, "C2", "c")])
    databases.raw["users"].insert_one({"_id": "C1", "name": "Ada"})
    harness.catch_up()
    with harness.running():
        orders.update_one({"_id": 1}, {"$set": {"skus": ["b"], "customer": "C3"}})
        orders.insert_one(order(3, "C1", "x"))
        orders.delete_one({"_id": 2})
        eventually(lambda: set(stored(databases, "customer")) == {'"C1"', '"C3"'})
        for name in ("lines", "customer"):
            topics.of[name.upper()].until(partial(equal_to, databases, name))
    (undone,) = topics.of["EVENTS"].until(len)
    assert (event_of(undone)["data"], undone.ordering_key) == ({"order": 2}, "2")


def test_nothing_waits_once_a_worker_has_caught_up(
    harness: Harness, topics: Topics, databases: Databases
) -> None:
    """`--until-caught-up` ends when everything is confirmed, and what is not published is not kept."""
    databases.raw["orders"].insert_many([order(number, "C", "a") for number in range(300)])
    harness.catch_up()
    assert databases.state["outbox"].count_documents({}) == 0
    assert len(topics.of["LINES"].until(lambda got: len(got) >= 300)) == 300


def test_what_does_not_change_is_not_published(
    harness: Harness, topics: Topics, databases: Databases
) -> None:
    """A document that yields the same again tells nobody anything."""
    databases.raw["orders"].insert_one(order(1, "C1", "a"))
    harness.catch_up()
    databases.raw["orders"].update_one({"_id": 1}, {"$set": {"other": 1}})
    databases.raw["orders"].insert_one(order(2, "C1", "b"))
    harness.catch_up()
    lines = topics.of["LINES"].until(lambda got: len(got) >= 2)
    assert [event_of(each)["data"]["sku"] for each in lines] == ["a", "b"]


def run(harness: Harness, *arguments: str) -> str:
    """Run a verb, and give what it says."""
    process = harness.process(*arguments, stdout=PIPE)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    return str(said)


def test_replays_publish_nothing_unless_they_are_asked(
    harness: Harness, topics: Topics, databases: Databases
) -> None:
    """When they are, each record comes under the id that it had the first time."""
    databases.raw["orders"].insert_many([order(number, "C", "a") for number in range(3)])
    harness.catch_up()
    first = list(topics.of["LINES"].until(lambda got: len(got) >= 3))
    databases.raw["orders"].update_one({"_id": 0}, {"$set": {"skus": ["changed"]}})
    harness.catch_up()
    topics.of["LINES"].until(lambda got: len(got) >= 4)
    run(harness, "replay", "--from", "oldest")
    run(harness, "replay", "--from", "oldest", "--publish")
    again = topics.of["LINES"].until(lambda got: len(got) >= 7)[4:]
    ids = {
        event_of(each)["subject"]: event_of(each)["id"] for each in [*first, *topics.of["LINES"].received[:4]]
    }
    assert {event_of(each)["subject"]: event_of(each)["id"] for each in again} == ids


def test_all_records_are_published_on_request(harness: Harness, topics: Topics, databases: Databases) -> None:
    """A backfill that changes nothing publishes nothing, and with --publish every record."""
    databases.raw["orders"].insert_many([order(number, "C", "a") for number in range(3)])
    harness.catch_up()
    topics.of["LINES"].until(lambda got: len(got) >= 3)
    run(harness, "backfill", "--transform", "orders")
    assert "3 records to be published" in run(harness, "backfill", "--transform", "orders", "--publish")
    assert len(topics.of["LINES"].until(lambda got: len(got) >= 6)) == 6


@pytest.fixture
def service() -> Iterator[FaultyPubSub]:
    """Give a Pub/Sub that fails on demand."""
    topics = [f"projects/{PROJECT}/topics/{name}" for name in ("LINES", "CUSTOMER", "EVENTS")]
    with faulty(*topics) as service:
        yield service


@pytest.fixture
def bounded(databases: Databases, tmp_path: Path, service: FaultyPubSub) -> Harness:
    """Give a worker with a small outbox, which publishes there."""
    assert service.topics
    settings = {"pubsub.project": PROJECT, "pubsub.outbox_events": "50", "worker.batch_changes": "10"}
    return Harness(databases, tmp_path / "transformers", {"orders": MODULE}, settings)


def test_the_worker_waits_while_too_much_waits(
    bounded: Harness, service: FaultyPubSub, databases: Databases
) -> None:
    """Derived collections stay current up to the bound, then nothing is committed; behind the outage all arrives."""
    orders, outbox = databases.raw["orders"], databases.state["outbox"]
    with bounded.running():
        orders.insert_one(order(0, "C0", "a"))
        eventually(lambda: applied(service.of("LINES")) == stored(databases, "lines") != {})
        service.stop()
        orders.insert_many([order(number, f"C{number % 7}", "a") for number in range(1, 20)])
        eventually(lambda: databases.derived["lines"].count_documents({}) == 20)
        orders.insert_many([order(number, f"C{number % 7}", "a") for number in range(20, 200)])
        eventually(lambda: outbox.count_documents({}) >= 50)
        status = json.loads(run(bounded, "status", "--json"))["workers"][0]
        assert status["outbox"] >= 50
        assert status["outbox_full"]
        assert "the worker waits, too" in run(bounded, "status")
        assert databases.derived["lines"].count_documents({}) < 200
        service.start()
        eventually(lambda: databases.derived["lines"].count_documents({}) == 200)
        for name in ("lines", "customer"):
            eventually(partial(has_arrived, service, databases, name))
    assert outbox.count_documents({}) == 0


def test_a_message_that_is_refused_is_kept(
    bounded: Harness, service: FaultyPubSub, databases: Databases
) -> None:
    """The others are published; it is told of, with the reason, and published when it is tried again."""
    service.refuses = lambda message: b"!bad!" in message.data
    databases.raw["orders"].insert_many([order(1, "C1", "a"), order(2, "C1", "!bad!"), order(3, "C1", "b")])
    bounded.catch_up()
    assert [event_of(each)["data"]["sku"] for each in service.of("LINES")] == ["a", "b"]
    status = json.loads(run(bounded, "status", "--json"))["workers"][0]
    assert (status["outbox"], status["unpublishable"]) == (0, 1)


def test_events_of_a_key_stay_in_order_when_requests_fail(
    bounded: Harness, service: FaultyPubSub, databases: Databases
) -> None:
    """Whatever fails, nobody gets an older state of a record behind a newer one that was not there before."""
    codes = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "INTERNAL")
    service.faults = [
        Fault(getattr(grpc.StatusCode, code), times=2, accepted=accepted)
        for code in codes
        for accepted in (False, True)
    ]
    orders = databases.raw["orders"]
    with bounded.running():
        for number in range(60):
            changed = {"$set": {"customer": f"C{number % 3}", "skus": [str(number)]}}
            orders.update_one({"_id": number % 5}, changed, upsert=True)
        for name in ("lines", "customer"):
            eventually(partial(has_arrived, service, databases, name))
    assert not service.faults
    for name in ("LINES", "CUSTOMER"):
        assert_in_order(service.of(name))


@pytest.mark.parametrize("fault", ["no permission", "refuses everything"])
def test_a_topic_that_fails_holds_up_no_other(
    bounded: Harness, service: FaultyPubSub, databases: Databases, fault: str
) -> None:
    """The others go on up to the bound of the outbox; afterwards everything arrives, in order per key."""
    orders, outbox = databases.raw["orders"], databases.state["outbox"]
    bounded.settings = {**bounded.settings, "pubsub.outbox_events": "1000", "worker.batch_changes": "200"}
    orders.insert_many([order(number, f"C{number % 3}", "a") for number in range(120)])
    if fault == "no permission":
        denied = Fault(grpc.StatusCode.PERMISSION_DENIED, times=1 << 30)
        denied.when = lambda request: request.topic.endswith("/LINES")
        service.faults = [denied]
    else:
        service.refuses = lambda message: message.attributes["ce-source"].endswith("/lines")
    with bounded.running():
        eventually(lambda: has_arrived(service, databases, "customer"))
        orders.update_many({"_id": {"$lt": 10}}, {"$set": {"customer": "C9", "skus": ["b", "c"]}})
        eventually(lambda: databases.derived["customer"].count_documents({"_id": "C9"}))
        eventually(lambda: has_arrived(service, databases, "customer"))
        assert service.of("LINES") == []
        eventually(lambda: outbox.distinct("topic") == ["LINES"])
        orders.insert_many([order(number, "C1", "a", "b") for number in range(200, 1200)])
        eventually(lambda: is_full_of(bounded, "LINES"))
        assert databases.derived["lines"].count_documents({}) < 120 + 10 + 2000
        assert "topic LINES: " in run(bounded, "status")
        service.faults, service.refuses = [], lambda _: False
        for name in ("lines", "customer"):
            eventually(partial(has_arrived, service, databases, name))
            assert_in_order(service.of(name.upper()))
        eventually(lambda: databases.derived["lines"].count_documents({}) == 120 + 10 + 2000)
        for name in ("lines", "customer"):
            eventually(partial(has_arrived, service, databases, name))
            assert_in_order(service.of(name.upper()))
    assert outbox.count_documents({}) == 0


def is_full_of(harness: Harness, topic: str) -> bool:
    """Whether `status` says that the outbox is full, and names this topic alone."""
    status = json.loads(run(harness, "status", "--json"))["workers"][0]
    return bool(status["outbox_full"]) and list(status["outbox_topics"]) == [topic]


@pytest.mark.parametrize("verb", ["replay --from oldest", "backfill", "rebuild orders"])
def test_what_nobody_is_told_cannot_be_published(databases: Databases, tmp_path: Path, verb: str) -> None:
    """Without [pubsub] `--publish` is refused with its cure, before anything is asked of MongoDB."""
    harness = Harness(databases, tmp_path / "transformers", settings={"source.uri": "mongodb://127.0.0.1:1/"})
    said = harness.said(*verb.split(), "--publish", code=2)
    assert "nothing is published here" in said


class Kept:
    """A publisher that takes everything, and keeps the ordering keys."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def send(self, messages: Sequence[Message]) -> list[Sent]:
        """Take messages."""
        self.keys += [each.ordering_key for each in messages]
        return [Sent()] * len(messages)

    def close(self) -> None:
        """Do nothing."""


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    """Let workers of this process publish there."""
    publisher = Kept()
    monkeypatch.setattr(Assembled, "_publisher", lambda _: publisher)
    return publisher


@pytest.fixture
def telling(databases: Databases, tmp_path: Path, kept: Kept) -> Harness:
    """Give a worker that publishes what is in documents as it is, one change in a batch."""
    assert not kept.keys
    settings = {
        "pubsub.project": PROJECT,
        "worker.batch_changes": "1",
        "worker.job_min_headroom_seconds": "0.001",
    }
    return Harness(databases, tmp_path / "transformers", {"plain": PLAIN}, settings)


PLAIN = """
    from distributary import DerivedCollection, transform

    plain = DerivedCollection("plain", publish="plain")

    @transform("documents")
    def documents(document):
        yield plain.record(document["_id"], {"value": document.get("value")})
"""


def test_a_silent_replay_leaves_changes_to_the_stream(
    telling: Harness, databases: Databases, kept: Kept
) -> None:
    """What changes and goes while the stream is behind is told by the stream, though a replay comes to it first."""
    documents = databases.raw["documents"]
    documents.insert_many([{"_id": key, "value": 0} for key in range(20)])
    telling.catch_up()
    checkpoint = databases.state["checkpoints"].find_one({})
    assert checkpoint is not None
    since = mark_of(checkpoint["position"]["token"], databases.raw)
    documents.update_many({"_id": {"$in": [0, 1]}}, {"$set": {"value": 1}})
    telling.catch_up()
    until = mark_of("now", databases.raw)
    kept.keys.clear()
    documents.bulk_write([UpdateOne({"_id": 2 + n % 10}, {"$inc": {"value": 1}}) for n in range(500)])
    documents.update_one({"_id": 0}, {"$set": {"value": 2}})
    documents.delete_one({"_id": 1})
    Jobs(databases.state, "default").ask([replay(databases.raw, telling.registry.transforms, since, until)])
    telling.catch_up()
    assert {"0", "1"} <= set(kept.keys)
    (job,) = databases.state["jobs"].find({"kind": "replay"})
    assert job["done"]
    assert job["documents"] >= 2


def test_a_record_that_is_too_large_holds_up_nobody(
    telling: Harness, databases: Databases, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is kept apart, does not count as waiting, and a worker that catches up ends."""
    monkeypatch.setattr(store_outbox, "MAX_MESSAGE_BYTES", 5000)
    databases.raw["documents"].insert_many([{"_id": 1, "value": "x" * 5000}, {"_id": 2}])
    telling.catch_up()
    assert kept.keys == ["2"]


@pytest.mark.parametrize(
    "odd", [{"_id": 1, "value": Binary(b"x", 4)}, {"_id": Binary(b"x", 4)}], ids=["field", "key"]
)
def test_binary_that_is_no_uuid_is_published(
    telling: Harness, databases: Databases, kept: Kept, odd: dict[str, Any]
) -> None:
    """MongoDB takes any bytes as subtype 4, and so do we."""
    databases.raw["documents"].insert_many([odd, {"_id": 2}])
    telling.catch_up()
    assert len(kept.keys) == 2
    databases.raw["documents"].delete_one({"_id": odd["_id"]})
    telling.catch_up()
    assert len(kept.keys) == 3


def test_a_verb_does_not_wait_for_pubsub(
    bounded: Harness, service: FaultyPubSub, databases: Databases
) -> None:
    """Its job is done, and what it changed waits for a worker."""
    databases.raw["orders"].insert_one(order(1, "C1", "a"))
    bounded.catch_up()
    service.stop()
    databases.raw["orders"].insert_one(order(2, "C1", "b"))
    assert "2 documents" in run(bounded, "backfill", "--transform", "orders")
    assert databases.derived["lines"].count_documents({}) == 2
    assert databases.state["outbox"].count_documents({}) > 0


def assert_in_order(messages: list[Received]) -> None:
    """Fail if a message is older than one before it of its key, and was not there before."""
    newest: dict[str, str] = {}
    seen: dict[str, str] = {}
    for event in map(event_of, messages):
        key, sequence = event["recordkey"], event["sequence"]
        assert sequence >= newest.get(key, "") or sequence in seen
        assert seen.setdefault(sequence, event["id"]) == event["id"], "one event has one id"
        newest[key] = max(sequence, newest.get(key, ""))
