"""What the engine does with every token of an answer: log-probabilities, biases and penalties, records, fusers by name."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from backends.catalog import Catalog, Entry
from backends.errors import RequestRejected
from backends.fake import FakeBackend, FakeSettings
from backends.protocol import WideningSession
from backends.types import Message, Sampling
from strategies.engine import Options, run
from strategies.engine.events import Delta, Event, Finished, Recorded
from strategies.fusion import FuserError
from strategies.planning.planner import plan
from strategies.prompting import PromptSet
from strategies.topology import parse

pytestmark = pytest.mark.anyio

PROMPTS = PromptSet.from_mapping("test", {"default": {"solver": "", "reviewer": "{answer}", "verifier": "{answer}"}})
ASK = [Message("user", "Hi")]


class Group:
    """Fake models, and what a run of them tells."""

    def __init__(self, **settings: FakeSettings) -> None:
        self.backends = {name: FakeBackend(name, value) for name, value in settings.items()}
        self.catalog = Catalog(
            {
                name: Entry(backend, why_not_fused=None if settings[name].sessions else "it streams text only")
                for name, backend in self.backends.items()
            }
        )

    async def events(self, wiring: str, **options: Any) -> list[Event]:
        made = plan(parse(wiring).topology, self.catalog)
        try:
            async with run(made, ASK, Options(prompts=PROMPTS, **options), self.catalog) as events:
                return [event async for event in events]
        finally:
            assert all(backend.counters.sessions == 0 for backend in self.backends.values())

    async def answer(self, wiring: str, **options: Any) -> str:
        events = await self.events(wiring, **options)
        last = next(event for event in events if isinstance(event, Finished)).stages[-1].stage
        return "".join(event.text for event in events if isinstance(event, Delta) and event.stage == last)


def said(text: str, **settings: Any) -> FakeSettings:
    return FakeSettings(answer=text, **settings)


async def distribution(backend: FakeBackend, answer: bytes) -> np.ndarray:
    """What a fake model thinks after a beginning of its answer, over its whole vocabulary."""
    prompt = backend.model.render(ASK)
    return backend.model.distribution([*prompt, *backend.model.encode(answer)])


@pytest.mark.parametrize("wiring", ["a", "a|b", "a|c", "a>b|c", "b>a"])
@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(stop=("thr",)), Sampling(max_tokens=3), Sampling(temperature=1.0, seed=5)]
)
async def test_tokens_join_exactly_to_the_text(wiring: str, sampling: Sampling) -> None:
    text = "one 中国 👍 three four 🇨🇳."
    group = Group(
        a=said(text, confidence=0.8),
        b=said(text, seed=1, confidence=0.7),
        c=said(text, words=(" th", "中"), confidence=0.7),
    )
    events = await group.events(wiring, sampling=sampling, logprobs=3)
    plain = await group.answer(wiring, sampling=sampling)
    last = max(event.stage for event in events if isinstance(event, Delta))
    deltas = [event for event in events if isinstance(event, Delta) and event.stage == last]
    if "|" in wiring or not sampling.temperature:  # a scripted model's own stream knows no temperature
        assert "".join(delta.text for delta in deltas) == plain  # asking for log-probabilities changes nothing
    for delta in deltas:
        assert b"".join(token.text for token in delta.tokens).decode("utf-8", "replace") == delta.text
    tokens = [token for delta in deltas for token in delta.tokens]
    assert tokens
    for token in tokens:
        assert token.logprob <= 0.0
        assert 0 < len(token.top) <= 3
        assert all(text for text, _ in token.top)
        assert [nats for _, nats in token.top] == sorted((nats for _, nats in token.top), reverse=True)
    assert not any(event.tokens for event in events if isinstance(event, Delta) and event.stage != last)


@pytest.mark.parametrize("wiring", ["a", "a*3|b"])
@pytest.mark.parametrize(
    "shaped", [{}, {"temperature": 0.3, "seed": 1}, {"presence_penalty": 1.0}, {"logit_bias": {65: -3.0}}]
)
async def test_log_probabilities_are_those_of_the_pool_before_anything_shapes_it(wiring: str, shaped: Any) -> None:
    """Exact: looked up where the lists of two tokens do not have them."""
    group = Group(a=said("one two three", confidence=0.5), b=said("one three two", seed=4, confidence=0.4))
    events = await group.events(wiring, sampling=Sampling(max_tokens=5, **shaped), logprobs=2, top_k=2)
    weights = {"a": 1.0} if wiring == "a" else {"a": 0.75, "b": 0.25}
    text, tokens = b"", group.backends["a"].model.vocabulary.tokens
    for token in (token for event in events if isinstance(event, Delta) for token in event.tokens):
        parts = [w * await distribution(group.backends[name], text) for name, w in weights.items()]
        pooled = np.sum(parts, axis=0)
        for written, nats in ((token.text, token.logprob), *token.top):
            assert math.isclose(nats, math.log(pooled[tokens.index(written)]), abs_tol=1e-9)
        text += token.text
    assert text


async def test_ids_that_have_no_common_meaning_are_refused_before_anything_runs() -> None:
    group = Group(a=said("one"), b=said("one", words=("one",)), c=said("one", sessions=False))
    bias = Sampling(logit_bias={65: -100.0})
    with pytest.raises(RequestRejected, match="different tokenizers") as caught:
        await group.events("c>a|b", sampling=bias)
    assert caught.value.param == "logit_bias"
    with pytest.raises(RequestRejected, match="ids of a are 0 to"):
        await group.events("a", sampling=Sampling(logit_bias={10**6: 1.0}))
    with pytest.raises(RequestRejected, match="can't be honoured by model 'c'"):
        await group.events("a>c", logprobs=0)
    with pytest.raises(FuserError, match="no fuser of the name 'mean'"):
        await group.events("c>a|b", fuser="mean")
    assert sum(backend.counters.opened for backend in group.backends.values()) == 0
    assert await group.answer("a|b>a", sampling=bias)  # where one model writes the answer its ids are meant


@pytest.mark.parametrize("wiring", ["a", "a|b"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_a_bias_bans_and_forces_tokens(wiring: str, temperature: float) -> None:
    group = Group(a=said("Hello there"), b=said("Hello there", seed=3))
    model = group.backends["a"].model
    (token,), sampling = model.encode(b"Hello"), Sampling(temperature=temperature, seed=7, max_tokens=4)
    ban, force = {token: -100.0}, {model.encode(b"X")[0]: 100.0}
    assert not (await group.answer(wiring, sampling=Sampling(**{**fields(sampling), "logit_bias": ban}))).startswith(
        "Hello"
    )
    assert await group.answer(wiring, sampling=Sampling(**{**fields(sampling), "logit_bias": force})) == "XXXX"


def fields(sampling: Sampling) -> dict[str, Any]:
    return {name: getattr(sampling, name) for name in Sampling.__dataclass_fields__}


async def test_penalties_hold_for_pieces_of_the_answer() -> None:
    """A model that would say the same for ever: a presence penalty makes every piece but the first ones rarer, a reward the opposite."""
    group = Group(a=said("no " * 20, confidence=0.5), b=said("no " * 20, confidence=0.5, seed=2))
    free = await group.answer("a|b", sampling=Sampling(max_tokens=12))
    tired = await group.answer("a|b", sampling=Sampling(max_tokens=12, frequency_penalty=2.0))
    assert free.count("no") > tired.count("no") > 0


@pytest.mark.parametrize("fuser", ["linear", "geometric", "gated", "entropy-weighted", "union-top-k"])
async def test_a_record_tells_how_every_piece_came_about(fuser: str) -> None:
    group = Group(a=said("one two", confidence=0.6), b=said("one six", words=("one", " six"), confidence=0.6))
    events = await group.events("a|b", fuser=fuser, record=True)
    records = [event for event in events if isinstance(event, Recorded)]
    end = next(event for event in events if isinstance(event, Finished))
    assert end.stages[0].meters is not None
    assert len(records) == end.stages[0].meters.pieces
    assert [record.piece for record in records] == list(range(len(records)))
    text = b"".join(record.text for record in records)
    assert text.decode() == "".join(event.text for event in events if isinstance(event, Delta))
    assert records[-1].text == b""
    for record in records:
        assert len(record.members) == 2
        assert all(p is None or 0.0 <= p <= 1.0 for p in record.members)
        assert all(piece != record.text and 0 < p <= 1 for _, piece, p in record.others)
    assert any(record.others for record in records) or fuser == "gated"
    assert sum(record.certificate == "certified" for record in records) == end.stages[0].meters.certified
    assert not [event for event in await group.events("a|b", fuser=fuser) if isinstance(event, Recorded)]


async def test_a_gated_group_leaves_the_others_alone_where_the_first_is_sure() -> None:
    sure, unsure = (
        said("one two three four five", confidence=0.97),
        said("one two three four five", seed=1, confidence=0.97),
    )
    group = Group(a=sure, b=unsure)
    linear = (await group.events("a*2|b"))[-1]
    spent = group.backends["b"].counters.passes
    gated = (await group.events("a*2|b", fuser="gated:threshold=0.6"))[-1]
    assert isinstance(linear, Finished)
    assert isinstance(gated, Finished)
    assert gated.stages[0].meters is not None
    assert linear.stages[0].meters is not None
    assert group.backends["b"].counters.passes - spent < spent / 2
    assert gated.stages[0].meters.saved > 0
    assert gated.stages[0].meters.passes + gated.stages[0].meters.saved == linear.stages[0].meters.passes


@pytest.mark.parametrize(("top_k", "times"), [(2, 3), (64, 0)])
async def test_lists_grow_where_certificates_fail_often(top_k: int, times: int) -> None:
    """Up to eight times what was asked for; the same text, and in the end most steps are certain from the lists alone."""
    text = "one two three four five six seven " * 8
    group = Group(a=said(text, confidence=0.3), b=said(text, confidence=0.3, words=(" tw", "fo")))
    end = (await group.events("a|b", top_k=top_k))[-1]
    assert isinstance(end, Finished)
    meters = end.stages[0].meters
    assert meters is not None
    assert meters.pieces > 16 * 4
    assert meters.widened == times
    assert await group.answer("a|b", top_k=top_k) == text
    (baseline,) = [e for e in await group.events("a|b", top_k=top_k, fuser="union-top-k") if isinstance(e, Finished)]
    assert baseline.stages[0].meters is not None
    assert baseline.stages[0].meters.widened == 0


async def test_a_session_can_list_more_than_it_was_opened_for() -> None:
    backend = FakeBackend("a", FakeSettings(max_k=12))
    async with backend.open(ASK, k=4) as session:
        assert isinstance(session, WideningSession)
        assert len((await session.step(())).ids) == 4
        session.widen(10)
        assert len((await session.step([65])).ids) == 10
        session.widen(3)
        assert len((await session.step([65])).ids) == 10
        session.widen(100)
        assert len((await session.step([65])).ids) == 12
