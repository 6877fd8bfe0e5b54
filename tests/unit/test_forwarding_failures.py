"""Requests that are handed on: servers that fail, stall or take their time."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import anyio
import pytest
from aiohttp import web
from edge import CHAT, question
from forwarding_house import ANSWER, DONE, FAILED, ROLE, STOP, Upstream, chunk, halting, house, silent, usual
from upstream import stream

pytestmark = pytest.mark.anyio


# What goes wrong


@pytest.mark.parametrize(
    ("status", "body", "shown", "code"),
    [
        (400, {"error": {"message": "bad thing", "type": "x", "param": "seed", "code": 400}}, 400, "request_rejected"),
        (400, {"message": "maximum context length is 10 tokens", "code": 400}, 400, "context_length_exceeded"),
        (401, {}, 502, "backend_auth_failed"),
        (404, {}, 502, "backend_unavailable"),
        (413, {"detail": "large"}, 413, "request_rejected"),
        (429, {}, 503, "overloaded"),
        (500, {"error": "Traceback /srv/secret.py at 10.0.0.7:80"}, 502, "backend_unavailable"),
        (503, {}, 503, "overloaded"),
    ],
)
@pytest.mark.parametrize("streaming", [True, False])
async def test_a_refusal_of_the_server(status: int, body: Any, shown: int, code: str, streaming: bool) -> None:
    """drop-in 10, 26: a real status, our form, nothing of where the server is."""

    async def refuse(upstream: Upstream, request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
        return web.json_response(body, status=status, headers={"Retry-After": "0"})

    async with house() as h:
        h.upstream.behaviour = refuse
        reply = await h.chat(stream=streaming)
        assert (reply.status, reply.error["code"]) == (shown, code)
        assert (reply.header("x-should-retry") == "false") == (status in (401, 404))
        assert not re.search(r"127\.0\.0\.1|10\.0|secret|sk-", reply.body.decode())
        if code == "request_rejected" and status == 400:
            assert reply.error["param"] == "seed"
        assert h.settled()


@pytest.mark.parametrize(
    ("parts", "broken"),
    [
        ((ROLE, chunk({"content": "a"}), FAILED, DONE), False),
        ((ROLE, chunk({"content": "a"})), False),
        ((ROLE, chunk({"content": "a"})), True),
        ((ROLE, chunk({"content": "a"}), STOP), True),
        ((ROLE, chunk({"content": "a"}), chunk({}, "abort"), DONE), False),
        ((ROLE, chunk({"content": "a"}), b"data: nonsense\n\n", DONE), False),
    ],
)
async def test_a_stream_that_breaks(parts: tuple[bytes, ...], broken: bool, logged: list[dict[str, Any]]) -> None:
    """drop-in 10: an error event and the end; no [DONE]."""

    async def behave(upstream: Upstream, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return await stream(request, *parts, pause=0.01, broken=broken)

    async with house() as h:
        h.upstream.behaviour = behave
        reply = await h.chat(stream=True)
        assert reply.status == 200
        assert reply.complete
        assert reply.body.startswith((ROLE + chunk({"content": "a"})).replace(b'"up"', b'"a"'))
        assert "[DONE]" not in reply.body.decode()
        last = json.loads(reply.events()[-1])
        assert last["error"]["code"] == "backend_unavailable"
        assert "10.0" not in reply.body.decode()
        (line,) = [line for line in logged if line["event"] == "request"]
        assert (line["status"], line["error"]) == (200, "backend_unavailable")
        assert h.settled()


@pytest.mark.parametrize("parts", [(FAILED,), (), (b": wait\n\n",)])
async def test_a_stream_that_never_begins(parts: tuple[bytes, ...]) -> None:
    """drop-in 10: as long as nothing was passed on it is a real status. A comment is something."""

    async def behave(upstream: Upstream, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return await stream(request, *parts)

    async with house() as h:
        h.upstream.behaviour = behave
        reply = await h.chat(stream=True)
        assert reply.status == (200 if parts and parts[0].startswith(b":") else 502)
        assert "[DONE]" not in reply.body.decode()


async def test_an_answer_that_breaks() -> None:
    async def behave(upstream: Upstream, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"choices"')
        assert request.transport is not None
        request.transport.abort()
        return response

    async with house() as h:
        h.upstream.behaviour = behave
        reply = await h.chat()
        assert (reply.status, reply.error["code"]) == (502, "backend_unavailable")
        assert h.settled()


@pytest.mark.parametrize("streaming", [True, False])
async def test_no_server(streaming: bool) -> None:
    async with house({"base_url": "http://127.0.0.1:9/v1", "connect_timeout": 1}) as h:
        reply = await h.chat(stream=streaming)
        assert (reply.status, reply.error["code"]) == (502, "backend_unavailable")
        assert "127.0.0.1" not in reply.body.decode()
        assert h.settled()


@pytest.mark.parametrize("streaming", [True, False])
async def test_the_deadline(streaming: bool) -> None:
    """drop-in 27: 504, and the server is told."""
    async with house(limits={"request_seconds": 0.15}) as h:
        h.upstream.behaviour = silent
        reply = await h.chat(stream=streaming)
        assert (reply.status, reply.error["code"]) == (504, "timeout")
        assert reply.header("x-should-retry") == "false"
        with anyio.fail_after(0.2):
            await h.upstream.noticed.wait()
        assert h.settled()
        h.upstream.behaviour = halting
        reply = await h.chat(stream=True)
        assert json.loads(reply.events()[-1])["error"]["code"] == "timeout"
        assert h.settled()


@pytest.mark.parametrize("more", [{}, {"stream": True}, {"modelnet": {}}])
async def test_a_client_that_gives_it_no_time_does_not_take_the_model_from_others(more: Any) -> None:
    """Twenty requests that had no time say nothing of the server, so its breaker stays closed."""
    async with house() as h:
        h.upstream.behaviour = silent
        for _ in range(20):
            reply = await h.call("POST", CHAT, question(**more), {"x-modelnet-timeout": "0.01"})
            assert (reply.status, reply.error["code"]) == (504, "timeout")
        h.upstream.behaviour = usual
        assert (await h.chat()).status == 200
        assert h.settled()


async def test_a_server_that_stalls() -> None:
    """drop-in 27: the backend's own patience."""
    async with house({"first_byte_timeout": 0.1, "chunk_timeout": 0.1}) as h:
        h.upstream.behaviour = silent
        assert (await h.chat(stream=True)).status == 504
        h.upstream.behaviour = halting
        assert json.loads((await h.chat(stream=True)).events()[-1])["error"]["code"] == "timeout"
        assert h.settled()


async def test_a_whole_answer_may_take_its_time() -> None:
    """It has its first byte when it is written to its end: only the request's own deadline counts."""

    async def late(upstream: Upstream, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(0.3)
        return web.json_response(ANSWER)

    async with house({"first_byte_timeout": 0.1, "chunk_timeout": 0.1}) as h:
        h.upstream.behaviour = late
        assert (await h.chat()).status == 200


async def test_silence_is_broken_by_comments() -> None:
    """drop-in 9: before the server answers at all, and between its tokens."""

    async def slow(upstream: Upstream, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(0.35)
        return await stream(request, ROLE, chunk({"content": "a"}), STOP, DONE, pause=0.25)

    async with house(server={"keepalive_seconds": 0.1}) as h:
        h.upstream.behaviour = slow
        events = (await h.chat(stream=True)).events()
        assert events[:3] == [": keep-alive"] * 3
        assert events.count(": keep-alive") >= 7
        assert events[-1] == "[DONE]"
        assert [e for e in events if not e.startswith(":")][:-1] == [
            part.removeprefix(b"data: ").strip().decode().replace('"up"', '"a"')
            for part in (ROLE, chunk({"content": "a"}), STOP)
        ]


async def test_the_servers_comments_pass() -> None:
    """drop-in 9."""

    async def behave(upstream: Upstream, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return await stream(request, b": ping\n\n", ROLE, b": ping\n\n", STOP, DONE, pause=0.01)

    async with house() as h:
        h.upstream.behaviour = behave
        assert (await h.chat(stream=True)).events().count(": ping") == 2
