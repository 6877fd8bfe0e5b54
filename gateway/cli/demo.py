"""`modelnet demo`: the gateway with its demo models, one question answered through it, and how to ask the next one."""

from __future__ import annotations

import json
import shlex
import socket
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import anyio
from rich.console import Console
from rich.markup import escape

from backends.types import Sampling
from gateway.app import Application
from gateway.cli.check import complain, read_config, say
from gateway.observability.logs import setup_logs
from gateway.runtime import NothingLoaded, Runtime, open_runtime
from gateway.settings import Loaded, SettingsError
from gateway.settings.models import LlamaCppModel
from gateway.web.serving import Server, bind, url
from gateway.weights import WeightsError, ensure

QUESTION = "What is the capital of France, and what is it known for? Answer in three sentences."
BUDGET = 300


class DemoFailed(Exception):
    """The question could not be answered; the text says why."""


def demo(config: Path | None, port: int, once: bool, question: str, wiring: str) -> int:
    """Pull weights, serve, ask, show. Serves on until a signal comes unless `once`. Returns the exit code."""
    try:
        loaded = read_config(config)
        pull(loaded)
    except (SettingsError, WeightsError) as error:
        return complain(error)
    try:
        sock = bind("127.0.0.1", 0 if once else port)
    except OSError as error:
        say(f"can't serve on port {port}: {error.strerror or error}; choose another with --port")
        return 1
    setup_logs("warning", loaded.settings.server.log.format)
    with sock:
        return anyio.run(
            partial(_demo, loaded, sock, once, question, wiring),
            backend_options={"use_uvloop": sys.platform != "win32"},
        )


def pull(loaded: Loaded) -> None:
    """All weights of the configuration, with progress bars. Raises WeightsError."""
    names = [model.weights for model in loaded.settings.models.values() if isinstance(model, LlamaCppModel)]
    for name in dict.fromkeys(name for name in names if name):
        ensure(name)


async def _demo(loaded: Loaded, sock: socket.socket, once: bool, question: str, wiring: str) -> int:
    console, code = Console(highlight=False), 0
    async with open_runtime(loaded) as runtime:
        settings = loaded.settings.server
        server = Server(Application(runtime), settings.shutdown_seconds, idle=settings.idle_seconds)

        async def show() -> None:
            nonlocal code
            try:
                console.print(f"[dim]loading {escape(', '.join(loaded.settings.models))} …[/]")
                await runtime.wait_loaded()
                await _ask(console, runtime, url(sock), wiring, question)
                _invite(console, url(sock), wiring, serving=not once)
            except (DemoFailed, NothingLoaded) as error:
                say(str(error))
                code = 1
            if once or code:
                server.stop()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(show)
            await server.serve(sockets=[sock])
            tasks.cancel_scope.cancel()
    return code


async def _ask(console: Console, runtime: Runtime, base: str, wiring: str, question: str) -> None:
    """One streamed question over HTTP, as any client would ask it; the stages are asked for and shown as they are written."""
    canonical = runtime.prepare(wiring, Sampling(), {}).wiring
    console.print(f"\n[bold]{escape(canonical)}[/]\n[bold cyan]question[/]  {escape(question)}\n")
    body = {
        "model": wiring,
        "messages": [{"role": "user", "content": question}],
        "stream": True,
        "max_tokens": BUDGET,
        "modelnet": {"stages": True},
    }
    extension: dict[str, Any] = {}
    heading: str | None = None
    async for chunk in _chunks(base, body):
        if "error" in chunk:
            raise DemoFailed(f"the answer broke off: {chunk['error'].get('message')}")
        extension = chunk.get("modelnet", {}) if "stages" in chunk.get("modelnet", {}) else extension
        for choice in chunk["choices"]:
            delta = choice["delta"]
            for key, title, style in (("reasoning_content", "stage", "dim"), ("content", "answer", "")):
                if text := delta.get(key):
                    if title != heading:
                        console.print(f"{'' if heading is None else chr(10) * 2}[bold cyan]{title}[/]")
                        heading = title
                    console.print(escape(text), end="", style=style, soft_wrap=True)
    console.print("\n")
    _report(console, extension)


async def _chunks(base: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream. Raises DemoFailed if the gateway refuses or the stream ends without its last word."""
    async with aiohttp.ClientSession() as client, client.post(f"{base}/v1/chat/completions", json=body) as response:
        if response.status != 200:
            raise DemoFailed(f"the gateway answered {response.status}: {(await response.text())[:500]}")
        async for line in response.content:
            if line.startswith(b"data: "):
                if line.strip() == b"data: [DONE]":
                    return
                yield json.loads(line[6:])
    raise DemoFailed("the stream ended without its last event")


def _report(console: Console, extension: dict[str, Any]) -> None:
    """Time and tokens per stage, and how exact a fused one was."""
    for stage in extension.get("stages", ()):
        usage, fusion, seconds = stage["usage"], stage.get("fusion"), stage["seconds"]
        written = fusion["pieces"] if fusion else usage["completion_tokens"]
        models = " | ".join(m["model"] for m in stage["models"])
        first = stage["first_token_seconds"]
        console.print(f"[bold cyan]stage {stage['stage'] + 1}[/]  {escape(models)} ({stage['models'][0]['role']})")
        console.print(
            f"  {seconds:.1f} s, the first token after {'-' if first is None else f'{first:.1f}'} s; "
            f"read {usage['prompt_tokens']} tokens, wrote {written} {'pieces' if fusion else 'tokens'} "
            f"({written / seconds if seconds else 0:.1f}/s)"
        )
        if fusion:
            console.print(f"  {_exactness(fusion)}")


def _exactness(fusion: dict[str, Any]) -> str:
    return (
        f"{fusion['certified']} certified, {fusion['looked_up']} looked up, {fusion['uncertified']} uncertified; "
        f"{fusion['drift']} repairs, {100 * (fusion['lost_mass'] or 0) / max(1, fusion['pieces']):.2f} % mass lost per piece"
    )


def _invite(console: Console, base: str, wiring: str, *, serving: bool) -> None:
    """What to paste next."""
    body = json.dumps(
        {"model": wiring, "messages": [{"role": "user", "content": "Why is the sky blue?"}], "stream": True}
    )
    curl = f"curl -N {base}/v1/chat/completions -H 'Content-Type: application/json' -d {shlex.quote(body)}"
    sdk = (
        "from openai import OpenAI\n\n"
        f'client = OpenAI(base_url="{base}/v1", api_key="none")\n'
        "stream = client.chat.completions.create(\n"
        f'    model="{wiring}", messages=[{{"role": "user", "content": "Why is the sky blue?"}}], stream=True\n'
        ")\n"
        "for chunk in stream:\n"
        '    print(chunk.choices[0].delta.content or "", end="", flush=True)'
    )
    for title, text in (("curl", curl), ("OpenAI SDK", sdk)):
        console.print(f"\n[bold cyan]{title}[/]")
        console.print(text, markup=False, soft_wrap=True)
    console.print(
        '\nOther wirings: "qwen", "si:qwen>smol", "pi:qwen|smol", "p2s:qwen|smol>gemma"; "modelnet plan" draws them.'
    )
    if serving:
        console.print(f"[bold]serving on {base}/v1[/]  [dim]Ctrl-C stops it[/]")
