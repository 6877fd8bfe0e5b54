"""Requests for one model with a server of its own, handed on as they came: the whole edge in front of servers on the loopback."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog
from aiohttp import web
from edge import CHAT, Edge, question

from backends.catalog import Entry
from backends.openai_http import OpenAIHTTPBackend, OpenAIHTTPSettings
from backends.vllm import VLLMBackend, VLLMSettings
from gateway.app import Application
from gateway.runtime import open_runtime
from gateway.settings import Loaded, Settings
from gateway.settings.source import Source
from gateway.web.protocol import GONE, Leaving

pytestmark = pytest.mark.anyio

UPSTREAM_KEY = "sk-upstream-secret"
CLIENT_KEY = "sk-client-0123456789"
HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "up"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
ANSWER = {
    **HEAD,
    "object": "chat.completion",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "hi"}, "logprobs": None, "finish_reason": "stop"}
    ],
    "usage": USAGE,
    "service_tier": "default",
    "kv_transfer_params": {"x": [1]},
}
Behaviour = Callable[["Upstream", web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def chunk(delta: Any, finish: str | None = None, **more: Any) -> bytes:
    return event({**HEAD, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}], **more})


ROLE, STOP = chunk({"role": "assistant", "content": ""}), chunk({}, "stop")
SPENT, DONE = event({**HEAD, "choices": [], "usage": USAGE}), b"data: [DONE]\n\n"


async def usual(upstream: Upstream, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """What a server does with a good request."""
    if not body.get("stream"):
        return web.json_response(ANSWER)
    told = [SPENT] if (body.get("stream_options") or {}).get("include_usage") else []
    return await stream(
        request, ROLE, chunk({"content": "h"}), chunk({"content": "i"}, token_ids=[7]), STOP, *told, DONE
    )


async def stream(request: web.Request, *parts: bytes, pause: float = 0.0, broken: bool = False) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for part in parts:
        await response.write(part)
        await asyncio.sleep(pause)
    if broken:
        assert request.transport is not None
        request.transport.abort()
    return response


class Upstream:
    """A server that keeps what it was sent. left: requests that were cancelled under way."""

    def __init__(self) -> None:
        self.behaviour: Behaviour = usual
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.running = 0
        self.left = 0
        self.began, self.noticed = anyio.Event(), anyio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.read())
        self.headers.append(dict(request.headers))
        self.running += 1
        self.began.set()
        try:
            return await self.behaviour(self, request, json.loads(self.bodies[-1]))
        except asyncio.CancelledError:
            self.left += 1
            self.noticed.set()
            raise
        finally:
            self.running -= 1

    @property
    def body(self) -> Any:
        return json.loads(self.bodies[-1])


@asynccontextmanager
async def listening(upstream: Upstream) -> AsyncIterator[str]:
    app = web.Application(client_max_size=2**26)
    app.router.add_post("/v1/chat/completions", upstream.handle)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}/v1"
    finally:
        await runner.cleanup()


class House(Edge):
    """The edge, its one server, and the backend between them."""

    upstream: Upstream
    backend: OpenAIHTTPBackend | VLLMBackend

    def settled(self) -> bool:
        """All that a request took is given back."""
        gauges = self.app.metrics.text().decode()
        return (
            self.backend.admitted == 0
            and "modelnet_active_requests 0.0" in gauges
            and "modelnet_active_streams 0.0" in gauges
        )


@asynccontextmanager
async def house(model: dict[str, Any] | None = None, kind: str = "openai", **sections: Any) -> AsyncIterator[House]:
    """A gateway whose model `a` is `up` on a server. model: settings of the backend."""
    upstream = Upstream()
    async with listening(upstream) as url:
        values = {"model": "up", "api_key": UPSTREAM_KEY, **(model or {})}
        backend: OpenAIHTTPBackend | VLLMBackend
        if kind == "openai":
            settings_there = OpenAIHTTPSettings(**{"base_url": url, "sessions": "off", **values})
            backend = OpenAIHTTPBackend("a", settings_there)
            described: dict[str, Any] = {"backend": "openai", "base_url": url}
        else:
            urls = (*values.pop("urls", ()), url)
            backend = VLLMBackend("a", VLLMSettings(urls=urls, sessions="off", **values))
            described = {"backend": "vllm", "urls": list(urls)}
        settings = Settings.model_validate({"models": {"a": described}, **sections})

        async def build(name: str) -> Entry:
            return Entry(backend, why_not_fused="no", native=True)

        async with open_runtime(Loaded(settings, Path("t.yaml"), Source(Path("t.yaml"))), build) as runtime:
            with anyio.fail_after(5):
                await runtime.wait_loaded()
            made = House(Application(runtime), runtime, {})
            made.upstream, made.backend = upstream, backend
            yield made


@pytest.fixture
def logged() -> Iterator[list[dict[str, Any]]]:
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        yield lines


# As it came


async def test_a_whole_answer(logged: list[dict[str, Any]]) -> None:
    """drop-in 3, 23, 29, 34: fields that nobody here knows pass in both directions; the facts are in a header, metrics and the log."""
    async with house() as h:
        sent = b'{ "model" :"a","messages":[{"role":"critic","content":"Why?","z":1}], "top_k":5,"odd": {"x": [null, 1.50]} }'
        reply = await h.call("POST", CHAT, sent)
        assert reply.status == 200
        assert reply.json() == {**ANSWER, "model": "a"}
        assert (reply.header("content-type"), reply.header("x-modelnet-wiring")) == ("application/json", "a")
        assert h.upstream.bodies == [sent.replace(b'"a"', b'"up"')]
        (line,) = [line for line in logged if line["event"] == "request"]
        assert (line["model"], line["shape"], line["kind"], line["status"]) == ("a", "single", "json", 200)
        assert (line["prompt_tokens"], line["completion_tokens"]) == (3, 2)
        assert line["request_id"] == reply.header("x-request-id")
        metrics = h.app.metrics.text().decode()
        assert 'modelnet_requests_total{kind="json",shape="single",status="200"} 1.0' in metrics
        assert 'modelnet_tokens_total{direction="completion",model="a"} 2.0' in metrics
        assert h.settled()


@pytest.mark.parametrize("options", [None, {"include_usage": True}, {"include_usage": False, "z": 1}])
async def test_a_stream(options: Any, logged: list[dict[str, Any]]) -> None:
    """drop-in 1, 2, 3, 5: chunk by chunk as the server wrote them; usage is always asked for, and told only where it was asked for."""
    async with house() as h:
        reply = await h.chat(stream=True, stream_options=options)
        assert reply.status == 200
        assert reply.header("cache-control") == "no-cache"
        assert reply.header("x-accel-buffering") == "no"
        expected = [ROLE, chunk({"content": "h"}), chunk({"content": "i"}, token_ids=[7]), STOP]
        expected += [SPENT] * bool(options and options["include_usage"])
        assert reply.body == b"".join([*expected, DONE]).replace(b'"up"', b'"a"')
        assert h.upstream.body["stream_options"] == {**(options or {}), "include_usage": True}
        (line,) = [line for line in logged if line["event"] == "request"]
        assert (line["kind"], line["completion_tokens"]) == ("stream", 2)
        assert line["first_token_ms"] <= line["ms"]
        assert h.settled()


async def test_what_the_server_is_asked() -> None:
    """drop-in 14, 25, 32: the settings' own fields, one name for the budget, no `stream_options` without a stream, our key only."""
    async with house({"extra_body": {"top_k": 3, "seed": 1}}, keys=[CLIENT_KEY]) as h:
        headers = {"authorization": f"Bearer {CLIENT_KEY}", "x-request-id": "mine", "openai-organization": "o"}
        fields = {
            "stream_options": {"include_usage": True},
            "max_completion_tokens": 5,
            "max_tokens": 9,
            "seed": None,
            "top_k": 4,
        }
        reply = await h.call("POST", CHAT, question(user="u", **fields), headers)
        assert reply.status == 200
        asked = h.upstream.body
        assert asked == {**question("up"), "user": "u", "max_tokens": 5, "seed": 1, "top_k": 4}
        assert h.upstream.headers[0]["Authorization"] == f"Bearer {UPSTREAM_KEY}"
        assert CLIENT_KEY not in repr(h.upstream.headers)
        assert "mine" not in repr(h.upstream.headers)
        assert reply.header("x-request-id") == "mine"


@pytest.mark.parametrize("include", [True, False])
async def test_a_server_that_refuses_stream_options(include: bool) -> None:
    async with house({"include_usage": include}) as h:
        assert (await h.chat(stream=True, stream_options={"include_usage": True})).status == 200
        assert ("stream_options" in h.upstream.body) == include


async def test_tools_formats_and_choices_are_the_servers() -> None:
    """drop-in 12, 19, 20, 22: what a server of OpenAI's API honours is handed to it."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    async with house() as h:
        body = question(
            tools=tools, tool_choice="auto", response_format={"type": "json_object"}, n=2, logprobs=True, top_logprobs=2
        )
        assert (await h.call("POST", CHAT, body)).status == 200
        assert h.upstream.body == {**body, "model": "up"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b"", None),
        (question(model=...), "model"),
        (question(model=3), "model"),
        (question(messages=...), "messages"),
        (question(messages=None), "messages"),
        (question(messages=[]), "messages"),
        (question(messages="hi"), "messages"),
        (question(messages=[1]), "messages[0]"),
        (question(messages=[{"content": "x"}]), "messages[0].role"),
        (question(messages=[{"role": "user"}]), "messages[0].content"),
        (question(messages=[{"role": "user", "content": 1}]), "messages[0].content"),
        (question(messages=[{"role": "user", "content": [1]}]), "messages[0].content[0]"),
        (question(messages=[{"role": "user", "content": "a\x00b"}]), "messages[0].content"),
        (question(stream="yes"), "stream"),
        (question(stream_options=[]), "stream_options"),
        (question(n=0), "n"),
        (question(n=10_000), "n"),
        (question(temperature=3), "temperature"),
        (question(temperature="hot"), "temperature"),
        (question(top_logprobs=21), "top_logprobs"),
        (question(max_tokens=0), "max_tokens"),
        (question(stop=[1]), "stop"),
        (question(logit_bias={"x": 1}), "logit_bias"),
    ],
)
async def test_what_is_wrong_goes_nowhere(body: Any, param: str | None) -> None:
    """drop-in 24: 400 with the field's name, before the server hears of it."""
    async with house() as h:
        reply = await h.call("POST", CHAT, body)
        assert (reply.status, reply.error["param"]) == (400, param)
        assert not h.upstream.bodies
        assert h.settled()


async def test_what_only_a_server_knows_goes_there() -> None:
    """drop-in 23: roles and parts that we do not know."""
    parts = [{"type": "video_url", "video_url": {"url": "x"}}, {"type": "text", "text": "see"}]
    messages = [{"role": "narrator", "content": parts}, {"role": "assistant", "content": None}]
    async with house() as h:
        assert (await h.chat(messages=messages)).status == 200
        assert h.upstream.body["messages"] == messages


# Which requests


ALIASES = {
    "short": {"expression": "a"},
    "bounded": {"expression": "a", "max_tokens": 7},
    "told": {"expression": "a", "prompts": "mine"},
    "twice": {"expression": "a>a"},
}


@pytest.mark.parametrize(
    ("model", "more", "raw"),
    [
        ("a", {}, True),
        (" a ", {}, True),
        ("short", {}, True),
        ("bounded", {}, True),
        ("told", {}, False),
        ("twice", {}, False),
        ("a", {"modelnet": {}}, False),
    ],
)
async def test_which_requests_are_handed_on(model: str, more: Any, raw: bool, tmp_path: Path) -> None:
    """All others take the way through the engine, which always streams from the server."""
    file = tmp_path / "prompts.yaml"
    file.write_text("single: {solver: 'Think. {question}'}", encoding="utf-8")
    async with house(aliases=ALIASES, prompts={"mine": str(file)}) as h:
        reply = await h.chat(model, **more)
        assert reply.status == 200
        assert reply.json()["model"] == model
        assert (reply.header("x-modelnet-wiring") == "a") == raw
        assert ("modelnet" in reply.json()) == (not raw)
        if raw:
            assert h.upstream.body.get("max_tokens") == (7 if model == "bounded" else None)
        if model == "told":
            assert h.upstream.body["messages"][0]["content"] == "Think. Why?"


async def test_answers_that_are_to_be_kept_are_read() -> None:
    """Configuration `ledger.texts`: nothing is promised and then not kept."""
    for texts in (True, False):
        async with house(ledger={"texts": texts}) as h:
            reply = await h.chat()
            assert reply.status == 200
            assert (reply.header("x-modelnet-wiring") is None) == texts


async def test_names_of_clients_do_not_pile_up() -> None:
    async with house() as h:
        for number in range(30):
            assert (await h.chat(f"nobody-{number}")).status == 404
        assert (await h.chat(" " * 600 + "a")).status == 404


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


FAILED = event({"error": {"message": "engine died at 10.0.0.7", "code": 500}})


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


# Time


async def silent(upstream: Upstream, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    await asyncio.sleep(60)
    raise AssertionError


async def halting(upstream: Upstream, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return await stream(request, ROLE + chunk({"content": "a"}), b": x\n\n", pause=60)


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


# The client leaves


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize(
    ("streaming", "behaviour"), [(False, silent), (True, silent), (True, halting)], ids=["whole", "before", "between"]
)
async def test_the_client_leaves(
    streaming: bool, behaviour: Behaviour, told: bool, logged: list[dict[str, Any]]
) -> None:
    """drop-in 30: the server is told within 100 ms, whether ours says that a connection is lost (told) or has to be watched."""
    async with house() as h:
        h.upstream.behaviour = behaviour
        exchange = h.exchange("POST", CHAT, question(stream=streaming))
        leaving = Leaving()
        if told:
            exchange._scope[GONE] = leaving
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.run)
            await h.upstream.began.wait()
            if behaviour is halting:
                await exchange.until(lambda reply: b'"a"}' in reply.body)
            began = time.monotonic()
            leaving.lost() if told else exchange.leave()
            with anyio.fail_after(1):
                await h.upstream.noticed.wait()
            took = time.monotonic() - began
        assert took < 0.1
        assert h.settled()
        (line,) = [line for line in logged if line["event"] == "request"]
        assert line["status"] == 499


async def test_a_client_that_left_before() -> None:
    async with house() as h:
        exchange = h.exchange("POST", CHAT, question())
        exchange._scope[GONE] = gone = Leaving()
        gone.lost()
        with anyio.fail_after(1):
            await exchange.run()
        assert not h.upstream.bodies
        assert h.settled()


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_client_that_leaves_with_the_last_word(streaming: bool) -> None:
    """It has its answer; and the cancellation that was on its way does not hit what comes next."""
    async with house() as h:
        exchange = h.exchange("POST", CHAT, question(stream=streaming))
        exchange._scope[GONE] = leaving = Leaving()
        send = exchange._send

        async def last_send(message: Any) -> None:
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                leaving.lost()

        exchange._send = last_send  # type: ignore[method-assign]
        reply = await exchange.run()
        await asyncio.sleep(0)
        assert (reply.status, reply.complete) == (200, True)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        assert h.settled()


@pytest.mark.parametrize("streaming", [True, False])
async def test_whoever_waits_for_a_place_may_leave(streaming: bool) -> None:
    """drop-in 27, 30: a queue of one; the next is turned away."""
    async with house({"seats": 1, "queue": 1}) as h:
        h.upstream.behaviour = silent
        first, second = (h.exchange("POST", CHAT, question(stream=streaming)) for _ in range(2))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first.run)
            await h.upstream.began.wait()
            tasks.start_soon(second.run)
            while not h.backend._seats.waiting:
                await anyio.sleep(0.001)
            assert (await h.chat(stream=streaming)).status == 503
            second.leave()
            with anyio.fail_after(1):
                await second.finished.wait()
            assert h.backend._seats.waiting == 0
            first.leave()
        assert len(h.upstream.bodies) == 1
        assert h.settled()


async def test_a_cancellation_from_outside_is_no_leaving() -> None:
    """Whoever cancels the request's task gets it cancelled."""
    async with house() as h:
        h.upstream.behaviour = silent
        task = asyncio.create_task(h.exchange("POST", CHAT, question()).run())
        await h.upstream.began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await h.upstream.noticed.wait()
        assert h.settled()


@pytest.mark.parametrize("behaviour", [silent, halting])
async def test_the_gateway_ends(behaviour: Behaviour) -> None:
    """drop-in 31: what runs is ended with an error, what comes is refused."""
    async with house() as h:
        h.upstream.behaviour = behaviour
        exchange = h.exchange("POST", CHAT, question(stream=True))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.run)
            await h.upstream.began.wait()
            if behaviour is halting:
                await exchange.until(lambda reply: b'"a"}' in reply.body)
            h.app.end_requests()
            with anyio.fail_after(1):
                await exchange.finished.wait()
        reply = exchange.reply
        if behaviour is silent:
            assert (reply.status, reply.error["code"]) == (503, "overloaded")
        else:
            assert json.loads(reply.events()[-1])["error"]["code"] == "overloaded"
        assert (await h.chat()).status == 503


# Slow readers


async def test_a_slow_reader_stops_the_server() -> None:
    """drop-in 31: what a client does not read is not read from the server either, and nobody else waits for it."""
    wrote = 0

    async def endless(upstream: Upstream, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        nonlocal wrote
        if not body.get("stream"):
            return web.json_response(ANSWER)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(ROLE)
        while True:
            await response.write(chunk({"content": "x" * 10_000}))
            wrote += 10_000

    async with house() as h:
        h.upstream.behaviour = endless
        exchange = h.exchange("POST", CHAT, question(stream=True))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.run)
            await exchange.until(lambda reply: len(reply.body) > 50_000)
            exchange.stall()
            await _steady(lambda: wrote)
            stalled, passed = wrote, len(exchange.reply.body)
            for _ in range(5):
                assert (await h.chat()).status == 200
            assert wrote == stalled
            assert stalled - passed < 16 * 2**20  # what the kernel holds of two sockets, and little of ours
            pool = h.backend._upstream._pool  # type: ignore[union-attr]
            assert pool is not None
            assert sum(connection._size for connection in pool._all) < 2**20
            exchange.may_send.set()
            exchange.leave()
        assert h.settled()


async def _steady(value: Callable[[], int]) -> None:
    with anyio.fail_after(10):
        before = -1
        while before != value():
            before = value()
            await anyio.sleep(0.2)


async def test_many_at_once() -> None:
    """Answers do not mix, connections are used again, nothing is left."""

    async def echo(upstream: Upstream, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        said = body["messages"][0]["content"]
        await asyncio.sleep(0.001 * (len(said) % 7))
        if body.get("stream"):
            return await stream(request, ROLE, *(chunk({"content": c}) for c in said), STOP, DONE, pause=0.0001)
        return web.json_response({**ANSWER, "choices": [{**ANSWER["choices"][0], "message": {"content": said}}]})  # type: ignore[index]

    async with house() as h:
        h.upstream.behaviour = echo
        wrong: list[str] = []

        async def one(number: int) -> None:
            said = f"{number:x}" * (number % 20 + 1)
            streaming = number % 2 == 0
            reply = await h.chat(messages=[{"role": "user", "content": said}], stream=streaming)
            heard = reply.content() if streaming else reply.json()["choices"][0]["message"]["content"]
            if heard != said:
                wrong.append(said)

        for batch in range(4):
            async with anyio.create_task_group() as tasks:
                for number in range(50):
                    tasks.start_soon(one, batch * 50 + number)
        assert not wrong
        assert h.settled()
        pool = h.backend._upstream._pool  # type: ignore[union-attr]
        assert pool is not None
        assert pool.open <= 100  # 50 at once, and as many whose last byte is still awaited


# vLLM, several servers of one model


async def test_another_server_is_asked() -> None:
    """A server that can't be reached is left out, streaming or not; loads are given back."""
    async with house({"urls": ("http://127.0.0.1:9/v1",), "connect_timeout": 1}, kind="vllm") as h:
        for streaming in (True, False):
            reply = await h.chat(stream=streaming)
            assert reply.status == 200
            assert (reply.content() if streaming else reply.json()["choices"][0]["message"]["content"]) == "hi"
        assert isinstance(h.backend, VLLMBackend)
        assert h.backend.loads == [0, 0]
        h.upstream.behaviour = silent
        exchange = h.exchange("POST", CHAT, question(stream=True))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.run)
            while not h.upstream.running:
                await anyio.sleep(0.001)
            assert sorted(h.backend.loads) == [0, 1]
            exchange.leave()
        assert h.backend.loads == [0, 0]
        assert h.settled()
