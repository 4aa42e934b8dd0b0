"""What the preflight finds of the topics that are published to; it creates missing ones on request."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from distributary.derive.registry import Registry
from distributary.errors import EnvironmentFault
from distributary.operate.check import Finding, Level, faults, ok
from distributary.pubsub.standing import Standing, Topic

SUBJECT = "topics"


class Asked(Protocol):
    """Where topics are asked for and created."""

    def look(self, topic: str) -> Topic:
        """Ask how a topic stands."""

    def create(self, topic: str) -> None:
        """Create a topic; raises `EnvironmentFault`."""


def published(registry: Registry) -> dict[str, list[str]]:
    """Give the topics that derived collections, and triggers by a text in their code, publish to, with these."""
    found: dict[str, list[str]] = {}
    for name, collection in sorted(registry.collections.items()):
        if topic := getattr(collection, "publish", None):
            found.setdefault(topic, []).append(f"derived collection {name}")
    for name, trigger in sorted(registry.triggers.items()):
        for topic in sorted(trigger.topics):
            found.setdefault(topic, []).append(f"trigger {name}")
    return found


def findings(topics: Asked, wanted: Mapping[str, Sequence[str]], *, fix: bool) -> Iterator[Finding]:
    """Give a finding for each topic; with `fix`, a missing one is created."""
    for name, publishers in sorted(wanted.items()):
        topic = topics.look(name)
        if fix and topic.standing is Standing.MISSING:
            yield from _created(topics, name, topic)
        else:
            yield _finding(topic, ", ".join(publishers))


def unpublished(wanted: Mapping[str, Sequence[str]]) -> Finding:
    """Give the finding for topics of which nobody says in which project they are."""
    message = (
        f"there is no pubsub.project, so nothing is published to {', '.join(sorted(wanted))}: changes of records are"
        " told to nobody, and what triggers publish waits in the outbox."
    )
    return Finding(Level.WARNING, SUBJECT, message, "Set pubsub.project.")


def _created(topics: Asked, name: str, topic: Topic) -> Iterator[Finding]:
    try:
        topics.create(name)
    except EnvironmentFault as error:
        yield from faults(SUBJECT, error)
    else:
        yield ok(SUBJECT, f"created {topic.path}.")


def _finding(topic: Topic, publishers: str) -> Finding:
    message = f"{topic.told} Publishes: {publishers}."
    if topic.is_refused:
        return Finding(Level.FAULT, SUBJECT, message, topic.cure, 3)
    if topic.standing is Standing.UNREACHABLE:
        return Finding(Level.WARNING, SUBJECT, message, topic.cure)
    return ok(SUBJECT, message)
