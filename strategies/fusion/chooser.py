"""Picks one piece of a pooled distribution."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Protocol

from backends.types import Sampling


class Chooser(Protocol):
    """Greedy or random. `certain` tells whether a certificate of the winner has a meaning."""

    certain: bool

    def choose(self, scores: Mapping[int, float]) -> int:
        """A key of `scores` (piece id → pooled probability; at least one entry)."""
        ...


class Greedy:
    """The likeliest piece; ties go to the smaller id, which is the order of bytes."""

    certain = True

    def choose(self, scores: Mapping[int, float]) -> int:
        best = max(scores.values())
        return min([piece for piece, value in scores.items() if value == best])


class Sampler:
    """Draws with a temperature, then from the smallest set whose mass reaches top_p (nucleus), with a seed of its own.

    Pieces that no member listed can't be drawn. The same seed and the same distributions give the same piece.
    """

    certain = False

    def __init__(self, temperature: float, top_p: float, seed: int | None) -> None:
        if temperature <= 0 or not 0 < top_p <= 1:
            raise ValueError("temperature must be positive and top_p in (0, 1]")
        self._power = 1.0 / temperature
        self._top_p = top_p
        self._random = random.Random(seed)

    def choose(self, scores: Mapping[int, float]) -> int:
        ranked = sorted(((value, piece) for piece, value in scores.items() if value > 0), key=lambda x: (-x[0], x[1]))
        if not ranked:
            return min(scores)
        top = ranked[0][0]  # scaled by it, so that a low temperature does not underflow
        heat = [(value / top) ** self._power for value, _ in ranked]
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
    if not sampling.temperature:
        return Greedy()
    return Sampler(sampling.temperature, 1.0 if sampling.top_p is None else max(sampling.top_p, 1e-9), sampling.seed)
