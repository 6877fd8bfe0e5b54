"""What goes wrong, on real engines: what the gateway sees, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import anyio
import pytest
from vllm_engines import KEY, PATIENT, Engine

from backends.errors import BackendAuthFailed, BackendError, BackendOverloaded, BackendUnavailable, CapabilityMissing
from backends.types import Message, Sampling, TextDelta, TextRequest
from backends.vllm import VLLMBackend, VLLMSettings, frames

pytestmark = pytest.mark.anyio

ASK = (Message("user", "Write the numbers from 1 to 200, separated by spaces."),)
K = 8
ROUNDS = int(os.environ.get("MODELNET_ROUNDS") or 30)
"""Of random cancels and cuts."""


def backend_of(engine: Engine, url: str | None = None, **settings: Any) -> VLLMBackend:
    settings = {"api_key": KEY, "retry": 0.1, **PATIENT, **settings}
    return VLLMBackend(engine.model, VLLMSettings(urls=(url or engine.url,), **settings))


def status(engine: Engine) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(engine.get("/v1/modelnet/status"))
    return found


async def freed(engine: Engine) -> float:
    """Seconds until the door holds no session. Asked for in another thread, so that this loop goes on."""
    began = time.monotonic()
    while (await anyio.to_thread.run_sync(status, engine))["sessions"]:
        assert time.monotonic() - began < 30, "sessions are left behind"
        await anyio.sleep(0.005)
    return time.monotonic() - began


def requests_in_the_engine(engine: Engine) -> float:
    """Of the engine's own count, which is brought up to date by a request."""
    engine.post("/v1/completions", {"model": engine.model, "prompt": [70, 71], "max_tokens": 2})
    time.sleep(0.1)
    engine.post("/v1/completions", {"model": engine.model, "prompt": [70, 71], "max_tokens": 2})
    metrics = engine.get("/metrics").decode()
    gauges = re.findall(r"^vllm:num_requests_(?:running|waiting)\{[^}]*\} ([0-9.e+]+)$", metrics, re.MULTILINE)
    assert gauges
    return sum(map(float, gauges))


async def numbers(backend: VLLMBackend, n: int = 12) -> list[int]:
    """The first ids of the answer, greedy."""
    ids: list[int] = []
    async with backend.open(ASK, k=K, max_tokens=64) as session:
        top = await session.step()
        for _ in range(n):
            ids.append(int(top.ids[0]))
            top = await session.step(ids[-1:])
    return ids


async def test_the_door_is_behind_the_key(engines: dict[str, Engine]) -> None:
    engine = engines["qwen"]
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        async with aiohttp.ClientSession() as http:
            with pytest.raises(aiohttp.WSServerHandshakeError) as raised:
                await http.ws_connect(engine.url.removesuffix("/v1") + frames.ROUTE, headers=headers)
            assert raised.value.status == 401
            async with http.get(engine.url + "/modelnet/status", headers=headers) as answer:
                assert answer.status == 401
    backend = backend_of(engine, api_key="wrong")
    with pytest.raises(BackendAuthFailed):
        await numbers(backend)
    assert "BackendAuthFailed" in str(await backend.why_not_fused())
    await backend.aclose()


@pytest.mark.parametrize(("speaks", "older"), [(0, "upgrade the gateway"), (99, "upgrade the vLLM extension")])
async def test_versions_that_do_not_fit_say_who_is_older(
    engines: dict[str, Engine], monkeypatch: pytest.MonkeyPatch, speaks: int, older: str
) -> None:
    monkeypatch.setattr(frames, "LOWEST", speaks)
    monkeypatch.setattr(frames, "HIGHEST", speaks)
    backend = backend_of(engines["qwen"])
    with pytest.raises(CapabilityMissing, match=older):
        await numbers(backend)
    assert older in str(await backend.why_not_fused())
    async with backend.stream(TextRequest(ASK, Sampling(max_tokens=4))) as events:  # text goes on all the same
        assert [event async for event in events if isinstance(event, TextDelta)]
    await backend.aclose()


async def test_what_is_no_frame_ends_the_connection_only(engines: dict[str, Engine]) -> None:
    engine = engines["qwen"]
    where, headers = engine.url.removesuffix("/v1") + frames.ROUTE, {"Authorization": f"Bearer {KEY}"}
    for first in (b"", b"\x00", b"\x63" * 12, frames.Beat().encode()):
        async with aiohttp.ClientSession() as http, http.ws_connect(where, headers=headers) as socket:
            await socket.send_bytes(first)
            with anyio.fail_after(30):
                assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSE
    async with aiohttp.ClientSession() as http, http.ws_connect(where, headers=headers) as socket:
        await socket.send_bytes(frames.Hello(1, 1, 10.0, "test").encode())
        assert isinstance(frames.decode((await socket.receive()).data), frames.Welcome)
        await socket.send_bytes(frames.Step(7, 1, 0, [1]).encode())
        answer = frames.decode((await socket.receive()).data)
        assert isinstance(answer, frames.Fail)
        assert answer.code == frames.NO_SESSION
    backend = backend_of(engine)
    assert len(await numbers(backend)) == 12
    await backend.aclose()


async def test_no_request_from_outside_can_pose_as_a_session(engines: dict[str, Engine]) -> None:
    engine = engines["qwen"]
    for forged in ("MNT1" + "A" * 40, ["MNT1"], 7):
        body = {
            "model": engine.model,
            "prompt": [70, 71],
            "max_tokens": 2,
            "vllm_xargs": {"modelnet": forged},
        }
        assert engine.post("/v1/completions", body)["choices"]
    assert status(engine)["sessions"] == 0


async def test_places_are_bounded_and_given_in_order(engines: dict[str, Engine]) -> None:
    """All places taken: the next ones wait, those beyond the line are turned away, and text is served all the while."""
    engine = engines["qwen"]
    backend = backend_of(engine)
    places = status(engine)["places"]
    order: list[int] = []

    async def wait(n: int) -> None:
        async with backend.open(ASK, k=K, max_tokens=16) as session:
            await session.step()
            order.append(n)

    async with AsyncExitStack() as stack:
        for _ in range(places):
            session = await stack.enter_async_context(backend.open(ASK, k=K, max_tokens=16))
            await session.step()
        async with anyio.create_task_group() as tasks:
            for n in range(4):
                tasks.start_soon(wait, n)
                await anyio.sleep(0.1)
            assert (await anyio.to_thread.run_sync(status, engine))["waiting"] == 4
            with pytest.raises(BackendOverloaded):
                async with backend.open(ASK, k=K, max_tokens=16):
                    pytest.fail("there was no place")
            async with backend.stream(TextRequest(ASK, Sampling(max_tokens=8))) as events:
                with anyio.fail_after(60):
                    assert [event async for event in events if isinstance(event, TextDelta)]
            await stack.aclose()
    assert order == [0, 1, 2, 3]
    await freed(engine)
    await backend.aclose()


async def test_a_client_that_is_gone_leaves_nothing(engines: dict[str, Engine]) -> None:
    """The process dies: its socket closes without a word. Its sessions end at the door, then in the engine."""
    engine = engines["qwen"]
    backend = backend_of(engine)
    async with AsyncExitStack() as stack:
        for _ in range(4):
            session = await stack.enter_async_context(backend.open(ASK, k=K))
            await session.step()
        assert (await anyio.to_thread.run_sync(status, engine))["sessions"] == 4
        connection = await backend._replicas[0].connection()
        connection._socket._response.connection.transport.abort()
        took = await freed(engine)
        with pytest.raises(BackendUnavailable):
            await session.step([70])
    print(f"sessions freed {took * 1e3:.0f} ms after the client was gone")  # noqa: T201
    assert await anyio.to_thread.run_sync(requests_in_the_engine, engine) == 0
    assert len(await numbers(backend)) == 12  # the backend dials again
    await backend.aclose()


async def test_a_connection_that_is_cut_or_goes_silent(engines: dict[str, Engine]) -> None:
    engine = engines["qwen"]
    for silent in (False, True):
        async with between(engine) as proxy:
            backend = backend_of(engine, url=proxy.url, heartbeat=1.0, step_timeout=60.0)
            with anyio.fail_after(60):
                async with backend.open(ASK, k=K) as session:
                    await session.step()
                    if silent:
                        proxy.silent = True
                    else:
                        proxy.cut()
                    with pytest.raises(BackendUnavailable):
                        while True:
                            await session.step([70])
                    with pytest.raises(BackendUnavailable):
                        await session.step([70])
                await freed(engine)
            proxy.silent = False
            assert len(await numbers(backend)) == 12
            await backend.aclose()
    assert await anyio.to_thread.run_sync(requests_in_the_engine, engine) == 0


async def test_random_cancels_and_cuts_leave_nothing_and_change_nothing(engines: dict[str, Engine]) -> None:
    """Some sessions are left in the middle of a call, some connections are cut; the others say what they always say."""
    engine = engines["smol"]
    rng = random.Random(3)
    backend = backend_of(engine)
    right = await numbers(backend, 6)
    done = {"whole": 0, "left": 0, "cut": 0}

    async def one(delay: float | None) -> None:
        with anyio.move_on_after(delay) as scope:
            try:
                assert await numbers(backend, 6) == right
                done["whole"] += 1
            except BackendUnavailable:
                done["cut"] += 1
        if scope.cancelled_caught:
            done["left"] += 1

    with anyio.fail_after(30 + 10 * ROUNDS):
        for _ in range(ROUNDS):
            async with anyio.create_task_group() as tasks:
                for _ in range(2):
                    tasks.start_soon(one, rng.choice([None, rng.uniform(0, 0.25)]))
                if rng.random() < 0.15:
                    await anyio.sleep(rng.uniform(0, 0.2))
                    connection = await backend._replicas[0].connection()
                    connection._socket._response.connection.transport.abort()
    print(f"{ROUNDS} rounds: {done}")  # noqa: T201
    assert sum(done.values()) == 2 * ROUNDS
    assert done["whole"] > ROUNDS / 10
    assert done["left"]
    await freed(engine)
    assert backend.admitted == 0
    assert backend.loads == [0]
    assert await anyio.to_thread.run_sync(requests_in_the_engine, engine) == 0
    await backend.aclose()


@pytest.mark.parametrize("victim", ["server", "EngineCore"])
async def test_an_engine_killed_in_the_middle_and_started_again(engines: dict[str, Engine], victim: str) -> None:
    """Kill -9 while sessions and a stream run: all fail, soon and by name; the same backend serves once it is back."""
    engine = engines["smol"]
    backend = backend_of(engine)
    right = await numbers(backend)
    failures: list[BackendError] = []

    async def session() -> None:
        try:
            async with backend.open(ASK, k=K) as opened:
                top = await opened.step()
                while True:
                    top = await opened.step(top.ids[:1])
        except BackendError as error:
            failures.append(error)

    async def stream() -> None:
        try:
            async with backend.stream(TextRequest(ASK, Sampling(max_tokens=1500, temperature=0.0))) as events:
                async for _ in events:
                    pass
            pytest.fail("a broken answer passed as a whole one")
        except BackendError as error:
            failures.append(error)

    with anyio.fail_after(120):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(session)
            tasks.start_soon(session)
            tasks.start_soon(stream)
            await anyio.sleep(1.0)
            began = time.monotonic()
            if victim == "server":
                engine.kill()
            else:
                (pid,) = engine.children("EngineCore")
                os.kill(pid, signal.SIGKILL)
        print(f"all failed {time.monotonic() - began:.2f} s after the kill of {victim}")  # noqa: T201
    assert len(failures) == 3
    assert all(isinstance(error, BackendUnavailable) for error in failures)
    with pytest.raises(BackendError):
        await numbers(backend)
    await anyio.to_thread.run_sync(engine.stop)
    await anyio.to_thread.run_sync(engine.launch)
    await anyio.to_thread.run_sync(engine.wait)
    assert await numbers(backend) == right
    await backend.aclose()


class Proxy:
    """Between the gateway and an engine. silent: what is sent goes nowhere."""

    def __init__(self, port: int) -> None:
        self.silent = False
        self.url = ""
        self._port = port
        self._writers: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers |= {writer, far_writer}
        try:
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        except OSError:
            pass
        finally:
            for end in (writer, far_writer):
                end.transport.abort()
                self._writers.discard(end)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(1 << 16):
            if not self.silent:
                sink.write(data)
        sink.transport.abort()


@asynccontextmanager
async def between(engine: Engine) -> AsyncIterator[Proxy]:
    proxy = Proxy(engine.port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield proxy
    finally:
        proxy.cut()
        server.close()
        await asyncio.sleep(0.05)
