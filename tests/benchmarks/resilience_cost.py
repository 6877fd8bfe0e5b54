"""What guards, metrics and traces cost on the way of a request: the same requests with and without, in one process, turn by turn.

    python tests/benchmarks/resilience_cost.py [--rounds 7] [--requests 400]

The model's server is a stub that answers at once, so everything measured is ours. Prints JSON: microseconds per request (the median of
the rounds' means) and their ratio to the barest. Rounds of all variants take turns, so a busy machine hits all alike.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import platform
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import structlog

from backends.catalog import Catalog, Entry
from backends.fake import FakeBackend, FakeSettings
from backends.wrappers import inner
from gateway.app import Application
from gateway.runtime import Runtime, open_runtime
from gateway.settings import Loaded, Settings
from gateway.settings.source import Source

BODY = json.dumps({"model": "a", "stream": True, "messages": [{"role": "user", "content": "Why?"}]}).encode()
ANSWER = "one two three four five six seven eight"


def scope() -> dict[str, Any]:
    return {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "headers": [(b"content-type", b"application/json")],
        "query_string": b"",
    }


async def one(app: Application) -> None:
    sent = False
    over = asyncio.Event()

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": BODY, "more_body": False}
        await over.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body"):
            over.set()

    await app(scope(), receive, send)


def settings() -> Loaded:
    made = Settings.model_validate({"models": {"a": {"backend": "fake"}}})
    return Loaded(made, Path("x.yaml"), Source(Path("x.yaml")))


async def build(name: str) -> Entry:
    return Entry(FakeBackend(name, FakeSettings(ANSWER, split="whole")))


def bare(runtime: Runtime) -> None:
    """Take the guards off."""
    entries = {
        name: Entry(
            inner(entry.backend), entry.why_not_fused, entry.reasoning, entry.owned_by, entry.seats, entry.native
        )
        for name, entry in runtime.catalog.items()
    }
    runtime.catalog = Catalog(entries)


def tracing(sample: float) -> Any:
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    from gateway.observability.tracing import Tracing
    from gateway.settings.resilience import Tracing as Section

    class Nowhere(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    return Tracing(Section(endpoint="http://127.0.0.1:9", sample=sample), BatchSpanProcessor(Nowhere()))


async def main(rounds: int, requests: int) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    async with (
        open_runtime(settings(), build) as plain,
        open_runtime(settings(), build) as guarded,
        open_runtime(settings(), build) as sampled,
        open_runtime(settings(), build) as traced,
    ):
        for runtime in (plain, guarded, sampled, traced):
            await runtime.wait_loaded()
        bare(plain)
        apps = {
            "bare": Application(plain),
            "guarded": Application(guarded),
            "guarded, traces sampled out": Application(sampled, tracing=tracing(0.0)),
            "guarded, every request traced": Application(traced, tracing=tracing(1.0)),
        }
        times: dict[str, list[float]] = {name: [] for name in apps}
        for turn in range(rounds + 1):
            for name, app in apps.items():
                gc.collect()
                began = time.process_time()
                for _ in range(requests):
                    await one(app)
                if turn:  # the first warms up
                    times[name].append((time.process_time() - began) / requests * 1e6)
    found = {name: round(median(values), 1) for name, values in times.items()}
    result = {
        "us_per_request": found,
        "ratio": {name: round(value / found["bare"], 3) for name, value in found.items()},
        "samples": {name: [round(value, 1) for value in values] for name, values in times.items()},
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=400)
    asked = parser.parse_args()
    asyncio.run(main(asked.rounds, asked.requests))
