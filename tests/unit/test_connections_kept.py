"""Connections: how long they are kept, and how long anybody waits for one."""

from __future__ import annotations

import ssl
import time
from pathlib import Path

import anyio
import pytest
from wire import CERTIFICATE, REQUEST, Line, body, chunked, every_time, server, sized

from backends.openai_http.connections import HIGH_WATER, LINGER, Broken

pytestmark = pytest.mark.anyio


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
        with anyio.fail_after(2):
            await gone.wait()
        assert pool.open == 0


@pytest.mark.parametrize(("pause", "kept"), [(0.05, 1), (LINGER * 2, 0)])
async def test_the_end_of_a_body_is_awaited_a_moment(pause: float, kept: int) -> None:
    answer = chunked(b"last")
    async with server(every_time(answer[:-5], answer[-5:], pause=pause)) as pool:
        connection = await pool.ask(REQUEST, 2)
        assert await connection.read(2) == b"last"
        connection.linger()
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
