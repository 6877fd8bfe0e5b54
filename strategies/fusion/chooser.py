"""Picks one piece of a pooled distribution."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Protocol

from backends.types import Sampling
from strategies.fusion.shaping import Shaping


class Chooser(Protocol):
    """Greedy or random. `certain` tells whether a certificate of the winner has a meaning.

    shaping: what the fuser multiplies its scores by before they come here; None: nothing.
    """

    certain: bool
    shaping: Shaping | None

    def choose(self, scores: Mapping[int, float]) -> int:
        """A key of `scores` (piece id → pooled probability, shaped; at least one entry). Called once per piece if it is random."""
        ...


class Greedy:
    """The likeliest piece; ties go to the smaller id, which is the order of bytes."""

    certain = True

    def __init__(self, shaping: Shaping | None = None) -> None:
        self.shaping = shaping

    def choose(self, scores: Mapping[int, float]) -> int:
        best = max(scores.values())
        return min([piece for piece, value in scores.items() if value == best])


class Sampler:
    """Draws with a temperature, then from the pieces that reach min_p times the likeliest one, then from the smallest set of them
    whose mass reaches top_p (nucleus), with a seed of its own.

    Pieces that no member listed can't be drawn. The same seed and the same distributions give the same piece.
    """

    certain = False

    def __init__(
        self,
        temperature: float,
        top_p: float,
        seed: int | None,
        min_p: float = 0.0,
        shaping: Shaping | None = None,
    ) -> None:
        if temperature <= 0 or not 0 < top_p <= 1:
            raise ValueError("temperature must be positive and top_p in (0, 1]")
        if not 0 <= min_p <= 1:
            raise ValueError("min_p must be in [0, 1]")
        self.shaping = shaping
        self._power = 1.0 / temperature
        self._top_p = top_p
        self._min_p = min_p
        self._random = random.Random(seed)

    def choose(self, scores: Mapping[int, float]) -> int:
        ranked = sorted(((value, piece) for piece, value in scores.items() if value > 0), key=lambda x: (-x[0], x[1]))
        if not ranked:
            return min(scores)
        top = ranked[0][0]  # scaled by it, so that a low temperature does not underflow
        heat = [(value / top) ** self._power for value, _ in ranked]  # descending, the first is 1
        if self._min_p:
            heat = [value for value in heat if value >= self._min_p]
        room = self._top_p * sum(heat)
        kept, mass = 0, 0.0
        while kept < len(heat) and (mass < room or kept == 0):
            mass += heat[kept]
            kept += 1
        mark = self._random.random() * mass
        for value, (_, piece) in zip(heat[:kept], ranked, strict=False):
            mark -= value
            if mark < 0:
                return piece
        return ranked[kept - 1][1]


def chooser_for(sampling: Sampling) -> Chooser:
    """Greedy without a temperature or at zero (the source paper's choice for fused stages)."""
    shaping = None
    if sampling.frequency_penalty or sampling.presence_penalty or sampling.logit_bias:
        shaping = Shaping(sampling.frequency_penalty or 0.0, sampling.presence_penalty or 0.0, sampling.logit_bias)
    if not sampling.temperature:
        return Greedy(shaping)
    top_p = 1.0 if sampling.top_p is None else max(sampling.top_p, 1e-9)
    return Sampler(sampling.temperature, top_p, sampling.seed, sampling.min_p or 0.0, shaping)
