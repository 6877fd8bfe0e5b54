"""One HTTP/1.1 connection to a server. Knows nothing of what is said.

A client of our own because it is a third of the gateway's work on a short answer: one request is one write, and bytes go
from the parser (llhttp, in C) to whoever reads, without streams, URLs, cookies or redirects in between. docs/hot-path.md has the
numbers. Everything is for one event loop. `pool` keeps connections and asks.

Back-pressure: nothing is read from the socket while HIGH_WATER bytes wait for a reader.
"""

from __future__ import annotations

import asyncio
import zlib
from typing import TYPE_CHECKING, cast

import httptools

if TYPE_CHECKING:
    from backends.openai_http.pool import Pool

HIGH_WATER = 64 * 1024
"""Bytes that may wait for their reader before the socket is left alone."""
HEADERS = 64 * 1024
"""Most bytes of an answer's headers."""
LINGER = 0.25
"""Seconds to wait for the end of a body whose last event was read, before the connection is given up."""


class NotHTTP(Exception):
    """What came is no HTTP/1.1 answer."""


class Broken(Exception):
    """The connection ended before an answer began. `used`: it had served before, so the server may just have let it go."""

    def __init__(self, used: bool = False) -> None:
        super().__init__("the connection was closed")
        self.used = used


class BrokenOff(Exception):
    """The connection ended in the middle of an answer."""


class Connection(asyncio.Protocol):
    """One connection, one exchange at a time: itself the answer that is being read.

    status: of HTTP.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._loop = pool.loop
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._served = 0
        self.idle_since = 0.0
        self._reset()

    def _reset(self) -> None:
        self.status = 0
        self._headers: dict[bytes, bytes] = {}
        self._header_bytes = 0
        self._interim = False  # a 1xx: the answer is still to come
        self._headed = False
        self._parts: list[bytes] = []
        self._size = 0
        self._paused = False
        self._complete = True
        self._keep = False
        self._error: Exception | None = None
        self._inflate: zlib._Decompress | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._left = False  # nobody reads any more
        self._patient = False  # whoever waits wants all of it: parts need not wake them

    @property
    def usable(self) -> bool:
        """It can take another request."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def headers(self) -> dict[str, str]:
        """Of the answer; names in lower case, of several with one name the last."""
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in self._headers.items()}

    # What the reader calls

    async def ask(self, request: bytes, timeout: float, whole: bool) -> None:
        """Send a request; returns when the answer's headers are here, whole: when all of it is, or as much as may wait for a reader.

        Raises Broken, NotHTTP, TimeoutError.
        """
        if self._served:
            self._reset()
        self._complete = False
        self._patient = whole
        assert self._transport is not None
        self._transport.write(request)
        while not self._headed:
            if self._error is not None:
                raise self._error
            await self._wait(timeout)
            timeout = max(0.0, self._deadline - self._loop.time())

    async def read(self, timeout: float) -> bytes:
        """More of the body, all that is here; b"" at its end. Raises BrokenOff, NotHTTP, TimeoutError (nothing for that long)."""
        while not self._parts:
            if self._complete:
                return b""
            if self._error is not None:
                raise self._error
            await self._wait(timeout)
        parts = self._parts
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        self._parts = []
        self._size = 0
        if self._paused:
            self._paused = False
            if self._transport is not None:
                self._transport.resume_reading()
        return data

    def all(self) -> bytes | None:
        """The whole rest of the body if it is here, else None: `read` it."""
        if not self._complete or self._paused:
            return None
        parts, self._parts = self._parts, []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Done with this answer. One that was read to its end gives the connection back; any other is cut off at once."""
        if self._left:
            return
        self._left = True
        self._stop_timer()
        if self._complete and not self._parts:
            self._release()
        else:
            self.cut()

    def linger(self) -> None:
        """Done with this answer, of which at most the end is missing: wait a moment for it, so that the connection can be used
        again. Nobody has to wait for this."""
        if self._left:
            return
        if self._complete:
            self._parts = []
            self.close()
        else:
            self._left = True
            self._stop_timer()
            self._timer = self._loop.call_later(LINGER, self.cut)

    def cut(self) -> None:
        """End the connection now; what was not sent is dropped. The server notices at once."""
        self._stop_timer()
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
        self._pool.forget(self)

    def _release(self) -> None:
        self._served += 1
        if self._keep and self.usable:
            self._pool.keep(self)
        else:
            self.cut()

    # Waiting

    async def _wait(self, timeout: float) -> None:
        """Until something has come. One timer serves many waits: it looks at the deadline when it goes off."""
        loop = self._loop
        self._deadline = loop.time() + timeout
        timer = self._timer
        if timer is None or timer.when() > self._deadline:
            if timer is not None:
                timer.cancel()
            self._timer = loop.call_at(self._deadline, self._late)
        self._waiter = waiter = loop.create_future()
        try:
            await waiter
        finally:
            self._waiter = None

    def _late(self) -> None:
        self._timer = None
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        if self._loop.time() >= self._deadline:
            waiter.set_exception(TimeoutError())
        else:
            self._timer = self._loop.call_at(self._deadline, self._late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def fail(self, error: Exception) -> None:
        """Cut, and let whoever reads know why."""
        if self._error is None and not self._complete:
            self._error = error
        self.cut()
        self._wake()

    # What the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._complete:
            self.cut()  # nothing was asked
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            # What our callbacks raise is the context of the former.
            self.fail(NotHTTP(str(error.__context__ or error)))
            return
        if self._size > HIGH_WATER:
            self._patient = False
        if not self._patient:
            self._wake()
        if self._size > HIGH_WATER and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if not self._complete:
            until_the_end = not {b"content-length", b"transfer-encoding"} & self._headers.keys()
            if self._headed and until_the_end and error is None:
                self._complete = True  # as HTTP/1.0 ended bodies
            elif self._error is None:
                self._error = BrokenOff() if self._headed else Broken(self._served > 0)
        self._stop_timer()
        self._pool.forget(self)
        self._wake()

    # What the parser calls

    def on_message_begin(self) -> None:
        if self._complete:
            self.cut()  # a second answer to one question

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._complete:
            return
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > HEADERS:
            raise NotHTTP("too many headers")
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        if self._complete:
            return
        self.status = self._parser.get_status_code()
        if self.status < 200:
            self._interim = True
            self._headers = {}
            return
        self._headed = True
        encoding = self._headers.get(b"content-encoding", b"identity").lower()
        if encoding in (b"gzip", b"deflate"):  # not asked for, but known
            self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)
        elif encoding != b"identity":
            raise NotHTTP(f"content-encoding {encoding!r}")

    def on_body(self, body: bytes) -> None:
        if self._left or self._complete:
            return
        if self._inflate is not None:
            body = self._inflate.decompress(body)
        self._parts.append(body)
        self._size += len(body)

    def on_message_complete(self) -> None:
        if self._interim or self._complete:
            self._interim = False
            return
        self._complete = True
        self._patient = False
        self._keep = self._parser.should_keep_alive()
        if self._left:
            self._stop_timer()
            self._release()
