"""A Pub/Sub publisher service that fails in the ways that the emulator cannot."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Lock
from typing import Any

import grpc
import pytest
from google.iam.v1 import iam_policy_pb2 as iam
from google.pubsub_v1 import types

from tests.pubsub import HOST_VARIABLE, Received
from tests.servers import free_port

_THREADS = 64


def _any(_: Any) -> bool:
    return True


@dataclass
class Fault:
    """How the next `times` requests to publish end for which `when` holds.

    With `accepted`, their messages are taken all the same. They are answered after `seconds`; without a code, well.
    With `dies`, the server is gone instead, and what it took stays taken.
    """

    code: grpc.StatusCode | None = None
    times: int = 1
    accepted: bool = False
    seconds: float = 0.0
    dies: bool = False
    when: Callable[[Any], bool] = _any


class FaultyPubSub:
    """The service, on a port that stays the same when it is stopped and started.

    Put what is to go wrong into `faults`. A message for which `refuses` holds makes its request invalid, and is
    quoted. `taken` has what was accepted, in order. Topics exist when they are in `topics`; who asks may do what is in
    `permissions`.
    """

    def __init__(self, topics: Sequence[str]) -> None:
        self.topics = set(topics)
        self.permissions: set[str] = {"pubsub.topics.publish", "pubsub.topics.get", "pubsub.topics.create"}
        self.faults: list[Fault] = []
        self.refuses: Callable[[Received], bool] = lambda _: False
        self.taken: list[tuple[str, Received]] = []
        self.requests = 0
        self.host = f"127.0.0.1:{free_port()}"
        self._lock = Lock()
        self._server: grpc.Server | None = None
        self._ending = Event()

    def start(self) -> None:
        """Serve."""
        self._ending = Event()
        server = grpc.server(ThreadPoolExecutor(_THREADS))
        server.add_generic_rpc_handlers(self._handlers())
        assert server.add_insecure_port(self.host)
        server.start()
        self._server = server

    def stop(self) -> None:
        """Break every connection; nothing listens any more on return."""
        self._ending.set()
        if self._server:
            self._server.stop(grace=None).wait()

    def of(self, topic: str) -> list[Received]:
        """Give what was accepted for a topic, in order."""
        with self._lock:
            return [message for name, message in self.taken if name.endswith(f"/{topic}")]

    def _handlers(self) -> list[grpc.GenericRpcHandler]:
        publisher = {
            "Publish": _handler(self._publish, types.PublishRequest, types.PublishResponse),
            "GetTopic": _handler(self._get, types.GetTopicRequest, types.Topic),
            "CreateTopic": _handler(self._create, types.Topic, types.Topic),
        }
        policy = grpc.unary_unary_rpc_method_handler(
            self._permissions,
            iam.TestIamPermissionsRequest.FromString,
            iam.TestIamPermissionsResponse.SerializeToString,
        )
        return [
            grpc.method_handlers_generic_handler("google.pubsub.v1.Publisher", publisher),
            grpc.method_handlers_generic_handler("google.iam.v1.IAMPolicy", {"TestIamPermissions": policy}),
        ]

    # --- publishing -----------------------------------------------------------------------------------------

    def _publish(self, request: Any, context: grpc.ServicerContext) -> Any:
        fault = self._next(request) or Fault()
        messages = [
            Received(each.data, dict(each.attributes), each.ordering_key) for each in request.messages
        ]
        if fault.code is None or fault.accepted:
            self._take(request.topic, messages, context)
        if fault.dies:
            self._die()
        self._ending.wait(fault.seconds)
        if fault.code is not None:
            context.abort(fault.code, "as it was ordered")
        return types.PublishResponse.pb()(message_ids=[str(n) for n in range(len(messages))])

    def _next(self, request: Any) -> Fault | None:
        with self._lock:
            self.requests += 1
            fault = next((each for each in self.faults if each.when(request)), None)
            if fault:
                fault.times -= 1
                self.faults = [each for each in self.faults if each.times]
            return fault

    def _take(self, topic: str, messages: Sequence[Received], context: grpc.ServicerContext) -> None:
        if topic not in self.topics:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Resource not found (resource={topic}).")
        if refused := list(filter(self.refuses, messages)):
            quoted = repr(refused[0].data)
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"The topic does not take the message {quoted}.")
        if len({each.ordering_key for each in messages}) > 1:
            context.abort(
                grpc.StatusCode.FAILED_PRECONDITION, "All messages must have the same ordering key."
            )
        with self._lock:
            self.taken += [(topic, each) for each in messages]

    def _die(self) -> None:
        """Break every connection, this one too."""
        self._ending.set()
        assert self._server
        self._server.stop(grace=None)

    # --- topics ---------------------------------------------------------------------------------------------

    def _get(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._may("pubsub.topics.get", context)
        if request.topic not in self.topics:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Resource not found (resource={request.topic}).")
        return types.Topic.pb()(name=request.topic)

    def _create(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._may("pubsub.topics.create", context)
        self.topics.add(request.name)
        return request

    def _permissions(self, request: Any, _: grpc.ServicerContext) -> Any:
        there = request.resource in self.topics
        granted = [each for each in request.permissions if there and each in self.permissions]
        return iam.TestIamPermissionsResponse(permissions=granted)

    def _may(self, permission: str, context: grpc.ServicerContext) -> None:
        if permission not in self.permissions:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "User not authorized to perform this action.")


def _handler(answer: Callable[[Any, grpc.ServicerContext], Any], asked: Any, given: Any) -> Any:
    return grpc.unary_unary_rpc_method_handler(answer, asked.pb().FromString, given.pb().SerializeToString)


@contextmanager
def faulty(*topics: str) -> Iterator[FaultyPubSub]:
    """Serve topics, named in the environment as an emulator is."""
    service = FaultyPubSub(topics)
    service.start()
    try:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv(HOST_VARIABLE, service.host)
            yield service
    finally:
        service.stop()
