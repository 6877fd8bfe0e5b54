"""HTTP/1.1 to one server: connections that are kept and used again.

answer = await pool.ask(request, timeout)     its headers are here
while data := await answer.read(timeout): …
answer.close()                                whenever: gives the connection back, or cuts it
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from urllib.parse import urlsplit

from backends.openai_http.connections import Broken, Connection


class Pool:
    """Connections to one server. As many as are asked for: admission is bounded before, by seats."""

    def __init__(self, base: str, *, connect_timeout: float, keep_alive: float, verify: bool) -> None:
        parts = urlsplit(base)
        assert parts.hostname is not None
        self.loop = asyncio.get_running_loop()
        self._host = parts.hostname
        self._secure = parts.scheme == "https"
        self._port = parts.port or (443 if self._secure else 80)
        self._verify = verify
        self._tls: ssl.SSLContext | None = None
        self._connect_timeout = connect_timeout
        self._keep_alive = keep_alive
        self._idle: list[Connection] = []  # the one used last is used first
        self._all: set[Connection] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def open(self) -> int:
        """Connections, idle ones included."""
        return len(self._all)

    async def ask(self, request: bytes, timeout: float, whole: bool = False) -> Connection:
        """Send a request; returns when the answer's headers are here. `close` what it gives.

        timeout: seconds for all of it. whole: the caller can do nothing with a part of the answer.
        Raises Broken, NotHTTP, TimeoutError, OSError.
        """
        deadline = self.loop.time() + timeout
        while True:
            connection = self._kept() or await self._connect(min(self._connect_timeout, timeout))
            try:
                await connection.ask(request, max(0.0, deadline - self.loop.time()), whole)
            except Broken as error:
                # It was idle and the server let it go just now: nothing was answered, so ask again, on a new one in the end.
                if not error.used or self._closed:
                    raise
            except BaseException:
                connection.cut()
                raise
            else:
                return connection

    def _kept(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
            connection.cut()
        return None

    async def _connect(self, timeout: float) -> Connection:
        tls: ssl.SSLContext | None = None
        if self._secure:
            tls = self._tls = self._tls or _context(self._verify)
        async with asyncio.timeout(timeout):
            _, connection = await self.loop.create_connection(
                lambda: Connection(self), self._host, self._port, ssl=tls, server_hostname=self._host if tls else None
            )
        if self._closed:
            connection.cut()
            raise Broken
        self._all.add(connection)
        return connection

    def keep(self, connection: Connection) -> None:
        """An idle connection, to be used again."""
        if self._closed:
            connection.cut()
            return
        connection.idle_since = self.loop.time()
        self._idle.append(connection)
        if self._sweeping is None:
            self._sweeping = self.loop.call_later(self._keep_alive, self._sweep)

    def forget(self, connection: Connection) -> None:
        """A connection that is no more. Idempotent."""
        self._all.discard(connection)
        if connection.idle_since and connection in self._idle:
            self._idle.remove(connection)

    def _sweep(self) -> None:
        """Close what was idle for long enough. The list is in the order of becoming idle."""
        self._sweeping = None
        old = self.loop.time() - self._keep_alive
        stale = [connection for connection in self._idle if connection.idle_since <= old]
        for connection in stale:
            connection.cut()
        if self._idle:
            until = self._idle[0].idle_since + self._keep_alive
            self._sweeping = self.loop.call_at(until, self._sweep)

    def close(self) -> None:
        """Cut all connections. Idempotent."""
        self._closed = True
        if self._sweeping is not None:
            self._sweeping.cancel()
        for connection in tuple(self._all):
            connection.fail(Broken())
        self._idle.clear()


def request_head(method: str, url: str, headers: Mapping[str, str]) -> bytes:
    """The request line and headers, without the empty line: a Content-Length may follow. Raises ValueError for line breaks."""
    parts = urlsplit(url)
    lines = [f"{method} {parts.path or '/'} HTTP/1.1"]
    if not any(name.lower() == "host" for name in headers):
        lines.append(f"Host: {parts.netloc}")
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a header or path holds a line break")
    return "".join(f"{line}\r\n" for line in lines).encode()


def with_body(head: bytes, body: bytes) -> bytes:
    """A whole request."""
    return b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body)


def _context(verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
