"""What everything around a request costs: the same requests with and without, in one process, turn by turn.

    python tests/benchmarks/resilience_cost.py [--rounds 9] [--requests 300]

Layers are put on one after the other: guards (breaker, budget of repetitions), metrics, the request log (into a file), a key, its limits,
the ledger, traces that are sampled out, every request traced. Each line has all of those above it. Two ways: a stream through the
engine, and a whole answer handed on (docs/hot-path.md). The model's server is a stub that answers at once and nothing goes over a
socket, so everything measured is ours.

Prints JSON: microseconds of the processor per request, all threads included (the median of the rounds' means), what each layer added,
and the ratio to the barest. All variants take turns, so a busy machine hits all alike.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import platform
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TextIO

from backends.catalog import Catalog, Entry
from backends.fake import FakeBackend, FakeSettings
from backends.protocol import Forwarded
from backends.types import ForwardRequest, Usage
from backends.wrappers import inner
from gateway.app import Application
from gateway.observability.logs import setup_logs
from gateway.operations import open_operations
from gateway.runtime import Runtime, open_runtime
from gateway.settings import Loaded, Settings
from gateway.settings.source import Source

KEY = "sk-bench-0123456789"
ANSWER = "one two three four five six seven eight"
SAID = {"messages": [{"role": "user", "content": "Why?"}]}
WHOLE = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "far",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 8, "total_tokens": 17},
    }
).encode()
WAYS = {
    "stream through the engine": json.dumps({"model": "near", "stream": True, **SAID}).encode(),
    "whole answer handed on": json.dumps({"model": "far", **SAID}).encode(),
}
LAYERS = ("bare", "guards", "metrics", "log", "key", "limits", "ledger", "traces sampled out", "every request traced")


class Answer:
    """What a server has said, all at once."""

    usage = Usage(9, 8)
    wrote = True
    over = False

    async def read(self) -> bytes:
        self.over = True
        return WHOLE


class Far(FakeBackend):
    """Its server speaks the OpenAI API, and has answered before it was asked."""

    @asynccontextmanager
    async def forward(self, request: ForwardRequest) -> AsyncIterator[Forwarded]:
        yield Answer()


@dataclass
class Variant:
    """A gateway with some of the layers, and where it logs."""

    app: Application
    log: TextIO
    level: str


async def one(app: Application, body: bytes) -> None:
    sent = False
    over = asyncio.Event()

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        await over.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] == 200, message
        elif not message.get("more_body"):
            over.set()

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "headers": [(b"content-type", b"application/json"), (b"authorization", b"Bearer " + KEY.encode())],
        "query_string": b"",
    }
    await app(scope, receive, send)


def loaded(folder: Path, has: Callable[[str], bool]) -> Loaded:
    much: dict[str, Any] = {"requests_per_minute": 100_000_000, "tokens_per_minute": 100_000_000, "concurrency": 1000}
    limits = {**much, "budget": {"tokens": 10**15, "per": "month"}} if has("limits") else {}
    far = {"backend": "openai", "base_url": "http://127.0.0.1:9/v1"}
    values: dict[str, Any] = {
        "models": {"near": {"backend": "fake"}, "far": far},
        "ledger": {"enabled": has("ledger"), "database": str(folder / "ledger.db")},
        "key_store": {"database": str(folder / "keys.db")},
        "prices": {"models": {"near": {"prompt": 1.0, "completion": 2.0}}},
    }
    if has("key"):
        values["keys"] = [{"key": KEY, "name": "bench", **limits}]
    return Loaded(Settings.model_validate(values), folder / "x.yaml", Source(folder / "x.yaml"))


async def build(name: str) -> Entry:
    kind = Far if name == "far" else FakeBackend
    return Entry(kind(name, FakeSettings(ANSWER, split="whole")), native=name == "far")


def without_guards(runtime: Runtime) -> None:
    entries = {
        name: Entry(
            inner(entry.backend), entry.why_not_fused, entry.reasoning, entry.owned_by, entry.seats, entry.native
        )
        for name, entry in runtime.catalog.items()
    }
    runtime.catalog = Catalog(entries)


def without_metrics(app: Application) -> None:
    def nothing(*given: Any) -> None:
        return

    for name in ("begin", "end", "finished", "forwarded", "stage", "spent"):
        setattr(app.metrics, name, nothing)


def tracing(sample: float) -> Any:
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    from gateway.observability.tracing import Tracing
    from gateway.settings.resilience import Tracing as Section

    class Nowhere(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    return Tracing(Section(endpoint="http://127.0.0.1:9", sample=sample), BatchSpanProcessor(Nowhere()))


async def variant(stack: AsyncExitStack, folder: Path, layer: str) -> Variant:
    """All layers up to this one."""
    folder.mkdir()
    reached = LAYERS.index(layer)

    def has(wanted: str) -> bool:
        return LAYERS.index(wanted) <= reached

    settings = loaded(folder, has)
    runtime = await stack.enter_async_context(open_runtime(settings, build))
    runtime.operations = await stack.enter_async_context(open_operations(settings))
    await runtime.wait_loaded()
    traces = tracing(float(has("every request traced"))) if has("traces sampled out") else None
    if traces is not None:
        stack.callback(traces.close)
    if not has("guards"):
        without_guards(runtime)
    app = Application(runtime, tracing=traces)
    if not has("metrics"):
        without_metrics(app)
    log = stack.enter_context((folder / "log").open("w"))
    return Variant(app, log, "info" if has("log") else "critical")


async def measure(rounds: int, requests: int) -> dict[str, dict[str, list[float]]]:
    """Way → layer → microseconds per request, of every round."""
    times: dict[str, dict[str, list[float]]] = {way: {layer: [] for layer in LAYERS} for way in WAYS}
    with tempfile.TemporaryDirectory() as place:
        async with AsyncExitStack() as stack:
            variants = [await variant(stack, Path(place) / str(number), layer) for number, layer in enumerate(LAYERS)]
            for turn in range(rounds + 1):
                for layer, each in zip(LAYERS, variants, strict=True):
                    setup_logs(each.level, "json", each.log)
                    for way, body in WAYS.items():
                        gc.collect()
                        began = time.process_time()
                        for _ in range(requests):
                            await one(each.app, body)
                        await asyncio.sleep(0.3)  # the ledger writes every quarter of a second: its work counts too
                        if turn:  # the first warms up
                            times[way][layer].append((time.process_time() - began) / requests * 1e6)
    return times


def told(times: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for way, layers in times.items():
        before = bare = median(layers["bare"])
        table = {}
        for layer, values in layers.items():
            found = median(values)
            table[layer] = {"us": round(found, 1), "added": round(found - before, 1), "ratio": round(found / bare, 3)}
            table[layer]["spread"] = [round(min(values), 1), round(max(values), 1)]
            before = found
        result[way] = table
    return {**result, "python": platform.python_version(), "machine": platform.machine()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--requests", type=int, default=300)
    asked = parser.parse_args()
    sys.stdout.write(json.dumps(told(asyncio.run(measure(asked.rounds, asked.requests))), indent=1) + "\n")
