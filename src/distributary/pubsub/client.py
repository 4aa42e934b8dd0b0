"""The connection to Pub/Sub: the credentials of the environment, a regional endpoint, or the emulator."""

import os
from collections.abc import Sequence
from typing import Any

import grpc
from google.api_core.client_options import ClientOptions
from google.auth.exceptions import GoogleAuthError
from google.cloud.pubsub_v1 import PublisherClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport

from distributary.errors import EnvironmentFault

#: Names the emulator (`host:port`), as for all of Google's libraries.
EMULATOR_VARIABLE = "PUBSUB_EMULATOR_HOST"

#: gRPC lets more and more time pass before it connects again, up to two minutes: too long behind an outage.
_CHANNEL = (("grpc.initial_reconnect_backoff_ms", 200), ("grpc.max_reconnect_backoff_ms", 2000))

_CREDENTIALS_CURE = (
    "Run `gcloud auth application-default login`, name a key file by GOOGLE_APPLICATION_CREDENTIALS, or run as a"
    f" service account; for the emulator set {EMULATOR_VARIABLE}."
)


class _Transport(PublisherGrpcTransport):
    """The library's connection, with options of our own."""

    @classmethod
    def create_channel(  # type: ignore[override]
        cls, host: str, *, options: Sequence[tuple[str, Any]] = (), **settings: Any
    ) -> grpc.Channel:
        return super().create_channel(host, options=[*options, *_CHANNEL], **settings)


def open_client(endpoint: str = "", **settings: Any) -> PublisherClient:
    """Give a client; nothing is asked of Pub/Sub. Raises `EnvironmentFault` when there are no credentials.

    `endpoint` is `host:port`, empty for the global one; the emulator that the environment names comes first.
    """
    if emulator := os.environ.get(EMULATOR_VARIABLE):
        channel = grpc.insecure_channel(emulator, options=_CHANNEL)
        return PublisherClient(transport=PublisherGrpcTransport(channel=channel), **settings)
    options = ClientOptions(api_endpoint=endpoint or None)
    try:
        return PublisherClient(transport=_Transport, client_options=options, **settings)
    except GoogleAuthError as error:
        raise EnvironmentFault(f"Pub/Sub cannot be used: {error}", _CREDENTIALS_CURE) from error
