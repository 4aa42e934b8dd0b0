"""What every publisher promises."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any
from uuid import uuid4

import grpc
import pytest

from distributary.events.envelope import Message
from distributary.ports.events import Publisher, Sent
from distributary.pubsub.limits import path_of
from distributary.pubsub.publisher import PubSubPublisher
from tests.conftest import eventually
from tests.fakes import FakePublisher
from tests.faulty import Fault, FaultyPubSub, faulty
from tests.pubsub import PROJECT, Emulator, Received, Subscription, emulator_of_the_module

__all__ = ["emulator_of_the_module"]

#: Gives what arrived on the topic, in order, once there are so many messages.
Arrived = Callable[[int], Sequence[Received]]

#: Lets the next request with a message of a key fail; with True, what it brings arrives all the same.
Break = Callable[[str, bool], None]

TOPIC = "told"
UNKNOWN = "never-made"
TOO_LARGE = b"x" * 10_000_001

#: Seconds for a request, of which half are for handing it over, that a loaded machine does not use up.
PATIENT = 60

PASSING = [
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
]


def message(topic: str, number: int, key: str = "", **attributes: str) -> Message:
    """Give a message that says its number."""
    return Message(topic, f"{number}".encode(), attributes, key)


def run(topic: str, count: int, *keys: str, start: int = 0) -> list[Message]:
    """Give messages with rising numbers whose keys take turns."""
    return [message(topic, number, keys[number % len(keys)]) for number in range(start, start + count)]


def numbers(received: Sequence[Received], key: str | None = None) -> list[int]:
    """Give the numbers that arrived, in order; with a key, those that have it."""
    return [int(each.data) for each in received if key is None or each.ordering_key == key]


def first_times(seen: Sequence[int]) -> list[int]:
    """Give numbers without those that came before."""
    return list(dict.fromkeys(seen))


def failed(messages: Sequence[Message], sent: Sequence[Sent]) -> list[Message]:
    """Give the messages that are worth sending again."""
    return [each for each, what in zip(messages, sent, strict=True) if what.error and not what.lasting]


def insist(publisher: Publisher, messages: Sequence[Message], times: int = 20) -> None:
    """Send what failed again, in its order, until all is confirmed."""
    for _ in range(times):
        messages = failed(messages, publisher.send(messages))
        if not messages:
            return
    pytest.fail(f"not confirmed: {messages[:5]}")


class PublisherContract:
    """A suite for any `Publisher`; give it the fixtures `publisher`, `topic` and `arrived`."""

    def test_what_is_confirmed_has_arrived(self, publisher: Publisher, topic: str, arrived: Arrived) -> None:
        """Data, attributes and ordering key are as they were given."""
        one = Message(topic, b'{"a": 1}', {"ce-id": "1"}, "k")
        other = Message(topic, b"", {"ce-id": "2"})
        assert list(publisher.send([one, other])) == [Sent(), Sent()]
        wanted = {(each.data, each.attributes["ce-id"], each.ordering_key) for each in (one, other)}
        got = arrived(2)
        assert {(each.data, each.attributes["ce-id"], each.ordering_key) for each in got} == wanted

    def test_nothing_is_nothing(self, publisher: Publisher) -> None:
        """No messages, no answers."""
        assert list(publisher.send([])) == []

    def test_order_per_key(self, publisher: Publisher, topic: str, arrived: Arrived) -> None:
        """More than one request's worth of a key arrives in order, in one call and from call to call."""
        for start in (0, 2400):
            sent = publisher.send(run(topic, 2400, "a", "b", start=start))
            assert not any(each.error for each in sent)
        received = arrived(4800)
        assert numbers(received, "a") == list(range(0, 4800, 2))
        assert numbers(received, "b") == list(range(1, 4800, 2))

    def test_attributes_may_have_any_name(self, publisher: Publisher, topic: str, arrived: Arrived) -> None:
        """Also one that a parameter of the client library has; the order holds for these messages too."""
        named = {"topic": "t", "data": "d", "timeout": "1", "retry": "r", "ordering_key": "k", "self": "s"}
        messages = run(topic, 5, "k")
        messages[2] = messages[2]._replace(attributes=named)
        assert list(publisher.send(messages)) == [Sent()] * 5
        received = arrived(5)
        assert numbers(received, "k") == list(range(5))
        assert received[2].attributes == named

    def test_an_unknown_topic_fails_in_passing(
        self, publisher: Publisher, topic: str, arrived: Arrived
    ) -> None:
        """It may be made; messages of other topics go through, also with the same key."""
        sent = publisher.send([message(UNKNOWN, 1, "k"), message(topic, 2, "k"), message(UNKNOWN, 3)])
        assert [bool(each.error) for each in sent] == [True, False, True]
        assert not any(each.lasting for each in sent)
        assert numbers(arrived(1)) == [2]

    def test_a_message_over_the_limit_is_refused_for_good(
        self, publisher: Publisher, topic: str, arrived: Arrived
    ) -> None:
        """Those in front of it are confirmed, those behind it fail in passing, and go through without it."""
        messages = run(topic, 6, "a", "b")
        messages[2] = messages[2]._replace(data=TOO_LARGE)
        sent = publisher.send(messages)
        assert [(bool(each.error), each.lasting) for each in sent] == [
            (False, False), (False, False), (True, True), (False, False), (True, False), (False, False),
        ]  # fmt: skip
        insist(publisher, failed(messages, sent))
        received = arrived(5)
        assert numbers(received, "a") == [0, 4]
        assert numbers(received, "b") == [1, 3, 5]


class FailingContract(PublisherContract):
    """What a publisher promises while requests fail; give it the fixture `break_key` too."""

    @pytest.mark.parametrize("accepted", [False, True])
    def test_behind_what_failed_its_key_fails(
        self, publisher: Publisher, topic: str, arrived: Arrived, break_key: Break, *, accepted: bool
    ) -> None:
        """What is confirmed of a key is in front of what is not; other keys are not concerned."""
        messages = run(topic, 4000, "a", "b")
        break_key("a", accepted)
        sent = publisher.send(messages)
        assert not any(each.lasting for each in sent)
        of_a = [
            bool(what.error) for each, what in zip(messages, sent, strict=True) if each.ordering_key == "a"
        ]
        assert any(of_a)
        assert of_a == sorted(of_a)
        assert not any(
            what.error for each, what in zip(messages, sent, strict=True) if each.ordering_key == "b"
        )
        insist(publisher, failed(messages, sent))
        received = arrived(4000)
        assert first_times(numbers(received, "a")) == list(range(0, 4000, 2))
        assert numbers(received, "b") == list(range(1, 4000, 2))

    def test_failures_again_and_again_keep_the_order(
        self, publisher: Publisher, topic: str, arrived: Arrived, break_key: Break
    ) -> None:
        """Nothing is lost, and nothing new arrives behind what came after it."""
        messages = run(topic, 300, *"abcdefghij")
        for key, accepted in zip("abcabcaab", [True, False] * 5, strict=False):
            break_key(key, accepted)
        insist(publisher, messages)
        received = arrived(300)
        for position, key in enumerate("abcdefghij"):
            assert first_times(numbers(received, key)) == list(range(position, 300, 10))

    def test_without_order_others_are_not_concerned(
        self, publisher: Publisher, topic: str, arrived: Arrived, break_key: Break
    ) -> None:
        """Messages without a key that failed go through when they are sent again."""
        break_key("", False)  # noqa: FBT003 - not accepted
        insist(publisher, run(topic, 50, ""))
        assert sorted(set(numbers(arrived(50)))) == list(range(50))


class TestFakePublisher(FailingContract):
    """The fake keeps the contract."""

    @pytest.fixture
    def topic(self) -> str:
        """Give the name of a topic."""
        return TOPIC

    @pytest.fixture
    def publisher(self, topic: str) -> FakePublisher:
        """Give the fake."""
        return FakePublisher({topic: []})

    @pytest.fixture
    def arrived(self, publisher: FakePublisher, topic: str) -> Arrived:
        """Give what lies there."""
        return lambda _: [
            Received(each.data, dict(each.attributes), each.ordering_key) for each in publisher.topics[topic]
        ]

    @pytest.fixture
    def break_key(self, publisher: FakePublisher) -> Break:
        """Let it fail."""
        return lambda key, accepted: publisher.failing.append(
            (lambda each: each.ordering_key == key, accepted)
        )


class TestEmulator(PublisherContract):
    """The real publisher keeps the contract at Google's emulator."""

    @pytest.fixture
    def topic(self, emulator: Emulator) -> str:
        """Give a topic of the test's own."""
        return emulator.topic()

    @pytest.fixture
    def subscription(self, emulator: Emulator, topic: str) -> Subscription:
        """Give a subscription of it."""
        return emulator.subscribe(topic)

    @pytest.fixture
    def arrived(self, subscription: Subscription) -> Arrived:
        """Give what is pulled."""
        return lambda count: subscription.until(lambda received: len(received) >= count)

    @pytest.fixture
    def publisher(self, subscription: Subscription) -> Iterator[PubSubPublisher]:
        """Give the real one, which has a subscriber."""
        assert not subscription.received
        publisher = PubSubPublisher(PROJECT, answer_seconds=PATIENT)
        yield publisher
        publisher.close()

    def test_it_goes_on_when_pubsub_is_back(self, publisher: PubSubPublisher, emulator: Emulator) -> None:
        """While it is away every message fails in passing; what is sent again later arrives in order."""
        topic = f"again-{uuid4().hex[:12]}"
        messages = run(topic, 20, "a", "b")
        emulator.stop()
        sent = publisher.send(messages)
        assert all(each.error and not each.lasting for each in sent)
        emulator.start()
        subscription = emulator.subscribe(emulator.topic(topic))
        eventually(lambda: not failed(messages[:1], publisher.send(messages[:1])))
        insist(publisher, messages)
        received = subscription.until(lambda received: len(received) >= 21)
        assert first_times(numbers(received, "a")) == list(range(0, 20, 2))


class TestFaultyServer(FailingContract):
    """The real publisher keeps the contract at a server that fails."""

    @pytest.fixture
    def topic(self) -> str:
        """Give the name of a topic."""
        return TOPIC

    @pytest.fixture
    def service(self, topic: str) -> Iterator[FaultyPubSub]:
        """Give the server."""
        with faulty(path_of(PROJECT, topic)) as service:
            yield service

    @pytest.fixture
    def publisher(self, service: FaultyPubSub) -> Iterator[PubSubPublisher]:
        """Give the real one."""
        assert service.requests == 0
        publisher = PubSubPublisher(PROJECT, answer_seconds=PATIENT)
        yield publisher
        publisher.close()

    @pytest.fixture
    def impatient(self, service: FaultyPubSub) -> Iterator[PubSubPublisher]:
        """Give one that soon gives up."""
        assert service.requests == 0
        publisher = PubSubPublisher(PROJECT, answer_seconds=4)
        yield publisher
        publisher.close()

    @pytest.fixture
    def arrived(self, service: FaultyPubSub, topic: str) -> Arrived:
        """Give what the server accepted."""
        return lambda _: service.of(topic)

    @pytest.fixture
    def break_key(self, service: FaultyPubSub) -> Break:
        """Let it fail."""

        def broken(key: str, accepted: bool) -> None:  # noqa: FBT001 - as `Break` says
            service.faults.append(
                Fault(
                    grpc.StatusCode.UNAVAILABLE,
                    accepted=accepted,
                    when=lambda request: request.messages[0].ordering_key == key,
                )
            )

        return broken

    @pytest.mark.parametrize("code", PASSING, ids=lambda code: code.name)
    def test_what_the_server_says_of_itself_is_passing(
        self,
        publisher: PubSubPublisher,
        service: FaultyPubSub,
        topic: str,
        arrived: Arrived,
        code: grpc.StatusCode,
    ) -> None:
        """The error is told by its name, and the messages go through when they are sent again."""
        service.faults.append(Fault(code, times=1 << 30))
        messages = run(topic, 4, "a", "")
        sent = publisher.send(messages)
        service.faults.clear()
        assert all(each.error.startswith(code.name) and not each.lasting for each in sent), sent
        insist(publisher, failed(messages, sent))
        assert first_times(numbers(arrived(4), "a")) == [0, 2]

    def test_the_refused_message_of_a_batch_is_found(
        self, publisher: PubSubPublisher, service: FaultyPubSub, topic: str, arrived: Arrived
    ) -> None:
        """It alone is refused for good, though a server refuses its whole request; the order holds."""
        service.refuses = lambda each: each.data in {b"10", b"11", b"15"}
        messages = run(topic, 40, "a", "")
        sent = publisher.send(messages)
        assert {n for n, each in enumerate(sent) if each.lasting} == {10, 11, 15}
        assert [n for n, each in enumerate(sent) if each.error and not each.lasting] == list(range(12, 40, 2))
        insist(publisher, failed(messages, sent))
        assert numbers(arrived(37), "a") == [n for n in range(0, 40, 2) if n != 10]
        assert sorted(numbers(arrived(37), "")) == [n for n in range(1, 40, 2) if n not in {11, 15}]

    def test_it_is_bounded_in_time_when_nothing_answers(
        self, impatient: PubSubPublisher, service: FaultyPubSub, topic: str
    ) -> None:
        """Every message has failed in passing then, whatever it waited for."""
        service.faults.append(Fault(grpc.StatusCode.UNAVAILABLE, times=100_000, seconds=3600))
        messages = [message(topic, number, f"{number % 20}") for number in range(3000)]
        began = monotonic()
        sent = impatient.send(messages)
        assert monotonic() - began < 20
        assert all(each.error and not each.lasting for each in sent)

    def test_it_is_bounded_in_time_when_answers_are_slow(
        self, impatient: PubSubPublisher, service: FaultyPubSub, topic: str, arrived: Arrived
    ) -> None:
        """What is done is confirmed, the rest fails, and goes through later, in order."""
        service.faults.append(Fault(times=100_000, seconds=0.7))
        messages = [
            each._replace(attributes={"n": each.data.decode(), "pad": "x" * 1000})
            for each in run(topic, 9000, "a")
        ]
        began = monotonic()
        sent = impatient.send(messages)
        assert monotonic() - began < 20
        left = failed(messages, sent)
        assert 0 < len(left) < len(messages)
        service.faults = []
        insist(impatient, left)
        assert first_times(numbers(arrived(0))) == list(range(9000))

    def test_a_server_that_dies_in_the_middle(
        self, publisher: PubSubPublisher, service: FaultyPubSub, topic: str, arrived: Arrived
    ) -> None:
        """What it took and did not confirm is sent again when it is back; the order holds."""
        service.faults.append(Fault(accepted=True, dies=True))
        messages = run(topic, 200, "a", "b", "")
        sent = publisher.send(messages)
        assert any(each.error for each in sent)
        service.stop()
        service.start()
        eventually(lambda: not publisher.send([message(topic, 0)])[0].error)
        insist(publisher, failed(messages, sent))
        received = arrived(201)
        assert first_times(numbers(received, "a")) == list(range(0, 200, 3))
        assert first_times(numbers(received, "b")) == list(range(1, 200, 3))
        assert set(numbers(received, "")) == {0, *range(2, 200, 3)}

    def test_another_thread_may_close_it(
        self, impatient: PubSubPublisher, service: FaultyPubSub, topic: str
    ) -> None:
        """What is being sent then is confirmed or has failed soon, and nothing raises; nor does closing it again."""
        service.faults.append(Fault(times=100_000, seconds=0.2))
        messages = [message(topic, number, f"{number % 50}") for number in range(3000)]
        with ThreadPoolExecutor(1) as threads:
            sending = threads.submit(impatient.send, messages)
            eventually(lambda: service.requests)
            impatient.close()
            sent = sending.result(timeout=60)
        impatient.close()
        assert any(each.error for each in sent)
        assert not any(each.lasting for each in sent)
        assert all(each.error for each in impatient.send(messages[:2]))

    def test_what_is_under_way_is_bounded_in_bytes(self, service: FaultyPubSub, topic: str) -> None:
        """While nothing is answered, the server is sent no more than that."""
        held: list[int] = []

        def hold(request: Any) -> bool:
            held.append(sum(len(each.data) for each in request.messages))
            return True

        service.faults.append(Fault(grpc.StatusCode.UNAVAILABLE, times=100_000, seconds=3600, when=hold))
        publisher = PubSubPublisher(PROJECT, in_flight_bytes=10_500_000, answer_seconds=2)
        publisher.send([Message(topic, b"x" * 1_000_000, {}, f"{number}") for number in range(30)])
        publisher.close()
        assert 5_000_000 < sum(held) <= 10_500_000
