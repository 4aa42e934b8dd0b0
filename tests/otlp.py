"""A receiver of OpenTelemetry's spans over HTTP: what a collector is to a worker."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Sent


class Span(NamedTuple):
    """A span that arrived; `links` are those to other spans, each as trace and span."""

    name: str
    trace: str
    id: str
    parent: str
    start: int
    end: int
    failed: bool
    attributes: dict[str, Any]
    links: list[tuple[str, str]]

    @property
    def context(self) -> str:
        """What a `traceparent` says of it, but for the flags behind it."""
        return f"00-{self.trace}-{self.id}"


@dataclass
class Receiver:
    """What arrived, of the service of this name."""

    endpoint: str = ""
    services: set[str] = field(default_factory=set)
    spans: list[Span] = field(default_factory=list)

    def named(self, name: str) -> list[Span]:
        """Give the spans of a name."""
        return [each for each in self.spans if each.name == name]

    def below(self, parent: Span) -> list[Span]:
        """Give the children of a span, in the order of their beginnings."""
        found = [each for each in self.spans if each.parent == parent.id and each.trace == parent.trace]
        return sorted(found, key=lambda each: each.start)

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which a worker sends its spans here, soon."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}

    def take(self, body: bytes) -> None:
        """Read what was sent."""
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            named = {each.key: each.value.string_value for each in resource.resource.attributes}
            self.services.add(named["service.name"])
            self.spans += [_read(span) for scope in resource.scope_spans for span in scope.spans]


def _read(span: Sent) -> Span:
    return Span(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        span.status.code == span.status.STATUS_CODE_ERROR,
        {each.key: getattr(each.value, each.value.WhichOneof("value") or "") for each in span.attributes},
        [(each.trace_id.hex(), each.span_id.hex()) for each in span.links],
    )


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Receive spans until the end of the block."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            receiver.take(self.rfile.read(int(self.headers["Content-Length"])))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Write no log."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()
