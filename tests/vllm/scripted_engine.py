"""The extension's own door, sessions and places in this process, over an engine that is made up: what it would say depends on all ids."""

from __future__ import annotations

import asyncio
import hashlib
import sys
import types
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
from aiohttp import WSMsgType, web
from vllm_engines import PLUGIN

SIZE = 256
"""Of the vocabulary: bytes."""
PACKAGE = PLUGIN.parent


@contextmanager
def importable() -> Iterator[None]:
    """`modelnet_vllm` can be imported, with as much of vLLM as sessions name. Nothing of it is left."""
    assert "vllm" not in sys.modules
    vllm, engine, protocol, params = map(
        types.ModuleType, ("vllm", "vllm.engine", "vllm.engine.protocol", "vllm.sampling_params")
    )
    vllm.__version__ = "0.0"  # type: ignore[attr-defined]
    vllm.SamplingParams = type("SamplingParams", (SimpleNamespace,), {})  # type: ignore[attr-defined]
    protocol.StreamingInput = type("StreamingInput", (SimpleNamespace,), {})  # type: ignore[attr-defined]
    params.RequestOutputKind = SimpleNamespace(DELTA=1)  # type: ignore[attr-defined]
    made = {module.__name__: module for module in (vllm, engine, protocol, params)}
    sys.modules.update(made)
    sys.path.insert(0, str(PACKAGE))
    try:
        yield
    finally:
        sys.path.remove(str(PACKAGE))
        for name in [name for name in sys.modules if name in made or name.split(".")[0] == "modelnet_vllm"]:
            del sys.modules[name]


def likeliest(ids: Sequence[int]) -> int:
    """The token that the engine would say next."""
    return hashlib.sha256(bytes(id % SIZE for id in ids)).digest()[0]


def rendered(text: str) -> list[int]:
    return [1, *(ord(letter) % SIZE for letter in text), 2]


class _Wire:
    """In place of the link to the engine's process."""

    def __init__(self, host: Any) -> None:
        self._host = host
        self.hello: dict[str, Any] = {}

    def send(self, data: bytes) -> None:
        from modelnet_vllm import link  # type: ignore[import-not-found]

        for kind, body in link.Cutter().feed(data):
            if kind == link.ASK_ECHO:
                asyncio.get_running_loop().call_soon(self._host._answer, link.NUMBER.unpack(body)[0], b"")


class _Engine:
    """passing: seconds of a pass. part: tokens that one reads at most. live: requests."""

    def __init__(self) -> None:
        self.host: Any = None
        self.passing = 0.01
        self.part = 10**9
        self.live = 0

    async def generate(self, inputs: AsyncIterator[Any], _params: Any, _name: str) -> AsyncIterator[Any]:
        from modelnet_vllm.tag import tag_of  # type: ignore[import-not-found]

        ids: list[int] = []
        queue: asyncio.Queue[Any] = asyncio.Queue()

        async def pull() -> None:
            async for each in inputs:
                queue.put_nowait(each)

        task, wire = asyncio.create_task(pull()), _Wire(self.host)
        self.live += 1
        try:
            while True:
                each = await queue.get()
                tag = tag_of(each.sampling_params)
                if tag.keep is not None:
                    assert tag.keep <= len(ids)
                    del ids[tag.keep :]
                assert tag.first == len(ids)
                new = list(each.prompt["prompt_token_ids"])
                while new:
                    ids += new[: self.part]
                    del new[: self.part]
                    await asyncio.sleep(self.passing)
                    session = self.host._sessions.get(tag.session)
                    if session is not None and (not new or not self.host.hooks):
                        session.arrived(wire, tag.seq, 0, _row(ids, tag.k))
                yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=[1])])
        finally:
            self.live -= 1
            task.cancel()


def _row(ids: Sequence[int], k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    first = likeliest(ids)
    listed = np.array([[(first + at) % SIZE for at in range(k)]], np.int32)
    return listed, np.log(np.full((1, k), 0.5 / k, np.float32)), np.full(1, 0.5, np.float32)


class _Socket:
    """What Starlette would make of the client's WebSocket."""

    def __init__(self, socket: web.WebSocketResponse) -> None:
        from starlette.websockets import WebSocketState

        self.application_state = WebSocketState.CONNECTED
        self._socket = socket

    async def receive(self) -> dict[str, Any]:
        message = await self._socket.receive()
        if message.type is WSMsgType.BINARY:
            return {"type": "websocket.receive", "bytes": message.data}
        return {"type": "websocket.disconnect"}

    async def send_bytes(self, data: bytes) -> None:
        try:
            await self._socket.send_bytes(data)
        except ConnectionError as error:
            raise RuntimeError(str(error)) from error

    async def close(self, code: int = 1000, why: str = "") -> None:
        await self._socket.close(code=code, message=why.encode())


class ScriptedDoor:
    """A server of its own, within `importable`. rendering: seconds that it takes. refuses: it can't be done."""

    def __init__(
        self, *, sessions: int = 8, tokens: int | None = None, context: int = 4096, hooks: bool = True
    ) -> None:
        from modelnet_vllm.host import Host  # type: ignore[import-not-found]
        from modelnet_vllm.places import Places  # type: ignore[import-not-found]

        self.connections: set[Any] = set()
        self.context = context
        self.engine = _Engine()
        self.host = Host(self.engine, Places(sessions, tokens, 16, 64), context, rewinds=True, hooks=hooks)
        self.host.listener = SimpleNamespace(path="/nowhere")
        self.engine.host = self.host
        self.rendering = 0.0
        self.refuses = False
        self.url = ""

    @property
    def left(self) -> tuple[int, ...]:
        """Places, tokens, those who wait, requests in the engine, sessions that only read, sessions."""
        places, host = self.host.places, self.host
        return (
            places.taken, places._reserved, places.waiting, self.engine.live, len(host._waiting), len(host._sessions),
        )  # fmt: skip

    async def open(self, frame: Any, asked: Any, _socket: Any, followed: Any) -> Any:
        """As `modelnet_vllm.door.Door.open`, which wants vLLM for the rendering."""
        from modelnet_vllm import frames
        from modelnet_vllm.sessions import Failure  # type: ignore[import-not-found]

        await asyncio.sleep(self.rendering)
        if self.refuses:
            raise Failure(frames.REJECTED, "The conversation can't be rendered.")
        ids = rendered("".join(message["content"] for message in asked.prompt["messages"]))
        return await self.host.open(ids, frame.k, frame.room, asked.reads, await followed())

    async def table(self) -> Any:
        tokens = [bytes([id]) for id in range(SIZE)]
        return SimpleNamespace(tokens=tokens, ends=[0], fingerprint="f" * 16)

    async def info(self) -> dict[str, Any]:
        return {
            "sessions": self.host.places.sessions,
            "context": self.context,
            "why_not": None,
            "fingerprint": "f" * 16,
            "early": True,
            "drafts": "one pass",
            "prefix_cache": 16,
        }

    async def __aenter__(self) -> Self:
        from modelnet_vllm import frames
        from modelnet_vllm.client import Connection  # type: ignore[import-not-found]

        async def serve(request: web.Request) -> web.WebSocketResponse:
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            connection = Connection(self, _Socket(socket))
            self.connections.add(connection)
            try:
                await connection.serve()
            finally:
                self.connections.discard(connection)
            return socket

        app = web.Application()
        app.router.add_get(frames.ROUTE, serve)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
