"""Servers on the loopback that do, or pretend, everything a server can do wrong, and a backend in front of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from backends import errors
from backends.openai_http import OpenAIHTTPBackend, OpenAIHTTPSettings
from backends.types import Message, TextEvent, TextRequest

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


async def stream(request: web.Request, *parts: bytes, pause: float = 0.0, broken: bool = False) -> web.StreamResponse:
    """Answer with these bytes, one write each. broken: and then cut the connection."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for part in parts:
        await response.write(part)
        await asyncio.sleep(pause)
    if broken:
        assert request.transport is not None
        request.transport.abort()
    return response


def writes(*parts: bytes, broken: bool = False, pause: float = 0.0) -> Handler:
    """A handler that streams these bytes, one write each."""

    async def handler(request: web.Request) -> web.StreamResponse:
        return await stream(request, *parts, pause=pause, broken=broken)

    return handler


async def read(backend: OpenAIHTTPBackend, request: TextRequest = ASK) -> list[TextEvent]:
    async with backend.stream(request) as events:
        return [event async for event in events]


def presentable_error(backend: OpenAIHTTPBackend, error: errors.BackendError) -> None:
    """Nothing of where the server is or how we are let in; and the log gets to know more."""
    assert KEY not in error.message
    assert "127.0.0.1" not in error.message
    assert str(backend._settings.base_url.split(":")[2].removesuffix("/v1")) not in error.message
    assert error.model == "m"
