"""A server with the extension's door, without vLLM: a fake model behind the real frames, over a real connection."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any, Self

import numpy as np
from aiohttp import WSMsgType, web

from backends.errors import ContextTooLong
from backends.fake import FakeBackend, FakeSettings
from backends.protocol import Session
from backends.types import Message, TopK
from backends.vllm import frames


class FakeDoor:
    """info: laid over what WELCOME says. fail: code with which every STEP fails. mute: nothing is answered any more. full: no session gets
    a place. prompts: of the sessions that got one. asked: of each, what was said about reading early, and whether it followed another.
    gone: nothing is kept to look up. lookups: how many there were.

    `refuse`: status with which the WebSocket is refused.
    """

    def __init__(self, *, info: dict[str, Any] | None = None, refuse: int | None = None, **settings: Any) -> None:
        self.model = FakeBackend("fake", FakeSettings(answer="All rivers run to the sea.", **settings))
        self.info = info or {}
        self.refuse = refuse
        self.fail: int | None = None
        self.mute = False
        self.full = False
        self.gone = False
        self.lookups = 0
        self.prompts: list[Any] = []
        self.asked: list[dict[str, Any]] = []
        self.opened = 0
        self.live = 0
        self.dials = 0
        self.url = ""
        self.sockets: set[web.WebSocketResponse] = set()
        self._runner: web.AppRunner | None = None
        self._port = 0

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen; again on the same port after a `stop`."""
        app = web.Application()
        app.router.add_get(frames.ROUTE, self._serve)
        app.router.add_get("/v1/models", self._models)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self._port}/v1"

    async def stop(self) -> None:
        """Cut everything, as a server that dies."""
        for socket in list(self.sockets):
            transport = socket._req.transport if socket._req is not None else None
            if transport is not None:
                transport.abort()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _models(self, _request: web.Request) -> web.Response:
        return web.json_response({"data": []})

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.dials += 1
        if self.refuse is not None:
            return web.Response(status=self.refuse)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.sockets.add(socket)
        async with AsyncExitStack() as stack:
            sessions: dict[int, tuple[Session, AsyncExitStack]] = {}
            stack.callback(self.sockets.discard, socket)
            stack.push_async_callback(self._leave, sessions)
            async for message in socket:
                if message.type is WSMsgType.BINARY:
                    answer = await self._answer(frames.decode(message.data), sessions)
                    for frame in answer if not self.mute else ():
                        await socket.send_bytes(frame.encode())
        return socket

    async def _leave(self, sessions: dict[int, tuple[Session, AsyncExitStack]]) -> None:
        for _, block in sessions.values():
            await block.aclose()
            self.live -= 1

    async def _answer(self, frame: Any, sessions: dict[int, tuple[Session, AsyncExitStack]]) -> list[Any]:
        vocabulary = await self.model.vocabulary()
        match frame:
            case frames.Hello():
                info = {
                    "sessions": 8,
                    "context": 4096,
                    "why_not": None,
                    "fingerprint": vocabulary.fingerprint,
                    **self.info,
                }
                return [frames.Welcome(1, info)]
            case frames.Vocab():
                data = frames.encode_table(list(vocabulary.tokens), sorted(vocabulary.end_ids), vocabulary.fingerprint)
                cuts = [data[at : at + 1000] for at in range(0, len(data), 1000)]
                return [frames.TablePart(frame.request, part, len(cuts), cut) for part, cut in enumerate(cuts)]
            case frames.Beat():
                return [frames.Beat()]
            case frames.Close():
                if frame.session in sessions:
                    await sessions.pop(frame.session)[1].aclose()
                    self.live -= 1
                return []
            case frames.Open() if self.full:
                return []  # it waits in the line
            case frames.Open():
                return [await self._open(frame, sessions)]
        if self.fail is not None:
            return [frames.Fail(frame.session, frame.request, self.fail, "as told", 9, 7)]
        session = sessions[frame.session][0]
        if isinstance(frame, frames.Lookup):
            self.lookups += 1
            if self.gone:
                return [frames.Values(frame.session, frame.request, np.empty(0, np.float32))]
            values = await (session.recall(frame.back, frame.ids) if frame.back else session.lookup(frame.ids))  # type: ignore[attr-defined]
            return [frames.Values(frame.session, frame.request, values.astype(np.float32))]
        if frame.drop:
            await session.rewind(frame.drop)
        ids = frame.ids.tolist()
        tops = [await session.step(ids)] if isinstance(frame, frames.Step) else await session.score(ids)
        return [_tops(frame, tops)]

    async def _open(self, frame: frames.Open, sessions: dict[int, tuple[Session, AsyncExitStack]]) -> Any:
        assert isinstance(frame.prompt, dict)
        asked = dict(frame.prompt.pop("modelnet", {}))
        followed = sessions.pop(asked.pop("after", 0), None)
        if followed is not None:
            await followed[1].aclose()
            self.live -= 1
        messages = [Message(turn["role"], turn["content"]) for turn in frame.prompt["messages"]]
        block = AsyncExitStack()
        try:
            session = await block.enter_async_context(self.model.open(messages, k=frame.k, max_tokens=frame.room))
        except ContextTooLong as error:
            return frames.Fail(frame.session, frame.request, frames.TOO_LONG, "", error.tokens or 0, error.limit or 0)
        sessions[frame.session] = session, block
        self.prompts.append(frame.prompt)
        self.asked.append({**asked, "followed": followed is not None})
        self.opened += 1
        self.live += 1
        return frames.Opened(frame.session, frame.request, session.prompt_tokens)


def _tops(frame: Any, tops: list[TopK]) -> Any:
    ids, logprobs = np.stack([top.ids for top in tops]), np.stack([top.logprobs for top in tops])
    outside = np.array([top.outside for top in tops], np.float32)
    return frames.Tops(frame.session, frame.request, ids, logprobs.astype(np.float32), outside)


async def settled(door: FakeDoor) -> None:
    """Until no session is left there."""
    async with asyncio.timeout(2):
        while door.live:
            await asyncio.sleep(0.005)
