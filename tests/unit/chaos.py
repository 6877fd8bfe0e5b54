"""What every bad day has in common: a gateway over models that fail, requests that may hang, a judge of answers, and how it all ends."""

from __future__ import annotations

import contextlib
import random
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import structlog
from bad_days import Proxy
from edge import CHAT, Edge, Reply

from backends.catalog import Entry
from gateway.app import Application
from gateway.operations import open_operations
from gateway.runtime import open_runtime
from gateway.settings import Loaded, Settings
from gateway.settings.source import Source

RIGHT = {
    400: {"request_rejected", "context_length_exceeded"},
    502: {"backend_unavailable", "backend_error", "backend_auth_failed"},
    503: {"overloaded", "backend_unavailable"},
    504: {"timeout"},
}
"""Status → codes that it may come with. No 500: that is a fault of ours."""


@dataclass
class World:
    """A gateway, and what stands between it and its models. ledger: its database."""

    edge: Edge
    chance: random.Random
    proxies: list[Proxy]
    ledger: Path

    def idle(self) -> bool:
        """Whether nothing runs, waits or holds a seat."""
        text = self.edge.app.metrics.text().decode()
        quiet = ("modelnet_active_requests 0.0", "modelnet_active_streams 0.0", "modelnet_places_taken 0.0")
        seats = [entry.backend.seats for entry in self.edge.runtime.catalog.values()]  # type: ignore[attr-defined]
        return all(gauge in text for gauge in quiet) and not any(each.taken + each.waiting for each in seats)

    async def ask(self, id: str, body: Mapping[str, Any], leaves: float | None, patience: float) -> Reply | None:
        """The reply; None if there was none after so many seconds. leaves: seconds after which the client is gone."""
        exchange = self.edge.exchange("POST", CHAT, body, {"x-request-id": id})
        with anyio.move_on_after(patience) as waited:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(exchange.run)
                if leaves is not None:
                    with anyio.move_on_after(leaves):
                        await exchange.finished.wait()
                    exchange.leave()
        return None if waited.cancelled_caught else exchange.reply

    async def recover(
        self, right: Mapping[str, Collection[str]], ask: Callable[[str], Awaitable[Reply | None]], pause: float
    ) -> int:
        """Until nothing is left of the day, and every wiring says what is right again. How often was asked. Runs until cancelled."""
        asked = 0
        while not self.idle():
            await anyio.sleep(0.05)
        for wiring, texts in right.items():
            while True:  # breakers close again by themselves
                reply = await ask(wiring)
                asked += 1
                assert reply is not None, wiring
                if reply.status == 200:
                    break
                assert reply.status in (502, 503, 504), reply.body
                await anyio.sleep(pause)
            assert reply.json()["choices"][0]["message"]["content"] in texts
        return asked

    def ledgered(self) -> list[str]:
        """The ids of all requests in the ledger. When the gateway is closed, all is written."""
        with contextlib.closing(sqlite3.connect(self.ledger)) as ledger:
            return [row[0] for row in ledger.execute("SELECT request_id FROM requests")]


@asynccontextmanager
async def gateway_over(
    folder: Path,
    backends: Mapping[str, Any],
    build: Callable[[str], Awaitable[Entry]],
    *,
    limits: Mapping[str, float],
    pause: float,
    pause_most: float,
) -> AsyncIterator[Edge]:
    """Over these models, with a ledger (`ledger.db`) and keys in that folder. pause, pause_most: of its breakers."""
    settings = Settings.model_validate(
        {
            "models": {name: {"backend": "fake"} for name in backends},
            "limits": limits,
            "ledger": {"database": str(folder / "ledger.db"), "flush_seconds": 0.05},
            "key_store": {"database": str(folder / "keys.db")},
            "resilience": {
                "breaker": {"least": 12, "share": 0.75, "pause": pause, "pause_most": pause_most},
                "retries": {"longest": 1.0},
            },
        }
    )
    loaded = Loaded(settings, folder / "test.yaml", Source(folder / "test.yaml"))
    async with open_runtime(loaded, build) as runtime, open_operations(loaded) as operations:
        runtime.operations = operations
        await runtime.wait_loaded()
        yield Edge(Application(runtime), runtime, dict(backends))


@contextlib.contextmanager
def no_crashes() -> Iterator[None]:
    """Raises AssertionError if the block logs a fault of the gateway's own.

    Logs are captured, not written: tracebacks drawn for people take longer than all the rest, and hold everybody up.
    """
    with structlog.testing.capture_logs() as logs:
        yield
    assert not [line for line in logs if line["event"] == "unexpected_error" or line.get("error") == "internal_error"]


class Judge:
    """Looks at every answer. right: wiring → what it may say; ends: how; kinds: what came how often; wrong: what must not have come."""

    def __init__(self, right: Mapping[str, Collection[str]], ends: Collection[str] = ("stop",)) -> None:
        self.right = right
        self.ends = ends
        self.kinds: Counter[str] = Counter()
        self.wrong: list[str] = []

    def saw(self, wiring: str, stream: bool, reply: Reply, left: bool) -> None:
        try:
            kind = "left" if left and not reply.complete else self._kind(wiring, stream, reply)
        except Exception as error:  # noqa: BLE001 - an answer that can't be read is a wrong one
            kind = f"unreadable: {error!r}"
        self.kinds[kind] += 1
        if kind not in ("right", "left", "broken stream") and not kind.startswith("status "):
            self.wrong.append(f"{wiring}: {kind}: {reply.status} {reply.body[-300:]!r}")

    def _kind(self, wiring: str, stream: bool, reply: Reply) -> str:
        if not reply.complete:
            return "incomplete"
        if reply.status != 200:
            code = reply.error["code"]
            return f"status {reply.status} {code}" if code in RIGHT.get(reply.status, ()) else f"wrong status: {code}"
        if not stream:
            (choice,) = reply.json()["choices"]
            same = choice["message"]["content"] in self.right[wiring] and choice["finish_reason"] in self.ends
            return "right" if same else "a wrong answer"
        events = reply.events()
        if events[-1] == "[DONE]":
            return "right" if reply.content() in self.right[wiring] else "a wrong answer"
        error = reply.chunks()[-1]["error"]
        if not any(error["code"] in codes for codes in RIGHT.values()):
            return f"a wrong error: {error['code']}"
        told = "".join(
            choice["delta"].get("content") or "" for chunk in reply.chunks()[:-1] for choice in chunk["choices"]
        )
        return "broken stream" if any(each.startswith(told) for each in self.right[wiring]) else "a wrong beginning"
