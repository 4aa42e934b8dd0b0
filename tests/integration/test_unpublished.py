"""Messages that never can be published are dead letters: they are shown, retried and discarded."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

import pytest

from distributary.operate.dead_letters import cure, discard, effects, listing, one, retries
from distributary.state import EVENTS, LetterKind
from distributary.store.letters import StoredLetter
from tests.conftest import Databases, eventually
from tests.faulty import FaultyPubSub, faulty
from tests.harness import Harness
from tests.pubsub import PROJECT

MODULE = """
    from distributary import DerivedCollection, Publish, transform, trigger

    orders = DerivedCollection("orders_view", publish="VIEW")

    @transform("orders")
    def viewed(order):
        yield orders.record(order["_id"], {"text": order["text"]})
        if order["text"] == "unlucky":
            raise ValueError("unlucky")

    @trigger("orders", operations=["insert"])
    def told(change):
        yield Publish("EVENTS", {"told": change.document["text"]}, ordering_key="all")
"""


def told_by(service: FaultyPubSub, topic: str) -> list[Any]:
    """Give the key and the content of each event of a topic, in order."""
    events = [json.loads(each.data) for each in service.of(topic)]
    return [(each.get("subject"), (each.get("data") or {}).get("text", each.get("data"))) for each in events]


@pytest.fixture
def service() -> Iterator[FaultyPubSub]:
    """Give a Pub/Sub that takes nothing wrong."""
    with faulty(*(f"projects/{PROJECT}/topics/{name}" for name in ("VIEW", "EVENTS"))) as service:
        service.refuses = lambda message: b"wrong" in message.data
        yield service


@pytest.fixture
def harness(databases: Databases, tmp_path: Path, service: FaultyPubSub) -> Harness:
    """Give a worker that publishes there."""
    assert service.topics
    return Harness(databases, tmp_path / "modules", {"orders": MODULE}, {"pubsub.project": PROJECT})


def letters(databases: Databases) -> Sequence[StoredLetter]:
    """Give all that cannot be published."""
    return listing(databases.state, None, LetterKind.UNPUBLISHED, 0).letters


def said(harness: Harness, *arguments: str, code: int = 0) -> str:
    """Give what a verb says, which ends with this exit code."""
    with harness.process(*arguments, stdout=PIPE, stderr=DEVNULL) as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == code, out
    return str(out)


def insert(databases: Databases, key: Any, text: str) -> None:
    """Insert a raw order."""
    databases.raw.orders.insert_one({"_id": key, "text": text})


def change(databases: Databases, key: Any, text: str) -> None:
    """Change a raw order."""
    databases.raw.orders.update_one({"_id": key}, {"$set": {"text": text}})


def test_a_refused_record_is_a_dead_letter(harness: Harness, databases: Databases) -> None:
    """With who tells, its key, the topic, the reason and what to do; beside what cannot be derived, counted once."""
    for key, text in enumerate(["fine", "wrong", "unlucky"]):
        insert(databases, key, text)
    harness.catch_up()
    found = json.loads(said(harness, "dead-letters", "list", "--json"))
    assert found["total"] == 2
    by_kind = {each["kind"]: each for each in found["letters"]}
    letter = by_kind["unpublished"]
    assert {name: letter[name] for name in ("of", "key", "topic", "worker")} == {
        "of": "orders_view",
        "key": 1,
        "topic": "VIEW",
        "worker": "default",
    }
    assert letter["reason"].startswith("INVALID_ARGUMENT: ")
    assert letter["position"]["token"].startswith("82")
    assert "of" not in by_kind["failed"]
    text = said(harness, "dead-letters", "show", letter["id"])
    assert "orders_view 1" in text
    assert "distributary dead-letters retry" in text
    status = json.loads(said(harness, "status", "--json"))["workers"][0]
    assert (status["dead_letters"], status["unpublishable"]) == ({"viewed": {"failed": 1}}, 1)
    assert "unpublished" in said(harness, "dead-letters", "list", "--transform", "orders_view")


def test_a_retry_publishes_the_record_as_it_is_now(
    harness: Harness, databases: Databases, service: FaultyPubSub
) -> None:
    """The running worker does it; what is refused again keeps its letter, and the exit code says so."""
    insert(databases, 1, "wrong")
    insert(databases, 2, "wrong too")
    with harness.running():
        eventually(lambda: len(letters(databases)) == 2)
        ids = {each.letter.key: each.id for each in letters(databases)}
        said(harness, "dead-letters", "retry", "--kind", "unpublished", code=1)
        assert {each.letter.key: each.id for each in letters(databases)} == ids
        databases.derived.orders_view.update_one({"_id": 1}, {"$set": {"text": "mended"}})
        service.refuses = lambda _: False
        assert "2 tried, 2 resolved" in said(harness, "dead-letters", "retry", ids[1], ids[2])
        assert sorted(told_by(service, "VIEW")) == [("1", "mended"), ("2", "wrong too")]
    assert letters(databases) == []
    assert databases.state.outbox.count_documents({}) == 0


def test_a_retry_of_a_record_that_is_gone_publishes_a_tombstone(
    harness: Harness, databases: Databases, service: FaultyPubSub
) -> None:
    """Without a worker this process does it, and ends when it is published."""
    insert(databases, 1, "wrong")
    harness.catch_up()
    databases.derived.orders_view.delete_one({"_id": 1})
    said(harness, "dead-letters", "retry", "--transform", "orders_view")
    (event,) = [json.loads(each.data) for each in service.of("VIEW")]
    assert (event["type"], event["subject"]) == ("distributary.record.deleted", "1")
    assert letters(databases) == []


def test_a_later_change_of_the_record_resolves_its_letter(
    harness: Harness, databases: Databases, service: FaultyPubSub
) -> None:
    """Others stay; so it is with a worker that was started after it."""
    for key in (1, 2, 3):
        insert(databases, key, f"wrong {key}")
    with harness.running():
        eventually(lambda: len(letters(databases)) == 3)
        change(databases, 1, "good")
        eventually(lambda: len(letters(databases)) == 2)
    change(databases, 2, "good")
    change(databases, 3, "wrong again")
    harness.catch_up()
    (left,) = letters(databases)
    assert left.letter.key == 3
    assert told_by(service, "VIEW") == [("1", "good"), ("2", "good")]


def test_a_refused_event_is_sent_again_as_it_was(
    harness: Harness, databases: Databases, service: FaultyPubSub
) -> None:
    """The change is not needed any more; its event keeps its content and its id."""
    harness.catch_up()
    with harness.running():
        for key, text in enumerate(["a", "wrong", "b"]):
            insert(databases, key, text)
        eventually(lambda: len(told_by(service, "EVENTS")) == 2)
        (letter,) = [each for each in letters(databases) if each.letter.transform == "told"]
        shown = json.loads(said(harness, "dead-letters", "show", letter.id, "--json"))["letter"]
        assert (shown["of"], shown["ordering_key"], shown["key"]) == (
            "told",
            "all",
            {"position": shown["position"]["token"]},
        )
        assert json.loads(shown["data"])["data"] == {"told": "wrong"}
        databases.raw.orders.delete_one({"_id": 1})
        service.refuses = lambda _: False
        assert "1 tried, 1 resolved" in said(harness, "dead-letters", "retry", letter.id)
        assert [content for _, content in told_by(service, "EVENTS")] == [
            {"told": "a"},
            {"told": "b"},
            {"told": "wrong"},
        ]
        assert json.loads(service.of("EVENTS")[-1].data)["id"] == json.loads(shown["data"])["id"]
    assert databases.state.outbox.count_documents({}) == 0


def test_discard_forgets_what_cannot_be_published(harness: Harness, databases: Databases) -> None:
    """It says what that means for records and for events, and removes only what it was given."""
    harness.catch_up()
    with harness.running():
        insert(databases, 1, "wrong")
        eventually(lambda: len(letters(databases)) == 2)
    both = letters(databases)
    assert len(effects(both)) == 2
    assert "gone for good" in effects(both)[1]
    assert [("as it was yielded" in cure(each), "as it is then" in cure(each)) for each in both] in (
        [(True, False), (False, True)],
        [(False, True), (True, False)],
    )
    assert discard(databases.state, "another", both) == 0
    event = next(each for each in both if each.message and each.message.is_event)
    assert discard(databases.state, "default", [event]) == 1
    assert [each.letter.transform for each in letters(databases)] == ["orders_view"]
    said(harness, "dead-letters", "discard", "--kind", "unpublished", "--yes")
    assert letters(databases) == []


def test_a_retry_waits_for_a_topic(harness: Harness, databases: Databases) -> None:
    """Of a collection that is published no more there is nothing to do, here or for a worker that has other code."""
    insert(databases, 1, "wrong")
    harness.catch_up()
    found = letters(databases)
    assert [each.kind.value for each in retries(found, (), ["orders_view"])] == ["publish"]
    assert retries(found, (), ["other"]) == []
    assert retries(found) == []
    asked = retries(found, (), ["orders_view"])
    harness.write({"orders": MODULE.replace(', publish="VIEW"', "")})
    with harness.assembled() as assembled:
        (job,) = assembled.jobs().ask(asked)
        harness.catch_up()
        done = assembled.jobs().get(job.id)
    assert done is not None
    assert (done.done, done.stage == EVENTS) == (True, False)
    assert "without a topic for 'orders_view'" in done.failure
    assert one(databases.state, found[0].id).letter.key == 1
