"""Prompts that are no conversation, on real weights: read as they are, and scored token by token."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from test_llama_cpp import QUESTION, greedy, running, text_of

from backends.protocol import RawBackend
from backends.raw import raw_prompt
from strategies.engine.scoring import score_prompt

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.models,
    pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="the extra 'embedded' is not installed"),
]


async def test_the_ids_of_a_conversation_are_that_conversation() -> None:
    """As text and as distributions: nothing is put around them."""
    async with running() as backend:
        assert isinstance(backend, RawBackend)
        ids = await backend.render(QUESTION)
        assert await text_of(backend, raw_prompt(ids)) == await text_of(backend, QUESTION)
        async with backend.open(QUESTION, k=5) as told, backend.open(raw_prompt(ids), k=5) as raw:
            assert raw.prompt_tokens == told.prompt_tokens == len(ids)
            one, other = await told.step(), await raw.step()
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_array_equal(one.logprobs, other.logprobs)


async def test_texts_are_encoded_whole() -> None:
    """Control tokens are recognised, and the text comes back."""
    async with running() as backend:
        vocabulary = await backend.vocabulary()
        ids = await backend.encode("<|im_start|>user\nHi 你好<|im_end|>")
        assert vocabulary.tokens[ids[0]] == vocabulary.tokens[ids[-1]] == b""
        assert b"".join(vocabulary.tokens[id] for id in ids).decode() == "user\nHi 你好"
        assert await backend.context_size() == 1024


async def test_a_model_with_a_beginning_gets_it_once() -> None:
    async with running("gemma") as backend:
        with_start, without = await backend.encode("Once upon"), await backend.encode("Once upon", special=False)
        assert with_start[1:] == without
        assert (await backend.vocabulary()).tokens[with_start[0]] == b""
        text, _ = await text_of(backend, raw_prompt(with_start), max_tokens=8)
        assert text


async def test_a_scored_text_has_the_models_own_numbers() -> None:
    """What the model would have written greedily has the probabilities with which it would have."""
    async with running() as backend:
        ids = await backend.encode("The capital of France is")
        async with backend.open(raw_prompt(ids), k=3) as session:
            written = await greedy(session, 5)
        scored = (await score_prompt(backend, [*ids, *(id for id, _ in written)], 3)).tokens
        assert len(scored) == len(ids) + 5
        for token, (_, top) in zip(scored[len(ids) :], written, strict=True):
            assert token.logprob == float(top.logprobs[0])
            assert token.top[0] == (token.text, token.logprob)
        assert all(token.logprob < 0 for token in scored[1:])
