"""What every route that keeps a model busy has in common, as plain ASGI.

A request has a record, a place among the requests at once, a deadline, and a watch on the client beside it: when the client
leaves, everything of its request is cancelled at once, streaming or not. Whatever goes wrong becomes an error in OpenAI's form.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import anyio
import structlog

from gateway.observability.metrics import Metrics
from gateway.observability.record import RequestRecord, record_of
from gateway.runtime import ModelNotReady, Runtime
from gateway.web.admission import Admission, shutting_down
from gateway.web.asgi import Disconnected, Receive, Scope, Send, json_head, lost, send_error, until_disconnected
from gateway.wire.errors import APIError, timed_out, to_api_error
from gateway.wire.topology_errors import wiring_error
from strategies.planning import Plan
from strategies.topology import TopologyError

log = structlog.get_logger("modelnet.requests")

CLIENT_LEFT = 499
"""Status in the log and the metrics of a request whose client left; never sent."""

LAST_WORD_SECONDS = 1.0
"""For telling a client of a failure: one that does not read any more must not hold this up."""


class Outlet(Protocol):
    """Where an answer goes. closed: the last write is over, so a client that leaves from now on has its answer."""

    closed: bool

    async def end(self) -> None:
        """All that was to be done is done."""
        ...

    async def fail(self, error: APIError) -> None:
        """The request has failed."""
        ...


class OneBody:
    """An outlet of one JSON body."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.closed = False
        self._begun = False
        self._scope = scope
        self._send = send

    async def deliver(self, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """The answer. Until its head is taken, a failure can still be told. Raises Disconnected."""
        try:
            await self._send(json_head(200, body, headers))
            self._begun = True
            await self._send({"type": "http.response.body", "body": body, "more_body": False})
        except OSError as error:  # servers may say so this way
            raise Disconnected from error
        if lost(self._scope):
            raise Disconnected
        self.closed = True

    async def fail(self, error: APIError) -> None:
        """As in `Outlet`."""
        if self._begun:  # the deadline fell into the last write: the client does not read, and has not got all of it
            record_of(self._scope).error = error.code or error.type
            return
        self.closed = True
        await send_error(self._scope, self._send, error)


class Route:
    """Answers POSTs to one path. A subclass writes `_answer`."""

    def __init__(self, runtime: Runtime, metrics: Metrics, admission: Admission) -> None:
        self._runtime = runtime
        self._metrics = metrics
        self._admission = admission

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
        """Answer one request. Raises Disconnected, APIError."""
        raise NotImplementedError

    def _planned(self, model: str) -> Plan:
        """The plan of a wiring whose models can all serve. Raises APIError."""
        try:
            return self._runtime.plan(self._runtime.route(model))
        except TopologyError as error:
            raise wiring_error(model, error) from error
        except ModelNotReady as error:
            raise not_ready(error) from error

    async def _attend(
        self,
        receive: Receive,
        outlet: Outlet,
        limit: anyio.CancelScope,
        work: Callable[[], Awaitable[Exception | None]],
        beside: Callable[[], Awaitable[None]] | None = None,
        seconds: float | None = None,
    ) -> None:
        """Work, then end the outlet, while watching the client; what failed is told to the outlet.

        work: returns what went wrong, if anything. beside: runs for as long. limit: from `Admission.place`. seconds: that the
        client gives it. Raises Disconnected if the client left before it had its answer.
        """
        left = False

        async def watch() -> None:
            nonlocal left
            await until_disconnected(receive)
            left = True
            tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            if beside is not None:
                tasks.start_soon(_contained, beside)
            try:
                await self._work_and_end(outlet, limit, work, seconds)
            except Disconnected:
                left = True
            tasks.cancel_scope.cancel()
        if left and not outlet.closed:
            raise Disconnected

    async def _work_and_end(
        self,
        outlet: Outlet,
        limit: anyio.CancelScope,
        work: Callable[[], Awaitable[Exception | None]],
        wished: float | None,
    ) -> None:
        seconds = within(self._runtime.settings.limits.request_seconds, wished)
        limit.deadline = anyio.current_time() + seconds
        failure: Exception | None = None
        with limit:
            try:
                failure = await work()
                if failure is None:
                    await outlet.end()
                    return
            except Exception as raised:  # noqa: BLE001 - told to the client below
                failure = raised
        if limit.cancelled_caught and failure is None:
            shutting = self._admission.ending and anyio.current_time() < limit.deadline
            too_slow = timed_out(f"The request took longer than {seconds:g} seconds.")
            failure = shutting_down() if shutting else too_slow
        assert failure is not None
        if isinstance(failure, Disconnected):
            raise failure
        error = to_api_error(failure)
        if error.status >= 500:
            tell_failure(log, failure, error)
        with anyio.move_on_after(LAST_WORD_SECONDS):
            await outlet.fail(error)


def within(most: float, wished: float | None) -> float:
    """Seconds for a request: what its client gives it, but no more than it may take."""
    return most if wished is None else min(most, wished)


async def _contained(beside: Callable[[], Awaitable[None]]) -> None:
    try:
        await beside()
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


def tell_failure(log: Any, failure: Exception, error: APIError) -> None:
    """Log what a client is told as a 5xx. To be full is no fault."""
    tell = log.warning if error.code == "overloaded" else log.error
    tell("request_failed", error=type(failure).__name__, reason=str(failure), exc_info=_trace(failure))


def _trace(error: Exception) -> BaseException | None:
    """What is worth a trace in the log: an error that no table knows, else what lies behind a known one."""
    return error if to_api_error(error).code == "internal_error" else error.__cause__
