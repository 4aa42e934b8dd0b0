"""Google's Pub/Sub emulator for tests: one of a module's own, and what arrives through it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGTERM, Signals
from typing import NamedTuple
from uuid import uuid4

import grpc
import pytest
from google.api_core.exceptions import DeadlineExceeded
from google.cloud.pubsub_v1 import PublisherClient, SubscriberClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from benchmarks.emulator import command
from distributary.embedded import Keeper
from distributary.errors import EnvironmentFault
from distributary.pubsub.limits import path_of
from distributary.testing.server import missing
from tests.conftest import eventually
from tests.servers import free_port

#: Names an emulator that runs already, as for all of Google's libraries.
HOST_VARIABLE = "PUBSUB_EMULATOR_HOST"

PROJECT = "test-project"

_HEAP = "384m"


class Received(NamedTuple):
    """A message that arrived."""

    data: bytes
    attributes: dict[str, str]
    ordering_key: str


class Subscription:
    """A subscription of a topic, in order per key; pulled, since a stream gets stuck behind a subscriber that died."""

    def __init__(self, client: SubscriberClient, name: str) -> None:
        self._client = client
        self._name = name
        self.received: list[Received] = []

    def pull(self) -> int:
        """Take what has arrived into `received`, in its order, and give how many there were."""
        try:
            answer = self._client.pull(subscription=self._name, max_messages=1000, retry=None, timeout=2)
        except DeadlineExceeded:
            return 0
        for each in answer.received_messages:
            message = each.message
            self.received.append(Received(message.data, dict(message.attributes), message.ordering_key))
        if ids := [each.ack_id for each in answer.received_messages]:
            self._client.acknowledge(subscription=self._name, ack_ids=ids)
        return len(ids)

    def until(self, condition: Callable[[list[Received]], object]) -> list[Received]:
        """Pull until the condition holds for all that was received, and give that."""
        eventually(lambda: condition(self.received) or (self.pull() and condition(self.received)))
        return self.received


class Emulator:
    """An emulator of our own, or one that runs already and is not ours to stop."""

    def __init__(self, folder: Path, host: str = "") -> None:
        self._folder = folder
        self._keeper = None if host else Keeper(folder)
        self._pid = 0
        self.host = host or f"127.0.0.1:{free_port()}"
        self._topics = PublisherClient(
            transport=PublisherGrpcTransport(channel=grpc.insecure_channel(self.host, _RECONNECT))
        )
        self._subscriptions = SubscriberClient(
            transport=SubscriberGrpcTransport(channel=grpc.insecure_channel(self.host, _RECONNECT))
        )

    def start(self) -> None:
        """Start it, empty, where it was before; it answers on return."""
        if self._keeper:
            address, _, port = self.host.partition(":")
            self._pid = self._keeper.start(command(address, int(port), _HEAP), self._folder / "emulator.log")
        eventually(self._answers)

    def stop(self, number: Signals = SIGTERM) -> None:
        """End its process; what it held is gone."""
        if not self._keeper:
            missing(
                f"the one of {HOST_VARIABLE} is not ours to stop; leave the variable out, or run one of our own",
                WANTED,
            )
        self._keeper.end(self._pid, number)

    def leave(self) -> None:
        """End it for good."""
        self._topics.stop()
        self._topics.transport.close()
        self._subscriptions.close()
        if self._keeper:
            self._keeper.leave()

    def topic(self, name: str = "") -> str:
        """Create a topic, by default one that nobody else uses, and give its name."""
        name = name or f"topic-{uuid4().hex[:12]}"
        self._topics.create_topic(name=path_of(PROJECT, name))
        return name

    def subscribe(self, topic: str) -> Subscription:
        """Give a subscription that gets what is published from now on."""
        name = f"projects/{PROJECT}/subscriptions/subscription-{uuid4().hex[:12]}"
        wanted = {"name": name, "topic": path_of(PROJECT, topic), "enable_message_ordering": True}
        self._subscriptions.create_subscription(request=wanted)
        return Subscription(self._subscriptions, name)

    def _answers(self) -> bool:
        with grpc.insecure_channel(self.host) as channel:
            try:
                grpc.channel_ready_future(channel).result(timeout=1)
            except grpc.FutureTimeoutError:
                return False
        return True


#: What is missing where these tests cannot run.
WANTED = "a Pub/Sub emulator"

_RECONNECT = (("grpc.max_reconnect_backoff_ms", 500),)


@contextmanager
def emulating(folder: Path) -> Iterator[Emulator]:
    """Run a fresh emulator and name it in the environment; without one, skip on a laptop and fail in CI."""
    given = os.environ.get(HOST_VARIABLE, "")
    if not given:
        _look()
    emulator = Emulator(folder, given)
    try:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv(HOST_VARIABLE, emulator.host)
            emulator.start()
            yield emulator
    finally:
        emulator.leave()


@pytest.fixture(scope="module", name="emulator")
def emulator_of_the_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """Give an emulator that no other module has; a module that imports this has it under the name `emulator`."""
    with emulating(tmp_path_factory.mktemp("emulator")) as running:
        yield running


def _look() -> None:
    """Look whether an emulator can be run here."""
    try:
        command("", 0, _HEAP)
    except EnvironmentFault as fault:
        missing(f"{fault} {HOST_VARIABLE} may name one that runs.", WANTED)
