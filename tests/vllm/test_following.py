"""Sessions that go on from what was read early, on real engines: they are what sessions of their own would be, in nobody's way."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import anyio
import numpy as np
import pytest
from vllm_engines import KEY, PATIENT, Engine

from backends.protocol import Session
from backends.types import Message, TopK
from backends.vllm import VLLMBackend, VLLMSettings
from backends.vllm.reading import OFTEN

pytestmark = pytest.mark.anyio

K = 12
PARTS_APART = 0.35
"""Nats: what reading a text in other parts may change, where bfloat16 is emulated."""


def backend_of(engine: Engine) -> VLLMBackend:
    return VLLMBackend(engine.model, VLLMSettings(urls=(engine.url,), api_key=KEY, **PATIENT))


def told(n: int, of: str = "draft") -> tuple[Message, ...]:
    """A conversation that hands on an answer of n sentences."""
    answer = " ".join(f"The square of {i} is {i * i}." for i in range(n))
    return (
        Message("user", f"What are squares? Here is a {of} answer: {answer} Write a better one, and nothing else."),
    )


def passes(engine: Engine) -> float:
    """Inputs that the engine has computed: it says a token to each."""
    lines = re.findall(
        r"^vllm:generation_tokens_total\{[^}]*\} ([0-9.e+]+)$", engine.get("/metrics").decode(), re.MULTILINE
    )
    return sum(map(float, lines))


def status(engine: Engine) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(engine.get("/v1/modelnet/status"))
    return found


async def counted(engine: Engine, expected: float) -> None:
    """The count follows the answer within moments."""
    for _ in range(100):
        if await anyio.to_thread.run_sync(passes, engine) >= expected:
            break
        await anyio.sleep(0.02)
    assert await anyio.to_thread.run_sync(passes, engine) == expected


async def settled(engine: Engine) -> None:
    with anyio.fail_after(30):
        while (await anyio.to_thread.run_sync(status, engine))["sessions"]:
            await anyio.sleep(0.01)


async def answer(session: Session, n: int = 6, ids: Sequence[int] = ()) -> tuple[list[int], list[TopK]]:
    """Greedy, or these ids, and what was found on the way."""
    tops = [await session.step()]
    said: list[int] = []
    for at in range(n):
        said.append(ids[at] if ids else int(tops[-1].ids[0]))
        tops.append(await session.step(said[-1:]))
    return said, tops


def near(mine: TopK, theirs: TopK) -> None:
    one, other = (dict(zip(top.ids.tolist(), top.logprobs.tolist(), strict=True)) for top in (mine, theirs))
    common = one.keys() & other.keys()
    assert len(common) >= K - 4
    np.testing.assert_allclose([one[id] for id in common], [other[id] for id in common], rtol=0, atol=PARTS_APART)


WAYS: dict[str, list[tuple[int, bool]]] = {
    "grown, then the same": [(0, False), (3, False), (6, False), (9, True)],
    "grown, then a little more": [(0, False), (3, False), (6, True), (8, False)],
    "read to the end too soon": [(0, True), (4, True), (8, True)],
    "once": [(5, True)],
    "more than it is": [(0, False), (14, True)],
    "another text": [(0, False), (40, False)],
}


@pytest.mark.parametrize("way", WAYS)
async def test_a_session_that_follows_is_what_one_of_its_own_would_be(engines: dict[str, Engine], way: str) -> None:
    for engine in engines.values():
        engine.reset()
        backend = backend_of(engine)
        async with backend.open(told(9), k=K) as session:
            ids, expected = await answer(session)
            prompt = session.prompt_tokens
        engine.reset()
        reading = backend.reading(k=K)
        for n, ended in WAYS[way]:
            assert await reading.prepare(told(n, "first" if way == "another text" else "draft"), ended=ended) == OFTEN
        async with reading.open(told(9), k=K) as session:
            assert session.prompt_tokens == prompt
            for mine, theirs in zip((await answer(session, ids=ids))[1], expected, strict=True):
                near(mine, theirs)
            values = await session.lookup(list(range(40, 60)))  # type: ignore[attr-defined]
            assert np.isfinite(values).all()
            await session.rewind(len(ids))
            near(await session.step(), expected[0])
            near((await session.score(ids[:3]))[-1], expected[3])
        await settled(engine)
        assert (backend.readings, backend.loads, backend.admitted) == (0, [0], 0)
        await backend.aclose()


async def test_what_was_read_is_not_read_again(engines: dict[str, Engine]) -> None:
    """By the engine's own count."""
    engine = engines["smol"]
    engine.reset()
    backend = backend_of(engine)
    reading = backend.reading(k=K)
    before = passes(engine)
    assert await reading.prepare(told(9), ended=True) == OFTEN
    await counted(engine, before + 1)
    async with reading.open(told(9), k=K) as session:
        assert len((await session.step()).ids) == K
        await anyio.sleep(0.3)
        await counted(engine, before + 1)
        await session.step([70])
        await counted(engine, before + 2)
    await settled(engine)
    await backend.aclose()


async def test_one_that_was_called_off_in_the_middle_is_followed(engines: dict[str, Engine]) -> None:
    engine = engines["qwen"]  # reads it in several passes
    engine.reset()
    backend = backend_of(engine)
    async with backend.open(told(60), k=K) as session:
        _, (expected,) = await answer(session, 0)
        prompt = session.prompt_tokens
    for pause in (0.02, 0.1, 0.3):
        for n in (60, 50):
            engine.reset()
            reading = backend.reading(k=K)
            with anyio.move_on_after(pause):
                await reading.prepare(told(n), ended=True)
            async with reading.open(told(60), k=K) as session:
                assert session.prompt_tokens == prompt > 2 * 256
                near(await session.step(), expected)
            await settled(engine)
    assert backend.readings == 0
    await backend.aclose()


async def test_a_place_that_is_only_held_goes_to_whoever_wants_it(engines: dict[str, Engine]) -> None:
    """And what was read there is read once more."""
    engine = engines["smol"]
    backend = backend_of(engine)
    places = status(engine)["places"]
    reading = backend.reading(k=K)
    assert await reading.prepare(told(9), ended=True) == OFTEN
    assert status(engine)["sessions"] == 1
    async with AsyncExitStack() as stack:
        with anyio.fail_after(60):
            for _ in range(places):
                session = await stack.enter_async_context(backend.open(told(1), k=K, max_tokens=8))
                await session.step()
        assert status(engine)["sessions"] == places
        assert await reading.prepare(told(10), ended=True) == 0
    async with reading.open(told(9), k=K) as session:
        await session.step()
    await settled(engine)
    assert backend.readings == 0
    await backend.aclose()


async def test_a_client_that_is_gone_takes_with_it_what_he_held(engines: dict[str, Engine]) -> None:
    engine = engines["smol"]
    backend = backend_of(engine)
    for _ in range(3):
        assert await backend.reading(k=K).prepare(told(3), ended=True)
    assert status(engine)["sessions"] == 3
    await backend.aclose()
    await settled(engine)
