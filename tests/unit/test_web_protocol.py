"""What comes before a body is bounded, over real sockets; and how a server comes to its end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import ByteStream
from edge import edge, fake, question

from backends.fake import FakeBackend
from gateway.web.protocol import HEAD_BYTES, HEADERS, PIPELINED, BoundedProtocol
from gateway.web.serving import Server, bind

pytestmark = pytest.mark.anyio
BODY = json.dumps(question(max_tokens=2)).encode()
OK = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY)


@asynccontextmanager
async def served(
    *backends: FakeBackend, patience: float = 1.0, drain: float = 0.0
) -> AsyncIterator[tuple[Server, int]]:
    """A server on a port of its own. Its end is bounded: a test that hangs there fails."""
    sock = bind("127.0.0.1", 0)
    async with edge(*(backends or (fake("a"),))) as e, anyio.create_task_group() as tasks:
        server = Server(e.app, patience, drain)
        server.capture_signals = nullcontext  # type: ignore[method-assign,assignment]

        async def run() -> None:
            await server.serve(sockets=[sock])

        tasks.start_soon(run)
        while not server.started:
            await anyio.sleep(0.01)
        try:
            yield server, sock.getsockname()[1]
        finally:
            server.force_exit = server.should_exit = True
    sock.close()


async def answer(stream: ByteStream) -> tuple[int, dict[str, Any]]:
    """Status and body of a response that closes, or has a length."""
    data = b""
    with anyio.fail_after(5):
        while b"\r\n\r\n" not in data:
            data += await stream.receive()
        head, _, body = data.partition(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        while len(body) < length:
            body += await stream.receive()
    return int(head.split()[1]), json.loads(body)


async def ends(stream: ByteStream, seconds: float = 5.0) -> bool:
    with anyio.fail_after(seconds):
        try:
            while True:
                await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return True


@pytest.mark.parametrize(
    "head",
    [
        b"x-a: " + b"a" * (HEAD_BYTES + 10),
        b"\r\n".join(b"x-%d: 1" % n for n in range(HEADERS + 10)),
        b"\r\n".join(b"x-%d: %b" % (n, b"a" * 900) for n in range(100)),
        b"a" * (HEAD_BYTES + 10) + b": 1",
    ],
    ids=["one that is long", "too many", "too large together", "a name that is long"],
)
async def test_headers_without_measure_are_refused(head: bytes) -> None:
    async with served() as (_, port), await anyio.connect_tcp("127.0.0.1", port) as stream:
        with anyio.move_on_after(5), suppress(anyio.BrokenResourceError):  # it may be cut off before all is sent
            await stream.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n" + head + b"\r\n\r\n")
        status, body = await answer(stream)
        assert (status, body["error"]["code"]) == (431, "headers_too_large")
        assert await ends(stream)


@pytest.mark.parametrize("where", [b"evil.example:443", b"/v1/models", b"*"])
@pytest.mark.parametrize("before", [b"", OK])
async def test_what_asks_for_a_tunnel_is_a_400(before: bytes, where: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with served() as (_, port), await anyio.connect_tcp("127.0.0.1", port) as stream:
        if before:
            await stream.send(before)
            assert (await answer(stream))[0] == 200
        await stream.send(b"CONNECT " + where + b" HTTP/1.1\r\nhost: evil.example\r\n\r\n")
        status, body = await answer(stream)
        assert status == 400 and body["error"]["type"] == "invalid_request_error"
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_headers_that_never_end_are_cut_off_while_they_come() -> None:
    """Nothing of them is parsed as a whole header, so counting those would not help."""
    async with served() as (_, port), await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(b"GET /healthz HTTP/1.1\r\nx-a: ")
        sent = 0
        with anyio.fail_after(10), pytest.raises((anyio.BrokenResourceError, anyio.ClosedResourceError)):
            while sent < 100 * HEAD_BYTES:
                await stream.send(b"a" * 4096)
                sent += 4096
                await anyio.lowlevel.checkpoint()
        assert sent < 50 * HEAD_BYTES  # what the buffers of the sockets hold, and no more


async def test_ordinary_requests_pass_and_connections_are_kept() -> None:
    long = b"x-long: " + b"a" * (HEAD_BYTES - 2000) + b"\r\n"
    async with served() as (_, port), await anyio.connect_tcp("127.0.0.1", port) as stream:
        for request in (OK, OK.replace(b"host: localhost\r\n", b"host: localhost\r\n" + long), OK):
            await stream.send(request)
            assert (await answer(stream))[0] == 200
        for part in (OK[:20], OK[20:90], OK[90:]):
            await stream.send(part)
            await anyio.sleep(0.01)
        assert (await answer(stream))[0] == 200
        await stream.send(b"GARBAGE\r\n\r\n")
        status, body = await answer(stream)
        assert status == 400 and body["error"]["type"] == "invalid_request_error"


async def test_what_is_not_http_has_a_request_id_too() -> None:
    """drop-in 29."""
    async with served() as (_, port), await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(b"GARBAGE\r\n\r\n")
        assert b"\r\nx-request-id: req_" in await stream.receive()


async def test_a_client_that_dawdles_over_its_headers_is_told_and_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedProtocol, "head_seconds", 0.2)
    async with served() as (_, port):
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(b"GET /healthz HT")
            status, body = await answer(stream)
            assert (status, body["error"]["code"]) == (408, "request_timeout")
            assert await ends(stream)
        async with await anyio.connect_tcp("127.0.0.1", port) as silent:
            assert await ends(silent)


async def test_so_is_one_that_dawdles_over_its_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedProtocol, "body_seconds", 0.2)
    async with served() as (_, port), await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(OK[:-20])
        status, body = await answer(stream)
        assert (status, body["error"]["code"]) == (408, "request_timeout")
        assert await ends(stream)


async def test_a_slow_answer_is_not_taken_for_slow_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedProtocol, "head_seconds", 0.1)
    monkeypatch.setattr(BoundedProtocol, "body_seconds", 0.1)
    async with served(fake("a", first_delay=0.4)) as (_, port):
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(OK)
            assert (await answer(stream))[0] == 200


async def test_nothing_is_written_into_the_middle_of_an_answer() -> None:
    """A next request that is wrong, while the first is still being answered."""
    async with served(fake("a", delay=0.05)) as (_, port), await anyio.connect_tcp("127.0.0.1", port) as stream:
        body = json.dumps(question(stream=True)).encode()
        await stream.send(OK.replace(BODY, body).replace(b"%d" % len(BODY), b"%d" % len(body)))
        data = await stream.receive()
        await stream.send(b"GET / HTTP/1.1\r\nx-a: " + b"a" * (HEAD_BYTES + 10))
        with anyio.fail_after(5), suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            while True:
                data += await stream.receive()
        assert data.count(b"HTTP/1.1") == 1 and b"[DONE]" not in data


async def test_a_server_drains_before_it_stops() -> None:
    """Probes first; new requests are still served; then no more, and running answers end whole."""
    async with served(fake("a", delay=0.02), drain=0.4, patience=5.0) as (server, port):
        stream_body = json.dumps(question(stream=True)).encode()
        async with await anyio.connect_tcp("127.0.0.1", port) as running:
            request = OK.replace(BODY, stream_body).replace(b"%d" % len(BODY), b"%d" % len(stream_body))
            await running.send(request)
            data = await running.receive()
            server.stop()
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                await stream.send(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\n\r\n")
                status, body = await answer(stream)
                assert (status, body["status"]) == (503, "draining")
                await stream.send(OK)
                assert (await answer(stream))[0] == 200
            await anyio.sleep(0.6)
            with pytest.raises(OSError):
                await anyio.connect_tcp("127.0.0.1", port)
            with anyio.fail_after(5):
                while b"[DONE]" not in data:
                    data += await running.receive()


async def test_a_second_signal_ends_at_once() -> None:
    async with served(fake("a"), drain=60.0) as (server, port):
        server.stop()
        server.stop()
        with anyio.fail_after(5):
            while True:
                try:
                    async with await anyio.connect_tcp("127.0.0.1", port):
                        await anyio.sleep(0.02)
                except OSError:
                    break


async def everything(port: int, *parts: bytes) -> bytes:
    """All that comes back until the connection is closed."""
    data = b""
    with anyio.fail_after(10):
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            for part in parts:
                await stream.send(part)
                await anyio.sleep(0.01)
            with suppress(anyio.EndOfStream):
                while True:
                    data += await stream.receive()
    return data


def asking(version: str = "1.1", headers: str = "connection: close\r\n", **fields: Any) -> bytes:
    body = json.dumps(question(**{"max_tokens": 2, **fields})).encode()
    head = (
        f"POST /v1/chat/completions HTTP/{version}\r\nhost: localhost\r\n{headers}content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@pytest.mark.parametrize("stream", [True, False])
async def test_http_1_0_gets_no_chunks(stream: bool) -> None:
    async with served() as (_, port):
        data = await everything(port, asking("1.0", "", stream=stream))
        head, _, body = data.partition(b"\r\n\r\n")
        assert b"transfer-encoding" not in head.lower()
        if stream:
            assert body.startswith(b"data: {") and body.endswith(b"data: [DONE]\n\n")
        else:
            assert json.loads(body)["choices"]


UPGRADE = "connection: Upgrade, HTTP2-Settings, close\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"


@pytest.mark.parametrize("cut", [None, 40, -3])
async def test_a_wish_for_http_2_is_passed_over(cut: int | None) -> None:
    """Java's client has it in every first request, with a body."""
    async with served() as (_, port):
        request = asking(headers=UPGRADE)
        data = await everything(port, *((request,) if cut is None else (request[:cut], request[cut:])))
        assert data.startswith(b"HTTP/1.1 200 ")
        assert json.loads(data.partition(b"\r\n\r\n")[2])["choices"]


async def test_so_is_one_for_websockets_and_the_connection_goes_on() -> None:
    async with served() as (_, port), await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(
            b"GET /v1/realtime HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
        )
        assert (await answer(stream))[0] == 404
        await stream.send(OK)
        assert (await answer(stream))[0] == 200


async def test_trailers_say_nothing() -> None:
    """They come when the request has been let in, and are not bounded as a head is."""
    async with served() as (_, port):
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        body = b"%x\r\n%b\r\n0\r\nx-request-id: from-a-trailer\r\n" % (len(BODY), BODY)
        data = await everything(port, head, body + b"x-more: 1\r\n" * 500 + b"\r\n")
        assert data.startswith(b"HTTP/1.1 200 ")
        assert b"from-a-trailer" not in data


async def test_all_pipelined_requests_are_told_that_their_client_left() -> None:
    slow = fake("a", "one two three four five " * 50, delay=0.05)
    async with served(slow) as (_, port):
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(asking(headers="", max_tokens=200) + asking(headers="", max_tokens=200))
            with anyio.fail_after(5):
                while not slow.counters.streams:
                    await anyio.sleep(0.01)
        with anyio.fail_after(2):  # the whole answer would take twelve seconds
            while slow.counters.streams:
                await anyio.sleep(0.01)


async def test_idle_connections_are_kept_and_then_closed() -> None:
    """Longer than the pools of clients keep theirs (5 s in OpenAI's SDKs): else their next request meets the end of the connection."""
    async with served() as (server, port):
        assert server.config.timeout_keep_alive == 75
        server.config.timeout_keep_alive = 1
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(OK)
            assert (await answer(stream))[0] == 200
            began = anyio.current_time()
            assert await ends(stream)
            assert anyio.current_time() - began > 0.8


async def test_pipelined_requests_are_answered_in_order_and_bounded(caplog: pytest.LogCaptureFixture) -> None:
    get = b"GET /v1/models/a HTTP/1.1\r\nhost: localhost\r\nx-request-id: r%d\r\n\r\n"
    async with served() as (_, port):
        last = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        data = await everything(port, b"".join(get % number for number in range(20)), asking(headers=""), last)
        assert data.count(b"HTTP/1.1 200 ") == 22
        assert [data.index(b"x-request-id: r%d\r" % number) for number in range(20)] == sorted(
            data.index(b"x-request-id: r%d\r" % number) for number in range(20)
        )
        with suppress(anyio.BrokenResourceError):
            data = await everything(port, b"".join(get % number for number in range(2 * PIPELINED)))
            assert data.count(b"HTTP/1.1 200 ") < 2 * PIPELINED
        assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_what_is_pipelined_is_read_no_faster_than_it_is_answered() -> None:
    """Whoever sends without reading must be stopped by its own socket, not kept in memory."""
    slow = fake("a", "one two three four five " * 50, delay=0.05)
    async with served(slow) as (_, port), await anyio.connect_tcp("127.0.0.1", port) as stream:
        request = asking(headers="", max_tokens=200, user="x" * 30_000)
        sent = 0
        with anyio.move_on_after(1.0):
            while sent < 2000:  # 60 MB
                await stream.send(request)
                sent += 1
        assert sent < 1000
