"""A gateway in this process, and many questions for it: what the evaluations of real models here share."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anyio
import httpx

from gateway.app import Application
from gateway.bench import machine
from gateway.cli.check import read_config
from gateway.observability.logs import setup_logs
from gateway.runtime import Runtime, open_runtime

DATA = Path(__file__).parent / "data"


@asynccontextmanager
async def gateway(config: Path | None) -> AsyncIterator[tuple[Runtime, httpx.AsyncClient]]:
    """The demo's models or those of a configuration, loaded, and a client of the whole edge over them."""
    setup_logs("error", "console")
    async with open_runtime(read_config(config)) as runtime:
        await runtime.wait_loaded()
        transport = httpx.ASGITransport(Application(runtime))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway", timeout=3600) as client:
            yield runtime, client


async def ask_all(
    client: httpx.AsyncClient,
    bodies: Sequence[Mapping[str, Any]],
    concurrency: int,
    kept: Path,
    tell: Callable[[int, Mapping[str, Any]], None],
) -> list[dict[str, Any]]:
    """Answers of /v1/chat/completions, in the order of the requests; `tell` hears of each as it comes. Raises for any that is refused.

    kept: a file to which every answer is added as it comes. What is in it already is not asked again: an evaluation that was interrupted
    goes on where it was. Requests are known by all that they say.
    """
    keys = [hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest() for body in bodies]
    answered: dict[str, dict[str, Any]] = {}
    if kept.exists():
        lines = kept.read_text(encoding="utf-8").splitlines()
        answered = {line["request"]: line["answer"] for line in map(json.loads, lines)}
    kept.parent.mkdir(parents=True, exist_ok=True)
    waiting = iter([(n, body) for n, (key, body) in enumerate(zip(keys, bodies, strict=True)) if key not in answered])

    async def work() -> None:
        for number, body in waiting:
            response = await client.post("/v1/chat/completions", json=body)
            if response.status_code != 200:
                raise RuntimeError(f"request {number}: {response.status_code} {response.text[:500]}")
            answer = answered[keys[number]] = response.json()
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"request": keys[number], "answer": answer}, ensure_ascii=False) + "\n")
            tell(number, answer)

    async with anyio.create_task_group() as tasks:
        for _ in range(concurrency):
            tasks.start_soon(work)
    return [answered[key] for key in keys]


def write(out: Path, arguments: Mapping[str, Any], results: Any) -> None:
    """Results with the machine and the commit they come from."""
    out.parent.mkdir(parents=True, exist_ok=True)
    commit = machine.commit()
    value = {
        "machine": asdict(machine.look()),
        "commit": None if commit is None else asdict(commit),
        "arguments": {key: str(value) for key, value in arguments.items()},
        "results": results,
    }
    out.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


def say(text: str) -> None:
    """For whoever waits."""
    sys.stderr.write(f"{text}\n")


def show(text: str) -> None:
    """What was asked for."""
    sys.stdout.write(f"{text}\n")


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """In Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
