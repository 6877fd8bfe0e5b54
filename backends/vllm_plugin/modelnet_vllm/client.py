"""One client of the door: frames in, frames out, and the sessions that are his."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import WebSocket
from starlette.websockets import WebSocketDisconnect, WebSocketState

from modelnet_vllm import early, frames
from modelnet_vllm.early import Asked
from modelnet_vllm.sessions import Failure, Session
from modelnet_vllm.vocabulary import NoTable

if TYPE_CHECKING:
    from modelnet_vllm.door import Door

PATIENCE = 10.0
"""Seconds for the handshake."""
PART = 1 << 20
"""Bytes of the vocabulary in one frame."""
MOST_CONNECTIONS = 64

Call = frames.Step | frames.Score | frames.Lookup
"""What a session is asked for, one at a time."""


class Connection:
    """One client. Every request of it is a task; its frames go out one after another."""

    def __init__(self, door: Door, socket: WebSocket) -> None:
        self._door = door
        self._socket = socket
        self._sessions: dict[int, Session] = {}
        self._opening: dict[int, asyncio.Task[None]] = {}
        self._calls: dict[int, asyncio.Task[None]] = {}  # session → what it does now
        self._tasks: set[asyncio.Task[None]] = set()
        self._sending = asyncio.Lock()
        self._heard = 0.0

    async def serve(self) -> None:
        """Until the client is gone; then nothing of it is left in the engine."""
        watch: asyncio.Task[None] | None = None
        try:
            heartbeat = await self._shake_hands()
            if heartbeat is not None:
                watch = asyncio.create_task(self._watch(heartbeat))
                while (data := await self._receive()) is not None:
                    self._take(frames.decode(data))
        except frames.FrameError as error:
            await self._hang_up(1002, str(error)[:120])
        except (WebSocketDisconnect, TimeoutError, RuntimeError):
            await self._hang_up(1001, "")
        finally:
            if watch is not None:
                watch.cancel()
            await asyncio.shield(asyncio.create_task(self._leave()))

    async def _leave(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*(session.close() for session in self._sessions.values()), return_exceptions=True)
        await asyncio.gather(*tasks, return_exceptions=True)
        # One that got its place while it was cancelled.
        await asyncio.gather(*(session.close() for session in self._sessions.values()), return_exceptions=True)

    async def _shake_hands(self) -> float | None:
        """The client's heartbeat in seconds, None where we don't understand each other."""
        async with asyncio.timeout(PATIENCE):
            data = await self._receive()
        if data is None:
            return None
        hello = frames.decode(data)
        if not isinstance(hello, frames.Hello):
            raise frames.FrameError("the first frame must be HELLO")
        version = frames.agree(hello.lowest, hello.highest)
        if version is None:
            why = frames.disagreement((hello.lowest, hello.highest), (frames.LOWEST, frames.HIGHEST))
            await self._send(frames.Refused(frames.LOWEST, frames.HIGHEST, why))
            await self._hang_up(1008, why[:120])
            return None
        if len(self._door.connections) > MOST_CONNECTIONS:
            await self._send(frames.Refused(frames.LOWEST, frames.HIGHEST, "Too many connections."))
            await self._hang_up(1013, "too many connections")
            return None
        await self._send(frames.Welcome(version, await self._door.info()))
        return min(max(hello.heartbeat, 0.1), 600.0)

    async def _watch(self, heartbeat: float) -> None:
        """Hang up on a client that has not been heard of for three of its heartbeats."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(heartbeat)
            if loop.time() - self._heard > 3 * heartbeat:
                await self._leave()
                await self._hang_up(1001, "silence")
                return

    def _take(self, frame: frames.Frame) -> None:
        if isinstance(frame, frames.Beat):
            self._start(self._send(frames.Beat()))
        elif isinstance(frame, frames.Close):
            self._start(self._close(frame.session))
        elif isinstance(frame, frames.Vocab):
            self._start(self._vocabulary(frame.request))
        elif isinstance(frame, frames.Open):
            if frame.session in self._sessions or frame.session in self._opening:
                raise frames.FrameError("a session of this number exists")
            self._take_open(frame)
        elif isinstance(frame, (frames.Step, frames.Score, frames.Lookup)):
            self._take_call(frame)
        else:
            raise frames.FrameError("this frame is for clients only")

    def _start(self, call: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(call)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _take_open(self, frame: frames.Open) -> None:
        number = frame.session
        try:
            asked = early.asked(frame.prompt, number)
        except ValueError as error:
            said = f"The conversation can't be opened: {error}."
            self._start(self._send(frames.Fail(number, frame.request, frames.REJECTED, said)))
            return
        # Only one whose OPEN came before: so none waits for another that waits for it.
        before = None if asked.after is None else self._opening.get(asked.after)
        self._opening[number] = self._start(self._open(frame, asked, before))

    async def _open(self, frame: frames.Open, asked: Asked, before: asyncio.Task[None] | None) -> None:
        number = frame.session
        try:
            followed = partial(self._handed_over, asked.after, before)
            session = await self._door.open(frame, asked, self._socket, followed)
            self._sessions[number] = session
            await self._send(frames.Opened(number, frame.request, session.prompt_tokens))
        except Failure as failure:
            await self._send(_fail(number, frame.request, failure))
        finally:
            self._opening.pop(number, None)
            if asked.after is not None:  # it was not handed over, perhaps
                self._start(self._close(asked.after))

    def _take_call(self, frame: Call) -> None:
        if frame.session in self._calls:
            said = "The session has a request under way."
            self._start(self._send(frames.Fail(frame.session, frame.request, frames.REJECTED, said)))
        else:
            self._calls[frame.session] = self._start(self._call(frame))

    async def _call(self, frame: Call) -> None:
        number = frame.session
        session = self._sessions.get(number)
        try:
            if session is None:
                said = "There is no such session."
                answer: frames.Frame = frames.Fail(number, frame.request, frames.NO_SESSION, said)
            else:
                answer = await _answer(session, frame)
        finally:
            if self._calls.get(number) is asyncio.current_task():
                del self._calls[number]
        await self._send(answer)

    async def _handed_over(self, number: int | None, opening: asyncio.Task[None] | None) -> Session | None:
        """The session of this number, which it has no more, and which does nothing; None where there is none."""
        if number is None:
            return None
        if opening is not None:
            await asyncio.wait({opening})
        call = self._calls.pop(number, None)
        if call is not None:
            call.cancel()
            await asyncio.wait({call})
        return self._sessions.pop(number, None)

    async def _close(self, number: int) -> None:
        opening = self._opening.get(number)
        if opening is not None:
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
        session = self._sessions.pop(number, None)
        if session is not None:
            await session.close()

    async def _vocabulary(self, request: int) -> None:
        try:
            table = await self._door.table()
        except NoTable as error:
            await self._send(frames.Fail(0, request, frames.UNSUPPORTED, str(error)))
            return
        data = frames.encode_table(table.tokens, table.ends, table.fingerprint)
        parts = max(1, -(-len(data) // PART))
        for part in range(parts):
            await self._send(frames.TablePart(request, part, parts, data[part * PART : (part + 1) * PART]))

    async def _send(self, frame: frames.Frame) -> None:
        """A client that reads slowly waits for itself only: its requests are not answered, nothing piles up."""
        async with self._sending:
            if self._socket.application_state is WebSocketState.CONNECTED:
                with contextlib.suppress(WebSocketDisconnect, RuntimeError):
                    await self._socket.send_bytes(frame.encode())

    async def _receive(self) -> bytes | None:
        message = await self._socket.receive()
        self._heard = asyncio.get_running_loop().time()
        if message["type"] == "websocket.disconnect":
            return None
        data = message.get("bytes")
        if data is None:
            raise frames.FrameError("text where a frame was expected")
        return bytes(data)

    async def _hang_up(self, code: int, why: str) -> None:
        with contextlib.suppress(Exception):
            await self._socket.close(code, why)


async def _answer(session: Session, frame: Call) -> frames.Frame:
    try:
        if isinstance(frame, frames.Lookup):
            ids = np.asarray(frame.ids)
            values = await (session.recall(ids, frame.back) if frame.back else session.lookup(ids))
            return frames.Values(frame.session, frame.request, values)
        call = session.step if isinstance(frame, frames.Step) else session.score
        ids, logprobs, outside = await call(frame.drop, frame.ids.tolist())
        return frames.Tops(frame.session, frame.request, ids, logprobs, outside)
    except Failure as failure:
        return _fail(frame.session, frame.request, failure)


def _fail(session: int, request: int, failure: Failure) -> frames.Fail:
    return frames.Fail(session, request, failure.code, failure.message, failure.tokens, failure.limit)
