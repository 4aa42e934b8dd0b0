"""Publishing through Google's client library, which batches and bounds what is under way."""

from collections.abc import Sequence
from concurrent.futures import wait
from threading import Event, Lock
from time import monotonic

from google.api_core.exceptions import GoogleAPICallError, GoogleAPIError, InvalidArgument
from google.auth.exceptions import GoogleAuthError
from google.cloud.pubsub_v1 import PublisherClient
from google.cloud.pubsub_v1.publisher.exceptions import (
    FlowControlLimitError,
    PublishToPausedOrderingKeyException,
)
from google.cloud.pubsub_v1.publisher.futures import Future
from google.cloud.pubsub_v1.types import (
    BatchSettings,
    LimitExceededBehavior,
    PublisherOptions,
    PublishFlowControl,
    PubsubMessage,
)
from google.pubsub_v1 import PublisherClient as Requests

from distributary.errors import EnvironmentFault
from distributary.events.envelope import Message
from distributary.ports.events import Sent
from distributary.pubsub.client import open_client
from distributary.pubsub.limits import path_of, refusal

#: Bytes that are under way at most; never fewer than one message may have.
IN_FLIGHT_BYTES = 32 * 1024 * 1024

#: The library has a thread for each request, and each ordering key has requests of its own.
_IN_FLIGHT_MESSAGES = 1000
_BATCH = BatchSettings(max_bytes=1024 * 1024, max_messages=1000, max_latency=0.01)

#: Seconds in which a request is answered, or has failed.
ANSWER_SECONDS = 10.0

#: Names that the library's `publish` takes for its own parameters.
_PARAMETERS = frozenset({"self", "topic", "data", "ordering_key", "retry", "timeout"})

_CONFIRMED = Sent()
_BEHIND = Sent("behind a message of its ordering key that failed")
_LATE = Sent("not sent, since Pub/Sub takes messages too slowly")

#: A topic and an ordering key.
_Lane = tuple[str, str]


class PubSubPublisher:
    """Publishes to the topics of a project; see `Publisher`. One thread sends at a time; another one may close it.

    Raises `EnvironmentFault` when there are no credentials. `answer_seconds` bound each request, and half of them
    the time in which requests begin.
    """

    def __init__(
        self,
        project: str,
        endpoint: str = "",
        in_flight_bytes: int = IN_FLIGHT_BYTES,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        self._project = project
        self._endpoint = endpoint
        self._seconds = answer_seconds
        # With retries, the library goes on for ever where messages are ordered.
        self._options = PublisherOptions(
            enable_message_ordering=True,
            flow_control=PublishFlowControl(
                _IN_FLIGHT_MESSAGES, in_flight_bytes, LimitExceededBehavior.ERROR
            ),
            retry=None,
            timeout=answer_seconds,
        )
        self._client: PublisherClient | None = self._open()
        self._lock = Lock()
        self._is_sending = self._is_closed = False

    def send(self, messages: Sequence[Message]) -> Sequence[Sent]:
        """Publish; returns once it is known of each message what became of it."""
        with self._lock:
            if self._is_closed:
                return [_LATE] * len(messages)
            self._is_sending = True
        try:
            client = self._client or self._open()
        except EnvironmentFault as error:  # credentials that were there, and are asked for in vain now
            self._done(None, is_sound=True)
            return [Sent(error.message)] * len(messages)
        sending = _Sending(client, self._project, messages, self._seconds)
        sent = sending.run()
        self._done(client, is_sound=sending.resume())
        return sent

    def close(self) -> None:
        """Begin no more requests; what is under way has its time, and then the connection is closed."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                if self._client is not None:
                    self._client.stop()
                    if not self._is_sending:
                        self._client.transport.close()

    def _done(self, client: PublisherClient | None, *, is_sound: bool) -> None:
        """Keep a client that is sound; another one is opened by the next call."""
        with self._lock:
            self._is_sending = False
            if client is not None and self._is_closed:
                client.transport.close()
            elif client is not None and not is_sound:
                client.stop()
                client.transport.close()
            self._client = client if is_sound and not self._is_closed else None

    def _open(self) -> PublisherClient:
        return open_client(self._endpoint, batch_settings=_BATCH, publisher_options=self._options)


class _Sending:
    """What becomes of some messages that are published."""

    def __init__(
        self, client: PublisherClient, project: str, messages: Sequence[Message], seconds: float
    ) -> None:
        self._client = client
        self._project = project
        self._messages = messages
        self._begin_until = monotonic() + seconds / 2
        self._end = monotonic() + seconds
        self._sent = [_LATE] * len(messages)
        self._failed: dict[_Lane, int] = {}
        self._under_way: dict[int, Future] = {}
        self._alone: list[int] = []
        self._alone_lanes: set[_Lane] = set()
        self._room = Event()

    def run(self) -> Sequence[Sent]:
        """Publish, and give what became of each."""
        for number in range(len(self._messages)):
            self._begin(number)
        wait(self._under_way.values(), self._end - monotonic() + 1)
        for number, future in self._under_way.items():
            self._answered(number, future)
        for number in sorted(self._alone):
            self._send_alone(number)
        return self._sent

    def resume(self) -> bool:
        """Let the ordering keys that the library paused go on; False when a new client is needed."""
        if not all(future.done() for future in self._under_way.values()):
            return False
        paused = {self._lane(number) for number, each in self._under_way.items() if each.exception()}
        try:
            for topic, key in paused:
                if key:
                    self._client.resume_publish(topic, key)
        except RuntimeError:  # it says that a message failed, and has not paused its key
            return False
        return True

    # --- many at a time -------------------------------------------------------------------------------------

    def _begin(self, number: int) -> None:
        message = self._messages[number]
        lane = self._lane(number)
        if reason := refusal(message, self._project):
            self._note(number, Sent(reason, lasting=True))
        elif self._is_behind(number):
            self._note(number, _BEHIND)
        elif lane in self._alone_lanes or not _PARAMETERS.isdisjoint(message.attributes):
            self._set_apart(number)
        elif future := self._handed_over(message):
            self._under_way[number] = future
        else:
            self._note(number, _LATE)

    def _handed_over(self, message: Message) -> Future | None:
        """Give a message to the library as soon as it has room; None when that takes too long."""
        topic = path_of(self._project, message.topic)
        while (left := self._begin_until - monotonic()) > 0:
            self._room.clear()
            try:
                future = self._client.publish(topic, message.data, message.ordering_key, **message.attributes)
            except RuntimeError:  # closed by another thread
                return None
            if not _is_full(future):
                future.add_done_callback(lambda _: self._room.set())
                return future
            self._room.wait(left)
        return None

    def _answered(self, number: int, future: Future) -> None:
        error = future.exception() if future.done() else None
        if isinstance(error, InvalidArgument):
            self._set_apart(number)
        elif error or not future.done():
            self._note(number, _failure(error) if error else _LATE)
        else:
            self._sent[number] = _CONFIRMED

    # --- one at a time --------------------------------------------------------------------------------------

    def _set_apart(self, number: int) -> None:
        """Let a message be sent alone: because of one that is refused, its whole batch is."""
        self._alone.append(number)
        if self._messages[number].ordering_key:
            self._alone_lanes.add(self._lane(number))

    def _send_alone(self, number: int) -> None:
        left = self._end - monotonic()
        if self._is_behind(number):
            self._note(number, _BEHIND)
        elif left <= 0:
            self._note(number, _LATE)
        else:
            self._request(number, left)

    def _request(self, number: int, seconds: float) -> None:
        topic, key = self._lane(number)
        message = self._messages[number]
        whole = PubsubMessage(data=message.data, attributes=dict(message.attributes), ordering_key=key)
        try:
            Requests.publish(self._client, topic=topic, messages=[whole], retry=None, timeout=seconds)
            self._sent[number] = _CONFIRMED
        except (GoogleAPIError, GoogleAuthError, ValueError) as error:
            self._note(number, _failure(error))

    # --- order ----------------------------------------------------------------------------------------------

    def _lane(self, number: int) -> _Lane:
        message = self._messages[number]
        return path_of(self._project, message.topic), message.ordering_key

    def _is_behind(self, number: int) -> bool:
        lane = self._lane(number)
        return bool(lane[1]) and self._failed.get(lane, number) < number

    def _note(self, number: int, failed: Sent) -> None:
        self._sent[number] = failed
        lane = self._lane(number)
        self._failed[lane] = min(number, self._failed.get(lane, number))


def _is_full(future: Future) -> bool:
    return future.done() and isinstance(future.exception(), FlowControlLimitError)


def _failure(error: BaseException) -> Sent:
    """Give what an error comes to; all but a refused message may come right by itself, or be put right."""
    if isinstance(error, GoogleAPICallError):
        code = error.grpc_status_code.name if error.grpc_status_code else type(error).__name__
        return Sent(f"{code}: {error.message}", isinstance(error, InvalidArgument))
    return _BEHIND if isinstance(error, PublishToPausedOrderingKeyException) else Sent(f"{error!r}")
