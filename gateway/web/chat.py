"""POST /v1/chat/completions: the hot route, as plain ASGI.

read → decode → route, plan → admit → run (n times) → answer, with a watch on the client beside it: when it leaves, everything
of its request is cancelled at once, streaming or not.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import anyio
import structlog

import gateway
from gateway.observability.metrics import Metrics
from gateway.observability.record import RequestRecord, record_of
from gateway.runtime import ModelNotReady, Prepared, Runtime
from gateway.web.answering import Identity, Sink, Stream, Whole
from gateway.web.asgi import Disconnected, Receive, Scope, Send, read_body, send_error, until_disconnected
from gateway.wire.decode import ChatRequest, RequestLimits, decode_chat
from gateway.wire.errors import APIError, overloaded, timed_out, to_api_error, unsupported
from gateway.wire.topology_errors import wiring_error
from strategies.engine import run
from strategies.engine.events import Event, StageFinished
from strategies.topology import TopologyError

log = structlog.get_logger("modelnet.chat")

CLIENT_LEFT = 499
"""Status in the log and the metrics of a request whose client left; never sent."""


class ChatRoute:
    """Answers chat requests."""

    def __init__(self, runtime: Runtime, metrics: Metrics) -> None:
        limits = runtime.settings.limits
        self._runtime = runtime
        self._metrics = metrics
        self._limits = RequestLimits(limits.messages, limits.choices, limits.max_tokens)
        self._running: set[anyio.CancelScope] = set()
        self._ending = False

    def end_all(self) -> None:
        """End every running request, and refuse new ones: the gateway is shutting down."""
        self._ending = True
        for scope in tuple(self._running):
            scope.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        try:
            await self._answer(scope, receive, send, record)
        except Disconnected:
            record.status = CLIENT_LEFT
        except APIError as error:
            await send_error(scope, send, error)
        finally:
            record.status = record.status or 500
            self._metrics.finished(record)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, record: RequestRecord) -> None:
        request = decode_chat(await read_body(receive), self._limits)
        record.model, record.kind = request.model, "stream" if request.stream else "json"
        prepared = self._prepare(request)
        record.shape = prepared.plan.shape
        if self._runtime.settings.server.log.prompts:
            log.info("messages", messages=[{"role": m.role, "content": m.content} for m in request.messages])
        identity = _identity(request, prepared)
        common = (identity, prepared, request.n, request.show_stages, record)
        with self._admitted() as limit, self._metrics.active(request.stream):
            if request.stream:
                stream = Stream(scope, send, request.include_usage, *common)
                await self._attend(request, prepared, stream, limit, receive, stream)
            else:
                await self._attend(request, prepared, Whole(scope, send, *common), limit, receive)

    def _prepare(self, request: ChatRequest) -> Prepared:
        try:
            prepared = self._runtime.prepare(request.model, request.sampling, request.extra)
        except TopologyError as error:
            raise wiring_error(request.model, error) from error
        except ModelNotReady as error:
            raise not_ready(error) from error
        needs = {} if prepared.server is not None else request.needs_server
        if not prepared.penalties:
            needs = {**needs, **request.needs_sampler}
        for param, reason in needs.items():
            raise unsupported(param, reason)
        return prepared

    @contextmanager
    def _admitted(self) -> Iterator[anyio.CancelScope]:
        """A place among the requests at once, and the scope that ends this one."""
        limits = self._runtime.settings.limits
        if self._ending:
            raise overloaded("The gateway is shutting down.")
        if len(self._running) >= limits.concurrent_requests:
            raise overloaded("The gateway is at capacity; try again shortly.")
        scope = anyio.CancelScope()
        self._running.add(scope)
        try:
            yield scope
        finally:
            self._running.discard(scope)

    async def _attend(
        self,
        request: ChatRequest,
        prepared: Prepared,
        sink: Sink,
        limit: anyio.CancelScope,
        receive: Receive,
        stream: Stream | None = None,
    ) -> None:
        """Run and answer while watching the client. Raises Disconnected if it left."""
        left = False

        async def watch() -> None:
            nonlocal left
            await until_disconnected(receive)
            left = True
            tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            if stream is not None:
                tasks.start_soon(_contained, stream, self._runtime.settings.server.keepalive_seconds)
            try:
                await self._run_and_answer(request, prepared, sink, limit)
            except Disconnected:
                left = True
            tasks.cancel_scope.cancel()
        if left and not sink.closed:
            raise Disconnected

    async def _run_and_answer(
        self, request: ChatRequest, prepared: Prepared, sink: Sink, limit: anyio.CancelScope
    ) -> None:
        seconds = self._runtime.settings.limits.request_seconds
        limit.deadline = anyio.current_time() + seconds
        failure: Exception | None = None
        with limit:
            failure = await self._run_choices(request, prepared, sink)
            if failure is None:
                try:
                    await sink.end()
                except Exception as raised:  # noqa: BLE001 - told to the client below
                    failure = raised
                else:
                    return
        if limit.cancelled_caught and failure is None:
            shutting = self._ending and anyio.current_time() < limit.deadline
            too_slow = timed_out(f"The request took longer than {seconds:g} seconds.")
            failure = overloaded("The gateway is shutting down.") if shutting else too_slow
        assert failure is not None
        if isinstance(failure, Disconnected):
            raise failure
        error = to_api_error(failure)
        if error.status >= 500:
            log.error("request_failed", error=type(failure).__name__, reason=str(failure), exc_info=_trace(failure))
        with anyio.move_on_after(1.0):  # a client that does not read any more must not hold this up
            await sink.fail(error)

    async def _run_choices(self, request: ChatRequest, prepared: Prepared, sink: Sink) -> Exception | None:
        """Run every choice; the first error ends them all and is returned."""
        if request.n == 1:
            return await self._run_choice(0, request, prepared, sink)
        failures: list[Exception] = []

        async def one(choice: int) -> None:
            failure = await self._run_choice(choice, request, prepared, sink)
            if failure is not None:
                failures.append(failure)
                tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            for choice in range(request.n):
                tasks.start_soon(one, choice)
        return failures[0] if failures else None

    async def _run_choice(self, choice: int, request: ChatRequest, prepared: Prepared, sink: Sink) -> Exception | None:
        options = replace(prepared.options, sampling=request.sampling_of(choice))
        shape = prepared.plan.shape
        try:
            async with run(prepared.plan, request.messages, options, self._runtime.catalog) as events:
                async for event in events:
                    self._meter(shape, event)
                    await sink.take(choice, event)
        except Exception as error:  # noqa: BLE001 - told to the client by the caller
            return error
        return None

    def _meter(self, shape: str, event: Event) -> None:
        if isinstance(event, StageFinished):
            self._metrics.stage(shape, event.report)


async def _contained(stream: Stream, seconds: float) -> None:
    try:
        await stream.keep_alive(seconds)
    except Disconnected:
        return  # the watch on the client sees it too


def not_ready(error: ModelNotReady) -> APIError:
    """A model of the wiring that can't serve. One that is loading soon will; one that failed won't by itself."""
    loading = error.status.state == "loading"
    return APIError(
        503,
        str(error),
        type="server_error",
        code="model_not_ready",
        param="model",
        retry=loading,
        retry_after=2.0 if loading else None,
    )


def _identity(request: ChatRequest, prepared: Prepared) -> Identity:
    """The fingerprint changes with whatever changes answers to the same request and seed."""
    options = prepared.options
    settings = f"{gateway.__version__}|{prepared.wiring}|{options.fuser}|{options.top_k}|{options.prompts.name}"
    fingerprint = hashlib.sha256(settings.encode()).hexdigest()[:12]
    return Identity(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), request.model, f"fp_{fingerprint}")


def _trace(error: Exception) -> BaseException | None:
    """What is worth a trace in the log: an error that no table knows, else what lies behind a known one."""
    return error if to_api_error(error).code == "internal_error" else error.__cause__
