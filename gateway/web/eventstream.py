"""A response of server-sent events: opened by its first write, kept alive, ended by `[DONE]` or by an error event.

Until something is written a failure is a real HTTP status. Every write is one or more whole events, one write at a time, so a
keep-alive never falls into an event, nor into an error. A write that has not ended counts as not made: the server waits before it takes
anything from us, and may have to be left then.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import anyio

from gateway.observability.record import RequestRecord
from gateway.web.asgi import Disconnected, Scope, Send, encoded, lost, send_error
from gateway.wire import sse
from gateway.wire.errors import APIError


class EventStream:
    """closed: as in `Outlet`."""

    def __init__(self, scope: Scope, send: Send, record: RequestRecord) -> None:
        self.record = record
        self.closed = False
        self._scope = scope
        self._send = send
        self._lock = anyio.Lock()
        self._opened = False
        self._begun = False
        self._last_write = time.monotonic()

    @property
    def pristine(self) -> bool:
        """Whether nothing of an answer has gone out; comments are none."""
        return not self._begun

    async def fail(self, error: APIError) -> None:
        """An HTTP status, or an error event and the end, without [DONE]: what a client has got so far must not look whole."""
        self.record.error = error.code or error.type
        async with self._lock:
            if not self._opened:
                self.closed = True
                await send_error(self._scope, self._send, error)
                return
        await self._write(self._last_words(error), more=False)

    async def keep_alive(self, seconds: float) -> None:
        """Write a comment whenever nothing was written for that long. Runs until cancelled, or all is written."""
        while not self.closed:
            silent = time.monotonic() - self._last_write
            if silent >= seconds:
                await self._write(sse.KEEP_ALIVE)
            else:
                await anyio.sleep(seconds - silent)

    def _headers(self) -> Mapping[str, str]:
        """Asked for when they are sent."""
        return sse.HEADERS

    def _last_words(self, error: APIError) -> bytes:
        return sse.event(error.value())

    async def _write(self, data: bytes, more: bool = True) -> None:
        async with self._lock:
            if self.closed:
                return
            try:
                if not self._opened:
                    await self._send(
                        {"type": "http.response.start", "status": 200, "headers": encoded(self._headers())}
                    )
                    self._opened = True
                self._begun = self._begun or data is not sse.KEEP_ALIVE
                await self._send({"type": "http.response.body", "body": data, "more_body": more})
            except OSError as error:  # servers may say so this way
                raise Disconnected from error
            if lost(self._scope):
                raise Disconnected
            self.closed = not more
            self._last_write = time.monotonic()
