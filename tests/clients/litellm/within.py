"""What the contract does not ask of a hosted model. Run by pytest in litellm's environment."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest
from aiohttp import web

from backends.errors import BackendAuthFailed, BackendOverloaded, BackendUnavailable, RequestRejected
from backends.hosted import HostedBackend, HostedSettings
from backends.hosted.failures import TABLE
from backends.types import Message, Sampling, TextDelta, TextEnd, TextRequest

ASK = (Message("user", "The weather?"),)
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


class Server:
    """Answers as told: a status, or chunks."""

    def __init__(self, status: int = 200, chunks: list[Any] | None = None, body: Any = None) -> None:
        self.status, self.chunks, self.body = status, chunks or [], body
        self.requests: list[Any] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(await request.json())
        if self.status != 200:
            return web.json_response(self.body, status=self.status, headers={"Retry-After": "7"})
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for chunk in self.chunks:
            head = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
            await response.write(b"data: " + json.dumps({**head, **chunk}).encode() + b"\n\n")
        return response


def chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


async def ask(server: Server, **extra: Any) -> list[Any]:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        settings = HostedSettings("openai/m", api_key="sk-secret", api_base=f"http://127.0.0.1:{port}/v1")
        backend = HostedBackend("host", settings)
        await backend.start()
        async with backend.stream(TextRequest(ASK, Sampling(max_tokens=9), extra)) as events:
            return [event async for event in events]
    finally:
        await runner.cleanup()


def test_tools_and_usage_come_through() -> None:
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}
    more = {"index": 0, "function": {"arguments": '{"city": "Köln"}'}}
    usage = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}}
    server = Server(
        chunks=[chunk(role="assistant", tool_calls=[call]), chunk(tool_calls=[more]), chunk("tool_calls"), usage]
    )
    *deltas, end = anyio.run(lambda: ask(server, tools=TOOLS, tool_choice="required", model="other"))
    parts = [part for delta in deltas for part in delta.tool_calls]
    assert [part.name for part in parts if part.name] == ["weather"]
    assert json.loads("".join(part.arguments for part in parts)) == {"city": "Köln"}
    assert isinstance(end, TextEnd)
    assert (end.finish_reason, end.usage.prompt_tokens, end.usage.completion_tokens) == ("tool_calls", 5, 3)
    (sent,) = server.requests
    assert (sent["model"], sent["tools"], sent["tool_choice"], sent["max_tokens"]) == ("m", TOOLS, "required", 9)


def test_a_stream_that_just_ends_is_no_success() -> None:
    with pytest.raises(BackendUnavailable):
        anyio.run(lambda: ask(Server(chunks=[chunk(role="assistant", content="Half"), chunk(content=" of")])))


def test_text() -> None:
    events = anyio.run(
        lambda: ask(Server(chunks=[chunk(role="assistant", content="Al"), chunk(content="l 是"), chunk("stop")]))
    )
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "All 是"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((400, RequestRejected), (401, BackendAuthFailed), (403, BackendAuthFailed), (404, BackendUnavailable)),
        *((429, BackendOverloaded), (500, BackendUnavailable), (502, BackendUnavailable), (503, BackendOverloaded)),
    ],
)
def test_errors_are_ours_and_it_is_asked_once(status: int, kind: type[Exception]) -> None:
    server = Server(status, body={"error": {"message": "no, see http://10.0.0.7:1/ and sk-secret", "type": "x"}})
    with pytest.raises(kind) as caught:
        anyio.run(lambda: ask(server))
    assert "10.0.0.7" not in str(caught.value) and "sk-secret" not in str(caught.value)
    assert len(server.requests) == 1
    if isinstance(caught.value, BackendOverloaded):
        assert caught.value.retry_after == 7


def test_every_name_in_the_table_exists() -> None:
    import litellm

    named = {name for name, _, _ in TABLE}
    assert not [name for name in named if not hasattr(litellm.exceptions, name)]
