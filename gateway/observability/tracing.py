"""OpenTelemetry traces: a span for every request, one for every stage in it, and one for every use of a model in that.

    request (server)  ─  stage  ─  model (client), with the W3C context sent to the model's server
                      ╰  stage  ─  model, model …

Off (no `tracing` in the configuration) none of this is imported. A trace holds names, numbers and causes; never prompts, answers or
secrets. Clients may send a `traceparent`: the request then is a part of their trace, and sampled as they say.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import gateway
from backends.tracecontext import TRACEPARENT
from backends.types import Usage
from backends.wrappers import Call, Use, Watcher
from backends.wrappers.causes import cause
from gateway.observability import genai
from gateway.observability.record import RequestRecord, record_of
from gateway.settings.resilience import Tracing as Section
from gateway.web.asgi import App, Receive, Scope, Send, header, is_http
from strategies.engine.events import StageReport
from strategies.engine.watching import WATCH, Tell
from strategies.planning.plan import Stage, TextStage, branches
from strategies.topology.ast import Shape

_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
_LONGEST = 512
"""Characters of a client's words that an attribute holds."""
_CLIENT_LEFT = 499

_propagator = TraceContextTextMapPropagator()


class Tracing:
    """processor: where spans go."""

    def __init__(self, section: Section, processor: SpanProcessor | None = None) -> None:
        resource = Resource.create({"service.name": section.service, "service.version": gateway.__version__})
        self._provider = TracerProvider(resource=resource, sampler=ParentBased(TraceIdRatioBased(section.sample)))
        self._provider.add_span_processor(processor or _exporting(section))
        self._tracer = self._provider.get_tracer("modelnet", gateway.__version__)
        self.calls = _Calls(self._tracer)
        self._runs = _Runs(self._tracer)

    def wrap(self, app: App) -> App:
        """The application with a span around every request but probes."""
        return _Traced(app, self)

    @contextmanager
    def request(self, scope: Scope) -> Iterator[None]:
        """Around a request; its log lines have the trace's id. Errors of it are read from its record."""
        record = record_of(scope)
        carrier = {name: value for name in ("traceparent", "tracestate") if (value := header(scope, name.encode()))}
        span = self._tracer.start_span(
            f"{scope['method']} {genai.route(scope['path'])}",
            context=_propagator.extract(carrier),
            kind=SpanKind.SERVER,
        )
        token = WATCH.set(self._runs)
        try:
            with (
                trace.use_span(span, end_on_exit=False, record_exception=False, set_status_on_exception=False),
                structlog.contextvars.bound_contextvars(trace_id=format(span.get_span_context().trace_id, "032x")),
            ):
                yield
        finally:
            WATCH.reset(token)
            _describe(span, scope, record)
            span.end()

    def close(self) -> None:
        """Send what waits, for a bounded time. Blocks."""
        self._provider.shutdown()


def _exporting(section: Section) -> SpanProcessor:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    headers = {name: value.get_secret_value() for name, value in section.headers.items()}
    return BatchSpanProcessor(OTLPSpanExporter(endpoint=section.endpoint, headers=headers, timeout=section.timeout))


class _Traced:
    def __init__(self, app: App, tracing: Tracing) -> None:
        self.app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_http(scope) or scope["path"] in _QUIET:
            await self.app(scope, receive, send)
            return
        with self._tracing.request(scope):
            await self.app(scope, receive, send)


def _describe(span: Span, scope: Scope, record: RequestRecord) -> None:
    if not span.is_recording():
        return
    values: dict[str, Any] = {
        genai.METHOD: scope["method"],
        genai.ROUTE: genai.route(scope["path"]),
        genai.STATUS: record.status,
        genai.REQUEST_ID: record.request_id,
        genai.SHAPE: record.shape,
    }
    optional = {
        genai.OPERATION: genai.OPERATIONS.get(scope["path"]),
        genai.REQUEST_MODEL: record.model[:_LONGEST] if record.model else None,
        genai.RESPONSE_ID: record.completion,
        genai.WIRING: record.wiring,
        genai.KEY: record.key,
        genai.ARM_ROUTE: record.route,
        genai.ARM: record.arm,
        genai.FIRST_SECONDS: record.first_token,
        genai.ERROR_TYPE: record.error,
    }
    values |= {name: value for name, value in optional.items() if value is not None}
    if genai.OPERATION in values:
        values[genai.PROVIDER] = genai.OURSELVES
        span.update_name(f"{values[genai.OPERATION]} {record.shape}")
    if record.usage is not None:
        values |= _usage(record.usage)
    span.set_attributes(values)
    if record.status >= 500 or (record.error is not None and record.status == 200):
        span.set_status(Status(StatusCode.ERROR, record.error))


class _Runs:
    """Spans of stages. See `strategies.engine.watching.RunWatch`."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    @contextmanager
    def stage(self, index: int, stage: Stage, shape: Shape) -> Iterator[Tell]:
        models = [branch.model for branch in branches(stage)]
        values: dict[str, Any] = {
            genai.STAGE: index,
            genai.SHAPE: shape,
            genai.ROLE: branches(stage)[0].role,
            genai.MODELS: models,
        }
        if not isinstance(stage, TextStage):
            values[genai.WEIGHTS] = list(stage.weights)
        span = self._tracer.start_span(f"stage {index} {'|'.join(models)}", attributes=values)

        def tell(report: StageReport) -> None:
            span.set_attributes(_reported(report))

        try:
            with trace.use_span(span, end_on_exit=False, record_exception=False, set_status_on_exception=False):
                yield tell
        except Exception as error:
            _failed(span, error)
            raise
        finally:
            span.end()


def _reported(report: StageReport) -> dict[str, Any]:
    values: dict[str, Any] = {genai.FINISH_REASONS: [report.finish_reason], **_usage(report.usage)}
    if report.first_token is not None:
        values[genai.FIRST_SECONDS] = report.first_token
    if report.gap is not None:
        values[genai.GAP_SECONDS] = report.gap
    if (early := report.prefill) is not None:
        values |= {genai.PREPARED: early.prepared, genai.PREPARING_FAILED: early.failed}
    if (meters := report.meters) is not None:
        values |= {
            genai.PIECES: meters.pieces,
            genai.CERTIFIED: meters.certified,
            genai.LOOKED_UP: meters.looked_up,
            genai.UNCERTIFIED: meters.uncertified,
            genai.DRIFT: meters.drift,
            genai.PASSES: meters.passes,
        }
    if report.quorum is not None:
        values[genai.QUORUM] = report.quorum.pieces
    if report.dropped:
        values[genai.DROPPED] = [gone.model for gone in report.dropped]
    return values


class _Calls(Watcher):
    """Spans of uses of models."""

    __slots__ = ("_tracer",)

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    def call(self, model: str, use: Use, attempt: int) -> Call | None:
        if not trace.get_current_span().get_span_context().is_valid:
            return None  # nobody's request: a probe, or what is done at the start
        values: dict[str, Any] = {genai.OPERATION: genai.CHAT, genai.REQUEST_MODEL: model, genai.USE: use}
        if attempt:
            values[genai.RESEND] = attempt
        span = self._tracer.start_span(f"{genai.CHAT} {model}", kind=SpanKind.CLIENT, attributes=values)
        return _Called(span)


class _Called(Call):
    __slots__ = ("_span", "_traceparent")

    def __init__(self, span: Span) -> None:
        self._span = span
        context = span.get_span_context()
        self._traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
        self.resumed()

    def resumed(self) -> None:
        TRACEPARENT.set(self._traceparent)

    def first(self) -> None:
        self._span.add_event(genai.FIRST_EVENT)

    def ended(self, error: BaseException | None, usage: Usage | None) -> None:
        span = self._span
        if usage is not None and not usage.estimated:
            span.set_attributes(_usage(usage))
        if isinstance(error, Exception):
            _failed(span, error)
        span.end()
        TRACEPARENT.set(None)


def _failed(span: Span, error: Exception) -> None:
    """The cause only: messages may hold a client's words."""
    named = cause(error)
    span.set_attribute(genai.ERROR_TYPE, named)
    span.set_status(Status(StatusCode.ERROR, named))


def _usage(usage: Usage) -> dict[str, int]:
    return {genai.INPUT_TOKENS: usage.prompt_tokens, genai.OUTPUT_TOKENS: usage.completion_tokens}
