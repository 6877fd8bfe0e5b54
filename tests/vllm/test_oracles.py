"""What sessions on real engines say must be what the engines say by themselves."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from vllm_engines import KEY, PATIENT, Engine

from backends.catalog import Catalog, Entry
from backends.protocol import Session
from backends.types import LogProbs, Message, Sampling, TextDelta, TextRequest, TopK, Vocabulary
from backends.vllm import VLLMBackend, VLLMSettings
from strategies.engine import Options, run
from strategies.engine.events import Delta
from strategies.planning import plan
from strategies.prompting import PromptSet
from strategies.topology import parse

pytestmark = pytest.mark.anyio

PROMPTS = [
    "Tell me about the sea.",
    "What is 17 times 23?",
    "Write a haiku about snow.",
    "Name three prime numbers.",
    "Explain recursion to a child.",
    "Translate 'good morning' into French.",
    "Who wrote Hamlet?",
    "List the planets.",
    "Write a Python function that adds two numbers.",
    "Why is the sky blue?",
    "Give me a recipe for bread.",
    "What is a monad?",
    "Summarise the story of Icarus.",
    "How do birds fly?",
    "Write a limerick about a cat.",
    "What does HTTP stand for?",
    "Describe the taste of salt.",
    "Count from ten to one.",
    "What is the capital of Peru?",
    "用一句话介绍你自己。",
]
TOKENS = 24
LONG = "MODELNET_ROUNDS" in os.environ
"""The long version: see test_faults.py."""
K = 20


def backend_of(engine: Engine, **settings: Any) -> VLLMBackend:
    return VLLMBackend(engine.model, VLLMSettings(urls=(engine.url,), api_key=KEY, **{**PATIENT, **settings}))


def decode(engine: Engine, prompt: str) -> tuple[list[int], list[dict[int, float]]]:
    """The engine's own greedy answer: its ids, and its own log-probabilities at every position, by id."""
    body = {
        "model": engine.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": K,
        "return_tokens_as_token_ids": True,
        "ignore_eos": True,
    }
    content = engine.post("/v1/chat/completions", body)["choices"][0]["logprobs"]["content"]

    def number(token: str) -> int:
        return int(token.removeprefix("token_id:"))

    ids = [number(entry["token"]) for entry in content]
    return ids, [{number(top["token"]): top["logprob"] for top in entry["top_logprobs"]} for entry in content]


@pytest.mark.parametrize("model", ["smol", "qwen"])
async def test_a_session_says_what_the_engine_says_alone(engines: dict[str, Engine], model: str) -> None:
    """Greedy: token for token, and the log-probabilities as vLLM itself reports them. 20 prompts; of the slower model a few."""
    backend = backend_of(engines[model])
    worst = 0.0
    for prompt in PROMPTS if model == "smol" or LONG else PROMPTS[-5:]:
        ids, listed = decode(engines[model], prompt)
        said = []
        async with backend.open([Message("user", prompt)], k=K) as session:
            top = await session.step()
            for theirs in listed:
                mine = dict(zip(top.ids.tolist(), top.logprobs.tolist(), strict=True))
                # By rank: bfloat16 makes many equal values, of which either may list others at its end. And by id.
                ranked = sorted(theirs.values(), reverse=True)[:K]
                worst = max(worst, *(abs(one - other) for one, other in zip(mine.values(), ranked, strict=True)))
                worst = max(worst, *(abs(mine[id] - theirs[id]) for id in mine.keys() & theirs.keys()))
                said.append(int(top.ids[0]))
                top = await session.step(said[-1:])
        assert said == ids
    assert worst < 1e-4
    await backend.aclose()


async def test_lookups_are_exact(engines: dict[str, Engine]) -> None:
    """Every token of the vocabulary, asked for one by one: together they are a distribution, and the list is its top."""
    backend = backend_of(engines["smol"])
    size = len(await backend.vocabulary())
    async with backend.open([Message("user", "Hello")], k=K) as session:
        for append in ((), (70,), (71, 72)):
            top = await session.step(append)
            found = await session.lookup(range(size))
            assert np.exp(found).sum() == pytest.approx(1.0, abs=1e-4)
            order = np.lexsort((np.arange(size), -found))[:K]
            np.testing.assert_array_equal(order, top.ids)
            np.testing.assert_array_equal(found[order], top.logprobs)
            rest = np.delete(found, order)
            assert np.exp(rest).sum() == pytest.approx(top.outside, rel=1e-3)
    await backend.aclose()


async def test_the_vocabulary_is_that_of_the_tokenizer_file(engines: dict[str, Engine]) -> None:
    """The door's table is what the gateway reads from the same model's tokenizer.json, and of one tokenizer the fingerprint."""
    import vllm_models

    from backends.openai_http.tokenizer_json import read_tokenizer_json

    for model, engine in engines.items():
        backend = backend_of(engine)
        theirs = await backend.vocabulary()
        mine = read_tokenizer_json(vllm_models.directory(model))
        assert theirs.tokens == mine.tokens
        assert theirs.end_ids == mine.end_ids
        if model == "smol":
            # transformers gives qwen's tokenizer a normalizer that its converted file lacks: another fingerprint, rightly.
            assert theirs.fingerprint == mine.fingerprint
        await backend.aclose()


@pytest.mark.parametrize("size", [1, 8])
async def test_a_draft_is_scored_as_it_is_stepped(engines: dict[str, Engine], size: int) -> None:
    backend = backend_of(engines["smol"])
    messages = [Message("user", "Write a long story about a river and its fish.")]
    async with backend.open(messages, k=K) as session:
        top = await session.step()
        draft, stepped = [], []
        for _ in range(size):
            draft.append(int(top.ids[0]))
            top = await session.step(draft[-1:])
            stepped.append(top)
    async with backend.open(messages, k=K) as session:
        await session.step()
        scored = await session.score(draft)
        for one, other in zip(stepped, scored, strict=True):
            mine = dict(zip(one.ids.tolist(), one.logprobs.tolist(), strict=True))
            theirs = dict(zip(other.ids.tolist(), other.logprobs.tolist(), strict=True))
            common = mine.keys() & theirs.keys()
            assert len(common) >= K - 4
            assert max(abs(mine[id] - theirs[id]) for id in common) < 0.5  # bfloat16, other matrix shapes
            assert abs(np.exp(one.logprobs[0]) - np.exp(other.logprobs[0])) < 0.05
    await backend.aclose()


async def test_rewinding_over_blocks_leaves_everybody_else_alone(engines: dict[str, Engine]) -> None:
    """Two sessions share a long prompt's blocks; one writes, goes back and writes otherwise. The other sees nothing of it,
    nor does a third that finds the blocks in the prefix cache."""
    backend = backend_of(engines["smol"])
    messages = [Message("user", "The quick brown fox jumps over the lazy dog. " * 40)]
    async with backend.open(messages, k=K) as alone:
        base = [await alone.step()]
        for id in range(100, 400, 2):
            base.append(await alone.step([id, id + 1]))
    async with backend.open(messages, k=K) as one, backend.open(messages, k=K) as other:
        await one.step()
        await other.step()
        for round_ in range(3):
            await one.step(list(range(100, 400)))
            await one.rewind(300 - 7 * round_)
            await one.step([5000 + round_] * 150)
            await one.rewind(150 + 7 * round_)
        tops = [await other.step([id, id + 1]) for id in range(100, 400, 2)]
        again = [await one.step([id, id + 1]) for id in range(100, 400, 2)]
        async with backend.open(messages, k=K) as third:
            await third.step()
            thirds = [await third.step([id, id + 1]) for id in range(100, 400, 2)]
    for found in (tops, again, thirds):
        for mine, theirs in zip(found, base[1:], strict=True):
            near(mine, theirs)
    await backend.aclose()


def near(one: TopK, other: TopK) -> None:
    mine = dict(zip(one.ids.tolist(), one.logprobs.tolist(), strict=True))
    theirs = dict(zip(other.ids.tolist(), other.logprobs.tolist(), strict=True))
    common = mine.keys() & theirs.keys()
    assert len(common) >= K - 5
    assert max(abs(mine[id] - theirs[id]) for id in common) < 0.6
    assert abs(np.exp(one.logprobs[0]) - np.exp(other.logprobs[0])) < 0.06


class Recorder:
    """A backend whose sessions remember what they were told, by the ids appended; `replay` gives it without any engine."""

    def __init__(self, behind: Any) -> None:
        self.behind = behind
        self.name: str = behind.name
        self.tops: dict[tuple[int, ...], TopK] = {}
        self.values: dict[tuple[tuple[int, ...], int], float] = {}
        self.prompt_tokens = 0
        self.kept: Vocabulary | None = None
        self.live = True

    async def vocabulary(self) -> Vocabulary:
        if self.kept is None:
            self.kept = await self.behind.vocabulary()
        return self.kept

    def stream(self, request: TextRequest) -> Any:
        return self.behind.stream(request)

    async def start(self) -> None: ...
    async def ready(self) -> None: ...
    async def aclose(self) -> None: ...

    @asynccontextmanager
    async def open(
        self, messages: Sequence[Message], *, k: int, max_tokens: int | None = None
    ) -> AsyncIterator[Session]:
        if not self.live:
            yield RecordedSession(self, None)
            return
        async with self.behind.open(messages, k=k, max_tokens=max_tokens) as session:
            self.prompt_tokens = session.prompt_tokens
            yield RecordedSession(self, session)


class RecordedSession:
    def __init__(self, owner: Recorder, session: Session | None) -> None:
        self.owner = owner
        self.session = session
        self.ids: tuple[int, ...] = ()

    @property
    def prompt_tokens(self) -> int:
        return self.owner.prompt_tokens

    async def step(self, append: Sequence[int] = ()) -> TopK:
        self.ids = (*self.ids, *append)
        if self.session is not None:
            self.owner.tops[self.ids] = await self.session.step(append)
        return self.owner.tops[self.ids]

    async def lookup(self, ids: Sequence[int]) -> LogProbs:
        if self.session is not None:
            found = await self.session.lookup(ids)
            self.owner.values |= {(self.ids, int(id)): float(v) for id, v in zip(ids, found, strict=True)}
        return np.array([self.owner.values[self.ids, int(id)] for id in ids])

    async def rewind(self, n: int) -> None:
        self.ids = self.ids[: len(self.ids) - n]
        if self.session is not None:
            await self.session.rewind(n)

    async def score(self, draft: Sequence[int]) -> list[TopK]:
        raise NotImplementedError

    async def close(self) -> None: ...


async def fused(wiring: str, backends: dict[str, Any], question: str, tokens: int = 40) -> str:
    catalog = Catalog({name: Entry(backend) for name, backend in backends.items()})
    options = Options(PromptSet("none"), sampling=Sampling(max_tokens=tokens, temperature=0.0), top_k=32)
    text = ""
    async with run(plan(parse(wiring).topology, catalog), [Message("user", question)], options, catalog) as events:
        async for event in events:
            if isinstance(event, Delta):
                text += event.text
    return text


@pytest.mark.parametrize("question", ["How do birds fly?", "Write a Python function that adds two numbers."])
async def test_two_engines_fused_are_the_same_fusion_offline(engines: dict[str, Engine], question: str) -> None:
    """Different tokenizers, over the wire; then again from what was recorded, without engines."""
    backends = {name: Recorder(backend_of(engine)) for name, engine in engines.items()}
    text = await fused("smol|qwen", backends, question)
    assert len(text) > 40
    for backend in backends.values():
        backend.live = False
    assert await fused("smol|qwen", backends, question) == text
    assert await fused("qwen|smol", backends, question) == text  # order never matters
    for backend in backends.values():
        await backend.behind.aclose()


@pytest.mark.parametrize("model", ["smol", "qwen"])
async def test_copies_of_one_model_say_what_it_says(engines: dict[str, Engine], model: str) -> None:
    backend = backend_of(engines[model])
    question = "Write a long story about a river and its fish."
    alone = ""
    async with backend.stream(
        TextRequest((Message("user", question),), Sampling(max_tokens=40, temperature=0.0))
    ) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                alone += event.text
    single = await fused(f"{model}*1|{model}*1", {model: backend}, question)
    assert single == alone
    assert await fused(f"{model}*3|{model}*1|{model}*0.5", {model: backend}, question) == alone
    await backend.aclose()


async def test_one_hot_weights_are_that_member(engines: dict[str, Engine]) -> None:
    backends = {name: backend_of(engine) for name, engine in engines.items()}
    question = "Name three prime numbers."
    for model in engines:
        other = next(name for name in engines if name != model)
        alone = await fused(f"{model}|{model}", backends, question)
        assert await fused(f"{model}*999999999|{other}*0.000000001", backends, question) == alone
    for backend in backends.values():
        await backend.aclose()
