"""A gateway over the real backend and a real server of OpenAI's API, for requests that are handed on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from aiohttp import web
from edge import Edge
from upstream import stream

from backends.catalog import Entry
from backends.openai_http import OpenAIHTTPBackend, OpenAIHTTPSettings
from backends.vllm import VLLMBackend, VLLMSettings
from gateway.app import Application
from gateway.runtime import open_runtime
from gateway.settings import Loaded, Settings
from gateway.settings.source import Source

UPSTREAM_KEY = "sk-upstream-secret"


CLIENT_KEY = "sk-client-0123456789"


HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "up"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
ANSWER = {
    **HEAD,
    "object": "chat.completion",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hi", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
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


FAILED = event({"error": {"message": "engine died at 10.0.0.7", "code": 500}})


async def silent(upstream: Upstream, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    await asyncio.sleep(60)
    raise AssertionError


async def halting(upstream: Upstream, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return await stream(request, ROLE + chunk({"content": "a"}), b": x\n\n", pause=60)
