"""What the gateway costs a request for one model with a server of its own, beside the least that Python can do, in one run.

    .venv/bin/python tests/benchmarks/gateway_load.py [speed] [streams] [soak] [--out .bench/gateway.json]

speed    requests a second and added time, whole answers and streams of 16 tokens: straight to the server, through the floor (raw ASGI
         and aiohttp, which does nothing else), through the gateway; measured in turns. Only ratios within one run mean anything
streams  1,000 streams of 200 tokens at once, over a minute: errors, time to the first byte, memory
soak     100,000 requests: memory before and after

The gateway runs as it is delivered: keys, limits, metrics, the request log (into a file) and the ledger (--no-ledger: without). All of
it is on the loopback; servers and load share the machine's cores. Without arguments everything is run, about four minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

import uvloop  # noqa: E402

from backends.openai_http.pool import Pool, request_head, with_body  # noqa: E402
from gateway.bench.machine import commit, look  # noqa: E402

KEY = "sk-bench-0123456789"
MIB = 2**20
PATIENCE = 120.0
"""Seconds that anything may take."""


@dataclass(slots=True)
class Target:
    """Where requests go. pid: of the process between client and server."""

    name: str
    url: str
    pid: int | None = None

    def request(self, kind: str, said: str) -> bytes:
        head = request_head("POST", f"{self.url}/chat/completions", {"Authorization": f"Bearer {KEY}"})
        body = {"model": "bench", "messages": [{"role": "user", "content": f"{said} {'hello ' * 20}"}]}
        return with_body(head, json.dumps({**body, **({"stream": True} if kind == "sse" else {})}).encode())


@dataclass(slots=True)
class Round:
    """What one round of requests took. seconds: of every request, and of all of them. cpu: seconds of the process between."""

    seconds: list[float]
    total: float
    bad: int
    cpu: float | None


# Processes


@contextmanager
def _process(arguments: list[str], log: Path, said: str, **environment: str) -> Iterator[tuple[int, str]]:
    """A server; its process id, and what `said` finds in its log."""
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=out, stderr=out, cwd=ROOT, env={**os.environ, **environment}
        )
    try:
        deadline = time.monotonic() + 60
        while not (found := re.search(said, log.read_text())):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"it did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.05)
        yield process.pid, found[1]
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _asgi(app: str) -> list[str]:
    where = ["--app-dir", str(Path(__file__).parent), "--host", "127.0.0.1", "--port", "0"]
    return [
        "-m",
        "uvicorn",
        f"gateway_upstream:{app}",
        *where,
        "--no-access-log",
        "--loop",
        "uvloop",
        "--http",
        "httptools",
    ]


@contextmanager
def _stage(ledger: bool) -> Iterator[list[Target]]:
    """The server, the floor and the gateway."""
    running = r"running on (http://\S+)"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with _process(_asgi("upstream"), folder / "upstream.log", running) as (_, server):
            config = folder / "gateway.yaml"
            config.write_text(
                f"models: {{bench: {{backend: openai, base_url: '{server}/v1', sessions: 'off', seats: null}}}}\n"
                f"limits: {{concurrent_requests: 4096}}\nkeys: ['{KEY}']\nledger: {{enabled: {str(ledger).lower()}}}\n"
            )
            serve = ["-m", "gateway", "serve", "--config", str(config), "--port", "0"]
            with (
                _process(_asgi("floor"), folder / "floor.log", running, BENCH_UPSTREAM=f"{server}/v1") as (floor, bare),
                _process(serve, folder / "gateway.log", r"serving on (http://\S+)/v1", MODELNET_STATE=name) as (
                    us,
                    ours,
                ),
            ):
                yield [
                    Target("straight", f"{server}/v1"),
                    Target("floor", f"{bare}/v1", floor),
                    Target("gateway", f"{ours}/v1", us),
                ]


def _status(pid: int, key: str) -> int:
    """A field of /proc/PID/status, in bytes."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 if found else 0


def _cpu(pid: int) -> float:
    """Seconds that all threads of a process have computed."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()) / 1e9


# Load


def _pool(target: Target) -> Pool:
    return Pool(target.url, connect_timeout=20, keep_alive=30, verify=True)


async def _one(pool: Pool, request: bytes, done: bytes) -> tuple[float, bool]:
    """One request: seconds to the first byte of its body, and whether its answer was whole. done: what a whole one ends with."""
    began = time.perf_counter()
    first = 0.0
    answer = await pool.ask(request, PATIENCE)
    last = b""
    while data := await answer.read(PATIENCE):
        first = first or time.perf_counter() - began
        last = (last + data)[-64:] if len(data) < 64 else data[-64:]
    whole = answer.status == 200 and last.endswith(done)
    answer.close()
    return first, whole


async def _requests(target: Target, pool: Pool, kind: str, count: int, at_once: int) -> Round:
    request = target.request(kind, "16 0")
    done = b"data: [DONE]\n\n" if kind == "sse" else b"}"
    took: list[float] = []
    bad = 0
    left = iter(range(count))

    async def client() -> None:
        nonlocal bad
        for _ in left:
            began = time.perf_counter()
            try:
                _, whole = await _one(pool, request, done)
            except Exception:  # noqa: BLE001 - counted
                whole = False
            bad += not whole
            took.append(time.perf_counter() - began)

    cpu = _cpu(target.pid) if target.pid else 0.0
    began = time.perf_counter()
    await asyncio.gather(*[client() for _ in range(at_once)])
    total = time.perf_counter() - began
    return Round(took, total, bad, _cpu(target.pid) - cpu if target.pid else None)


async def speed(targets: Sequence[Target], rounds: int, count: int, at_once: int) -> list[dict[str, Any]]:
    """Requests a second with `at_once` of them at once; ms that one alone takes longer than straight to the server."""
    pools = {target.name: _pool(target) for target in targets}
    results = []
    for kind in ("json", "sse"):
        many: dict[str, list[Round]] = {target.name: [] for target in targets}
        alone: dict[str, list[float]] = {target.name: [] for target in targets}
        bad = dict.fromkeys(many, 0)
        for target in targets:
            await _requests(target, pools[target.name], kind, 200, 4)
        for _ in range(rounds):
            for target in targets:
                many[target.name].append(await _requests(target, pools[target.name], kind, count, at_once))
                single = await _requests(target, pools[target.name], kind, 100, 1)
                alone[target.name] += single.seconds
                bad[target.name] += many[target.name][-1].bad + single.bad
        straight = statistics.median(alone["straight"])
        for target in targets:
            done = many[target.name]
            cpu = [found.cpu / count * 1e6 for found in done if found.cpu is not None]
            results.append(
                {
                    "what": target.name,
                    "kind": kind,
                    "requests_per_second": statistics.median(count / found.total for found in done),
                    "cpu_us_per_request": statistics.median(cpu) if cpu else None,
                    "alone_ms": statistics.median(alone[target.name]) * 1e3,
                    "added_ms": (statistics.median(alone[target.name]) - straight) * 1e3,
                    "bad": bad[target.name],
                }
            )
    for pool in pools.values():
        pool.close()
    return results


async def streams(target: Target, at_once: int, tokens: int, seconds: float) -> dict[str, Any]:
    """Many streams at once, each of `tokens` spread over `seconds`."""
    assert target.pid is not None
    pool = _pool(target)
    request = target.request("sse", f"{tokens} {seconds / tokens:.6f}")
    firsts: list[float] = []
    memory: list[int] = []
    errors = 0

    async def client(number: int) -> None:
        nonlocal errors
        await asyncio.sleep(number / at_once * min(1.0, seconds / 10))  # not all in one instant
        try:
            first, whole = await _one(pool, request, b"data: [DONE]\n\n")
        except Exception:  # noqa: BLE001 - counted
            first, whole = 0.0, False
        errors += not whole
        firsts.append(first)

    async def watch() -> None:
        while True:
            await asyncio.sleep(seconds / 30)
            memory.append(_status(target.pid or 0, "VmRSS"))

    before, cpu = _status(target.pid, "VmRSS"), _cpu(target.pid)
    began = time.perf_counter()
    watching = asyncio.create_task(watch())
    await asyncio.gather(*[client(number) for number in range(at_once)])
    watching.cancel()
    took = time.perf_counter() - began
    pool.close()
    firsts.sort()
    warm = memory[len(memory) // 4 : -2] or [before]
    return {
        "what": target.name,
        "streams": at_once,
        "tokens": tokens,
        "seconds": took,
        "errors": errors,
        "first_byte_ms_median": statistics.median(firsts) * 1e3,
        "first_byte_ms_p99": firsts[int(0.99 * len(firsts))] * 1e3,
        "cpu_us_per_token": (_cpu(target.pid) - cpu) / at_once / tokens * 1e6,
        "rss_mib_before": before / MIB,
        "rss_mib_warm_least": min(warm) / MIB,
        "rss_mib_warm_most": max(warm) / MIB,
    }


async def soak(target: Target, count: int, at_once: int) -> dict[str, Any]:
    """Memory before and after many requests, every second one a stream; the first tenth warms up."""
    assert target.pid is not None
    pool = _pool(target)
    bad, seen = 0, []
    for _ in range(11):
        for kind in ("json", "sse"):
            bad += (await _requests(target, pool, kind, count // 20, at_once)).bad
        seen.append(_status(target.pid, "VmRSS") / MIB)
    pool.close()
    return {"what": target.name, "requests": count + count // 10, "bad": bad, "rss_mib": seen}


# Telling


def table(results: dict[str, Any]) -> str:
    """For people."""
    lines = []
    if found := results.get("speed"):
        by = {(row["kind"], row["what"]): row for row in found}
        lines.append(f"{'':24}{'req/s':>8}{'of floor':>10}{'cpu µs':>8}{'alone ms':>10}{'added ms':>10}{'bad':>5}")
        for kind in ("json", "sse"):
            for what in ("straight", "floor", "gateway"):
                row, bare = by[kind, what], by[kind, "floor"]
                share = f"{row['requests_per_second'] / bare['requests_per_second']:.2f}"
                cpu = "" if row["cpu_us_per_request"] is None else f"{row['cpu_us_per_request']:.0f}"
                lines.append(
                    f"{kind + '  ' + what:24}{row['requests_per_second']:8.0f}{share:>10}{cpu:>8}"
                    f"{row['alone_ms']:10.3f}{row['added_ms']:10.3f}{row['bad']:5}"
                )
    for row in results.get("streams", ()):
        lines.append(
            f"streams  {row['what']}: {row['streams']} of {row['tokens']} tokens in {row['seconds']:.1f} s: {row['errors']} errors, "
            f"first byte {row['first_byte_ms_median']:.1f} ms (p99 {row['first_byte_ms_p99']:.1f}), "
            f"{row['cpu_us_per_token']:.0f} µs of CPU a token, RSS {row['rss_mib_before']:.0f} MiB before, "
            f"{row['rss_mib_warm_least']:.0f} to {row['rss_mib_warm_most']:.0f} once warm"
        )
    if row := results.get("soak"):
        seen = ", ".join(f"{size:.1f}" for size in row["rss_mib"])
        lines.append(f"soak  {row['requests']} requests, {row['bad']} bad: RSS after every eleventh, MiB: {seen}")
    return "\n".join(lines)


async def _run(arguments: argparse.Namespace, targets: list[Target]) -> dict[str, Any]:
    results: dict[str, Any] = {}
    ours = targets[-1]
    if "speed" in arguments.parts:
        results["speed"] = await speed(targets, arguments.rounds, arguments.requests, arguments.at_once)
    if "streams" in arguments.parts:
        results["streams"] = [
            await streams(target, arguments.streams, arguments.tokens, arguments.seconds) for target in targets[1:]
        ]
    if "soak" in arguments.parts:
        results["soak"] = await soak(ours, arguments.soak, arguments.at_once)
    return results


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="speed, streams, soak; all by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2000, help="of a round")
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0, help="that a stream takes")
    parser.add_argument("--soak", type=int, default=100_000)
    parser.add_argument("--no-ledger", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / ".bench" / "gateway.json")
    arguments = parser.parse_args()
    arguments.parts = arguments.parts or ["speed", "streams", "soak"]
    machine, made = look(), commit()
    if machine.busy:
        sys.stderr.write(f"others are computing (load {machine.load}): the figures are worth little\n")
    with _stage(not arguments.no_ledger) as targets:
        results = uvloop.run(_run(arguments, targets))
    sys.stdout.write(f"{table(results)}\n")
    written = {"machine": asdict(machine), "commit": asdict(made) if made else None, "ledger": not arguments.no_ledger}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({**written, **results}, indent=1))
    sys.stdout.write(f"written to {arguments.out}\n")


if __name__ == "__main__":
    main()
