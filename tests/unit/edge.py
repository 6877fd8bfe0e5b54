"""Drives the whole edge as ASGI, by hand: no client library stands between a test and the messages that are sent."""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import anyio

from backends.catalog import Entry
from backends.fake import FakeBackend, FakeSettings
from backends.types import TextRequest
from gateway.app import Application
from gateway.runtime import Runtime, open_runtime
from gateway.settings import Loaded, Settings
from gateway.settings.source import Source

CHAT = "/v1/chat/completions"


class Recorder(FakeBackend):
    """A fake that keeps the requests it got."""

    def __init__(self, name: str, settings: FakeSettings | None = None) -> None:
        super().__init__(name, settings)
        self.requests: list[TextRequest] = []

    def stream(self, request: TextRequest) -> Any:
        self.requests.append(request)
        return super().stream(request)


@dataclass
class Reply:
    """What came back. `sent`: every body message, as bytes."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)
    complete: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(self.sent)

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        value = self.json()
        assert set(value) == {"error"}
        assert set(value["error"]) == {"message", "type", "param", "code"}
        assert value["error"]["code"] is None or isinstance(value["error"]["code"], str)
        return value["error"]

    def header(self, name: str) -> str | None:
        found = [value for key, value in self.headers if key == name]
        assert len(found) <= 1, f"{name} was sent {len(found)} times"
        return found[0] if found else None

    def events(self) -> list[str]:
        """The data of every event, and comments as they are."""
        text = self.body.decode()
        assert text.endswith("\n\n")
        events = text.removesuffix("\n\n").split("\n\n")
        for event in events:
            assert "\n" not in event
            assert event.startswith(("data: ", ": "))
        return [event.removeprefix("data: ") for event in events]

    def chunks(self) -> list[Any]:
        return [json.loads(event) for event in self.events() if event.startswith("{")]

    def content(self, choice: int = 0) -> str:
        return self._joined("content", choice)

    def reasoning(self, choice: int = 0) -> str:
        return self._joined("reasoning_content", choice)

    def _joined(self, key: str, index: int) -> str:
        found = [c for chunk in self.chunks() for c in chunk["choices"] if c["index"] == index]
        return "".join(choice["delta"].get(key) or "" for choice in found)


class Exchange:
    """A request under way. `leave()` is the client closing its connection."""

    def __init__(self, app: Application, scope: Mapping[str, Any], body: bytes) -> None:
        self._app = app
        self._scope = dict(scope)
        self._messages: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]
        self._left = anyio.Event()
        self._news = anyio.Event()
        self.may_send = anyio.Event()  # cleared by `stall`: the client does not read
        self.may_send.set()
        self.reply = Reply()
        self.finished = anyio.Event()

    def leave(self) -> None:
        self._left.set()

    def stall(self) -> None:
        self.may_send = anyio.Event()

    async def until(self, condition: Any, seconds: float = 5.0) -> None:
        """Wait for something that the reply will show."""
        with anyio.fail_after(seconds):
            while not condition(self.reply):
                news = self._news
                await news.wait()

    async def run(self) -> Reply:
        try:
            await self._app(self._scope, self._receive, self._send)
        finally:
            self.finished.set()
            self._tell()
        return self.reply

    async def _receive(self) -> Any:
        if self._messages:
            return self._messages.pop(0)
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        # As servers do: they wait, and can be cancelled, only for a client that does not read.
        if not self.may_send.is_set():
            await self.may_send.wait()
        if message["type"] == "http.response.start":
            assert not self.reply.status, "a second response was started"
            self.reply.status = message["status"]
            self.reply.headers = [(k.decode(), v.decode()) for k, v in message["headers"]]
        else:
            assert self.reply.status, "a body came before the response was started"
            assert not self.reply.complete, "something came after the end"
            if message.get("body"):
                self.reply.sent.append(message["body"])
            if not message.get("more_body", False):
                self.reply.complete = True
                self._left.set()  # as servers do: a complete response frees whoever waits for the client to leave
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = anyio.Event()


@dataclass
class Edge:
    """A running application and its fake backends."""

    app: Application
    runtime: Runtime
    backends: Mapping[str, FakeBackend]

    def exchange(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Exchange:
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(path),
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(k.encode(), v.encode()) for k, v in (headers or {}).items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
        }
        return Exchange(self.app, scope, raw)

    async def call(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Reply:
        with anyio.fail_after(10):
            return await self.exchange(method, path, body, headers).run()

    async def chat(self, model: str = "a", **fields: Any) -> Reply:
        return await self.call("POST", CHAT, question(model, **fields))

    def idle(self) -> bool:
        """Nothing runs in any backend, and no gauge says otherwise."""
        text = self.app.metrics.text().decode()
        gauges = "modelnet_active_requests 0.0" in text and "modelnet_active_streams 0.0" in text
        return gauges and all(
            b.counters.streams == b.counters.sessions == b.counters.waiting == 0 for b in self.backends.values()
        )


def question(model: str = "a", **fields: Any) -> dict[str, Any]:
    """A body; fields set to `...` are left out."""
    body = {"model": model, "messages": [{"role": "user", "content": "Why?"}], **fields}
    return {key: value for key, value in body.items() if value is not ...}


def fake(name: str, answer: str = "{name} says so. 是的 😀", **settings: Any) -> Recorder:
    return Recorder(name, FakeSettings(answer=answer, **settings))


@asynccontextmanager
async def edge(
    *backends: FakeBackend,
    servers: tuple[str, ...] = (),
    model_fields: Mapping[str, Mapping[str, Any]] | None = None,
    **sections: Any,
) -> AsyncIterator[Edge]:
    """An application over these backends. servers: names that are configured as models behind a server of OpenAI's API.
    model_fields: name → further settings of the model."""
    by_name = {backend.name: backend for backend in backends}
    models: dict[str, dict[str, Any]] = {
        name: {"backend": "openai", "base_url": "http://127.0.0.1:9/v1"} if name in servers else {"backend": "fake"}
        for name in by_name
    }
    for name, fields in (model_fields or {}).items():
        models[name] |= fields
    settings = Settings.model_validate({"models": models, **sections})

    async def build(name: str) -> Entry:
        backend = by_name[name]
        await backend.start()
        return Entry(backend, why_not_fused=await backend.why_not_fused(), native=name in servers)

    async with open_runtime(Loaded(settings, Path("test.yaml"), Source(Path("test.yaml"))), build) as runtime:
        with anyio.fail_after(5):
            await runtime.wait_loaded()
        yield Edge(Application(runtime), runtime, by_name)


def golden(name: str, text: str) -> None:
    """Compare with tests/golden/NAME; with UPDATE_GOLDEN=1 in the environment write it instead."""
    file = Path(__file__).parent.parent / "golden" / name
    if os.environ.get("UPDATE_GOLDEN") == "1":
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


def without_chance(text: str) -> str:
    """A transcript without what differs from run to run (ids, times) or is not the wire's to say (counts, the fingerprint)."""
    text = re.sub(r"chatcmpl-[0-9a-f]{32}", "chatcmpl-ID", text)
    text = re.sub(r"fp_[0-9a-f]{12}", "fp_FINGERPRINT", text)
    text = re.sub(r'"created":\d+', '"created":0', text)
    counts = (
        "prompt_tokens|completion_tokens|total_tokens|pieces|certified|looked_up|uncertified|sampled|drift|passes|saved"
    )
    text = re.sub(rf'"({counts})":\d+', r'"\1":1', text)
    numbers = "seconds|first_token_seconds|gap_seconds|waiting_seconds|own_seconds|worst_gap|lost_mass|worst_lost"
    return re.sub(rf'"({numbers})":[0-9.e-]+', r'"\1":0.5', text)
