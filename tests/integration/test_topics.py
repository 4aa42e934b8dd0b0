"""Topics before anything is published: what is asked for, what `check` says, and what `check --fix` creates."""

from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE
from uuid import uuid4

import pytest

from distributary.errors import EnvironmentFault
from distributary.pubsub.limits import path_of
from distributary.pubsub.standing import Standing
from distributary.pubsub.topics import Topics
from tests.conftest import Databases
from tests.faulty import FaultyPubSub, faulty
from tests.harness import Harness
from tests.pubsub import PROJECT, Emulator, emulator_of_the_module

__all__ = ["emulator_of_the_module"]

MODULE = """
    from distributary import Publish, trigger

    @trigger("forms")
    def told(change):
        yield Publish("{topic}", {{}})
"""


@pytest.fixture
def service() -> Iterator[FaultyPubSub]:
    """Give a service with one topic."""
    with faulty(path_of(PROJECT, "orders")) as service:
        yield service


@pytest.fixture
def topics(service: FaultyPubSub) -> Iterator[Topics]:
    """Give what asks it."""
    assert service.topics
    topics = Topics(PROJECT, answer_seconds=2)
    yield topics
    topics.close()


def said(harness: Harness, *arguments: str) -> tuple[int, str]:
    """Run `check` and give its exit code and what it says."""
    with harness.process("check", *arguments, stdout=PIPE) as process:
        out, _ = process.communicate(timeout=90)
    return process.returncode, out


def test_a_topic_that_may_be_published_to_is_ready(topics: Topics) -> None:
    """And nothing is to be done about it."""
    found = topics.look("orders")
    assert (found.standing, found.cure) == (Standing.READY, "")


def test_the_right_to_publish_is_enough(topics: Topics, service: FaultyPubSub) -> None:
    """Who may publish, and may not even look at the topic, is told that all is well."""
    service.permissions = {"pubsub.topics.publish"}
    assert topics.look("orders").standing is Standing.READY


def test_a_missing_topic_is_told_with_the_command_that_creates_it(topics: Topics) -> None:
    """By its whole name."""
    found = topics.look("gone")
    assert found.standing is Standing.MISSING
    assert f"gcloud pubsub topics create projects/{PROJECT}/topics/gone" in found.cure


def test_a_missing_permission_is_told_with_the_role(topics: Topics, service: FaultyPubSub) -> None:
    """Who may look at topics and not publish is told which role is missing."""
    service.permissions = {"pubsub.topics.get"}
    found = topics.look("orders")
    assert found.standing is Standing.FORBIDDEN
    assert "roles/pubsub.publisher" in found.cure


def test_who_may_nothing_is_told_both(topics: Topics, service: FaultyPubSub) -> None:
    """Whether a topic exists is not known then."""
    service.permissions = set()
    assert "or it does not exist" in topics.look("gone").told


def test_no_topic_of_such_a_name_is_asked_for(topics: Topics) -> None:
    """A name that Pub/Sub does not take is told as such."""
    assert topics.look("x").standing is Standing.IMPOSSIBLE


def test_an_outage_is_told_as_one(topics: Topics, service: FaultyPubSub) -> None:
    """Nobody is told to create what exists, or to grant what is granted."""
    service.stop()
    found = topics.look("orders")
    assert (found.standing, found.is_refused) == (Standing.UNREACHABLE, False)


def test_a_topic_is_created_once(topics: Topics, service: FaultyPubSub) -> None:
    """It is ready then; who may not create it is told the command for somebody who may."""
    topics.create("made")
    topics.create("made")
    assert topics.look("made").standing is Standing.READY
    service.permissions.remove("pubsub.topics.create")
    with pytest.raises(EnvironmentFault, match="gcloud pubsub topics create"):
        topics.create("other")


def test_check_tells_of_topics_and_creates_them(
    databases: Databases, tmp_path: Path, emulator: Emulator
) -> None:
    """A missing one is a fault that names its trigger; `--fix` creates it; the emulator does not tell permissions."""
    topic = f"made-{uuid4().hex[:8]}"
    databases.raw.forms.insert_one({"_id": 1})
    modules = {"forms": MODULE.format(topic=topic)}
    harness = Harness(databases, tmp_path / "modules", modules, {"pubsub.project": PROJECT})
    code, out = said(harness)
    assert code == 3
    assert f"projects/{PROJECT}/topics/{topic} does not exist" in out
    assert "Publishes: trigger told" in out
    code, out = said(harness, "--fix")
    assert code == 0
    assert f"created projects/{PROJECT}/topics/{topic}." in out
    code, out = said(harness)
    assert code == 0
    assert f"topics/{topic} exists; whether it may be published to is not told" in out
    assert emulator.subscribe(topic).pull() == 0


def test_check_needs_no_pubsub_without_the_section(databases: Databases, tmp_path: Path) -> None:
    """Nothing is asked for, and it is said that what is published waits."""
    harness = Harness(databases, tmp_path / "modules", {"forms": MODULE.format(topic="orders")})
    code, out = said(harness)
    assert code == 0
    assert "there is no pubsub.project, so nothing is published to orders" in out


def test_check_does_not_stop_at_an_outage(
    databases: Databases, tmp_path: Path, service: FaultyPubSub
) -> None:
    """A worker would start, so it is a warning."""
    service.stop()
    modules = {"forms": MODULE.format(topic="orders")}
    harness = Harness(databases, tmp_path / "modules", modules, {"pubsub.project": PROJECT})
    code, out = said(harness)
    assert code == 0
    assert "cannot be asked for" in out
