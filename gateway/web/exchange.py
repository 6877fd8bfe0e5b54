"""One forwarded request, watched from outside of its task: the client that leaves, the deadline, silence, the end of the gateway.

While all goes quickly there is no task beside it. A server of ours tells at once when the client's connection is lost (GONE in the
scope); elsewhere a watch on the client begins UNWATCHED seconds after the request did, which is how late it may notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal

import structlog

from backends.protocol import Forwarded
from gateway.observability.record import RequestRecord
from gateway.web.admission import shutting_down
from gateway.web.asgi import GONE, Disconnected, Receive, Scope, Send, encoded, until_disconnected
from gateway.web.protocol import Leaving
from gateway.web.route import tell_failure
from gateway.wire import sse
from gateway.wire.errors import APIError, timed_out, to_api_error

UNWATCHED = 0.05
LAST_WORD_SECONDS = 1.0
"""For telling a client of a failure: one that does not read any more must not hold this up."""

_ID = re.compile(rb'"id"\s*:\s*"([A-Za-z0-9._-]{1,128})"')

log = structlog.get_logger("modelnet.requests")

Headers = list[tuple[bytes, bytes]]
Why = Literal["left", "late", "ending"]


class Exchange:
    """One request on its way. `cancel` ends it from outside: the gateway is shutting down. whole: the server's answer came to its end."""

    __slots__ = (
        "_caught", "_closed", "_deadline", "_gone", "_keep_alive", "_last_write", "_lock", "_opened", "_receive", "_record", "_seconds",
        "_send", "_stream", "_task", "_watcher", "_why", "_wiring", "whole",
    )  # fmt: skip

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        record: RequestRecord,
        wiring: bytes,
        stream: bool,
        seconds: float,
        keep_alive: float,
    ) -> None:
        self._gone: Leaving | None = scope.get(GONE)
        self._receive = receive
        self._send = send
        self._record = record
        self._wiring = wiring
        self._stream = stream
        self._seconds = seconds
        self._keep_alive = keep_alive
        self._task: asyncio.Task[Any] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._lock: asyncio.Lock | None = None  # from when on there may be a second writer
        self._deadline = self._last_write = 0.0
        self.whole = False
        self._opened = False
        self._closed = False  # the last write is over: a client that leaves now has its answer
        self._why: Why | None = None
        self._caught = False  # the cancellation of `_stop` has arrived

    def cancel(self) -> None:
        self._stop("ending")

    async def run(self, forwarding: AbstractAsyncContextManager[Forwarded]) -> None:
        """Hand on and answer. Raises APIError as long as nothing was written, Disconnected."""
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task(loop)
        self._last_write = loop.time()
        self._deadline = self._last_write + self._seconds
        if self._gone is None:
            timer = loop.call_later(UNWATCHED, self._begin_watch)
        else:
            if self._gone.gone:
                raise Disconnected
            self._gone.tell(self._left)
            timer = loop.call_later(min(self._seconds, self._keep_alive), self._begin_watch)
        failure: Exception | None = None
        try:
            async with forwarding as answer:
                try:
                    await self._pass_on(answer)
                finally:
                    self._record.usage, self.whole = answer.usage, answer.over
        except asyncio.CancelledError:
            if not self._was_us():
                raise
        except Exception as raised:  # noqa: BLE001 - told to the client below
            failure = raised
        finally:
            timer.cancel()
            if self._gone is not None:
                self._gone.forget(self._left)
            if self._watcher is not None:
                await self._end_watch(self._watcher)
            if self._why is not None and not self._caught:
                await self._catch()
        if self._why is not None and not self._closed:
            failure = self._reason(self._why)
        if failure is not None:
            await self._fail(failure)

    async def _pass_on(self, answer: Forwarded) -> None:
        data = await answer.read()
        self._record.completion = _completion_id(data)
        if not self._stream:
            self._record.usage = answer.usage
            length = b"%d" % len(data)
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", length),
                (b"x-modelnet-wiring", self._wiring),
            ]
            await self._write(data, headers, more=False)
            return
        headers = [*_STREAM_HEADERS, (b"x-modelnet-wiring", self._wiring)]
        record = self._record
        while data:
            if record.first_token is None and answer.wrote:
                record.wrote()
            over = answer.over
            if over:
                record.usage = answer.usage  # before the last byte: what a key holds is given back with it
            await self._write(data, headers, more=not over)
            if over:
                return
            data = await answer.read()
        raise RuntimeError("an answer ended without saying so")

    def _write(self, data: bytes, headers: Headers, more: bool = True) -> Awaitable[None]:
        return (self._write_now if self._lock is None else self._write_in_turn)(data, headers, more)

    async def _write_in_turn(self, data: bytes, headers: Headers, more: bool) -> None:
        assert self._lock is not None
        async with self._lock:
            await self._write_now(data, headers, more)

    async def _write_now(self, data: bytes, headers: Headers, more: bool) -> None:
        if self._closed:
            return
        try:
            if not self._opened:
                await self._send({"type": "http.response.start", "status": 200, "headers": headers})
                self._opened = True
            await self._send({"type": "http.response.body", "body": data, "more_body": more})
        except OSError as error:  # servers may say so this way
            raise Disconnected from error
        self._closed = not more
        self._last_write = asyncio.get_running_loop().time()

    # What ends it early

    def _begin_watch(self) -> None:
        self._lock = asyncio.Lock()
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        """The client, the deadline, and silence."""
        loop = asyncio.get_running_loop()
        headers = [*_STREAM_HEADERS, (b"x-modelnet-wiring", self._wiring)]
        while True:
            due = self._last_write + self._keep_alive if self._stream else self._deadline
            try:
                async with asyncio.timeout_at(min(due, self._deadline)):
                    await self._until_gone()
                return self._left()
            except TimeoutError:
                pass
            if loop.time() >= self._deadline:
                return self._stop("late")
            if loop.time() - self._last_write >= self._keep_alive:
                try:
                    async with asyncio.timeout_at(self._deadline):
                        await self._write(sse.KEEP_ALIVE, headers)
                except Disconnected:
                    return self._left()
                except TimeoutError:
                    pass

    async def _until_gone(self) -> None:
        if self._gone is None:
            await until_disconnected(self._receive)
        else:
            await asyncio.get_running_loop().create_future()  # never: `_left` is called

    def _left(self) -> None:
        self._stop("left")

    def _stop(self, why: Why) -> None:
        if self._why is None and not self._closed and self._task is not None:
            self._why = why
            self._task.cancel()

    def _was_us(self) -> bool:
        """Whether a cancellation that has arrived is the one of `_stop`, and no other's besides."""
        if self._why is None or self._caught or self._task is None:
            return False
        self._caught = True
        return self._task.uncancel() == 0

    async def _catch(self) -> None:
        """The cancellation of `_stop` came when all was over: it must not hit what follows."""
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            if not self._was_us():
                raise

    async def _end_watch(self, watcher: asyncio.Task[None]) -> None:
        watcher.cancel()
        while not watcher.done():
            try:
                await asyncio.wait([watcher])
            except asyncio.CancelledError:
                if not self._was_us():
                    raise
        if not watcher.cancelled() and (error := watcher.exception()) is not None:
            log.error("watch_failed", exc_info=error)

    def _reason(self, why: Why) -> Exception:
        if why == "left":
            return Disconnected()
        return (
            shutting_down()
            if why == "ending"
            else timed_out(f"The request took longer than {self._seconds:g} seconds.")
        )

    async def _fail(self, failure: Exception) -> None:
        """Raises what is to become an HTTP status, or ends the stream with an error event: no [DONE]."""
        if isinstance(failure, Disconnected):
            raise failure
        error = to_api_error(failure)
        if error.status >= 500 and not isinstance(failure, APIError):
            tell_failure(log, failure, error)
        if not self._opened:
            raise error from failure
        self._record.error = error.code or error.type
        if self._stream:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORD_SECONDS):
                    await self._write(sse.event(error.value()), [], more=False)


def _completion_id(data: bytes) -> str | None:
    """The id in the first bytes of an answer, for feedback to name it by."""
    found = _ID.search(data, 0, 512)
    return found[1].decode("ascii", "replace") if found else None


_STREAM_HEADERS: Headers = encoded(sse.HEADERS)
