"""A bad day of real engines: llama.cpp in this process, llama.cpp in a process of its own behind a network that misbehaves, and vLLM.

Those processes are killed with -9 and started again, stopped and continued; their connections are cut in mid-byte, reset, slowed, frozen,
and answered with garbage. As in `tests/unit/test_chaos.py`: nothing hangs, nothing wrong is passed as right, every failure has its
status, every request is in the ledger, and afterwards all is as before.

CHAOS_SEED repeats a run's choices (it is printed). CHAOS_ENGINE_REQUESTS asks more, for CHAOS_ENGINE_SECONDS at most (make chaos).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

TESTS = Path(__file__).resolve().parents[1]
for folder in (TESTS / "unit", TESTS / "support"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import vllm_engines  # noqa: E402
from bad_days import MOODS, Proxy  # noqa: E402
from chaos import Judge, World, gateway_over, no_crashes  # noqa: E402
from deathwatch import DeathWatch  # noqa: E402
from edge import Reply, question  # noqa: E402

from backends.catalog import Entry  # noqa: E402
from backends.fake import FakeBackend, FakeSettings  # noqa: E402
from backends.llama_cpp import Cores, LlamaCppBackend, LlamaCppSettings  # noqa: E402
from backends.openai_http import OpenAIHTTPBackend, OpenAIHTTPSettings  # noqa: E402
from backends.vllm import VLLMBackend, VLLMSettings  # noqa: E402

WEIGHTS = vllm_engines.vllm_models.HOME / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.models,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="the extra 'embedded' is not installed"),
    pytest.mark.skipif(not WEIGHTS.is_file(), reason=f"{WEIGHTS.name} is not there (make weights)"),
]

SEED = int(os.environ.get("CHAOS_SEED") or time.time_ns() % 10**9)
REQUESTS = int(os.environ.get("CHAOS_ENGINE_REQUESTS") or 200)
SECONDS = float(os.environ.get("CHAOS_ENGINE_SECONDS") or 45)
CLIENTS = 6
REQUEST_SECONDS = 20.0
"""For a whole request, by configuration; and as much again before it counts as hung."""
UP_SECONDS = 240.0
"""For an engine to be there."""

LLAMA = (
    *("far", "near", "far>near", "near>far", "near>safe>far"),
    *("near|safe", "near*2|safe", "far>near|safe", "near|safe>far"),
)
WITH_VLLM = (*LLAMA, "gpu", "gpu>near", "near>gpu", "gpu|near", "gpu|safe", "far>gpu|near", "gpu|near>far")


@dataclass
class Served:
    """llama.cpp behind OpenAI's API, in a process of its own: another gateway."""

    folder: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    watch: DeathWatch | None = None

    def launch(self) -> None:
        if not self.port:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.port = probe.getsockname()[1]
            model = f"{{backend: llama_cpp, path: {WEIGHTS}, context: 1024, seats: 1, threads: 1, repack: 'off'}}"
            config = f"models:\n  up: {model}\nledger: {{enabled: false}}\nkey_store: {{database: keys.db}}\n"
            (self.folder / "served.yaml").write_text(config)
        command = ["-m", "gateway", "serve", "--config", str(self.folder / "served.yaml"), "--port", str(self.port)]
        if self.watch is not None:
            self.watch.end()
        self.watch = DeathWatch()
        with (self.folder / "served.log").open("ab") as log:
            self.process = subprocess.Popen([sys.executable, *command], stdout=log, stderr=log, start_new_session=True)
        self.watch.over(self.process.pid)

    def wait(self) -> None:
        """Until it serves. Raises RuntimeError."""
        deadline = time.monotonic() + UP_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=2):
                    return
            time.sleep(0.2)
        raise RuntimeError((self.folder / "served.log").read_text()[-2000:])

    @property
    def there(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: int) -> None:
        if self.process is not None and self.there:
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()
        if self.watch is not None:
            self.watch.end()
            self.watch = None


class Engine(vllm_engines.Engine):
    """A vLLM server that can also be stopped and continued."""

    @property
    def there(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def signal(self, number: int) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)


@dataclass
class Day(World):
    """processes: the servers that live behind the proxies; happened: what to them, how often."""

    processes: list[Served | Engine]
    happened: dict[str, int] = field(default_factory=dict)

    async def networks(self) -> None:
        """What happens to connections. Runs until cancelled."""
        while True:
            await anyio.sleep(self.chance.uniform(0.2, 1.0))
            for proxy in self.proxies:
                await proxy.feel(self.chance.choice(("fine", "fine", "fine", *MOODS)))

    async def fates(self, process: Served | Engine) -> None:
        """What happens to a process: killed once for sure, stopped and continued again and again. Runs until cancelled."""
        kills = 1 if isinstance(process, Engine) else 3
        while True:
            await anyio.sleep(self.chance.uniform(1.0, 4.0))
            if kills and self.chance.random() < 0.4:
                kills -= 1
                self._saw("killed", process)
                process.kill()
                await anyio.sleep(self.chance.uniform(0.0, 1.0))
                process.launch()
                await anyio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
                continue
            self._saw("stopped", process)
            process.signal(signal.SIGSTOP)
            try:
                await anyio.sleep(self.chance.uniform(0.2, 3.0))
            finally:
                process.signal(signal.SIGCONT)

    def _saw(self, what: str, process: Served | Engine) -> None:
        name = f"{type(process).__name__} {what}"
        self.happened[name] = self.happened.get(name, 0) + 1

    async def count(self, id: str, wiring: str, stream: bool = False, leaves: float | None = None) -> Reply | None:
        """As `ask`, a question that every model here can answer."""
        body = question(wiring, stream=stream, max_tokens=5, temperature=0)
        body["messages"] = [{"role": "user", "content": "Count from 1 to 9: 1, 2, 3,"}]
        return await self.ask(id, body, leaves, 2 * REQUEST_SECONDS)


@asynccontextmanager
async def world(folder: Path, vllm: bool) -> AsyncIterator[Day]:
    chance = random.Random(SEED)
    async with AsyncExitStack() as stack:
        processes: list[Served | Engine] = [Served(folder)]
        if vllm:
            processes.append(Engine("smol", folder / "engine.log", core=1))
        for process in processes:
            stack.callback(process.kill)
            process.launch()
        for process in processes:
            await anyio.to_thread.run_sync(process.wait)
        proxies = [Proxy(process.port, chance) for process in processes]
        urls = [await stack.enter_async_context(proxy.running()) for proxy in proxies]
        quick: dict[str, Any] = {"first_byte_timeout": 8.0, "chunk_timeout": 4.0, "connect_timeout": 2.0}
        small = LlamaCppSettings(str(WEIGHTS), context=1024, seats=1, queue=32, threads=1, repack="off")
        backends: dict[str, Any] = {
            "far": OpenAIHTTPBackend("far", OpenAIHTTPSettings(base_url=urls[0], model="up", sessions="off", **quick)),
            "near": LlamaCppBackend("near", small, Cores(1)),
            "safe": FakeBackend("safe", FakeSettings("4, 5, 6, 7")),
        }
        if vllm:
            engine = VLLMSettings(
                urls=(urls[1],), model="smol", api_key=vllm_engines.KEY, sessions="on", heartbeat=2.0, step_timeout=5.0,
                retry=0.2, retry_most=1.0, **quick,
            )  # fmt: skip
            backends["gpu"] = VLLMBackend("gpu", engine)

        async def build(name: str) -> Entry:
            await backends[name].start()
            why = None if name == "near" else await backends[name].why_not_fused()
            return Entry(backends[name], why_not_fused=why, native=name in ("far", "gpu"))

        limits = {"request_seconds": REQUEST_SECONDS, "stage_max_tokens": 5}
        edge = await stack.enter_async_context(
            gateway_over(folder, backends, build, limits=limits, pause=0.2, pause_most=1.0)
        )
        yield Day(edge, chance, proxies, folder / "ledger.db", processes)


async def expected(w: Day, wirings: Collection[str]) -> tuple[dict[str, set[str]], list[str]]:
    """What every wiring says on a good day, streamed and whole, while others ask too; and the ids of all that was asked."""
    found: dict[str, set[str]] = {wiring: set() for wiring in wirings}
    asked: list[str] = []

    async def one(wiring: str, stream: bool) -> None:
        for _ in range(4):  # an engine's first passes are slow, and the limits of these days are short
            asked.append("chaos-good")
            reply = await w.count("chaos-good", wiring, stream)
            whole = reply is not None and reply.status == 200 and (not stream or reply.events()[-1] == "[DONE]")
            if whole:
                break
        assert reply is not None and whole, (wiring, reply and reply.body)
        found[wiring].add(reply.content() if stream else reply.json()["choices"][0]["message"]["content"])

    for stream in (False, True):
        for first in range(0, len(wirings), 3):
            async with anyio.create_task_group() as tasks:
                for wiring in list(wirings)[first : first + 3]:
                    tasks.start_soon(one, wiring, stream)
    return found, asked


@pytest.mark.timeout(SECONDS + 600)
async def test_a_bad_day_of_llama_cpp(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    await whole_day(tmp_path, capsys, LLAMA, vllm=False)


@pytest.mark.vllm
@pytest.mark.timeout(SECONDS + 1500)
@pytest.mark.skipif(vllm_engines.why_not("smol") is not None, reason=str(vllm_engines.why_not("smol")))
async def test_a_bad_day_of_llama_cpp_and_vllm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    await whole_day(tmp_path, capsys, WITH_VLLM, vllm=True)


async def whole_day(folder: Path, capsys: pytest.CaptureFixture[str], wirings: Collection[str], vllm: bool) -> None:
    with capsys.disabled():
        sys.stdout.write(f"\nCHAOS_SEED={SEED} CHAOS_ENGINE_REQUESTS={REQUESTS} CHAOS_ENGINE_SECONDS={SECONDS:g}\n")
    with no_crashes():
        async with world(folder, vllm) as w:
            asked = await bad_day(w, capsys, tuple(wirings))
    assert sorted(w.ledgered()) == sorted(asked)


async def bad_day(w: Day, capsys: pytest.CaptureFixture[str], wirings: tuple[str, ...]) -> list[str]:
    """The ids of all that was asked."""
    right, asked = await expected(w, wirings)
    judge, hung = Judge(right, ("stop", "length")), []
    until, todo = time.monotonic() + SECONDS, iter(range(REQUESTS))

    async def client() -> None:
        for number in todo:
            if time.monotonic() > until:
                return
            wiring, stream = wirings[number % len(wirings)], w.chance.random() < 0.5
            leaves = w.chance.uniform(0.0, 1.0) if w.chance.random() < 0.1 else None
            asked.append(f"chaos-{number}")
            reply = await w.count(f"chaos-{number}", wiring, stream, leaves)
            if reply is None:
                hung.append(f"{wiring} {number}")
            else:
                judge.saw(wiring, stream, reply, leaves is not None)

    async with anyio.create_task_group() as bad:
        bad.start_soon(w.networks)
        for process in w.processes:
            bad.start_soon(w.fates, process)
        async with anyio.create_task_group() as clients:
            for _ in range(CLIENTS):
                clients.start_soon(client)
        bad.cancel_scope.cancel()
    with capsys.disabled():
        sys.stdout.write(f"{w.happened}\n{dict(judge.kinds.most_common())}\n")
    assert not hung
    assert not judge.wrong, "\n".join(judge.wrong[:20])
    assert judge.kinds["right"] and len(judge.kinds) > 2, "it was a bad day, not the last one"

    for proxy in w.proxies:
        await proxy.feel("fine")
    for process in w.processes:
        if process.there:
            process.signal(signal.SIGCONT)
        else:
            process.launch()
    for process in w.processes:
        await anyio.to_thread.run_sync(process.wait)
    with anyio.fail_after(UP_SECONDS):
        asked += ["chaos-after"] * await w.recover(right, partial(w.count, "chaos-after"), 0.2)
    return asked
