"""What a fused step costs on vLLM, against the same engines by themselves, in one run.

    .venv/bin/python tests/benchmarks/vllm_lockstep.py [--steps 200] [--rounds 3] [--out FILE]

Starts two engines (smol and qwen), each on a core of its own. All times are medians, in ms, over all steps of all rounds; what is compared
is measured in turns, so that a machine that warms up or slows down does it to both. "alone" is vLLM's own streaming of an answer,
"session" the same engine stepped by the gateway, "side by side" both engines streaming answers of their own at once, "lock-step"
both stepped together: the next ids go out when both distributions are here. Steps follow the engines' own greedy answers, so both
do the same work. The output is JSON, with the machine and the load it was under: only a quiet machine gives figures that mean much.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import numpy as np  # noqa: E402
import vllm_engines  # noqa: E402
from vllm_engines import KEY, Engine  # noqa: E402

from backends.types import Message, Sampling, TextDelta, TextRequest, TopK  # noqa: E402
from backends.vllm import VLLMBackend, VLLMSettings, frames  # noqa: E402

ASK = (Message("user", "Write a long story about a river, its fish, and the people who live there."),)
K = 64
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


async def in_turns(rounds: int, **calls: Callable[[], Awaitable[Times]]) -> dict[str, float]:
    found: dict[str, Times] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            found[name] += await call()
    return {name: round(statistics.median(times), 3) for name, times in found.items()}


async def measure(engines: dict[str, Engine], steps: int, rounds: int) -> dict[str, Any]:
    backends = {
        name: VLLMBackend(name, VLLMSettings(urls=(engine.url,), api_key=KEY)) for name, engine in engines.items()
    }
    smol, qwen = backends["smol"], backends["qwen"]
    follow = {name: await greedy(backend, steps) for name, backend in backends.items()}
    pair, paths = [smol, qwen], [follow["smol"], follow["qwen"]]
    found: dict[str, Any] = {}

    for name, backend in backends.items():
        one = await in_turns(
            rounds,
            alone=lambda backend=backend: stream(backend, steps),
            session=lambda backend=backend, name=name: lockstep([backend], [follow[name]], steps),
        )
        found[f"one member, {name}"] = {**one, "ratio": round(one["session"] / one["alone"], 3)}

    async def beside(n: int) -> dict[str, float]:
        async def both(which: VLLMBackend) -> Times:
            mine, _ = await asyncio.gather(
                many(n, lambda: stream(which, steps)),
                many(n, lambda: stream(qwen if which is smol else smol, steps)),
            )
            return mine

        two = await in_turns(
            rounds,
            smol_side_by_side=lambda: both(smol),
            qwen_side_by_side=lambda: both(qwen),
            lockstep=lambda: many(n, lambda: lockstep(pair, paths, steps)),
        )
        slower = max(two["smol_side_by_side"], two["qwen_side_by_side"])
        return {**two, "ratio": round(two["lockstep"] / slower, 3)}

    for n in (1, 4, 16):
        found[f"a pair, {n} at once"] = await beside(n)
        sys.stderr.write(f"{n}: {found[f'a pair, {n} at once']}\n")

    found["drafts of 8, smol"] = await drafts(smol, follow["smol"], rounds)
    found["plain chat on smol beside 8 others"] = await fairness(smol, qwen, follow, steps, rounds)
    found["frames"] = wire()
    for backend in backends.values():
        await backend.aclose()
    return found


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


async def fairness(
    smol: VLLMBackend, qwen: VLLMBackend, follow: dict[str, list[int]], steps: int, rounds: int
) -> dict[str, float]:
    """One plain answer's time between tokens while 8 others run: ordinary requests, or fused sessions."""

    async def with_plain() -> Times:
        mine, *_ = await asyncio.gather(stream(smol, steps), *(stream(smol, steps) for _ in range(8)))
        return mine

    async def with_fused() -> Times:
        pair, paths = [smol, qwen], [follow["smol"], follow["qwen"]]
        others = [asyncio.create_task(lockstep(pair, paths, steps)) for _ in range(8)]
        try:
            return await stream(smol, steps)
        finally:
            await asyncio.gather(*others)

    async def with_sessions() -> Times:
        others = [asyncio.create_task(lockstep([smol], [follow["smol"]], steps)) for _ in range(8)]
        try:
            return await stream(smol, steps)
        finally:
            await asyncio.gather(*others)

    found = await in_turns(rounds, plain=with_plain, fused=with_fused, sessions=with_sessions)
    return {**found, "ratio": round(found["fused"] / found["plain"], 3)}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if reason := vllm_engines.why_not("smol", "qwen"):
        sys.exit(reason)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    load = os.getloadavg()
    with tempfile.TemporaryDirectory() as logs:
        engines = {
            name: Engine(name, Path(logs) / f"{name}.log", core=core) for core, name in enumerate(("smol", "qwen"))
        }
        try:
            for engine in engines.values():
                engine.launch()
            for engine in engines.values():
                engine.wait()
            found = asyncio.run(measure(engines, options.steps, options.rounds))
        finally:
            for engine in engines.values():
                engine.stop()
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.python_version()}",
        "commit": commit.stdout.strip(),
        "load before": [round(value, 2) for value in load],
        "load after": [round(value, 2) for value in os.getloadavg()],
        "steps": options.steps,
        "rounds": options.rounds,
        "k": K,
        "ms": found,
    }
    text = json.dumps(report, indent=2)
    sys.stdout.write(text + "\n")
    if options.out is not None:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
