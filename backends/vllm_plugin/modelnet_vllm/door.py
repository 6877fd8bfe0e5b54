"""The door: a WebSocket route in vLLM's own API server, behind its `--api-key`, and a look at how busy it is.

    GET  /v1/modelnet/status     JSON: places, sessions, connections
    WS   /v1/modelnet/sessions   the protocol in `frames`

One connection carries many sessions. It is the client's life line: when it is lost, or says nothing for three heartbeats, all
its sessions end in the engine.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, WebSocket
from fastapi.responses import JSONResponse

from modelnet_vllm import __version__, frames
from modelnet_vllm.client import Connection
from modelnet_vllm.drafts import known_version
from modelnet_vllm.early import Asked
from modelnet_vllm.host import Host
from modelnet_vllm.places import Places
from modelnet_vllm.sessions import Failure, Session
from modelnet_vllm.vocabulary import NoTable, Table, table_of

log = logging.getLogger("vllm.modelnet")

STATUS = "/v1/modelnet/status"
TAPS = {"modelnet_vllm.v1:LogitsTap", "modelnet_vllm.v2:LogitsTap"}
SCHEDULER = "modelnet_vllm.scheduler.RewindScheduler"


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
        # A recurrent state can't go back; such a session is opened anew.
        rewinds = config.scheduler_config.scheduler_cls == SCHEDULER and not config.model_config.is_hybrid
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
            "early": self.host.rewinds,
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

    async def open(
        self, frame: frames.Open, asked: Asked, socket: WebSocket, followed: Callable[[], Awaitable[Session | None]]
    ) -> Session:
        """Render, wait for a place, begin. followed: hands over the session to go on from. Raises Failure."""
        if self.why_not:
            raise Failure(frames.UNSUPPORTED, f"No sessions here: {self.why_not}.")
        prompt = asked.prompt
        ids = await self.render(prompt, socket) if isinstance(prompt, dict) else prompt.tolist()
        k = min(max(1, frame.k), frames.MOST_K)
        return await self.host.open(ids, k, frame.room, asked.reads, await followed())

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
