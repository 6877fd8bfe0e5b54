"""What is fuzzed: a whole gateway with keys, limits, a ledger, a route with a shadow and a fallback, traces, and its admin API, over
models in process and models behind a server. In process, as ASGI, and on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import anyio
from fuzz_requests import ADMIN, KEY, STRICT, Request
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from backends.catalog import Entry
from backends.fake import FakeBackend, FakeSettings
from backends.fake.server import FakeServer
from backends.openai_http import OpenAIHTTPBackend, OpenAIHTTPSettings
from gateway.app import Application
from gateway.observability.tracing import Tracing
from gateway.operations import open_operations
from gateway.runtime import open_runtime
from gateway.settings import Loaded, Settings
from gateway.settings.check import check
from gateway.settings.resilience import Tracing as TracingSection
from gateway.settings.source import Source
from gateway.web.admin import admin_app
from gateway.web.serving import Server, bind

SERVED = ("far", "embed")


@dataclass
class Reply:
    """What came back. left: the client did not stay for it."""

    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    complete: bool = False
    left: bool = False


class Nowhere(SpanExporter):
    """Spans are made and thrown away."""

    def export(self, spans: Any) -> SpanExportResult:
        return SpanExportResult.SUCCESS


@dataclass
class Target:
    """A running gateway. port: where it is served on the loopback."""

    app: Application
    admin: Any
    fakes: list[FakeBackend]
    server: FakeServer
    keys: Path
    port: int = 0

    async def ask(self, request: Request, pieces: int = 1, leaves: bool = False) -> Reply:
        """One request as ASGI. pieces: of the body. leaves: the client is gone once the body has come."""
        reply, over = Reply(left=leaves), anyio.Event()
        data = request.payload()
        size = max(1, -(-len(data) // pieces))
        parts = [data[at : at + size] for at in range(0, len(data), size)] or [b""]
        todo = [{"type": "http.request", "body": each, "more_body": True} for each in parts]
        todo[-1]["more_body"] = False

        async def receive() -> Any:
            if todo:
                return todo.pop(0)
            if not leaves:
                await over.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                assert not reply.status, "a second response was started"
                reply.status, reply.headers = message["status"], list(message["headers"])
                return
            assert reply.status, "a body came before its response"
            assert not reply.complete, "something came after the end"
            reply.body += message.get("body", b"")
            if not message.get("more_body"):
                reply.complete = True
                over.set()

        await (self.admin if request.admin else self.app)(scope(request), receive, send)
        return reply

    def tidy(self) -> None:
        """Forget what the model server has recorded, and the keys that were made: every one is read again and again."""
        self.server.requests.clear()
        self.server.headers.clear()
        with contextlib.closing(sqlite3.connect(self.keys, timeout=30)) as store, store:
            if store.execute("SELECT 1 FROM sqlite_master WHERE name = 'keys'").fetchone():  # the first key makes it
                store.execute("DELETE FROM keys")

    async def rest(self, seconds: float = 30.0) -> None:
        """Until nothing runs any more. Raises TimeoutError."""
        with anyio.fail_after(seconds):
            while not self._idle():
                await anyio.sleep(0.05)

    def _idle(self) -> bool:
        text = self.app.metrics.text().decode()
        quiet = ("modelnet_active_requests 0.0", "modelnet_active_streams 0.0", "modelnet_places_taken 0.0")
        counters = [fake.counters for fake in self.fakes]
        running = any(each.streams + each.sessions + each.waiting for each in counters)
        return all(gauge in text for gauge in quiet) and not running


def scope(request: Request) -> dict[str, Any]:
    """As uvicorn makes it."""
    path, _, query = request.path.partition(b"?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": unquote(path.decode("ascii", "replace")),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in request.headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }


def configured(folder: Path, url: str) -> Loaded:
    """The configuration of it all."""
    models: dict[str, Any] = {"a": {"backend": "fake"}, "b": {"backend": "fake"}}
    models |= {name: {"backend": "openai", "base_url": url} for name in SERVED}
    values = {
        "models": models,
        "aliases": {
            "pair": {"expression": "a|b", "on_member_failure": "drop", "member_seconds": 5.0},
            "draft": {"expression": "far>b", "stage_max_tokens": 8},
        },
        "routes": {
            "support": {
                "arms": {"plain": {"model": "a", "weight": 70}, "both": {"model": "pair", "weight": 30}},
                "sticky": ["user", "header:x-team", "conversation"],
                "override": True,
                "shadow": {"model": "far", "share": 0.1},
                "fallbacks": [{"on": ["error", "overload", "timeout", "context"], "model": "b"}],
            }
        },
        "prices": {"models": {"a": {"prompt": 1.0, "completion": 2.0}}},
        "keys": [
            KEY,
            {
                "key": STRICT,
                "name": "strict",
                "models": ["a"],
                "requests_per_minute": 60,
                "tokens_per_minute": 5000,
                "concurrency": 2,
            },
        ],
        "admin": {"key": ADMIN},
        "limits": {
            "answer_max_tokens": 5,
            "stage_max_tokens": 5,
            "max_tokens": 64,
            "body_bytes": 262_144,
            "messages": 64,
        },
        "ledger": {"database": str(folder / "ledger.db"), "flush_seconds": 0.5, "queue": 100_000},
        "key_store": {"database": str(folder / "keys.db")},
        # What a client can make a server refuse must not shut others out, so breakers stay on; their patience is short.
        "resilience": {"breaker": {"pause": 0.1, "pause_most": 0.5}},
    }
    settings = Settings.model_validate(values)
    loaded = Loaded(settings, folder / "fuzz.yaml", Source(folder / "fuzz.yaml"))
    assert not check(settings, loaded.resolve)
    return loaded


@contextlib.asynccontextmanager
async def target(folder: Path) -> AsyncIterator[Target]:
    """A gateway whose files are in that folder."""
    behind = FakeBackend("up", FakeSettings("From far: forty-two. 是的 🎉"))
    fakes = {name: FakeBackend(name, FakeSettings(f"{name}: 42, {{last}}")) for name in ("a", "b")}
    tracing = Tracing(TracingSection(endpoint="http://127.0.0.1:9", sample=1.0), BatchSpanProcessor(Nowhere()))
    async with FakeServer(behind, dialect="vllm") as server:
        loaded = configured(folder, server.base_url)

        async def build(name: str) -> Entry:
            if name not in SERVED:
                return Entry(fakes[name], why_not_fused=await fakes[name].why_not_fused())
            settings = OpenAIHTTPSettings(base_url=server.base_url, model="up", seats=32)
            backend = OpenAIHTTPBackend(name, settings, vocabulary=behind.model.vocabulary)
            return Entry(backend, why_not_fused=await backend.why_not_fused(), native=True)

        async with open_runtime(loaded, build) as runtime, open_operations(loaded) as operations:
            runtime.operations = operations
            await runtime.wait_loaded()
            app = Application(runtime, tracing=tracing)
            found = Target(app, admin_app(loaded, operations), [*fakes.values(), behind], server, folder / "keys.db")
            async with served(app) as found.port:
                yield found
    tracing.close()


@contextlib.asynccontextmanager
async def served(app: Application) -> AsyncIterator[int]:
    """On a free port of the loopback."""
    sock = bind("127.0.0.1", 0)
    server = Server(app, patience=1.0)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment] # signals are the caller's
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        with anyio.fail_after(10):
            while not server.started:
                await anyio.sleep(0.01)
        yield int(sock.getsockname()[1])
    finally:
        server.should_exit = True
        await serving
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        sock.close()
