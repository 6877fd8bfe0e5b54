"""Inputs that the engine reads in several passes, and engines whose inner workings the extension does not know."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from vllm_engines import KEY, PATIENT, Engine

from backends.catalog import Catalog, Entry
from backends.errors import CapabilityMissing
from backends.types import Message, Sampling, TopK
from backends.vllm import VLLMBackend, VLLMSettings
from strategies.engine import Options, run
from strategies.engine.events import Delta
from strategies.planning import PlanError
from strategies.planning import plan as compile_plan
from strategies.prompting import PromptSet
from strategies.topology import parse

pytestmark = pytest.mark.anyio

K = 12
PARTS_APART = 0.35
"""Nats: what reading a text in other parts may change, where bfloat16 is emulated; 0.19 was seen. Behind a part of the text it is another
distribution altogether."""
LONG = (Message("user", " ".join(f"{n} squared is {n * n};" for n in range(90)) + " what is 12 squared?"),)


def backend_of(engine: Engine) -> VLLMBackend:
    return VLLMBackend(engine.model, VLLMSettings(urls=(engine.url,), api_key=KEY, **PATIENT))


def own_answer(engine: Engine, tokens: int) -> list[tuple[int, list[float]]]:
    """vLLM's own answer to LONG: ids, and the log-probabilities of the K likeliest, descending."""
    body = {
        "model": engine.model,
        "messages": [{"role": "user", "content": LONG[0].content}],
        "max_tokens": tokens,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": K,
        "return_tokens_as_token_ids": True,
        "ignore_eos": True,
    }
    content: list[dict[str, Any]] = engine.post("/v1/chat/completions", body)["choices"][0]["logprobs"]["content"]
    return [
        (
            int(entry["token"].removeprefix("token_id:")),
            sorted((top["logprob"] for top in entry["top_logprobs"]), reverse=True)[:K],
        )
        for entry in content
    ]


def near(one: TopK, other: TopK) -> None:
    mine = dict(zip(one.ids.tolist(), one.logprobs.tolist(), strict=True))
    theirs = dict(zip(other.ids.tolist(), other.logprobs.tolist(), strict=True))
    common = mine.keys() & theirs.keys()
    assert len(common) >= K - 4
    assert max(abs(mine[id] - theirs[id]) for id in common) < 0.6
    assert abs(np.exp(one.logprobs[0]) - np.exp(other.logprobs[0])) < 0.06


async def whole_inputs_only(engine: Engine) -> None:
    """A prompt of several passes: the distribution is that after its end, not after a part. Alone, and four at once."""
    backend = backend_of(engine)
    expected = own_answer(engine, 8)
    async with backend.open(LONG, k=K) as session:
        assert session.prompt_tokens > 3 * 256
        top = await session.step()
        for id, logprobs in expected:
            np.testing.assert_allclose(top.logprobs, logprobs, rtol=0, atol=PARTS_APART)
            said = dict(zip(top.ids.tolist(), top.logprobs.tolist(), strict=True))
            assert said[id] >= top.logprobs[0] - PARTS_APART
            top = await session.step([id])

    async def one() -> None:
        async with backend.open(LONG, k=K) as session:
            near(await session.step(), first)

    async with backend.open(LONG, k=K) as session:
        first = await session.step()
    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(one)
    await backend.aclose()


async def long_drafts(engine: Engine) -> None:
    """A draft of several passes, rewound in its middle, against single steps."""
    backend = backend_of(engine)
    ask = (Message("user", "Count."),)
    draft = [int(id) for id in np.random.default_rng(5).integers(1000, 9000, 300)]
    async with backend.open(ask, k=K) as session:
        await session.step()
        rows = await session.score(draft)
        assert len(rows) == 300
        await session.rewind(297)
        near(await session.step(), rows[2])
        near(await session.step(draft[3:290]), rows[289])
        await session.rewind(290)
        for at in range(5):
            near(await session.step([draft[at]]), rows[at])
        others = [id for id in range(2000) if id not in rows[4].ids.tolist()]
        found = await session.lookup(others)
        assert found.max() <= (await session.step()).logprobs[-1] + 1e-6
    await backend.aclose()


async def test_only_whole_inputs_are_answered(engines: dict[str, Engine]) -> None:
    await whole_inputs_only(engines["qwen"])


async def test_a_draft_of_several_passes(engines: dict[str, Engine]) -> None:
    await long_drafts(engines["qwen"])


def instead(servers: dict[str, Engine], engine: Engine) -> Iterator[Engine]:
    """This engine in the place of the one with its model."""
    servers[engine.model].stop()
    try:
        engine.launch()
        engine.wait()
        yield engine
    finally:
        engine.stop()


@pytest.fixture
def unknown(servers: dict[str, Engine], tmp_path: Path) -> Iterator[Engine]:
    """An engine that the extension takes for an unknown version: no hooks, and no scheduler of ours."""
    (tmp_path / "sitecustomize.py").write_text(
        "import modelnet_vllm.drafts\nmodelnet_vllm.drafts.KNOWN = ('no such version',)\n"
    )
    args = ["--max-num-batched-tokens", "256"]
    yield from instead(servers, Engine("smol", tmp_path / "unknown.log", rewinds=False, paths=[tmp_path], args=args))


async def test_an_unknown_version_is_slower_and_as_right(unknown: Engine) -> None:
    backend = backend_of(unknown)
    await backend.vocabulary()
    info = (await backend._replicas[0].connection()).info
    assert (info["drafts"], info["rewind"]) == ("steps", "reopen")
    await backend.aclose()
    await whole_inputs_only(unknown)
    await long_drafts(unknown)


@pytest.fixture
def plain(servers: dict[str, Engine], tmp_path: Path) -> Iterator[Engine]:
    """vLLM as it is, without the extension."""
    yield from instead(servers, Engine("smol", tmp_path / "plain.log", extension=False))


async def test_vllm_without_the_extension_writes_stages_and_says_why_it_is_no_member(plain: Engine) -> None:
    backend = backend_of(plain)
    await backend.start()
    await backend.ready()
    reason = await backend.why_not_fused()
    assert reason is not None
    assert "without the modelnet-vllm extension" in reason
    catalog = Catalog({name: Entry(backend, why_not_fused=reason) for name in ("smol", "twin")})
    options = Options(PromptSet("none"), sampling=Sampling(max_tokens=8, temperature=0.0))
    ask = [Message("user", "What do rivers do?")]
    said = ""
    async with run(compile_plan(parse("smol>smol").topology, catalog), ask, options, catalog) as events:
        async for event in events:
            if isinstance(event, Delta):
                said += event.text
    assert said
    with pytest.raises(PlanError, match="without the modelnet-vllm extension"):
        compile_plan(parse("smol|twin").topology, catalog)
    with pytest.raises(CapabilityMissing, match="without the modelnet-vllm extension"):
        async with backend.open(ask, k=K):
            pytest.fail("there are no sessions")
    await backend.aclose()
