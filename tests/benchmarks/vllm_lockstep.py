"""What a fused step costs on vLLM, against the same engines by themselves, in one run.

    .venv/bin/python tests/benchmarks/vllm_lockstep.py [--parts one,pair] [--at-once 1,4,16] [--steps 70] [--rounds 3] [--out FILE]
    .venv/bin/python tests/benchmarks/vllm_lockstep.py --serve              starts the engines only, and says where they are
    .venv/bin/python tests/benchmarks/vllm_lockstep.py --urls SMOL QWEN …   measures those

Starts two engines (smol and qwen), each on a core of its own. All times are medians, in ms, over all steps of all rounds; what is compared
is measured in turns, so that a machine that warms up or slows down does it to both. "alone" is vLLM's own streaming of an answer,
"session" the same engine stepped by the gateway, "side by side" both engines streaming answers of their own at once (the other one goes on
until the measured one is through), "lock-step" both stepped together: the next ids go out when both distributions are here. Steps follow
the engines' own greedy answers, so both do the same work. The output is JSON, with the machine and the load it was under: only a quiet
machine gives figures that mean much.

Parts: one, pair, drafts, ways (what else could score a draft), fair (plain chat beside sessions), freed (sessions of a client that is
gone), frames.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import aiohttp  # noqa: E402
import anyio  # noqa: E402
import numpy as np  # noqa: E402
import vllm_engines  # noqa: E402
from vllm_engines import KEY, PATIENT, Engine  # noqa: E402

from backends.types import Message, Sampling, TextDelta, TextRequest, TopK  # noqa: E402
from backends.vllm import VLLMBackend, VLLMSettings, frames  # noqa: E402

ASK = (Message("user", "Write a long story about a river, its fish, and the people who live there."),)
K = 64
ENDS = {signal.SIGTERM, signal.SIGINT}
SKIP = 8
"""First steps of every answer, which are not counted."""

Times = list[float]


async def stream(backend: VLLMBackend, steps: int) -> Times:
    """Times between tokens of vLLM's own answer, ms."""
    request = TextRequest(ASK, Sampling(max_tokens=steps, temperature=0.0), {"ignore_eos": True})
    at = []
    async with backend.stream(request) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                at.append(time.perf_counter())
    return [(b - a) * 1e3 for a, b in zip(at[SKIP:], at[SKIP + 1 :], strict=False)]


async def greedy(backend: VLLMBackend, steps: int) -> list[int]:
    ids: list[int] = []
    async with backend.open(ASK, k=1, max_tokens=steps) as session:
        top = await session.step()
        for _ in range(steps):
            ids.append(int(top.ids[0]))
            top = await session.step(ids[-1:])
    return ids


async def lockstep(backends: list[VLLMBackend], follow: list[list[int]], steps: int) -> Times:
    """Times of joint steps, ms."""
    times: Times = []
    async with AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(b.open(ASK, k=K, max_tokens=steps)) for b in backends]
        await asyncio.gather(*(session.step() for session in sessions))
        for at in range(steps):
            began = time.perf_counter()
            if len(sessions) == 1:
                await sessions[0].step(follow[0][at : at + 1])
            else:
                await asyncio.gather(*(s.step(ids[at : at + 1]) for s, ids in zip(sessions, follow, strict=True)))
            times.append((time.perf_counter() - began) * 1e3)
    return times[SKIP:]


async def many(n: int, call: Callable[[], Awaitable[Times]]) -> Times:
    return [value for part in await asyncio.gather(*(call() for _ in range(n))) for value in part]


@asynccontextmanager
async def meanwhile(n: int, call: Callable[[], Awaitable[Times]]) -> AsyncIterator[None]:
    """n at once, again and again, until the block is left."""

    async def go_on() -> None:
        while True:
            await call()

    tasks = [asyncio.create_task(go_on()) for _ in range(n)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def in_turns(rounds: int, **calls: Callable[[], Awaitable[Times]]) -> dict[str, float]:
    found: dict[str, Times] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            found[name] += await call()
    return {name: round(statistics.median(times), 3) for name, times in found.items()}


Ids = list[int]


class Bench:
    """Both models. paths: the engines' own greedy answers, by model."""

    def __init__(self, urls: dict[str, str], steps: int, rounds: int) -> None:
        self.backends = {
            name: VLLMBackend(name, VLLMSettings(urls=(url,), api_key=KEY, **PATIENT)) for name, url in urls.items()
        }
        self.urls = urls
        self.steps = steps
        self.rounds = rounds
        self.paths: dict[str, Ids] = {}

    async def start(self) -> None:
        for name, backend in self.backends.items():
            self.paths[name] = await greedy(backend, max(160, self.steps))

    def fused(self, steps: int) -> Awaitable[Times]:
        names = list(self.backends)
        return lockstep([self.backends[name] for name in names], [self.paths[name] for name in names], steps)

    async def one(self) -> dict[str, Any]:
        found = {}
        for name, backend in self.backends.items():
            one = await in_turns(
                self.rounds,
                alone=lambda backend=backend: stream(backend, self.steps),
                session=lambda backend=backend, name=name: lockstep([backend], [self.paths[name]], self.steps),
            )
            found[name] = {**one, "ratio": round(one["session"] / one["alone"], 3)}
        return found

    async def beside(self, n: int) -> dict[str, float]:
        """n fused requests against n answers of each engine at once; the more at once, the fewer steps each."""
        steps = max(SKIP + 18, self.steps * 2 // (n + 1))

        async def both(name: str) -> Times:
            (other,) = self.backends.keys() - {name}

            async with meanwhile(n, lambda: stream(self.backends[other], steps)):
                return await many(n, lambda: stream(self.backends[name], steps))

        two = await in_turns(
            self.rounds,
            smol_side_by_side=lambda: both("smol"),
            qwen_side_by_side=lambda: both("qwen"),
            lockstep=lambda: many(n, lambda: self.fused(steps)),
        )
        slower = max(two["smol_side_by_side"], two["qwen_side_by_side"])
        return {**two, "ratio": round(two["lockstep"] / slower, 3)}

    async def fair(self) -> dict[str, float]:
        """One plain answer's time between tokens while 8 others run on the same engine: ordinary requests, or fused sessions."""
        smol = self.backends["smol"]

        async def with_others(other: Callable[[], Awaitable[Times]]) -> Times:
            async with meanwhile(8, other):
                return await stream(smol, self.steps)

        found = await in_turns(
            self.rounds,
            plain=lambda: with_others(lambda: stream(smol, self.steps)),
            fused=lambda: with_others(lambda: self.fused(self.steps)),
            sessions=lambda: with_others(lambda: lockstep([smol], [self.paths["smol"]], self.steps)),
        )
        return {**found, "ratio": round(found["fused"] / found["plain"], 3)}

    async def freed(self) -> dict[str, float]:
        """ms from the end of a client's socket until the door holds none of its 8 sessions."""
        times: Times = []
        for _ in range(10):
            gone = VLLMBackend("smol", VLLMSettings(urls=(self.urls["smol"],), api_key=KEY))
            async with AsyncExitStack() as stack:
                for _ in range(8):
                    session = await stack.enter_async_context(gone.open(ASK, k=K))
                    await session.step()
                connection = await gone._replicas[0].connection()
                connection._socket._response.connection.transport.abort()
                began = time.perf_counter()
                while await status(self.urls["smol"]):
                    await asyncio.sleep(0.002)
                times.append((time.perf_counter() - began) * 1e3)
            await gone.aclose()
        return {"median": round(statistics.median(times), 3), "worst": round(max(times), 3)}

    async def measure(self, parts: list[str], at_once: list[int]) -> dict[str, Any]:
        """By part; said as soon as it is known."""
        await self.start()
        smol = self.backends["smol"]
        calls: dict[str, Callable[[], Awaitable[dict[str, Any]]]] = {
            "one": self.one,
            **{f"pair, {n} at once": partial(self.beside, n) for n in at_once},
            "drafts": lambda: drafts(smol, self.paths["smol"], self.rounds),
            "ways": lambda: ways(self.urls["smol"], self.paths["smol"]),
            "fair": self.fair,
            "freed": self.freed,
        }
        found: dict[str, Any] = {"frames": wire()} if "frames" in parts else {}
        for name, call in calls.items():
            if name.split(",")[0] in parts:
                found[name] = await call()
                sys.stderr.write(f"{name}: {json.dumps(found[name])}\n")
        for backend in self.backends.values():
            await backend.aclose()
        return found


async def status(url: str) -> int:
    """Sessions at a door."""
    headers = {"Authorization": f"Bearer {KEY}"}
    async with aiohttp.ClientSession(headers=headers) as http, http.get(url + "/modelnet/status") as answer:
        return int((await answer.json())["sessions"])


async def ways(url: str, ids: Ids) -> dict[str, float]:
    """What a draft costs without a hook, over the ordinary API, with the text before it in the prefix cache: ms a draft of 8.

    "one-token requests": 9 at once, one for every prefix; "prompt_logprobs": one request, which vLLM does not let read the prefix
    cache, so it reads the whole text again.
    """
    headers = {"Authorization": f"Bearer {KEY}"}
    times: dict[str, Times] = {"one-token requests": [], "prompt_logprobs": []}
    async with aiohttp.ClientSession(headers=headers) as http:

        async def ask(prompt: Ids, **more: Any) -> None:
            body = {"model": "smol", "prompt": prompt, "max_tokens": 1, "temperature": 0, **more}
            async with http.post(url + "/completions", json=body) as answer:
                answer.raise_for_status()
                await answer.read()

        for at in range(16, 152, 8):
            await ask(ids[:at])
            began = time.perf_counter()
            await asyncio.gather(*(ask(ids[: at + n], logprobs=20) for n in range(9)))
            times["one-token requests"].append((time.perf_counter() - began) * 1e3)
            began = time.perf_counter()
            await ask(ids[: at + 8], prompt_logprobs=20)
            times["prompt_logprobs"].append((time.perf_counter() - began) * 1e3)
    return {name: round(statistics.median(values), 3) for name, values in times.items()}


async def drafts(backend: VLLMBackend, ids: list[int], rounds: int) -> dict[str, float]:
    scored: Times = []
    stepped: Times = []
    worst = 0.0
    agree = 0
    for _ in range(rounds):
        async with backend.open(ASK, k=K) as one, backend.open(ASK, k=K) as other:
            await one.step()
            await other.step()
            for at in range(0, min(len(ids), 160) - 7, 8):
                draft = ids[at : at + 8]
                began = time.perf_counter()
                rows = await one.score(draft)
                scored.append((time.perf_counter() - began) * 1e3)
                began = time.perf_counter()
                singles = [await other.step([id]) for id in draft]
                stepped.append((time.perf_counter() - began) * 1e3)
                for row, single in zip(rows, singles, strict=True):
                    worst = max(worst, _difference(row, single))
                    agree += int(row.ids[0] == single.ids[0])
    result = {"one pass": statistics.median(scored), "8 steps": statistics.median(stepped)}
    return {
        **{name: round(value, 3) for name, value in result.items()},
        "ratio": round(result["one pass"] / result["8 steps"], 3),
        "largest difference in nats": round(worst, 3),
        "same arg-max": round(agree / (8 * len(scored)), 4),
    }


def _difference(one: TopK, other: TopK) -> float:
    mine = dict(zip(one.ids.tolist(), one.logprobs.tolist(), strict=True))
    theirs = dict(zip(other.ids.tolist(), other.logprobs.tolist(), strict=True))
    return max(abs(mine[id] - theirs[id]) for id in mine.keys() & theirs.keys())


def wire() -> dict[str, float]:
    """ms of what the tap and the frames add to one step: measured apart, in vLLM's environment and here."""
    code = """
import json, time, statistics, torch
from modelnet_vllm.top import Distributions
torch.set_num_threads(1)
found = {}
for size in (49152, 151936):
    for rows in (1, 4, 16):
        logits = torch.randn(rows, size)
        times = []
        for _ in range(60):
            began = time.perf_counter(); Distributions(logits, 64).arrays(); times.append((time.perf_counter() - began) * 1e3)
        found[f"top 64 of {size}, {rows} rows"] = round(statistics.median(times), 3)
print(json.dumps(found))
"""
    done = subprocess.run([str(vllm_engines.PYTHON), "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    ids, logprobs = np.arange(K, dtype=np.int32)[None], -np.arange(K, dtype=np.float32)[None]
    top = frames.Tops(1, 1, ids, logprobs, np.ones(1, np.float32))
    data = top.encode()
    for name, call in (("encode", top.encode), ("decode", lambda: frames.decode(data))):
        began = time.perf_counter()
        for _ in range(1000):
            call()
        found[f"{name} a frame of 64"] = round(time.perf_counter() - began, 4)
    return found


def engines(options: argparse.Namespace) -> dict[str, Engine]:
    if reason := vllm_engines.why_not("smol", "qwen"):
        sys.exit(reason)
    logs = Path(tempfile.mkdtemp(prefix="modelnet-bench-"))
    environment = dict(pair.split("=", 1) for pair in options.env)
    found = {
        name: Engine(
            name, logs / f"{name}.log", core=core, rewinds=not options.plain_scheduler, environment=environment
        )
        for core, name in enumerate(("smol", "qwen"))
    }
    try:
        for engine in found.values():
            engine.launch()
        for engine in found.values():
            engine.wait()
    except BaseException:
        for engine in found.values():
            engine.kill()
        raise
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="one,pair,drafts,ways,fair,freed,frames")
    parser.add_argument("--at-once", default="1,4,16")
    parser.add_argument("--steps", type=int, default=76)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--urls", nargs=2)
    parser.add_argument("--plain-scheduler", action="store_true", help="vLLM's own: sessions are not gathered")
    parser.add_argument("--env", action="append", default=[], help="NAME=VALUE for the engines")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    running = {} if options.urls else engines(options)
    try:
        urls = options.urls or [engine.url for engine in running.values()]
        if options.serve:
            signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)  # only now: the engines would have it from us
            sys.stdout.write(f"--urls {' '.join(urls)}\n")
            sys.stdout.flush()
            signal.sigwait(ENDS)
            return
        report(options, dict(zip(("smol", "qwen"), urls, strict=True)))
    finally:
        for engine in running.values():
            engine.stop()


def report(options: argparse.Namespace, urls: dict[str, str]) -> None:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    load = os.getloadavg()
    bench = Bench(urls, options.steps, options.rounds)
    at_once = [int(n) for n in options.at_once.split(",")]
    # As the gateway runs: on uvloop.
    found = anyio.run(bench.measure, options.parts.split(","), at_once, backend_options={"use_uvloop": True})
    text = json.dumps(
        {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.python_version()}",
            "commit": commit.stdout.strip(),
            "load before": [round(value, 2) for value in load],
            "load after": [round(value, 2) for value in os.getloadavg()],
            "steps": options.steps,
            "rounds": options.rounds,
            "k": K,
            "engines": {"scheduler": "vLLM's" if options.plain_scheduler else "ours", "environment": options.env},
            "ms": found,
        },
        indent=2,
    )
    sys.stdout.write(text + "\n")
    if options.out is not None:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
