"""What is known of Pub/Sub without asking it: limits, topics in code, credentials, and when it is imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from distributary.derive.topics import is_topic
from distributary.errors import EnvironmentFault
from distributary.events.envelope import Message
from distributary.plugins import load
from distributary.pubsub.client import open_client
from distributary.pubsub.limits import MAX_BYTES, path_of, refusal, size_of
from distributary.pubsub.standing import Standing, Topic, refuse
from tests.pubsub import HOST_VARIABLE

CREDENTIALS = "GOOGLE_APPLICATION_CREDENTIALS"


def test_without_the_section_nothing_of_google_is_imported() -> None:
    """The command line and everything that a worker is made of come without Google's library."""
    code = (
        "import sys, distributary.assemble, distributary.cli.run, distributary.cli.check, distributary.operate.topics;"
        "print([name for name in sys.modules if name.split('.')[0] in {'google', 'grpc', 'opentelemetry'}])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "can"),
    [
        ("customer-view", True),
        ("abc", True),
        ("a.b_c~d+e%f", True),
        ("projects/other/topics/orders", True),
        ("ab", False),
        ("1st", False),
        ("google", False),
        ("goog", False),
        ("a b c", False),
        ("x" * 256, False),
        ("projects/other/topics/ab", False),
        ("topics/orders", False),
        ("", False),
    ],
)
def test_names_of_topics(name: str, *, can: bool) -> None:
    """Those that Pub/Sub takes, in this project or another."""
    assert is_topic(name) is can


def test_a_topic_of_another_project_is_named_whole() -> None:
    """A short name is one of the configured project."""
    assert path_of("p", "orders") == "projects/p/topics/orders"
    assert path_of("p", "projects/q/topics/orders") == "projects/q/topics/orders"


@pytest.mark.parametrize(
    "message",
    [
        Message("orders", b"{}", {}),
        Message("orders", b"", {"a": ""}),
        Message("orders", b"{}", {}, "k" * 1024),
        Message("orders", b"{}", {"k" * 256: "v" * 1024}),
        Message("orders", b"{}", {f"{n}": "" for n in range(100)}),
        Message("orders", b"x" * (MAX_BYTES - 100), {}),
    ],
    ids=range(6),
)
def test_what_is_at_a_limit_is_taken(message: Message) -> None:
    """Limits are what just may be."""
    assert refusal(message, "p") == ""


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (Message("xy", b"{}", {}), "can be no topic"),
        (Message("orders", b"", {}), "empty"),
        (Message("orders", b"", {}, "k"), "empty"),
        (Message("orders", b"{}", {}, "é" * 513), "1,024 bytes"),
        (Message("orders", b"{}", {"é" * 129: ""}), "256 bytes"),
        (Message("orders", b"{}", {"a": "v" * 1025}), "1,024 bytes"),
        (Message("orders", b"{}", {"google": "v"}), "goog"),
        (Message("orders", b"{}", {"": "v"}), "no name"),
        (Message("orders", b"{}", {f"{n}": "" for n in range(101)}), "101 attributes"),
        (Message("orders", b"x" * MAX_BYTES, {}), "10,000,000"),
        (Message("orders", b"x" * (MAX_BYTES - 900), {"a": "v" * 1000}), "10,000,000"),
    ],
    ids=range(11),
)
def test_what_is_over_a_limit_is_refused_with_the_reason(message: Message, words: str) -> None:
    """Every limit counts bytes, and all that belongs to a message counts."""
    assert words in refusal(message, "p")


def test_a_size_is_never_too_small() -> None:
    """What a request takes on the wire is not more than the size that limits are held against."""
    from google.pubsub_v1.types import PublishRequest  # noqa: PLC0415 - slow, and for this test only

    for count, length in ((0, 0), (1, 0), (100, 1024), (7, 130)):
        message = Message("orders", b"x" * length * 300, {f"é{n}": "v" * length for n in range(count)}, "kéy")
        whole = {"data": message.data, "attributes": message.attributes, "ordering_key": message.ordering_key}
        request = PublishRequest(topic=path_of("p", "orders"), messages=[whole])
        assert PublishRequest.pb(request).ByteSize() <= size_of(message, "p")


def test_topics_in_the_code_of_triggers(tmp_path: Path) -> None:
    """Those that are named by a text, or by the name of one, are known; what is computed is not."""
    code = """
from distributary import Publish, trigger
import distributary

TOPIC = "drop-offs"

@trigger("forms")
def told(change):
    yield Publish("abandoned", {})
    yield distributary.Publish(TOPIC, {})
    yield Publish(data={}, topic="late")
    yield Publish(change.document["topic"], {})

@trigger("forms")
def silent(change):
    Publish = print
    return None
"""
    (tmp_path / "forms.py").write_text(code, encoding="utf-8")
    triggers = load([str(tmp_path)], ()).triggers
    assert triggers["told"].topics == {"abandoned", "drop-offs", "late"}
    assert triggers["silent"].topics == frozenset()


def test_all_refused_topics_are_told_at_once() -> None:
    """Missing and forbidden ones stop a start, each with its cure; those that cannot be asked for do not."""
    fine = [
        Topic("projects/p/topics/a", each) for each in (Standing.READY, Standing.UNTOLD, Standing.UNREACHABLE)
    ]
    refuse(fine)
    missing = Topic("projects/p/topics/gone", Standing.MISSING)
    forbidden = Topic("projects/p/topics/closed", Standing.FORBIDDEN)
    with pytest.raises(EnvironmentFault) as caught:
        refuse([*fine, missing, forbidden])
    assert "topics/gone does not exist" in caught.value.message
    assert "topics/closed may not be published to" in caught.value.message
    assert "gcloud pubsub topics create projects/p/topics/gone" in caught.value.cure
    assert "roles/pubsub.publisher" in caught.value.cure


def test_missing_credentials_are_a_fault_with_its_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is asked of Google; it is said how to get credentials."""
    monkeypatch.delenv(HOST_VARIABLE, raising=False)
    monkeypatch.setenv(CREDENTIALS, str(tmp_path / "none.json"))
    with pytest.raises(EnvironmentFault, match="gcloud auth application-default login"):
        open_client()


def test_a_regional_endpoint_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its host and port are those of the connection; without one it is the global endpoint."""
    key = {"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "t"}
    (tmp_path / "key.json").write_text(json.dumps(key), encoding="utf-8")
    monkeypatch.delenv(HOST_VARIABLE, raising=False)
    monkeypatch.setenv(CREDENTIALS, str(tmp_path / "key.json"))
    for endpoint, host in (
        ("europe-west1-pubsub.googleapis.com:443", "europe-west1-pubsub.googleapis.com:443"),
        ("", "pubsub.googleapis.com:443"),
    ):
        client = open_client(endpoint)
        assert client.transport.host == host
        client.stop()
        client.transport.close()
