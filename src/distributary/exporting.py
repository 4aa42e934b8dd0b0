"""Where spans go: OpenTelemetry's SDK, set up by its environment variables."""

import logging
import os
from importlib.metadata import entry_points, version
from threading import Thread
from time import monotonic
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Tracer

from distributary.log import get_logger

log = get_logger()

#: Seconds for sending what is left at the end, at most.
CLOSE_SECONDS = 2.0

#: Seconds between two lines of the log about spans that cannot be sent.
TELL_SECONDS = 60.0

#: What the variables say where nobody set them.
DEFAULTS = {
    "OTEL_SERVICE_NAME": "distributary",
    "OTEL_TRACES_EXPORTER": "otlp",
    "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
}


class Exporting:
    """A tracer whose spans go where the variables of OpenTelemetry say, until it is closed.

    Where a tracer provider is set already, as by `opentelemetry-instrument`, they go there. Raises `ImportError` where
    no package brings an exporter.
    """

    def __init__(self) -> None:
        for name, value in DEFAULTS.items():
            os.environ.setdefault(name, value)
        _tell_failures()
        given = trace.get_tracer_provider()
        self._ours = _made() if isinstance(given, trace.ProxyTracerProvider) else None
        self.tracer: Tracer = (self._ours or given).get_tracer("distributary", version("distributary"))

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Send what is left, for so long or two seconds; a provider that others set is theirs to end."""
        if self._ours is not None:
            ending = Thread(target=self._ours.shutdown, name="traces", daemon=True)
            ending.start()
            ending.join(min(seconds, CLOSE_SECONDS))


def _made() -> TracerProvider:
    """Make a provider, and set it for whatever else makes spans in this process."""
    provider = TracerProvider(shutdown_on_exit=False)
    for name in _exporters():
        provider.add_span_processor(BatchSpanProcessor(_exporter(name)()))
    trace.set_tracer_provider(provider)
    return provider


def _exporters() -> list[str]:
    """Give the names of the exporters that OTEL_TRACES_EXPORTER lists, by the protocol where that matters."""
    listed = [each.strip() for each in os.environ["OTEL_TRACES_EXPORTER"].split(",")]
    general = os.environ["OTEL_EXPORTER_OTLP_PROTOCOL"]
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", general).partition("/")[0]
    return [
        f"otlp_proto_{protocol}" if each == "otlp" else each for each in listed if each not in {"", "none"}
    ]


def _exporter(name: str) -> Any:
    """Give the class of an exporter, as the packages that are installed advertise it."""
    for each in entry_points(group="opentelemetry_traces_exporter", name=name):
        return each.load()
    raise ImportError(f"no package that is installed brings the exporter {name!r}")


class _Told(logging.Handler):
    """Puts what OpenTelemetry complains of into the log, a line a minute at most, and without values of variables."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._next = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Tell, unless something was told lately."""
        if monotonic() >= self._next:
            self._next = monotonic() + TELL_SECONDS
            safe = record.name.startswith(("opentelemetry.exporter.", "opentelemetry.sdk."))
            log.warning("traces not sent", error=record.getMessage() if safe else f"see {record.name}")


def _tell_failures() -> None:
    logger = logging.getLogger("opentelemetry")
    if not any(isinstance(each, _Told) for each in logger.handlers):
        logger.addHandler(_Told())
        logger.propagate = False
