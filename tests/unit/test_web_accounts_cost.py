"""What keys, limits and the ledger cost a request: one run, with and without, so that the machine is the same."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from edge import CHAT, Edge, edge, fake, question
from operated import operated

from gateway.keys import Budget

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

ROUNDS, REQUESTS = 15, 40
MOST = 1.8
"""Times the request without any of it. On a quiet machine it is about 1.2; a fake model answers at once, a real one never."""


async def seconds(house: Edge, headers: Mapping[str, str], model: str) -> float:
    """For one request of many."""
    body = question(model, max_tokens=4)
    began = time.perf_counter()
    for _ in range(REQUESTS):
        assert (await house.call("POST", CHAT, body, headers)).status == 200
    return (time.perf_counter() - began) / REQUESTS


async def test_the_cost_of_being_counted(tmp_path: Path) -> None:
    """Plain: no key, no limits, no ledger. Counted: a stored key with every limit, a route with sticky arms, and the ledger."""
    routes = {"split": {"arms": {"one": {"model": "a"}, "two": {"model": "a"}}}}
    async with edge(fake("a", "short")) as plain, operated(tmp_path, fake("a", "short"), routes=routes) as counted:
        _, key = counted.make_key(
            requests_per_minute=100_000_000,
            tokens_per_minute=100_000_000,
            concurrency=8,
            budget=Budget(10**12, "money"),
        )
        ratios: dict[str, list[float]] = {"a": [], "split": []}
        for _ in range(ROUNDS):
            base = await seconds(plain, {}, "a")
            for model, found in ratios.items():
                found.append(await seconds(counted, key, model) / base)
    told = ", ".join(f"{model} {statistics.median(found):.2f}" for model, found in ratios.items())
    sys.stdout.write(
        f"\n    with keys, limits and ledger, of without: {told} (one request without: {base * 1e6:.0f} µs)\n"
    )
    for found in ratios.values():
        assert statistics.median(found) < MOST
