"""Servers that write what a test says, byte by byte."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from backends.openai_http.connections import Connection
from backends.openai_http.pool import Pool, request_head, with_body

Talk = Callable[["Line"], Awaitable[None]]


# Made for this test: a key that opens nothing, and a certificate for localhost.
CERTIFICATE = """
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgYuN2YHV2v17NPaRG
NZgPI5rcrPnB5oV7Rmp1DnPe6tyhRANCAATgI3kMXPvG3Q8pX+J89ckb8RW92x1m
Pf++6Sghoe/kyZxwO70aELQXXuEUPG4QHffVqZ+mpUnyZCvdI/up68Im
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBlDCCATugAwIBAgIUDEyjeQ/UKqS7GrHwa0J+wbJyjv0wCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMzIzMTQxN1oYDzIxMjYxMDMw
MjMxNDE3WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAATgI3kMXPvG3Q8pX+J89ckb8RW92x1mPf++6Sghoe/kyZxwO70aELQX
XuEUPG4QHffVqZ+mpUnyZCvdI/up68Imo2kwZzAdBgNVHQ4EFgQURizDNvgVMILa
kCw1fP4kui0F5JEwHwYDVR0jBBgwFoAURizDNvgVMILakCw1fP4kui0F5JEwDwYD
VR0TAQH/BAUwAwEB/zAUBgNVHREEDTALgglsb2NhbGhvc3QwCgYIKoZIzj0EAwID
RwAwRAIgSIDhii9N3LA0fmfe+93VvI6PFurzqpnXmHx9boIC0JcCIGBP88E/pdvG
WArgqed66EAibRtVjdGOxt2jm70Edgs6
-----END CERTIFICATE-----
"""


class Line:
    """A server's side of one connection."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self._reader = reader
        self._writer = writer

    async def asked(self) -> bytes:
        """The next request: head and body."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        return head + await self._reader.readexactly(length)

    async def say(self, *parts: bytes, pause: float = 0.0) -> None:
        for part in parts:
            self._writer.write(part)
            await self._writer.drain()
            await asyncio.sleep(pause)

    def hang_up(self) -> None:
        self._writer.close()

    def reset(self) -> None:
        self._writer.transport.abort()

    async def is_left(self) -> None:
        """Until the other side hangs up."""
        with_reset = await asyncio.gather(self._reader.read(), return_exceptions=True)
        assert with_reset in ([b""], [with_reset[0]])


@asynccontextmanager
async def server(talk: Talk, tls: ssl.SSLContext | None = None, **settings: Any) -> AsyncIterator[Pool]:
    """A pool of connections to a server that talks like this, on every connection. `pool.lines` counts them."""
    lines = 0
    running: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal lines
        lines += 1
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            await talk(Line(lines, reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            running.discard(task)

    there = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    port = there.sockets[0].getsockname()[1]
    base = f"https://localhost:{port}" if tls else f"http://127.0.0.1:{port}"
    pool = Pool(base, **{"connect_timeout": 2.0, "keep_alive": 2.0, "verify": True, **settings})
    try:
        yield pool
    finally:
        pool.close()
        there.close()
        for task in tuple(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await there.wait_closed()


REQUEST = with_body(request_head("POST", "http://h:1/v1/x?y=1", {"A": "b"}), b"hello")


async def body(connection: Connection, timeout: float = 2.0) -> bytes:
    parts = []
    while part := await connection.read(timeout):
        parts.append(part)
    connection.close()
    return b"".join(parts)


def sized(text: bytes, *headers: bytes) -> bytes:
    lines = b"".join(header + b"\r\n" for header in headers)
    return b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (lines, len(text), text)


def chunked(*parts: bytes) -> bytes:
    framed = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\n\r\n"


def every_time(*parts: bytes, pause: float = 0.0) -> Talk:
    async def talk(line: Line) -> None:
        while True:
            await line.asked()
            await line.say(*parts, pause=pause)

    return talk
