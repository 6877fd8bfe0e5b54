"""The door: a WebSocket route in vLLM's own API server, behind its `--api-key`, and a look at how busy it is.

    GET  /v1/modelnet/status     JSON: places, sessions, connections
    WS   /v1/modelnet/sessions   the protocol in `frames`

One connection carries many sessions. It is the client's life line: when it is lost, or says nothing for three heartbeats, all
its sessions end in the engine.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, WebSocket
from fastapi.responses import JSONResponse
from starlette.websockets import WebSocketDisconnect, WebSocketState

from modelnet_vllm import __version__, frames
from modelnet_vllm.drafts import known_version
from modelnet_vllm.host import Host
from modelnet_vllm.places import Places
from modelnet_vllm.sessions import Failure, Session
from modelnet_vllm.vocabulary import NoTable, Table, table_of

log = logging.getLogger("vllm.modelnet")

STATUS = "/v1/modelnet/status"
TAPS = {"modelnet_vllm.v1:LogitsTap", "modelnet_vllm.v2:LogitsTap"}
SCHEDULER = "modelnet_vllm.scheduler.RewindScheduler"
PATIENCE = 10.0
"""Seconds for the handshake."""
PART = 1 << 20
"""Bytes of the vocabulary in one frame."""
MOST_CONNECTIONS = 64


class Plugin:
    """What vLLM's entry point `vllm.endpoint_plugins` wants."""

    name = "modelnet"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        app.add_api_websocket_route(frames.ROUTE, _enter)
        app.add_api_route(STATUS, lambda: _status(app), methods=["GET"], include_in_schema=False)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        door = None if engine_client is None else Door(engine_client, state, args)
        if door is not None:
            await door.start()
        state.modelnet = door


def _status(app: FastAPI) -> JSONResponse:
    door: Door | None = getattr(app.state, "modelnet", None)
    return JSONResponse({"why_not": "this server has no engine"} if door is None else door.status())


async def _enter(socket: WebSocket) -> None:
    door: Door | None = getattr(socket.app.state, "modelnet", None)
    await socket.accept()
    if door is None:
        await socket.close(1011, "this server has no engine")
        return
    connection = Connection(door, socket)
    door.connections.add(connection)
    try:
        await connection.serve()
    finally:
        door.connections.discard(connection)


class Door:
    """What the connections of an API server share."""

    def __init__(self, engine: Any, state: Any, args: Any) -> None:
        self.engine = engine
        self.connections: set[Connection] = set()
        self._state = state
        config = engine.vllm_config
        self.context: int = config.model_config.max_model_len
        self.model: str = (getattr(args, "served_model_name", None) or [args.model])[0]
        self._size: int = config.model_config.get_vocab_size()
        self._config = config
        self._table: Table | None = None
        self._tabling = asyncio.Lock()
        self.why_not = _why_not(config)
        rewinds = config.scheduler_config.scheduler_cls == SCHEDULER
        processors = [str(name) for name in config.model_config.logits_processors or ()]
        hooks = known_version() and "modelnet_vllm.v1:LogitsTap" in processors
        servers = max(1, int(getattr(args, "api_server_count", None) or 1))
        self.host = Host(engine, _places(config, servers), self.context, rewinds=rewinds, hooks=hooks)

    async def start(self) -> None:
        await self.host.listener.start()
        atexit.register(shutil.rmtree, Path(self.host.listener.path).parent, ignore_errors=True)
        if self.why_not:
            log.warning("modelnet: no sessions here: %s", self.why_not)
        else:
            places = self.host.places
            log.info("modelnet: up to %d sessions, %s tokens", places.sessions, places.tokens)

    def status(self) -> dict[str, Any]:
        places = self.host.places
        return {
            "sessions": places.taken,
            "waiting": places.waiting,
            "places": 0 if self.why_not else places.sessions,
            "connections": len(self.connections),
            "why_not": self.why_not,
        }

    async def info(self) -> dict[str, Any]:
        """What WELCOME says. The first time the vocabulary is read, which takes a second."""
        from vllm import __version__ as vllm_version

        why_not, fingerprint = self.why_not, ""
        if why_not is None:
            try:
                fingerprint = (await self.table()).fingerprint
            except NoTable as error:
                why_not = str(error)
        return {
            "server": __version__,
            "vllm": vllm_version,
            "model": self.model,
            "context": self.context,
            "sessions": 0 if why_not else self.host.places.sessions,
            "drafts": "one pass" if self.host.hooks else "steps",
            "recall": self.host.hooks,
            "rewind": "in place" if self.host.rewinds else "reopen",
            "prefix_cache": _kept_at_a_time(self._config),
            "fingerprint": fingerprint,
            "why_not": why_not,
        }

    async def table(self) -> Table:
        async with self._tabling:
            if self._table is None:
                self._table = await asyncio.to_thread(self._read_table)
        return self._table

    def _read_table(self) -> Table:
        model = self._config.model_config
        ends: list[int] = []
        generation = model.try_get_generation_config()
        for value in (generation.get("eos_token_id"), model.hf_config.eos_token_id, _text(model).eos_token_id):
            ends += value if isinstance(value, list) else [value]
        return table_of(self.engine.get_tokenizer(), {int(id) for id in ends if id is not None}, self._size)

    async def open(self, frame: frames.Open, socket: WebSocket) -> Session:
        """Render, wait for a place, begin. Raises Failure."""
        if self.why_not:
            raise Failure(frames.UNSUPPORTED, f"No sessions here: {self.why_not}.")
        prompt = frame.prompt
        ids = await self.render(prompt, socket) if isinstance(prompt, dict) else prompt.tolist()
        return await self.host.open(ids, min(max(1, frame.k), frames.MOST_K), frame.room)

    async def render(self, body: dict[str, Any], socket: WebSocket) -> list[int]:
        """Messages to ids, exactly as vLLM's own /tokenize does it. Raises Failure."""
        from vllm.entrypoints.serve.tokenize.protocol import TokenizeChatRequest

        try:
            request = TokenizeChatRequest(**{"add_generation_prompt": True, **body})
            answer = await self._state.serving_tokenization.create_tokenize(request, socket)
        except Exception as error:  # templates raise what they like about messages that they don't understand
            raise Failure(frames.REJECTED, f"The conversation can't be rendered: {error}") from error
        if not hasattr(answer, "tokens"):
            raise Failure(frames.REJECTED, f"The conversation can't be rendered: {answer.error.message}")
        return list(answer.tokens)


class Connection:
    """One client. Every request of it is a task; its frames go out one after another."""

    def __init__(self, door: Door, socket: WebSocket) -> None:
        self._door = door
        self._socket = socket
        self._sessions: dict[int, Session] = {}
        self._opening: dict[int, asyncio.Task[None]] = {}
        self._busy: set[int] = set()
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
            self._opening[frame.session] = self._start(self._open(frame))
        elif isinstance(frame, (frames.Step, frames.Score, frames.Lookup)):
            self._start(self._call(frame))
        else:
            raise frames.FrameError("this frame is for clients only")

    def _start(self, call: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(call)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _open(self, frame: frames.Open) -> None:
        number = frame.session
        try:
            session = await self._door.open(frame, self._socket)
            self._sessions[number] = session
            await self._send(frames.Opened(number, frame.request, session.prompt_tokens))
        except Failure as failure:
            await self._send(_fail(number, frame.request, failure))
        finally:
            self._opening.pop(number, None)

    async def _call(self, frame: frames.Step | frames.Score | frames.Lookup) -> None:
        number = frame.session
        session = self._sessions.get(number)
        if session is None:
            answer: frames.Frame = frames.Fail(number, frame.request, frames.NO_SESSION, "There is no such session.")
        elif number in self._busy:
            said = "The session has a request under way."
            answer = frames.Fail(number, frame.request, frames.REJECTED, said)
        else:
            self._busy.add(number)
            try:
                answer = await _answer(session, frame)
            finally:
                self._busy.discard(number)
        await self._send(answer)

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


async def _answer(session: Session, frame: frames.Step | frames.Score | frames.Lookup) -> frames.Frame:
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


def _why_not(config: Any) -> str | None:
    """Why this server can't have sessions, None if it can."""
    processors = {str(name) for name in config.model_config.logits_processors or ()}
    if not processors & TAPS:
        return "its vLLM was started without --logits-processors modelnet_vllm.v1:LogitsTap (or v2, as its model runner is)"
    if config.speculative_config is not None:
        return "its vLLM decodes speculatively, which excludes logits processors"
    return None


def _places(config: Any, servers: int) -> Places:
    """A quarter of the batch's places and of the KV cache is always left to requests of other kinds.

    (A waiting session takes no place in a batch, but vLLM counts it among the running requests.)
    """
    scheduler, cache = config.scheduler_config, config.cache_config
    most = getattr(scheduler, "max_num_active_seqs", None) or scheduler.max_num_seqs
    sessions = int(os.environ.get("MODELNET_SESSIONS") or max(1, most * 3 // 4))
    share = float(os.environ.get("MODELNET_KV_SHARE") or 0.75)
    block = int(cache.block_size or 16)
    tokens = int(cache.num_gpu_blocks * block * share) // servers if cache.num_gpu_blocks else None
    queue = int(os.environ.get("MODELNET_QUEUE") or 256)
    return Places(max(1, min(sessions, most) // servers), tokens, block, queue)


def _kept_at_a_time(config: Any) -> int:
    """Tokens of a block that the engine keeps for later prompts which begin alike; 0 where it keeps none."""
    cache = config.cache_config
    return int(cache.block_size or 16) if cache.enable_prefix_caching else 0


def _text(model: Any) -> Any:
    return model.hf_text_config
