"""POST /v1/chat/completions: the hot route, as plain ASGI.

read → decode → route, plan → admit → run (n times) → answer, with a watch on the client beside it: when it leaves, everything
of its request is cancelled at once, streaming or not.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial

import anyio
import anyio.to_thread
import structlog

import gateway
from gateway.abilities import writes_natively
from gateway.observability.metrics import Metrics
from gateway.observability.record import RequestRecord
from gateway.runtime import CantHonour, ModelNotReady, Prepared, Runtime
from gateway.web.account import account_of
from gateway.web.admission import Admission
from gateway.web.answering import Identity, Sink, Stream, Whole
from gateway.web.asgi import Receive, Scope, Send, read_body
from gateway.web.attempts import Attempts
from gateway.web.eventstream import EventStream
from gateway.web.forwarding import Forwarder
from gateway.web.route import Route, not_ready, within
from gateway.wire.decode import ChatRequest, RequestLimits, decode_chat
from gateway.wire.errors import bad_request, unsupported
from gateway.wire.topology_errors import wiring_error
from strategies.engine import run
from strategies.engine.events import Event, StageFinished
from strategies.topology import TopologyError

log = structlog.get_logger("modelnet.chat")


class ChatRoute(Route):
    """Answers chat requests. Routes that say the same in other words replace `_decode`, `_fitted` and `_sink`."""

    def __init__(self, runtime: Runtime, metrics: Metrics, admission: Admission) -> None:
        super().__init__(runtime, metrics, admission)
        limits = runtime.settings.limits
        self._limits = RequestLimits(limits.messages, limits.choices, limits.max_tokens)
        own = type(self) is ChatRoute  # other words for the same can't be handed on as they came
        self._forwarder = Forwarder(runtime, metrics, admission, self._limits) if own else None

    async def _answer(self, scope: Scope, receive: Receive, send: Send, record: RequestRecord) -> None:
        body = await read_body(receive)
        if self._forwarder is not None and await self._forwarder.answered(scope, receive, send, record, body):
            return
        original = self._decode(body)
        record.model, record.kind = original.model, "stream" if original.stream else "json"
        if original.timeout is not None:
            record.timeout = within(original.timeout, record.timeout)
        account = account_of(scope, self._runtime.operations)
        attempts = Attempts(account, lambda name: self._prepare(replace(original, model=name)))
        prepared = await attempts.first(account.direct_chat(original, scope["headers"]))
        record.shape = prepared.plan.shape
        request = await self._fitted(original, prepared)
        if self._runtime.settings.server.log.prompts:
            log.info("messages", messages=[{"role": m.role, "content": m.content} for m in request.messages])
        with self._admission.place(record.priority) as limit, self._metrics.active(request.stream):
            account.hold(partial(self._admission.leave, limit))
            await account.admit_plan(prepared, request.messages, request.n, request.conversations)
            sink = self._sink(scope, send, request, prepared, record)
            account.begin(sink.identity.id, self._runtime, original, attempts.prepare)

            async def attempt(wiring: Prepared) -> Exception | None:
                fitted = request if wiring is prepared else await self._fitted(original, wiring)
                return await self._run_choices(fitted, wiring, sink, attempts)

            work = partial(attempts.run, prepared, sink, attempt)
            beside = None
            if isinstance(sink, EventStream):
                beside = partial(sink.keep_alive, self._runtime.settings.server.keepalive_seconds)
            await self._attend(receive, sink, limit, work, beside, seconds=record.timeout)

    def _decode(self, body: bytes) -> ChatRequest:
        """Raises APIError (400)."""
        return decode_chat(body, self._limits)

    async def _fitted(self, request: ChatRequest, prepared: Prepared) -> ChatRequest:
        """The request in the form in which this wiring's models read it. Raises APIError (400)."""
        return request

    def _sink(self, scope: Scope, send: Send, request: ChatRequest, prepared: Prepared, record: RequestRecord) -> Sink:
        """What writes the answer."""
        common = (identity_of(request, prepared), prepared, request, record)
        return (Stream if request.stream else Whole)(scope, send, *common)

    async def _prepare(self, request: ChatRequest) -> Prepared:
        """Raises APIError for all that can be refused before anything runs."""
        try:
            prepared = self._runtime.prepare(request.model, request.sampling, request.extra, request.asked)
        except TopologyError as error:
            raise wiring_error(request.model, error) from error
        except ModelNotReady as error:
            raise not_ready(error) from error
        except CantHonour as error:
            raise unsupported(error.param, str(error)) from error
        if not writes_natively(prepared.plan, self._runtime.catalog):
            await _check_rules(request, prepared)
        return prepared

    async def _run_choices(
        self, request: ChatRequest, prepared: Prepared, sink: Sink, attempts: Attempts
    ) -> Exception | None:
        """Run every choice; the first error ends them all and is returned."""
        if request.n == 1:
            return await self._run_choice(0, request, prepared, sink, attempts)
        failures: list[Exception] = []
        at_once = anyio.Semaphore(self._limits.choices)  # a list of prompts has more

        async def one(choice: int) -> None:
            async with at_once:
                failure = await self._run_choice(choice, request, prepared, sink, attempts, failures)
            if failure is not None:
                failures.append(failure)
                tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            for choice in range(request.n):
                tasks.start_soon(one, choice)
        return failures[0] if failures else None

    async def _run_choice(
        self,
        choice: int,
        request: ChatRequest,
        prepared: Prepared,
        sink: Sink,
        attempts: Attempts,
        others: Sequence[Exception] = (),
    ) -> Exception | None:
        """others: what went wrong with other choices by the time that this one is over; one of them ends it."""
        shape, watch = prepared.plan.shape, attempts.watch(choice, prepared.plan)
        failure: Exception | None = None
        try:
            async with self._events(choice, request, prepared) as events:
                async for event in events:
                    self._meter(shape, event, attempts.record)
                    watch.saw(event)
                    await sink.take(choice, event)
                    attempts.saw_something()
        except Exception as error:  # noqa: BLE001 - told to the client by the caller
            failure = error
        finally:
            watch.close(failure or next(iter(others), None))
        return failure

    def _events(
        self, choice: int, request: ChatRequest, prepared: Prepared
    ) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """What a choice's run says."""
        options = replace(
            prepared.options,
            sampling=request.sampling_of(choice),
            reruns=0 if request.show_stages else prepared.options.reruns,  # what was shown can't be taken back
        )
        return run(prepared.plan, request.messages, options, self._runtime.catalog)

    def _meter(self, shape: str, event: Event, record: RequestRecord) -> None:
        if isinstance(event, StageFinished):
            self._metrics.stage(shape, event.report, record)


async def _check_rules(request: ChatRequest, prepared: Prepared) -> None:
    """Refuse schemas and grammars that no answer could be held to. In a thread: a new one takes milliseconds to compile."""
    constraint, tools = prepared.options.constraint, prepared.options.tools
    if constraint is None and tools is None:
        return
    from strategies.engine.guiding import BadConstraint, check

    try:
        await anyio.to_thread.run_sync(check, constraint, tools)
    except BadConstraint as error:
        field = "functions[{}]" if request.legacy else "tools[{}].function"
        param = f"{field.format(error.tool)}.parameters" if error.tool is not None else request.asked.constraint_param
        raise bad_request(f"{param} can't be used: {error}", param) from error


def identity_of(request: ChatRequest, prepared: Prepared) -> Identity:
    """The fingerprint changes with whatever changes answers to the same request and seed."""
    options = prepared.options
    settings = f"{gateway.__version__}|{prepared.wiring}|{options.fuser}|{options.top_k}|{options.prompts.name}"
    fingerprint = hashlib.sha256(settings.encode()).hexdigest()[:12]
    return Identity(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), request.model, f"fp_{fingerprint}")
