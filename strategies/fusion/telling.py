"""What is told about a piece beside the piece: log-probabilities of the pooled distribution, and what each member thought."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from heapq import nlargest

from strategies.fusion.base import Detail
from strategies.fusion.meters import Certificate
from strategies.fusion.readings import View

LEAST = -9999.0
"""Told for a probability of zero: OpenAI's number for a token that is not among the likeliest."""
SPARE = 8
"""More of the likeliest pieces than are told are looked up: their order may change by it."""

More = tuple[Mapping[int, float], bool]
"""As `Readings.weigh` gives it."""
NO_MORE: More = ({}, True)


def nats(probability: float) -> float:
    """The natural logarithm, and LEAST of zero."""
    return max(LEAST, math.log(probability)) if probability > 0.0 else LEAST


def worth_telling(
    scores: Mapping[int, float], pieces: Sequence[bytes], ends: Collection[int], winner: int, top: int
) -> list[int]:
    """The winner and the likeliest pieces of text."""
    text = [(p, -piece) for piece, p in scores.items() if pieces[piece] and piece not in ends] if top else []
    return list(dict.fromkeys([winner, *(-piece for _, piece in nlargest(top + SPARE, text))]))


def probability(view: View, more: More, piece: int) -> float:
    """A member's probability of a piece, with what was looked up for the telling."""
    added, outside = more
    total = view.seen + view.fresh + (0.0 if outside else sum(added.values()))
    mass = view.masses.get(piece, 0.0) + added.get(piece, 0.0)
    return mass / total if total > 0.0 else 0.0


def favourites(
    views: Sequence[View], numbers: Sequence[int], winner: int, name: Callable[[int], bytes]
) -> tuple[tuple[int, bytes, float], ...]:
    """Members whose likeliest piece is another one: (member, its bytes, its own probability of it)."""
    others = []
    for number, view in zip(numbers, views, strict=True):
        if view.masses:
            piece = min(view.masses, key=lambda v: (-view.masses[v], v))
            if piece != winner:
                others.append((number, name(piece), probability(view, NO_MORE, piece)))
    return tuple(others)


def detail(
    told: Mapping[int, float],
    winner: int,
    top: int,
    certificate: Certificate,
    name: Callable[[int], bytes],
    members: tuple[float | None, ...] = (),
    others: tuple[tuple[int, bytes, float], ...] = (),
) -> Detail:
    """told: pooled probabilities of the pieces worth telling."""
    ranked = sorted(((p, piece) for piece, p in told.items() if name(piece)), key=lambda x: (-x[0], x[1]))[:top]
    listed = tuple((name(piece), nats(p)) for p, piece in ranked)
    return Detail(nats(told.get(winner, 0.0)), certificate, listed, members, others)
