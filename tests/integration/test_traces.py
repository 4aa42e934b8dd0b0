"""The spans of a worker, as they arrive at a receiver over HTTP, and the events that lead back to them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Any

import grpc
import pytest

from tests.conftest import Databases, eventually
from tests.faulty import Fault, FaultyPubSub, faulty
from tests.harness import Harness
from tests.otlp import Receiver, Span, receiving
from tests.pubsub import PROJECT, Received
from tests.servers import free_port

MODULE = """
    from distributary import DerivedCollection, Publish, transform, trigger

    lines = DerivedCollection("lines", publish="LINES")

    @transform("orders")
    def orders(order):
        if "poison" in order:
            raise ValueError("a secret of the order")
        for number, sku in enumerate(order["skus"]):
            yield lines.record({"order": order["_id"], "line": number}, {"sku": sku})

    @trigger("orders", operations=["delete"])
    def undone(change):
        yield Publish("EVENTS", {"order": change.key}, ordering_key=str(change.key))
"""

PAGE = Path(__file__).parents[2] / "docs" / "traces.md"

#: Runs a command line, and says at its end which modules of OpenTelemetry were imported.
ASKING = """
import atexit, sys
atexit.register(lambda: print([name for name in sys.modules if name.startswith("opentelemetry")]))
from distributary.cli import command_line
sys.exit(command_line(sys.argv[1:]))
"""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Give a receiver."""
    with receiving() as running:
        yield running


@pytest.fixture
def service() -> Iterator[FaultyPubSub]:
    """Give a Pub/Sub that fails on demand."""
    with faulty(*(f"projects/{PROJECT}/topics/{name}" for name in ("LINES", "EVENTS"))) as service:
        yield service


@pytest.fixture
def harness(databases: Databases, tmp_path: Path) -> Harness:
    """Give a worker whose traces are on."""
    return Harness(databases, tmp_path / "modules", {"orders": MODULE}, {"traces.enabled": "true"})


@pytest.fixture
def publishing(databases: Databases, tmp_path: Path, service: FaultyPubSub) -> Harness:
    """Give a worker whose traces are on and that publishes."""
    assert service.topics
    settings = {"traces.enabled": "true", "pubsub.project": PROJECT}
    return Harness(databases, tmp_path / "modules", {"orders": MODULE}, settings)


@contextmanager
def working(harness: Harness, receiver: Receiver) -> Iterator[subprocess.Popen[str]]:
    """Run a worker that sends its spans to the receiver; it has ended well behind the block."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in receiver.environment.items():
            environment.setenv(name, value)
        process = harness.process("run", stderr=PIPE)
    try:
        eventually(lambda: harness.databases.state.leases.find_one({"code": {"$exists": True}}))
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said


def envelope(message: Received) -> dict[str, Any]:
    """Give the envelope of an event in structured mode."""
    read: dict[str, Any] = json.loads(message.data)
    return read


def context(traceparent: str) -> str:
    """Give what a `traceparent` says of a span that is sampled."""
    of, _, flags = traceparent.rpartition("-")
    assert int(flags, 16) & 1
    return of


def documented(name: str) -> set[str]:
    """Give the attributes that the page lists for a span."""
    (row,) = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith(f"| `{name}` |")]
    return {each for each in row.split("`")[3::2] if "." in each}


def names(spans: Sequence[Span]) -> list[str]:
    """Give the names of spans."""
    return [each.name for each in spans]


def test_a_batch_is_a_span_with_its_stages_below_it(
    harness: Harness, receiver: Receiver, databases: Databases
) -> None:
    """Read, derive and commit lie within the batch, in this order, and say what they did to which database."""
    harness.catch_up()
    with working(harness, receiver):
        databases.raw.orders.insert_many([{"_id": 1, "skus": ["a", "b"]}, {"_id": 2, "skus": ["c"]}])
        eventually(lambda: receiver.named("batch"))
    batch = receiver.named("batch")[0]
    assert receiver.services == {"distributary"}
    assert batch.parent == ""
    for each in (batch, *receiver.below(batch)):
        assert set(each.attributes) == documented(each.name)
    assert batch.attributes["distributary.worker"] == "default"
    assert 1 <= batch.attributes["distributary.changes"] <= 2
    assert abs(batch.attributes["distributary.position.time"] - time.time()) < 60
    read, derive, commit = below = receiver.below(batch)
    assert names(below) == ["read", "derive", "commit"]
    assert batch.start == min(each.start for each in below)
    assert all(each.start <= each.end <= batch.end for each in below)
    assert (read.end <= derive.start, derive.end <= commit.start) == (True, True)
    assert read.attributes["db.system.name"] == commit.attributes["db.system.name"] == "mongodb"
    assert read.attributes["db.namespace"] == databases.raw.name
    assert commit.attributes["db.namespace"] == databases.derived.name
    committed = receiver.named("commit")
    assert sum(each.attributes["distributary.inserted"] for each in committed) == 3
    assert not any(each.failed for each in receiver.spans)


def test_an_event_carries_the_trace_of_the_batch_that_committed_it(
    publishing: Harness, receiver: Receiver, service: FaultyPubSub, databases: Databases
) -> None:
    """It is the same when it comes again, and what publishes it is linked to the batch."""
    publishing.catch_up()
    service.faults = [Fault(grpc.StatusCode.UNAVAILABLE, accepted=True)]
    with working(publishing, receiver):
        databases.raw.orders.insert_one({"_id": 1, "skus": ["a"]})
        eventually(lambda: len(service.of("LINES")) >= 2)
        databases.raw.orders.delete_one({"_id": 1})
        eventually(lambda: service.of("EVENTS"))
        eventually(lambda: len(receiver.named("publish")) >= 3)
    first, again, *_ = service.of("LINES")
    batch = min(receiver.named("batch"), key=lambda each: each.start)
    assert context(envelope(first)["traceparent"]) == batch.context
    assert (first.data, first.attributes) == (again.data, again.attributes)
    triggers = receiver.named("triggers")[-1]
    assert context(envelope(service.of("EVENTS")[0])["traceparent"]) == triggers.context
    published = sorted(receiver.named("publish"), key=lambda each: each.start)
    failed, confirmed = published[:2]
    assert (failed.failed, failed.attributes["distributary.unconfirmed"]) == (True, 1)
    assert (confirmed.failed, confirmed.attributes["distributary.unconfirmed"]) == (False, 0)
    for each in (failed, confirmed):
        assert each.links == [(batch.trace, batch.id)]
        assert each.attributes["messaging.system"] == "gcp_pubsub"
        assert each.attributes["messaging.destination.name"] == "LINES"
        assert each.attributes["messaging.batch.message_count"] == 1


def test_in_binary_mode_it_is_an_attribute(
    publishing: Harness, receiver: Receiver, service: FaultyPubSub, databases: Databases
) -> None:
    """`ce-traceparent` beside the others; what a backfill commits has that of its slice."""
    databases.raw.orders.insert_one({"_id": 1, "skus": ["a"]})
    publishing.settings = {**publishing.settings, "pubsub.mode": "binary"}
    with working(publishing, receiver):
        eventually(lambda: service.of("LINES"))
        eventually(lambda: receiver.named("publish"))
    (message,) = service.of("LINES")
    of = context(message.attributes["ce-traceparent"])
    traced = next(each for each in receiver.spans if each.context == of)
    assert (traced.name, traced.attributes["distributary.job.kind"]) == ("slice", "backfill")
    assert {"scan", "commit"} <= set(names(receiver.below(traced)))


def test_what_is_not_sampled_still_has_its_place(
    publishing: Harness,
    receiver: Receiver,
    service: FaultyPubSub,
    databases: Databases,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The variables of OpenTelemetry decide: without a sample there is no span, and the event says so."""
    publishing.catch_up()
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    with working(publishing, receiver):
        databases.raw.orders.insert_one({"_id": 1, "skus": ["a"]})
        eventually(lambda: service.of("LINES"))
    flags = envelope(service.of("LINES")[0])["traceparent"].rpartition("-")[2]
    assert not int(flags, 16) & 1
    assert receiver.spans == []


def test_spans_have_no_values_of_documents(
    harness: Harness, receiver: Receiver, databases: Databases
) -> None:
    """A document that fails and one that MongoDB refuses leave counts, and nothing of what is in them."""
    harness.catch_up()
    with working(harness, receiver):
        databases.raw.orders.insert_one({"_id": 1, "skus": ["a secret of the order"], "poison": True})
        eventually(lambda: databases.state.dead_letters.count_documents({}) == 1)
        eventually(lambda: receiver.named("batch"))
    assert any(each.attributes["distributary.failed"] == 1 for each in receiver.named("derive"))
    assert "secret" not in repr(receiver.spans)


def test_a_receiver_that_is_away_holds_nothing_up(harness: Harness, databases: Databases) -> None:
    """Records are written all the same, the log says so in a line, and SIGTERM ends the worker in time."""
    harness.catch_up()
    with working(harness, Receiver(f"http://127.0.0.1:{free_port()}")) as process:
        databases.raw.orders.insert_one({"_id": 1, "skus": ["a"]})
        eventually(lambda: databases.derived.lines.count_documents({}) == 1)
        assert process.stderr is not None
        assert any("traces not sent" in line for line in iter(process.stderr.readline, ""))
        databases.raw.orders.insert_one({"_id": 2, "skus": ["a"]})
        eventually(lambda: databases.derived.lines.count_documents({}) == 2)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        assert time.monotonic() - began < 9


def asked(harness: Harness, *arguments: str) -> tuple[int, str, str]:
    """Run a command line, and give its exit code, what it imported of OpenTelemetry, and what it said."""
    done = subprocess.run(
        [sys.executable, "-c", ASKING, *arguments],
        env=os.environ | harness.environment,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    return done.returncode, done.stdout.strip(), done.stderr


def test_off_nothing_of_opentelemetry_is_imported(harness: Harness, databases: Databases) -> None:
    """A worker without traces pays nothing for them."""
    databases.raw.orders.insert_one({"_id": 1, "skus": ["a"]})
    harness.settings = {}
    assert asked(harness, "run", "--until-caught-up")[:2] == (0, "[]")


def test_an_exporter_that_no_package_brings_is_told_with_the_cure(
    harness: Harness, databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with 2 before anything is touched."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "smoke_signals")
    code, imported, said = asked(harness, "run")
    assert (code, "'opentelemetry.sdk.trace'" in imported) == (2, True)
    assert "traces.enabled: no package that is installed brings the exporter 'smoke_signals'" in said
    assert "pip install 'distributary[traces]'" in said
    assert databases.state.list_collection_names() == []
