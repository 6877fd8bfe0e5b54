"""uvicorn's HTTP protocol with bounds on what comes before a body (bytes, headers) and on the time that a request takes to arrive.

Without them a client could send headers for ever, all of it kept in memory, or hold a connection open without ever asking.

Besides: a wish for another protocol (`Upgrade: h2c`, which Java's client sends with every first request) is passed over, as HTTP allows,
where llhttp would take the body for that protocol; trailers are dropped; and HTTP/1.0 gets no chunks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sized
from typing import Any, cast

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gateway.web.asgi import GONE
from gateway.web.middleware.request_id import new_request_id
from gateway.web.transport import HeadHolder
from gateway.wire.errors import APIError, bad_request

HEAD_BYTES = 64 * 1024
"""Of request line and headers together."""
HEADERS = 128
HEAD_SECONDS = 20.0
"""From the first byte of a request, or from the beginning of a connection, to the end of the headers."""
BODY_SECONDS = 60.0
"""From there to the end of the body, where it did not come with the headers."""
PIPELINED = 64
"""Requests on one connection that may wait for the answers to those before them."""
READ_ON = 16
"""While fewer of them wait, more is read: who does not read does not notice that the client leaves."""


class Leaving:
    """Tells when a connection is lost, without a task that waits for it."""

    __slots__ = ("_told", "gone")

    def __init__(self) -> None:
        self.gone = False
        self._told: set[Callable[[], None]] = set()

    def tell(self, whom: Callable[[], None]) -> None:
        """Call this when it is lost; where it is lost already, look at `gone`."""
        self._told.add(whom)

    def forget(self, whom: Callable[[], None]) -> None:
        """Do not call this any more."""
        self._told.discard(whom)

    def lost(self) -> None:
        """It is."""
        self.gone = True
        for call in tuple(self._told):
            call()


class _Flow(FlowControl):
    """Reads no further while too many requests wait. uvicorn does as soon as one is answered, and keeps all that a client ever sends."""

    def __init__(self, transport: Any, waiting: Sized) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        if len(self._waiting) < READ_ON:
            super().resume_reading()


class BoundedProtocol(HttpToolsProtocol):
    """One connection. What is not HTTP is answered in OpenAI's form, too."""

    head_seconds = HEAD_SECONDS
    body_seconds = BODY_SECONDS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._heading = True  # the headers of the next request are still to come
        self._head = 0
        self._refusal: APIError | None = None
        self._late: asyncio.TimerHandle | None = None
        self._leaving = Leaving()
        self._cycles: list[Any] = []  # of requests that are not answered to their end; several where they are pipelined

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(HeadHolder(transport))  # type: ignore[arg-type] # it has all of a transport that is used
        self.flow = _Flow(self.transport, self.pipeline)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)
        for cycle in self._cycles:  # uvicorn tells only the last one
            cycle.disconnected = True
            cycle.message_event.set()
        self._leaving.lost()

    def data_received(self, data: bytes) -> None:
        if self._heading:
            self._head += len(data)
        self._unset_keepalive_if_required()
        self._parse(data)
        if self.transport.is_closing():
            return
        if not self._heading:
            if self._late is None:
                self._late = self.loop.call_later(self.body_seconds, self._give_up)
        elif self._head > HEAD_BYTES:
            self._refuse(_too_large())
        elif self._head and self._late is None:
            self._await_head()

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            head = self._head_without_upgrade()
            self.parser = httptools.HttpRequestParser(self)
            self._parse(head + data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.logger.info("Invalid HTTP request received.")
            self._refuse(self._refusal or bad_request("Invalid HTTP request received."))

    def _head_without_upgrade(self) -> bytes:
        """The head that was just read, without the wish for another protocol."""
        headers = []
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token.strip() for token in value.split(b",")]
                kept = [token for token in tokens if token.lower() not in (b"upgrade", b"http2-settings")]
                headers += [name + b": " + b", ".join(kept)] if kept else []
            elif name not in (b"upgrade", b"http2-settings"):
                headers.append(name + b": " + value)
        version = self.parser.get_http_version().encode()
        return b"\r\n".join([self.parser.get_method() + b" " + self.url + b" HTTP/" + version, *headers, b"", b""])

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._heading:  # else it is a trailer: it may say nothing that the head did not, and be as long as it likes
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self.headers) > HEADERS or (self._head > HEAD_BYTES and self._size() > HEAD_BYTES):
            self._refusal = _too_large()
            raise ValueError("the headers are too large")
        if self.parser.get_method() == b"CONNECT":
            raise ValueError("this is no proxy")
        if self.parser.should_upgrade():
            return  # it comes again
        if len(self.pipeline) >= PIPELINED:
            raise ValueError("too many requests at once")  # cuts the connection
        self._stop_waiting()
        cast(dict[str, Any], self.scope)[GONE] = self._leaving
        super().on_headers_complete()  # may raise: what is asked for is no path
        self._heading = False
        if self.pipeline:
            self.flow.resume_reading()  # uvicorn stops at the second one
        self._cycles = [cycle for cycle in self._cycles if not cycle.response_complete]
        self._cycles.append(self.cycle)
        if self.scope["http_version"] == "1.0":
            cast(Any, self.cycle).__class__ = _OldCycle

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._stop_waiting()
        self._heading, self._head = True, 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        cast(HeadHolder, self.transport).flush()
        super().on_response_complete()

    def _answering(self) -> bool:
        """An earlier request on this connection is not answered to its end."""
        cycle: Any = self.cycle
        return cycle is not None and not cycle.response_complete

    def _size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _await_head(self) -> None:
        self._late = self.loop.call_later(self.head_seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        self._late = None
        if self.transport.is_closing() or (self._heading and self._answering()):
            return
        if self._head:
            self._refuse(APIError(408, "The request did not arrive in time.", code="request_timeout"))
        else:
            self.transport.close()

    def _refuse(self, error: APIError) -> None:
        body = error.body()
        head = (
            f"HTTP/1.1 {error.status} {_REASONS.get(error.status, 'Error')}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nx-request-id: {new_request_id()}\r\nconnection: close\r\n\r\n"
        )
        self._stop_waiting()
        cycle: Any = self.cycle
        waits = (
            not self._heading and cycle is not None and not cycle.response_started
        )  # for the rest of its body: it will never see it
        if self._answering() and not waits:
            self.transport.abort()  # an error must not be written into the middle of an answer
            return
        self.transport.write(head.encode() + body)
        self.transport.close()


class _OldCycle(RequestResponseCycle):
    """A request of HTTP/1.0, which knows no chunks: an answer without a length ends with its connection."""

    _open = False

    async def send(self, message: Any) -> None:
        """As ASGI's."""
        if message["type"] == "http.response.start":
            self._open = all(name.lower() != b"content-length" for name, _ in message.get("headers", []))
            if self._open:
                self.chunked_encoding = False
        elif self._open:
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)


_REASONS = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}


def _too_large() -> APIError:
    message = f"The headers are larger than {HEAD_BYTES} bytes, or more than {HEADERS}."
    return APIError(431, message, code="headers_too_large")
