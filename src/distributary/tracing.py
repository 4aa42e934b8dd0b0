"""What the engine does, as spans of OpenTelemetry; the extra `traces` brings its packages.

Names of attributes are those of OpenTelemetry's semantic conventions for databases and messaging, version 1.37, where
these have one; others begin with `distributary.`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter, perf_counter_ns, time_ns
from typing import NamedTuple

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from distributary.engine.spans import Spans, Stage, Unit
from distributary.ports.events import Sent, Waiting
from distributary.ports.sink import Outcome
from distributary.ports.source import Stretch

#: Batches that one span of publishing is linked to, at most.
LINKS = 128

#: The command by which a stage asks the source; other stages ask nobody, or not only.
_COMMANDS = {Stage.READ: "getMore", Stage.SCAN: "find"}

_FORM = TraceContextTextMapPropagator()


class Tracing(Spans):
    """Makes a span of each unit that commits something, with its stages and transactions below it.

    A stage becomes a span when its unit begins, with the times that it had: what was read and never committed leaves
    none. Spans of publishing are linked to the units that committed what is published.
    """

    def __init__(self, tracer: Tracer, worker: str, source: str, derived: str) -> None:
        self._tracer = tracer
        self._worker = worker
        self._reading = {"db.system.name": "mongodb", "db.namespace": source}
        self._writing = {"db.system.name": "mongodb", "db.namespace": derived}
        self._unit: _Unit | None = None
        self._transaction: Span | None = None

    @contextmanager
    def unit(self, unit: Unit, **facts: str | int) -> Iterator[None]:
        """See `Spans`; without a transaction there is no span."""
        begun = self._unit = _Unit(self._tracer, unit, {"worker": self._worker, **facts})
        try:
            yield
        except BaseException as error:
            begun.fail(error)
            raise
        finally:
            self._unit = None
            begun.end()

    def stage(self, stage: Stage, when: Stretch | None, **facts: str | int) -> None:
        """See `Spans`."""
        if self._unit is not None and when is not None:
            command = _COMMANDS.get(stage)
            database = {**self._reading, "db.operation.name": command} if command else {}
            self._unit.add(_Stage(stage, when, {**database, **_ours(facts)}))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """See `Spans`; the span is the current one meanwhile, so that those of an instrumented driver lie below it."""
        if self._unit is None:
            yield
            return
        context = trace.set_span_in_context(self._unit.span)
        with self._tracer.start_as_current_span(
            "commit",
            context,
            SpanKind.CLIENT,
            {**self._writing, "db.operation.name": "commitTransaction"},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            self._transaction = span
            try:
                yield
            except BaseException as error:
                _fail(span, error)
                raise
            finally:
                self._transaction = None

    def wrote(self, outcome: Outcome) -> None:
        """See `Spans`."""
        if self._transaction is not None:
            counts = {
                "inserted": outcome.inserted.total(),
                "replaced": outcome.replaced.total(),
                "removed": outcome.removed.total(),
                "unchanged": outcome.unchanged,
            }
            self._transaction.set_attributes(_ours(counts))

    @property
    def trace(self) -> str:
        """See `Spans`."""
        if self._unit is None:
            return ""
        carrier: dict[str, str] = {}
        _FORM.inject(carrier, trace.set_span_in_context(self._unit.span))
        return carrier.get("traceparent", "")

    def sent(self, messages: Sequence[Waiting], sent: Sequence[Sent], when: Stretch) -> None:
        """See `Spans`."""
        failed = sum(1 for each in sent if each.error)
        topics, wall = {each.message.topic for each in messages}, _Wall()
        span = self._tracer.start_span(
            "publish",
            Context(),
            SpanKind.CLIENT,
            {
                "messaging.system": "gcp_pubsub",
                "messaging.operation.name": "publish",
                "messaging.operation.type": "send",
                "messaging.batch.message_count": len(messages),
                **({"messaging.destination.name": topics.pop()} if len(topics) == 1 else {}),
                **_ours({"worker": self._worker, "unconfirmed": failed}),
            },
            _links(messages),
            wall.at(when.begin),
        )
        if failed:
            span.set_status(Status(StatusCode.ERROR))
        span.end(wall.at(when.end))


class _Stage(NamedTuple):
    """A stage that is over."""

    stage: Stage
    when: Stretch
    attributes: Mapping[str, AttributeValue]


class _Unit:
    """A unit, whose span begins with its first transaction, at the time of its first stage."""

    def __init__(self, tracer: Tracer, unit: Unit, facts: Mapping[str, str | int]) -> None:
        self._tracer = tracer
        self._unit = unit
        self._facts = facts
        self._stages: list[_Stage] = []
        self._since = perf_counter()
        self._wall = _Wall()
        self._span: Span | None = None

    @property
    def span(self) -> Span:
        """The span, which begins here if it has not yet."""
        if self._span is None:
            since = min([self._since, *(each.when.begin for each in self._stages)])
            self._span = self._tracer.start_span(
                self._unit.value, Context(), attributes=_ours(self._facts), start_time=self._wall.at(since)
            )
            for each in self._stages:
                self._show(self._span, each)
        return self._span

    def add(self, stage: _Stage) -> None:
        """Note a stage; one of a unit that has begun is shown at once."""
        self._stages.append(stage)
        if self._span is not None:
            self._show(self._span, stage)

    def fail(self, error: BaseException) -> None:
        """Note that what the unit was to commit is not."""
        if self._span is not None:
            _fail(self._span, error)

    def end(self) -> None:
        """End the span, if it began."""
        if self._span is not None:
            self._span.end()

    def _show(self, span: Span, stage: _Stage) -> None:
        below = self._tracer.start_span(
            stage.stage.value,
            trace.set_span_in_context(span),
            SpanKind.CLIENT if stage.stage in _COMMANDS else SpanKind.INTERNAL,
            stage.attributes,
            start_time=self._wall.at(stage.when.begin),
        )
        below.end(self._wall.at(stage.when.end))


class _Wall:
    """The time of day of a `perf_counter`, in nanoseconds."""

    def __init__(self) -> None:
        self._zero = time_ns() - perf_counter_ns()

    def at(self, time: float) -> int:
        """Give it."""
        return self._zero + round(time * 1e9)


def _ours(facts: Mapping[str, str | int]) -> dict[str, AttributeValue]:
    return {f"distributary.{name.replace('_', '.')}": value for name, value in facts.items()}


def _fail(span: Span, error: BaseException) -> None:
    """Note an error by its type alone: its text may have what is in documents."""
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR))


def _links(messages: Sequence[Waiting]) -> list[Link]:
    """Give links to the units that committed messages, each once."""
    found = dict.fromkeys(each.trace for each in messages if each.trace)
    contexts = (
        trace.get_current_span(_FORM.extract({"traceparent": each}, Context())).get_span_context()
        for each in list(found)[:LINKS]
    )
    return [Link(each) for each in contexts if each.is_valid]
