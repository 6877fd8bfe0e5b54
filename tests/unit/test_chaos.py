"""A thousand requests over all wirings while models are killed, frozen, slowed, cut, and answer garbage.

None hangs; none is answered with anything but the right answer where it looks like an answer; every failure has a status that says what
it was; every request is in the ledger; and when the day is over everything works again and nothing is left behind.

CHAOS_SEED in the environment repeats a run's choices (it is printed), CHAOS_REQUESTS asks more.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
from bad_days import MOODS, Proxy, bad_mood
from chaos import Judge, World, gateway_over, no_crashes
from edge import question

from backends.catalog import Entry
from backends.fake import FakeBackend, FakeSettings
from backends.fake.server import FakeServer
from backends.openai_http import OpenAIHTTPBackend, OpenAIHTTPSettings
from backends.vllm import VLLMBackend, VLLMSettings

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(600)]

SEED = int(os.environ.get("CHAOS_SEED") or time.time_ns() % 10**9)
REQUESTS = int(os.environ.get("CHAOS_REQUESTS") or 1200)
CLIENTS = 24
SECONDS = 4.0
"""For a whole request, by configuration; and as much again before it counts as hung."""

WIRINGS = (
    *("far", "near", "pair"),
    *("near>far", "far>near", "pair>near", "near>safe>far"),
    *("far|near", "near|safe", "far|safe|near"),
    *("far>near|safe", "near>far|safe", "pair>near|far"),
    *("near|safe>far", "far|safe>near", "near|far>pair"),
    "(near>far)|safe",
)
ANSWERS = {
    "far": "From far away: the answer is 42, 是的, and that is the whole of it 🎉.",
    "near": "From nearby: the answer is 42, 不是, says the other one.",
    "safe": "Safely: forty-two, and nothing else than that.",
    "pair": "Two servers say the same: 42 and the rest of it.",
}


@dataclass
class Day(World):
    """fakes: models in process; behind: those behind servers."""

    fakes: list[FakeBackend]
    behind: list[FakeBackend]

    def idle(self) -> bool:
        counters = [each.counters for each in (*self.fakes, *self.behind)]
        return super().idle() and not any(each.streams + each.sessions + each.waiting for each in counters)

    async def moods(self) -> None:
        """Everybody's mood changes, again and again. Runs until cancelled."""
        while True:
            await anyio.sleep(self.chance.uniform(0.02, 0.15))
            for proxy in self.proxies:
                if self.chance.random() < 0.5:
                    await proxy.feel(self.chance.choice(("fine", "fine", *MOODS)))
            for fake in self.fakes:
                if self.chance.random() < 0.3:
                    bad_mood(fake, self.chance)

    async def calm(self) -> None:
        for proxy in self.proxies:
            await proxy.feel("fine")
        for fake in self.fakes:
            fake.faults = ()


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[Day]:
    chance = random.Random(SEED)
    behind = [FakeBackend("up", FakeSettings(ANSWERS[name])) for name in ("far", "pair", "pair")]
    near, safe = (FakeBackend(name, FakeSettings(ANSWERS[name])) for name in ("near", "safe"))
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(FakeServer(each, dialect="vllm")) for each in behind]
        ports = [int(server.base_url.split(":")[2].removesuffix("/v1")) for server in servers]
        proxies = [Proxy(port, chance) for port in ports[:2]]
        urls = [await stack.enter_async_context(proxy.running()) for proxy in proxies]
        quick = {"first_byte_timeout": 1.0, "chunk_timeout": 0.5, "connect_timeout": 0.5, "model": "up"}
        far = OpenAIHTTPBackend(
            "far",
            OpenAIHTTPSettings(base_url=urls[0], seats=32, **quick),
            vocabulary=behind[0].model.vocabulary,  # type: ignore[arg-type]
        )
        assert await far.why_not_fused() is None
        pair = VLLMBackend(
            "pair",
            VLLMSettings(urls=(urls[1], servers[2].base_url), sessions="off", retry=0.1, retry_most=0.5, **quick),  # type: ignore[arg-type]
        )
        backends: dict[str, Any] = {"far": far, "near": near, "safe": safe, "pair": pair}

        async def build(name: str) -> Entry:
            native = name in ("far", "pair")
            return Entry(backends[name], why_not_fused=await backends[name].why_not_fused(), native=native)

        limits = {"request_seconds": SECONDS, "answer_max_tokens": 200}
        edge = await stack.enter_async_context(
            gateway_over(folder, backends, build, limits=limits, pause=0.1, pause_most=0.5)
        )
        yield Day(edge, chance, proxies, folder / "ledger.db", [near], behind)


async def expected(w: World) -> dict[str, tuple[str, ...]]:
    """What every wiring says on a good day."""
    found = {}
    for wiring in WIRINGS:
        reply = await w.edge.chat(wiring)
        assert reply.status == 200, reply.body
        found[wiring] = (reply.json()["choices"][0]["message"]["content"],)
        assert all(found[wiring])
    assert found["far"] == found["near>far"] == (ANSWERS["far"],)
    return found


async def test_a_thousand_requests_on_a_bad_day(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        sys.stdout.write(f"\nCHAOS_SEED={SEED} CHAOS_REQUESTS={REQUESTS}\n")
    with no_crashes():
        await bad_day(tmp_path, capsys)


async def bad_day(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with world(folder) as w:
        right = await expected(w)
        judge, hung = Judge(right), []
        todo = iter(range(REQUESTS))

        async def one(number: int) -> None:
            wiring, stream = WIRINGS[number % len(WIRINGS)], w.chance.random() < 0.5
            leaves = w.chance.uniform(0.0, 0.3) if w.chance.random() < 0.1 else None
            reply = await w.ask(f"chaos-{number}", question(wiring, stream=stream), leaves, 2 * SECONDS)
            if reply is None:
                hung.append(f"{wiring} {number}")
            else:
                judge.saw(wiring, stream, reply, leaves is not None)

        async def client() -> None:
            for number in todo:
                await one(number)

        async with anyio.create_task_group() as moods:
            moods.start_soon(w.moods)
            async with anyio.create_task_group() as clients:
                for _ in range(CLIENTS):
                    clients.start_soon(client)
            moods.cancel_scope.cancel()
        with capsys.disabled():
            sys.stdout.write(f"{dict(judge.kinds.most_common())}\n")
        assert not hung
        assert not judge.wrong, "\n".join(judge.wrong[:20])
        assert sum(judge.kinds.values()) == REQUESTS
        assert judge.kinds["right"] > REQUESTS / 20 and len(judge.kinds) >= 6, "it was a bad day, not the last one"

        await w.calm()
        with anyio.fail_after(30):
            asked = len(WIRINGS) + await w.recover(right, w.edge.chat, 0.1)
    ids = w.ledgered()
    assert len(ids) == REQUESTS + asked
    assert {f"chaos-{number}" for number in range(REQUESTS)} <= set(ids)
