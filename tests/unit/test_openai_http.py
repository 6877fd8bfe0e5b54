"""The generic HTTP backend against servers on the loopback that do, or pretend, everything a server can do wrong."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import anyio
import pytest
from aiohttp import web

from backends import errors
from backends.fake import FakeBackend, FakeSettings, Fault
from backends.fake.server import FakeServer
from backends.openai_http import OpenAIHTTPBackend, OpenAIHTTPSettings
from backends.openai_http.failures import NETWORK, from_exception, from_response, presentable, retry_after
from backends.types import Message, Sampling, TextDelta, TextEnd, TextEvent, TextRequest, Usage

KEY = "sk-very-secret"
ASK = TextRequest((Message("user", "Hi"),))
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def server(handler: Handler, **settings: Any) -> AsyncIterator[OpenAIHTTPBackend]:
    """A backend in front of a server whose every route is `handler`."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    backend = OpenAIHTTPBackend(
        "m", OpenAIHTTPSettings(base_url=f"http://{host}:{port}/v1", api_key=KEY, **{"model": "up", **settings})
    )
    try:
        yield backend
    finally:
        await backend.aclose()
        await runner.cleanup()


def chunk(text: str = "", finish: str | None = None, **fields: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice], **fields}, ensure_ascii=False).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def writes(*parts: bytes, broken: bool = False, pause: float = 0.0) -> Handler:
    """A handler that streams these bytes, one write each."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for part in parts:
            await response.write(part)
            await asyncio.sleep(pause)
        if broken:
            assert request.transport is not None
            request.transport.abort()
        return response

    return handler


async def read(backend: OpenAIHTTPBackend, request: TextRequest = ASK) -> list[TextEvent]:
    async with backend.stream(request) as events:
        return [event async for event in events]


# Reading a stream


@pytest.mark.anyio
async def test_text_reasoning_usage_and_end() -> None:
    thought = b'data: {"choices":[{"index":0,"delta":{"reasoning_content":"hm"}}]}\n\n'
    other = b'data: {"choices":[{"index":0,"delta":{"reasoning":"ah"}}]}\n\n'
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\n'
    parts = [
        chunk(),
        b": keep-alive\n\n",
        thought,
        other,
        chunk("你"),
        chunk("好"),
        chunk(finish="length"),
        usage,
        DONE,
    ]
    async with server(writes(*parts)) as backend:
        assert await read(backend) == [
            TextDelta("", "hm"),
            TextDelta("", "ah"),
            TextDelta("你"),
            TextDelta("好"),
            TextEnd("length", Usage(3, 2)),
        ]


@pytest.mark.anyio
async def test_one_byte_per_write() -> None:
    data = (chunk("héllo ") + chunk("中国🎉") + chunk(finish="stop") + DONE).replace(b"\n", b"\r\n")
    async with server(writes(*[data[n : n + 1] for n in range(len(data))])) as backend:
        assert await read(backend) == [TextDelta("héllo "), TextDelta("中国🎉"), TextEnd("stop", Usage())]


@pytest.mark.anyio
async def test_unknown_usage_is_zero_and_a_missing_done_is_fine() -> None:
    async with server(writes(chunk("a"), chunk(finish="stop"))) as backend:
        assert await read(backend) == [TextDelta("a"), TextEnd("stop", Usage(0, 0))]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("parts", "broken"),
    [
        ([chunk("a")], False),  # ends without a finish reason
        ([], False),
        ([chunk("a")], True),
        ([chunk("a"), chunk(finish="stop")], True),
        ([chunk("a"), chunk(finish="error"), DONE], False),
        ([chunk("a"), b"data: {not json\n\n", DONE], False),
        ([chunk("a"), b'data: ["list"]\n\n', DONE], False),
        ([chunk("a"), b'data: {"error":{"message":"engine died","code":500}}\n\n', DONE], False),
        ([chunk("a"), b"data: \xff\n\n", DONE], False),
    ],
)
async def test_a_stream_that_breaks_off_raises(parts: list[bytes], broken: bool) -> None:
    async with server(writes(*parts, broken=broken)) as backend:
        seen: list[TextEvent] = []
        with pytest.raises(errors.BackendUnavailable) as caught:
            async with backend.stream(ASK) as events:
                async for event in events:
                    seen.append(event)
        assert not any(isinstance(event, TextEnd) for event in seen)
        _presentable(backend, caught.value)


@pytest.mark.anyio
async def test_an_error_event_is_told_apart() -> None:
    long = b'data: {"error":{"message":"too long","code":"context_length_exceeded"}}\n\n'
    async with server(writes(chunk("a"), long)) as backend:
        with pytest.raises(errors.ContextTooLong):
            await read(backend)


@pytest.mark.anyio
async def test_a_json_answer_to_a_stream_is_no_success() -> None:
    async def whole(request: web.Request) -> web.Response:
        return web.json_response({"choices": [{"message": {"content": "all at once"}, "finish_reason": "stop"}]})

    async def failed(request: web.Request) -> web.Response:
        return web.json_response(
            {"error": {"message": "no such thing as temperature 9", "code": 400, "param": "temperature"}}
        )

    async with server(whole) as backend:
        with pytest.raises(errors.BackendUnavailable):
            await read(backend)
    async with server(failed) as backend:
        with pytest.raises(errors.RequestRejected, match="temperature 9") as caught:
            await read(backend)
        assert caught.value.param == "temperature"


# Time


@pytest.mark.anyio
@pytest.mark.parametrize("parts", [[], [chunk("a")]])
async def test_a_stalled_server_times_out(parts: list[bytes]) -> None:
    async with server(writes(*parts, b": x\n\n", pause=5), first_byte_timeout=0.2, chunk_timeout=0.1) as backend:
        begun = time.monotonic()
        with pytest.raises(errors.BackendTimeout) as caught:
            await read(backend)
        assert time.monotonic() - begun < 1
        _presentable(backend, caught.value)


@pytest.mark.anyio
async def test_keep_alive_comments_keep_a_stream_alive() -> None:
    parts = [b": wait\n\n"] * 6 + [chunk("a"), chunk(finish="stop"), DONE]
    async with server(writes(*parts, pause=0.04), chunk_timeout=0.15, first_byte_timeout=0.15) as backend:
        assert (await read(backend))[0] == TextDelta("a")


@pytest.mark.anyio
@pytest.mark.parametrize("moment", ["before the answer", "between tokens", "by leaving the block"])
async def test_cancelling_closes_the_connection_at_once(moment: str) -> None:
    begun, noticed = anyio.Event(), anyio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        try:
            if moment != "before the answer":
                response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
                await response.prepare(request)
                await response.write(chunk("a"))
            begun.set()
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            noticed.set()
            raise
        raise AssertionError

    async with server(handler) as backend:
        async with anyio.create_task_group() as group:

            async def client() -> None:
                async with backend.stream(ASK) as events:
                    async for _ in events:
                        if moment == "by leaving the block":
                            return

            group.start_soon(client)
            await begun.wait()
            await anyio.sleep(0.02)
            group.cancel_scope.cancel()
        with anyio.fail_after(0.1):
            await noticed.wait()
        assert backend.admitted == 0


@pytest.mark.anyio
async def test_connections_are_kept_and_used_again() -> None:
    connections = set()
    answer = writes(chunk("a"), chunk(finish="stop"), DONE, pause=0.03)  # the body's end comes after the last event

    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        connections.add(request.transport.get_extra_info("peername"))
        return await answer(request)

    async with server(handler) as backend:
        for _ in range(5):
            await read(backend)
    assert len(connections) == 1


# What is sent


@pytest.mark.anyio
async def test_the_request_as_sent() -> None:
    async with FakeServer(FakeBackend("up"), key=KEY) as there:
        settings = OpenAIHTTPSettings(
            base_url=there.base_url + "/",
            model="up",
            api_key=KEY,
            headers={"X-Team": "blue"},
            extra_body={"a": 1, "b": 1},
        )
        backend = OpenAIHTTPBackend("m", settings)
        request = TextRequest(
            (Message("user", "see", {"name": "bob", "content": [{"type": "text", "text": "see"}]}),),
            Sampling(max_tokens=5, temperature=0.5, stop=("x",), seed=3),
            {"model": "evil", "stream": False, "messages": [], "n": 4, "b": 2, "tools": [], "stream_options": {"z": 1}},
        )
        await read(backend, request)
        await backend.aclose()
    path, body = there.requests[0]
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "up",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "see"}], "name": "bob"}],
        "stream": True,
        "stream_options": {"z": 1, "include_usage": True},
        "max_tokens": 5,
        "temperature": 0.5,
        "stop": ["x"],
        "seed": 3,
        "a": 1,
        "b": 2,
        "tools": [],
    }
    assert there.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert there.headers[0]["X-Team"] == "blue"


@pytest.mark.anyio
async def test_a_redirect_is_not_followed() -> None:
    paths: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        paths.append(request.path)
        raise web.HTTPTemporaryRedirect("/elsewhere")

    async with server(handler) as backend:
        with pytest.raises(errors.BackendUnavailable):
            await read(backend)
    assert paths == ["/v1/chat/completions"]


# What goes wrong


def _presentable(backend: OpenAIHTTPBackend, error: errors.BackendError) -> None:
    """Nothing of where the server is or how we are let in; and the log gets to know more."""
    assert KEY not in error.message
    assert "127.0.0.1" not in error.message
    assert str(backend._settings.base_url.split(":")[2].removesuffix("/v1")) not in error.message
    assert error.model == "m"


BAD = {
    "error": {"message": "temperature must be < 2, see http://10.0.0.7:8000/docs", "param": "temperature", "code": 400}
}
VLLM = {
    "error": {
        "message": "This model's maximum context length is 2048 tokens. However, you requested 3000 tokens "
        "(2900 in the messages, 100 in the completion). Please reduce the length of the messages or completion.",
        "type": "BadRequestError",
        "param": None,
        "code": 400,
    }
}
LLAMA_CPP = {
    "error": {
        "code": 400,
        "message": "request (3000 tokens) exceeds the available context size (2048 tokens), try increasing it",
        "type": "exceed_context_size_error",
    }
}
OPENAI = {"error": {"message": "Too long.", "type": "invalid_request_error", "code": "context_length_exceeded"}}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, BAD, errors.RequestRejected),
        (400, VLLM, errors.ContextTooLong),
        (400, LLAMA_CPP, errors.ContextTooLong),
        (400, OPENAI, errors.ContextTooLong),
        (401, BAD, errors.BackendAuthFailed),
        (402, {}, errors.BackendAuthFailed),
        (403, {}, errors.BackendAuthFailed),
        (404, {"error": {"message": "The model `up` does not exist."}}, errors.BackendUnavailable),
        (408, {}, errors.BackendTimeout),
        (413, {"detail": "body too large"}, errors.RequestRejected),
        (422, BAD, errors.RequestRejected),
        (429, {}, errors.BackendOverloaded),
        (429, {"error": {"code": "insufficient_quota", "message": "pay"}}, errors.BackendAuthFailed),
        (500, {"error": "Traceback … /srv/app/secret.py"}, errors.BackendUnavailable),
        (502, {}, errors.BackendUnavailable),
        (503, {}, errors.BackendOverloaded),
        (504, {}, errors.BackendTimeout),
    ],
)
async def test_statuses(status: int, body: Any, kind: type[errors.BackendError]) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response(body, status=status, headers={"Retry-After": "7"})

    async with server(handler) as backend:
        with pytest.raises(errors.BackendError) as caught:
            await read(backend)
        error = caught.value
        assert type(error) is kind
        assert error.__cause__ is not None
        assert "10.0.0.7" not in error.message
        assert "secret" not in error.message
        _presentable(backend, error)
        if isinstance(error, errors.RequestRejected):
            assert error.status == status
        if body is BAD and isinstance(error, errors.RequestRejected):
            assert error.param == "temperature"
            assert "temperature must be < 2" in error.message
        if isinstance(error, errors.BackendOverloaded):
            assert error.retry_after == 7
        if body in (VLLM, LLAMA_CPP) and isinstance(error, errors.ContextTooLong):
            assert (error.tokens, error.limit) == (3000, 2048)


@pytest.mark.parametrize("status", range(300, 600))
def test_every_status_is_an_error_of_ours(status: int) -> None:
    assert isinstance(from_response("m", status, {}, b"<html>oh no</html>"), errors.BackendError)


def _subclasses(kind: type[Exception]) -> set[type[Exception]]:
    return {kind}.union(*(_subclasses(below) for below in kind.__subclasses__()))


@pytest.mark.parametrize(
    "kind", sorted(_subclasses(aiohttp.ClientError) - {aiohttp.ClientError}, key=lambda k: k.__name__)
)
def test_every_error_of_the_http_library_is_mapped(kind: type[Exception]) -> None:
    assert issubclass(kind, NETWORK)
    error = from_exception("m", kind.__new__(kind))
    wanted = errors.BackendTimeout if issubclass(kind, TimeoutError) else errors.BackendUnavailable
    assert type(error) is wanted


@pytest.mark.anyio
async def test_nobody_listens() -> None:
    async with server(writes()) as backend:
        settings = backend._settings
    for base_url in (settings.base_url, "http://no-such-host.invalid/v1", settings.base_url.replace("http:", "https:")):
        gone = OpenAIHTTPBackend("m", OpenAIHTTPSettings(base_url=base_url, connect_timeout=1))
        for call in (read(gone), gone.ready()):
            with pytest.raises((errors.BackendUnavailable, errors.BackendTimeout)) as caught:
                await call
            assert "invalid" not in caught.value.message
            assert "127.0.0.1" not in caught.value.message
            assert caught.value.__cause__ is not None
        await gone.aclose()


def test_words_of_servers_are_cleaned() -> None:
    dirty = "see https://u:p@h/x , http://10.1.2.3:80, 10.1.2.3:99, gpu-3:8000, [::1]:80, sk-abc123, Bearer xyz, /srv/models/q.bin"
    assert presentable(dirty) == "see … , … …, …, …, …, … …"
    for secret in ("u:p", "10.1", "gpu-3", "::1", "abc123", "xyz", "q.bin"):
        assert secret not in presentable(dirty)
    assert (
        presentable("max_tokens must be at least 1, got -5 (or 3/4)")
        == "max_tokens must be at least 1, got -5 (or 3/4)"
    )
    assert len(presentable("x " * 1000)) == 400


def test_retry_after() -> None:
    assert retry_after({}) is None
    assert retry_after({"Retry-After": "2.5"}) == 2.5
    assert retry_after({"retry-after-ms": "1500"}) == 1.5
    assert retry_after({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after({"Retry-After": "soon"}) is None


# Settings


def test_secrets_do_not_show() -> None:
    settings = OpenAIHTTPSettings(base_url="http://h/v1", api_key=KEY, headers={"X-Key": "hush"})
    assert KEY not in repr(settings)
    assert "hush" not in repr(settings)


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_url": "h/v1"},
        {"base_url": "ftp://h"},
        {"base_url": "http://u:p@h/v1"},
        {"base_url": "http://h/v1?key=1"},
        {"chunk_timeout": 0},
        {"sessions": "maybe"},
        {"max_logprobs": 0},
    ],
)
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)) + r"|timeout"):
        OpenAIHTTPSettings(**{"base_url": "http://h/v1", **wrong})


# Whether it can be fused


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("dialect", "vocabulary", "settings", "reason"),
    [
        ("vllm", True, {}, None),
        ("llama.cpp", True, {}, None),
        ("vllm", False, {}, "no vocabulary"),
        ("plain", True, {}, "does not render"),
        ("vllm", True, {"sessions": "off"}, "switched off"),
    ],
)
async def test_why_not_fused(dialect: Any, vocabulary: bool, settings: dict[str, Any], reason: str | None) -> None:
    behind = FakeBackend("up")
    async with FakeServer(behind, dialect=dialect) as there:
        backend = OpenAIHTTPBackend(
            "m",
            OpenAIHTTPSettings(base_url=there.base_url, model="up", **settings),
            vocabulary=behind.model.vocabulary if vocabulary else None,
        )
        await backend.start()
        why = await backend.why_not_fused()
        if reason is None:
            assert why is None
        else:
            assert why is not None
            assert reason in why
            with pytest.raises(errors.CapabilityMissing, match=reason):
                async with backend.open(ASK.messages, k=4):
                    pass
            assert backend.admitted == 0
        await backend.aclose()


@pytest.mark.anyio
async def test_a_server_that_is_away_gives_no_verdict() -> None:
    behind = FakeBackend("up", FakeSettings())
    async with FakeServer(behind) as there:
        address = there.base_url
    backend = OpenAIHTTPBackend(
        "m", OpenAIHTTPSettings(base_url=address, model="up"), vocabulary=behind.model.vocabulary
    )
    assert "could not be asked" in (await backend.why_not_fused() or "")
    async with FakeServer(behind, port=int(address.split(":")[2].removesuffix("/v1"))):
        assert await backend.why_not_fused() is None
    await backend.aclose()


@pytest.mark.anyio
async def test_sessions_on_must_work() -> None:
    async with FakeServer(FakeBackend("up"), dialect="plain") as there:
        backend = OpenAIHTTPBackend("m", OpenAIHTTPSettings(base_url=there.base_url, sessions="on"))
        with pytest.raises(errors.CapabilityMissing):
            await backend.start()
        unreadable = OpenAIHTTPBackend(
            "m", OpenAIHTTPSettings(base_url=there.base_url, vocabulary="/nowhere/tokenizer.json")
        )
        with pytest.raises(errors.CapabilityMissing) as caught:
            await unreadable.start()
        assert "nowhere" not in caught.value.message
        await backend.aclose()


@pytest.mark.anyio
async def test_half_a_character_keeps_its_distribution() -> None:
    # llama.cpp writes on behind a token that is half a character, and forgets the probabilities of the first.
    behind = FakeBackend("up", FakeSettings(answer="龍", words=()))
    async with FakeServer(behind, dialect="llama.cpp") as there:
        backend = OpenAIHTTPBackend(
            "m", OpenAIHTTPSettings(base_url=there.base_url, model="up"), vocabulary=behind.model.vocabulary
        )
        async with backend.open(ASK.messages, k=4) as session, behind.open(ASK.messages, k=4) as direct:
            for append in ((), "龍".encode()[:1], "龍".encode()[1:2]):
                top, wanted = await session.step(append), await direct.step(append)
                assert top.ids.tolist() == wanted.ids.tolist()
                assert top.logprobs.tolist() == wanted.logprobs.tolist()
        await backend.aclose()


@pytest.mark.anyio
async def test_an_older_vllm_has_no_lookup() -> None:
    behind = FakeBackend("up", FakeSettings(lookup=False))
    async with FakeServer(behind) as there:
        backend = OpenAIHTTPBackend(
            "m", OpenAIHTTPSettings(base_url=there.base_url, model="up"), vocabulary=behind.model.vocabulary
        )
        async with backend.open(ASK.messages, k=4) as session:
            top = await session.step()
            assert (await session.lookup([int(top.ids[0])]))[0] == top.logprobs[0]
            other = next(id for id in range(100) if id not in set(top.ids.tolist()))
            with pytest.raises(errors.CapabilityMissing):
                await session.lookup([other])
            asked = len(there.requests)
            with pytest.raises(errors.CapabilityMissing):
                await session.lookup([other])
            assert len(there.requests) == asked  # it is known now
        await backend.aclose()


@pytest.mark.anyio
async def test_too_many_tokens_are_not_looked_up() -> None:
    """Every `max_logprobs` of them cost a request, one after the other."""
    behind = FakeBackend("up")
    async with FakeServer(behind) as there:
        backend = OpenAIHTTPBackend(
            "m", OpenAIHTTPSettings(base_url=there.base_url, model="up"), vocabulary=behind.model.vocabulary
        )
        async with backend.open(ASK.messages, k=4) as session:
            await session.step()
            asked = len(there.requests)
            with pytest.raises(errors.CapabilityMissing, match="at once"):
                await session.lookup(range(256))
            assert len(there.requests) == asked
            assert len(await session.lookup(range(100))) == 100
        await backend.aclose()


@pytest.mark.anyio
async def test_a_failing_draft_raises_its_own_error() -> None:
    behind = FakeBackend("up")
    async with FakeServer(behind) as there:
        backend = OpenAIHTTPBackend(
            "m", OpenAIHTTPSettings(base_url=there.base_url, model="up"), vocabulary=behind.model.vocabulary
        )
        async with backend.open(ASK.messages, k=4) as session:
            first = await session.step()
            behind.faults = (Fault(of="session", error="BackendOverloaded"),)
            with pytest.raises(errors.BackendOverloaded):
                await session.score([65, 66, 67])
            behind.faults = ()
            again = await session.step()
            assert again.ids.tolist() == first.ids.tolist()
        await backend.aclose()
