"""A gateway served by a real uvicorn on the loopback, in this process: a test sees both the wire and what the models are doing."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import openai
import structlog
from anyio.from_thread import BlockingPortal, start_blocking_portal
from scripted import ScriptedServer

from backends.catalog import Entry
from backends.fake import FakeBackend, FakeSettings, Fault
from backends.fake.settings import Rule
from gateway.app import Application
from gateway.builders import Builders
from gateway.runtime import open_runtime
from gateway.settings import Loaded, Settings
from gateway.settings.source import Source
from gateway.web.serving import Server, bind, url

CHAT = "/v1/chat/completions"
KEY = "sk-drop-in-0123456789"
ASK: Any = [{"role": "user", "content": "Why?"}]
AT_ONCE = 0.1
"""Seconds in which everything of a request must be cancelled."""

WIRINGS = {
    "single": "a",
    "server": "far",
    "si": "si:a>b",
    "si to a server": "a>far",
    "pi": "pi:a|b",
    "s2p": "s2p:a>b|c",
    "p2s": "p2s:a|b>c",
    "nested": "(a>b)|c",
    "alias": "duo",
}
"""Every kind of wiring that the lines are tried over."""
PATHS = ["a", "far", "a>far", "s2p:a>b|c"]
"""Where requests are decoded and refused in ways of their own: by us, handed on, and before a server at the end of a chain."""
GROUPS = ["pi:a|b", "s2p:a>b|c", "(a>b)|c"]
"""Those whose answer is written by several models together."""

TEXT = "Answer: 是的 😀, because so."
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln 是"}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
RULES = (
    Rule("21 degrees", "It is 21 degrees."),
    Rule("weather and the clock", f"{CALL}\n{OTHER}"),
    Rule("weather", CALL),
    Rule("clock", OTHER),
    Rule("JSON", '{"x": 5, "name": "是"}'),
    Rule("count", "one two three four five six seven eight nine ten " * 8),
)


class Watched(FakeBackend):
    """A scripted model that keeps what it was asked."""

    def __init__(self, name: str, **settings: Any) -> None:
        settings = {"answer": TEXT, "rules": RULES, **settings}
        super().__init__(name, FakeSettings(**settings))
        self.read: list[str] = []

    def stream(self, request: Any) -> Any:
        self.read.append("\n".join(message.content for message in request.messages))
        return super().stream(request)

    def open(self, messages: Any, **options: Any) -> Any:
        self.read.append("\n".join(message.content for message in messages))
        return super().open(messages, **options)


def models() -> dict[str, Watched]:
    """The scripted models of the suite."""
    slow = {"delay": 0.05, "answer": "one two three four five six seven eight nine ten " * 8, "rules": ()}
    hang = (Fault(on="token", action="hang"),)
    made = [
        *(Watched(name) for name in "abc"),
        Watched("thinker", reasoning="let me think", answer="So.", rules=()),
        Watched("text", sessions=False),
        Watched("slow", **slow),
        Watched("silent", faults=hang),
        Watched("torn", answer="one two three four", rules=(), faults=(Fault(on="token", after=3),)),
        Watched("gone", faults=(Fault(on="enter"),)),
        Watched("full", faults=(Fault(on="enter", error="BackendOverloaded"),)),
        Watched("late", faults=(Fault(on="enter", error="BackendTimeout"),)),
        Watched("refused", faults=(Fault(on="enter", error="BackendAuthFailed"),)),
        Watched("odd", faults=(Fault(on="enter", error=_odd),)),
        Watched("early", faults=(Fault(on="token", after=2, action="raise"),), rules=()),
    ]
    return {model.name: model for model in made}


def _odd(model: str) -> Exception:
    return RuntimeError("password=hunter2 at 10.1.2.3:8000")


@dataclass
class Reply:
    """A whole answer off the wire."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        """The error, its form checked."""
        value = self.json()
        assert set(value) == {"error"}
        error = value["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str)
        assert isinstance(error["type"], str)
        assert error["code"] is None or isinstance(error["code"], str)
        return error

    def events(self) -> list[str]:
        """The data of every event; comments as they are."""
        text = self.body.decode()
        assert text.endswith("\n\n")
        events = text.removesuffix("\n\n").split("\n\n")
        for event in events:
            assert "\n" not in event
            assert event.startswith(("data: ", ": "))
        return [event.removeprefix("data: ") for event in events]

    def chunks(self) -> list[Any]:
        return [json.loads(event) for event in self.events() if event.startswith("{")]

    def deltas(self, index: int = 0) -> list[Any]:
        return [choice["delta"] for choice in self.choices(index)]

    def choices(self, index: int = 0) -> list[Any]:
        return [each for chunk in self.chunks() for each in chunk.get("choices", ()) if each["index"] == index]

    def content(self, index: int = 0) -> str:
        return "".join(delta.get("content") or "" for delta in self.deltas(index))


@dataclass
class Gateway:
    """A running gateway."""

    portal: BlockingPortal
    app: Application
    server: Server
    url: str
    backends: Mapping[str, Watched]
    scripted: ScriptedServer
    clients: list[openai.OpenAI] = field(default_factory=list)

    @property
    def client(self) -> openai.OpenAI:
        """The official client, which never tries again by itself."""
        if not self.clients:
            self.clients.append(openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=20))
        return self.clients[0]

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def call(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Reply:
        """One request on a connection of its own. body: JSON, or bytes as they are."""
        raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection = http.client.HTTPConnection(*self.address, timeout=20)
        try:
            given = {"authorization": f"Bearer {KEY}", "content-type": "application/json", **(headers or {})}
            connection.request(method, path, raw, {key: value for key, value in given.items() if value})
            response = connection.getresponse()
            names = [key.lower() for key, _ in response.getheaders()]
            assert len(names) == len(set(names)), "a header came twice"
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def chat(self, model: str = "a", headers: Mapping[str, str] | None = None, **fields: Any) -> Reply:
        """Fields set to `...` are left out."""
        body = {"model": model, "messages": ASK, **fields}
        return self.call("POST", CHAT, {key: value for key, value in body.items() if value is not ...}, headers)

    @contextmanager
    def raw(self, model: str, path: str = CHAT, **fields: Any) -> Iterator[socket.socket]:
        """A request on a bare socket, sent; nothing is read."""
        body = json.dumps({"model": model, "messages": ASK, **fields}).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n"
        with socket.create_connection(self.address, timeout=20) as sock:
            sock.sendall(head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body)
            yield sock

    def busy(self) -> int:
        """Streams, sessions and waiting calls of all models, and calls to the server of `far`."""
        counters = [backend.counters for backend in self.backends.values()]
        return sum(c.streams + c.sessions + c.waiting for c in counters) + self.scripted.running

    def metric(self, name: str) -> float:
        text = self.app.metrics.text().decode()
        return float(next(line.split()[-1] for line in text.splitlines() if line.startswith(f"{name} ")))

    def until(self, condition: Callable[[], bool], seconds: float = 5.0) -> float:
        """Wait for something; how long that took, in seconds."""
        began = time.monotonic()
        while not condition():
            assert time.monotonic() - began < seconds, "it did not happen"
            time.sleep(0.001)
        return time.monotonic() - began

    def idle(self) -> bool:
        """Nothing runs, and no gauge says otherwise."""
        gauges = ("modelnet_active_requests", "modelnet_active_streams")
        return self.busy() == 0 and all(self.metric(gauge) == 0 for gauge in gauges)


@asynccontextmanager
async def _serving(sections: Mapping[str, Any], backends: Mapping[str, Watched]) -> AsyncIterator[Any]:
    async with ScriptedServer() as scripted:
        far = {"backend": "openai", "base_url": scripted.base_url, "api_key": "sk-upstream-secret"}
        settings = Settings.model_validate(
            {
                "models": {**{name: {"backend": "fake"} for name in backends}, "far": far},
                "aliases": {"duo": {"expression": "s2p:a>b|c"}},
                "server": {"keepalive_seconds": 0.3, "shutdown_seconds": 2.0},
                "limits": {"body_bytes": 100_000},
                # Models that always fail are the point here: nothing is to stand between them and the wire.
                "resilience": {"retries": {"most": 0, "stages": 0}, "breaker": {"enabled": False}},
                "keys": [KEY],
                **sections,
            }
        )
        loaded = Loaded(settings, Path("test.yaml"), Source(Path("test.yaml")))
        builders = Builders(loaded)

        async def build(name: str) -> Entry:
            if name not in backends:
                return await builders(name)
            backend = backends[name]
            await backend.start()
            return Entry(backend, why_not_fused=await backend.why_not_fused())

        async with open_runtime(loaded, build) as runtime, anyio.create_task_group() as tasks:
            with anyio.fail_after(10):
                await runtime.wait_loaded()
            app = Application(runtime)
            sock = bind("127.0.0.1", 0)
            server = Server(app, settings.server.shutdown_seconds)
            tasks.start_soon(server.serve, [sock])
            with anyio.fail_after(10):
                while not server.started:
                    await anyio.sleep(0.01)
            yield app, server, url(sock), scripted
            server.stop()


@contextmanager
def _silent() -> Iterator[None]:
    """No log: what is expected to fail here would fill the terminal with traces."""
    before = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL), cache_logger_on_first_use=False
    )
    try:
        yield
    finally:
        structlog.configure(**before)


@contextmanager
def serving(**sections: Any) -> Iterator[Gateway]:
    """A gateway over the scripted models, with these sections of a configuration instead of the usual ones."""
    backends = models()
    with (
        _silent(),
        start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(_serving(sections, backends)) as (app, server, address, scripted),
    ):
        gateway = Gateway(portal, app, server, address, backends, scripted)
        try:
            yield gateway
        finally:
            for client in gateway.clients:
                client.close()
