"""HTTP/1.1 to one server, byte by byte: what servers may do, and what they must not get away with."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from backends.openai_http.connections import HIGH_WATER, LINGER, Broken, BrokenOff, Connection, NotHTTP
from backends.openai_http.pool import Pool, request_head, with_body

pytestmark = pytest.mark.anyio

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


def test_a_request_as_written() -> None:
    assert REQUEST == b"POST /v1/x HTTP/1.1\r\nHost: h:1\r\nA: b\r\nContent-Length: 5\r\n\r\nhello"
    with pytest.raises(ValueError, match="line break"):
        request_head("POST", "http://h/", {"A": "b\r\nEvil: c"})


@pytest.mark.parametrize("answer", [sized(b"hello world"), chunked(b"hello", b" ", b"world")])
@pytest.mark.parametrize("size", [1, 3, 1000])
async def test_however_the_bytes_are_cut(answer: bytes, size: int) -> None:
    parts = [answer[at : at + size] for at in range(0, len(answer), size)]
    async with server(every_time(*parts)) as pool:
        for _ in range(3):
            connection = await pool.ask(REQUEST, 2)
            assert connection.status == 200
            assert await body(connection) == b"hello world"
        assert pool.open == 1


async def test_interim_answers_are_no_answers() -> None:
    hint = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    async with server(every_time(hint + hint, sized(b"x", b"X-Y: z"))) as pool:
        for _ in range(2):
            connection = await pool.ask(REQUEST, 2)
            assert (connection.status, connection.headers) == (200, {"x-y": "z", "content-length": "1"})
            assert await body(connection) == b"x"


async def test_a_body_that_ends_with_the_connection() -> None:
    async def talk(line: Line) -> None:
        await line.asked()
        await line.say(b"HTTP/1.0 200 OK\r\n\r\n", b"all of it")
        line.hang_up()

    async with server(talk) as pool:
        for _ in range(2):
            assert await body(await pool.ask(REQUEST, 2)) == b"all of it"
        assert pool.open == 0


@pytest.mark.parametrize("cut", [b"", b"HTTP/1.1 200 OK\r\nContent-", sized(b"x" * 10)[:-1], chunked(b"abc")[:-5]])
@pytest.mark.parametrize("how", ["hang_up", "reset"])
async def test_a_connection_that_breaks(cut: bytes, how: str) -> None:
    """Before the answer it is Broken, in its middle BrokenOff, with what came before."""

    async def talk(line: Line) -> None:
        await line.asked()
        await line.say(cut, pause=0.01)
        getattr(line, how)()

    async with server(talk) as pool:
        if b"\r\n\r\n" not in cut:
            with pytest.raises(Broken):
                await pool.ask(REQUEST, 2)
        else:
            connection = await pool.ask(REQUEST, 2)
            got = b""
            with pytest.raises(BrokenOff):
                while part := await connection.read(2):
                    got += part
            assert got in (b"x" * 9, b"abc")
            connection.close()
        assert pool.open == 0


@pytest.mark.parametrize(
    "answer",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 50_000 + b"\r\n",
        sized(b"x", b"Content-Encoding: br"),
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    ],
)
async def test_what_is_no_http(answer: bytes) -> None:
    async with server(every_time(answer)) as pool:
        with pytest.raises((NotHTTP, Broken)):
            await body(await pool.ask(REQUEST, 0.5))
        assert pool.open == 0


async def test_a_broken_chunk() -> None:
    async with server(every_time(chunked(b"abc").replace(b"3\r\n", b"zz\r\n"))) as pool:
        with pytest.raises(NotHTTP):
            await body(await pool.ask(REQUEST, 2))


@pytest.mark.parametrize("packed", [b"gzip", b"deflate"])
async def test_packed_bodies(packed: bytes) -> None:
    import zlib

    text = b"hello " * 1000
    data = gzip.compress(text) if packed == b"gzip" else zlib.compress(text)
    async with server(every_time(sized(data, b"Content-Encoding: " + packed))) as pool:
        for _ in range(2):
            assert await body(await pool.ask(REQUEST, 2)) == text


async def test_a_second_answer_is_nobodys() -> None:
    """A server (or whoever speaks through it) can't answer the next question in advance."""
    async with server(every_time(sized(b"one") + sized(b"two"))) as pool:
        for _ in range(3):
            assert await body(await pool.ask(REQUEST, 2)) == b"one"
        assert pool.open == 0


async def test_words_out_of_turn_end_a_connection() -> None:
    async def talk(line: Line) -> None:
        await line.asked()
        await line.say(sized(b"one"), pause=0.05)
        await line.say(sized(b"two"))
        await line.is_left()

    async with server(talk) as pool:
        assert await body(await pool.ask(REQUEST, 2)) == b"one"
        with anyio.fail_after(1):
            while pool.open:
                await anyio.sleep(0.01)


# Keeping connections


async def test_a_kept_connection_that_was_let_go() -> None:
    """Nothing was answered, so it is asked again on another."""

    async def talk(line: Line) -> None:
        await line.asked()
        await line.say(sized(b"%d" % line.number))
        if line.number == 1:
            await line.asked()
            line.reset()
        else:
            await every_time(sized(b"%d" % line.number))(line)

    async with server(talk) as pool:
        assert [await body(await pool.ask(REQUEST, 2)) for _ in range(3)] == [b"1", b"2", b"2"]


async def test_idle_connections_end() -> None:
    left: list[int] = []

    async def talk(line: Line) -> None:
        await line.asked()
        await line.say(sized(b"x"))
        await line.is_left()
        left.append(line.number)

    async with server(talk, keep_alive=0.1) as pool:
        both = [await pool.ask(REQUEST, 2), await pool.ask(REQUEST, 2)]
        await body(both[0])
        await anyio.sleep(0.06)
        await body(both[1])
        assert pool.open == 2
        await anyio.sleep(0.07)
        assert left == [1]
        with anyio.fail_after(1):
            while pool.open or left != [1, 2]:
                await anyio.sleep(0.01)


@pytest.mark.parametrize("header", [b"Connection: close", b"X: y"])
async def test_connections_that_are_not_kept(header: bytes) -> None:
    async with server(every_time(sized(b"x", header))) as pool:
        await body(await pool.ask(REQUEST, 2))
        assert pool.open == (0 if header.endswith(b"close") else 1)


async def test_an_answer_that_is_left_ends_its_connection() -> None:
    gone = anyio.Event()

    async def talk(line: Line) -> None:
        await line.asked()
        await line.say(chunked(b"abc")[:-5])
        await line.is_left()
        gone.set()

    async with server(talk) as pool:
        connection = await pool.ask(REQUEST, 2)
        assert await connection.read(2) == b"abc"
        connection.close()
        connection.close()
        with anyio.fail_after(0.1):
            await gone.wait()
        assert pool.open == 0


@pytest.mark.parametrize(("pause", "kept"), [(0.05, 1), (LINGER * 2, 0)])
async def test_the_end_of_a_body_is_awaited_a_moment(pause: float, kept: int) -> None:
    answer = chunked(b"last")
    async with server(every_time(answer[:-5], answer[-5:], pause=pause)) as pool:
        connection = await pool.ask(REQUEST, 2)
        assert await connection.read(2) == b"last"
        began = time.monotonic()
        connection.linger()
        assert time.monotonic() - began < 0.045
        await anyio.sleep(LINGER * 1.5)
        assert pool.open == kept
        if kept:
            assert await (await pool.ask(REQUEST, 2)).read(2) == b"last"
            assert pool.open == 1


@pytest.mark.parametrize("size", [10, 3 * HIGH_WATER])
async def test_whoever_wants_all_is_woken_once(size: int) -> None:
    """But not at the price of more than may wait."""
    answer = sized(b"x" * size)
    parts = [answer[:20], answer[20:50], answer[50:60], answer[60:]]
    async with server(every_time(*parts, pause=0.02)) as pool:
        for _ in range(2):
            connection = await pool.ask(REQUEST, 2, whole=True)
            data = connection.all()
            if size < HIGH_WATER:
                assert data == b"x" * size
                connection.close()
            elif data is None:
                assert len(await body(connection)) == size
            else:
                connection.close()
        assert pool.open == 1
        with pytest.raises(TimeoutError):
            await pool.ask(REQUEST, 0.03, whole=True)


# Time, and reading


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\n", sized(b"abc")[:-3], chunked(b"abc")[:-5]])
async def test_silence(said: bytes) -> None:
    """One timer serves many waits: each has its own patience."""
    async with server(every_time(said, pause=5)) as pool:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            connection = await pool.ask(REQUEST, 0.2)
            try:
                await body(connection, 0.1)
            finally:
                connection.close()
        assert 0.05 < time.monotonic() - began < 1
        assert pool.open == 0


async def test_patience_begins_anew_with_every_read() -> None:
    parts = [b"1\r\nx\r\n"] * 8
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with server(every_time(head, *parts, b"0\r\n\r\n", pause=0.05)) as pool:
        assert await body(await pool.ask(REQUEST, 2), 0.15) == b"x" * 8


async def test_whoever_does_not_read_is_not_sent_more() -> None:
    sent = 0

    async def talk(line: Line) -> None:
        nonlocal sent
        await line.asked()
        await line.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while sent < 2**26:
            await line.say(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
            sent += 0x10000
        await line.say(b"0\r\n\r\n")

    async with server(talk) as pool:
        connection = await pool.ask(REQUEST, 2)
        before = -1
        while before != sent:
            before = sent
            await anyio.sleep(0.1)
        assert sent < 2**24
        assert connection._size < HIGH_WATER * 8
        assert len(await body(connection)) == 2**26


async def test_cancelling_a_wait_leaves_nothing() -> None:
    async with server(every_time(b"", pause=5)) as pool:
        with anyio.move_on_after(0.05):
            await pool.ask(REQUEST, 5)
        assert pool.open == 0


async def test_a_closed_pool() -> None:
    async with server(every_time(b"", pause=5)) as pool:

        async def asking() -> None:
            with pytest.raises(Broken):
                await pool.ask(REQUEST, 5)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(asking)
            while not pool.open:
                await anyio.sleep(0.01)
            pool.close()
        assert pool.open == 0
        with pytest.raises((Broken, OSError)):
            await pool.ask(REQUEST, 1)


async def test_certificates(tmp_path: Path) -> None:
    """Checked, unless the settings say otherwise."""
    file = tmp_path / "server.pem"
    file.write_text(CERTIFICATE.strip(), encoding="ascii")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(file)
    async with server(every_time(sized(b"secret")), tls, verify=True) as pool:
        with pytest.raises(ssl.SSLError):
            await pool.ask(REQUEST, 2)
    async with server(every_time(sized(b"secret")), tls, verify=False) as pool:
        for _ in range(2):
            assert await body(await pool.ask(REQUEST, 2)) == b"secret"
        assert pool.open == 1
