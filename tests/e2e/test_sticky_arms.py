"""Who is on which arm of a route, asked of running gateways: the same in two processes and after a restart, and when a weight changes only
the moved share moves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import pytest
from served import Process

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

USERS = [f"user-{number}" for number in range(150)]
CONFIG = """
models:
  a: {{backend: fake, answer: "a"}}
  b: {{backend: fake, answer: "b"}}
routes:
  split: {{arms: {{one: {{model: a, weight: {one}}}, two: {{model: b, weight: {two}}}}}, sticky: [user], override: true}}
key_store: {{database: keys.db}}
ledger: {{database: ledger.db}}
server: {{log: {{level: error}}}}
"""


async def arms(urls: Sequence[str]) -> list[dict[str, str]]:
    """For every gateway: user → arm, as the answer's header has it, and as the answer itself shows."""
    found: list[dict[str, str]] = [{} for _ in urls]
    limit = asyncio.Semaphore(8)

    async def ask(session: aiohttp.ClientSession, number: int, user: str) -> None:
        body = {"model": "split", "user": user, "messages": [{"role": "user", "content": "Hi"}]}
        async with limit, session.post(f"{urls[number]}/v1/chat/completions", json=body) as reply:
            value = await reply.json()
            assert reply.status == 200, value
            arm = reply.headers["x-modelnet-arm"]
            assert value["choices"][0]["message"]["content"] == {"one": "a", "two": "b"}[arm]
            found[number][user] = arm

    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:
        for number in range(len(urls)):
            for user in USERS:
                tasks.create_task(ask(session, number, user))
    return found


async def of_gateways(folder: Path, names: Sequence[str], one: int, two: int) -> list[dict[str, str]]:
    """The same of gateways that are started for it, with these weights, and ended."""
    file = folder / "gateway.yaml"
    file.write_text(CONFIG.format(one=one, two=two), encoding="utf-8")
    arguments = ["-m", "gateway", "serve", "--config", str(file), "--port", "0"]
    running: list[Process] = []
    try:
        for seed, name in enumerate(names):
            hashing = {"PYTHONHASHSEED": str(seed)}
            running.append(Process(folder, name, arguments, r"serving on (http://\S+)/v1", hashing))
        return await arms([each.url for each in running])
    finally:
        for each in running:
            each.end()


async def test_the_same_user_on_two_processes_after_a_restart_and_with_other_weights(tmp_path: Path) -> None:
    first, second = await of_gateways(tmp_path, ["first", "second"], 70, 30)
    assert first == second
    assert 20 < sum(arm == "two" for arm in first.values()) < 75
    (again,) = await of_gateways(tmp_path, ["again"], 70, 30)
    assert again == first
    (moved,) = await of_gateways(tmp_path, ["moved"], 50, 50)
    changed = {(first[user], moved[user]) for user in USERS if first[user] != moved[user]}
    assert changed == {("one", "two")}, "a growing arm takes, and nobody else moves"
