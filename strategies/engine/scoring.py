"""How likely one model finds a text that is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from backends.protocol import TokenBackend
from backends.raw import raw_prompt
from backends.types import TokenLogprob, TopK, Vocabulary


@dataclass(frozen=True, slots=True)
class Scored:
    """tokens: of the text. end: that the text is over behind them: all end tokens together, without bytes."""

    tokens: tuple[TokenLogprob, ...]
    end: TokenLogprob


async def score_prompt(backend: TokenBackend, ids: Sequence[int], top: int) -> Scored:
    """Every token of a raw prompt with its log-probability (nats) behind those before it, and the `top` likeliest in its place.

    Nothing is known of the first one: its log-probability stands as 0. One forward pass a token, as when the model writes: scored in one
    pass, a quantised model gives other last digits. Raises as `TokenBackend.open` and `Session.step`; CapabilityMissing where single
    tokens can't be looked up.
    """
    vocabulary = await backend.vocabulary()
    scored = [TokenLogprob(vocabulary.tokens[ids[0]], 0.0)]
    async with backend.open(raw_prompt(ids[:1]), k=max(1, top), max_tokens=len(ids)) as session:
        listed = await session.step()
        for id in ids[1:]:
            (logprob,) = await session.lookup([id])
            scored.append(TokenLogprob(vocabulary.tokens[id], float(logprob), _likeliest(listed, top, vocabulary)))
            listed = await session.step([id])
        ends = await session.lookup(sorted(vocabulary.end_ids))
    end = TokenLogprob(b"", float(np.logaddexp.reduce(ends)), _likeliest(listed, top, vocabulary))
    return Scored(tuple(scored), end)


def _likeliest(listed: TopK, top: int, vocabulary: Vocabulary) -> tuple[tuple[bytes, float], ...]:
    """Control tokens have no text that could be told."""
    pairs = zip(listed.ids[:top].tolist(), listed.logprobs[:top].tolist(), strict=True)
    return tuple((text, logprob) for id, logprob in pairs if (text := vocabulary.tokens[id]))
