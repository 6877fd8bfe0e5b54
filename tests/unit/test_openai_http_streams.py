"""The generic HTTP backend reads and sends: streams, what they are made of, time, connections."""

from __future__ import annotations

import asyncio
import json
import time

import anyio
import pytest
from aiohttp import web
from upstream import ASK, DONE, KEY, chunk, presentable_error, read, server, writes

from backends import errors
from backends.fake import FakeBackend
from backends.fake.server import FakeServer
from backends.openai_http import OpenAIHTTPBackend, OpenAIHTTPSettings
from backends.types import Message, Sampling, TextDelta, TextEnd, TextEvent, TextRequest, TokenLogprob, Usage

# Reading a stream


@pytest.mark.anyio
async def test_text_reasoning_usage_and_end() -> None:
    thought = b'data: {"choices":[{"index":0,"delta":{"reasoning_content":"hm"}}]}\n\n'
    other = b'data: {"choices":[{"index":0,"delta":{"reasoning":"ah"}}]}\n\n'
    usage = (
        b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,'
        b'"prompt_tokens_details":{"cached_tokens":1},"completion_tokens_details":{"reasoning_tokens":0}}}\n\n'
    )
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
            TextEnd("length", Usage(3, 2, 1, 0)),
        ]


@pytest.mark.anyio
async def test_a_refusal_is_told_from_text() -> None:
    entry = {"token": "No", "logprob": -0.5}
    choice = {
        "index": 0,
        "delta": {"content": None, "refusal": "No"},
        "logprobs": {"content": None, "refusal": [entry]},
    }
    said = b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"
    async with server(writes(chunk(), said, chunk(finish="stop"), DONE)) as backend:
        refusal = TextDelta("", refusal="No", refusal_tokens=(TokenLogprob(b"No", -0.5),))
        assert await read(backend) == [refusal, TextEnd("stop", Usage())]


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
        ([chunk("a", finish="")], False),  # which is no reason
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
        presentable_error(backend, caught.value)


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
        presentable_error(backend, caught.value)


@pytest.mark.anyio
async def test_keep_alive_comments_keep_a_stream_alive() -> None:
    parts = [b": wait\n\n"] * 6 + [chunk("a"), chunk(finish="stop"), DONE]
    async with server(writes(*parts, pause=0.12), chunk_timeout=0.5, first_byte_timeout=0.5) as backend:
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
