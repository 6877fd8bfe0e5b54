"""HTTP/1.1 to one server, byte by byte: what servers may do, and what they must not get away with."""

from __future__ import annotations

import gzip

import anyio
import pytest
from wire import REQUEST, Line, body, chunked, every_time, server, sized

from backends.openai_http.connections import Broken, BrokenOff, NotHTTP
from backends.openai_http.pool import request_head

pytestmark = pytest.mark.anyio


def test_a_request_as_written() -> None:
    assert REQUEST == b"POST /v1/x HTTP/1.1\r\nHost: h:1\r\nA: b\r\nContent-Length: 5\r\n\r\nhello"
    with pytest.raises(ValueError, match="line break"):
        request_head("POST", "http://h/", {"A": "b\r\nEvil: c"})


def test_one_host() -> None:
    """For a server behind another name: two of them are refused everywhere."""
    assert request_head("GET", "http://h:1/v1", {"host": "other"}) == b"GET /v1 HTTP/1.1\r\nhost: other\r\n"


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
