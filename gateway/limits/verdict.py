"""What a request asks of its key's limits, and what it is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gateway.keys.key import Rights
from gateway.limits.bucket import UNIT

Reason = Literal["requests", "tokens", "too_large", "concurrency", "budget", "budget_held"]
"""too_large: more tokens than a whole minute allows. budget_held: what is left of the budget is held by running requests."""


@dataclass(frozen=True, slots=True)
class Ask:
    """tokens, nano: what a request may spend, estimated: tokens of all stages and members, and billionths of the currency."""

    tokens: int = 0
    nano: int = 0

    def of(self, unit: str) -> int:
        """In a budget's unit."""
        return self.tokens if unit == "tokens" else self.nano


@dataclass(frozen=True, slots=True)
class Reading:
    """A limit per minute, what is left of it now, and the seconds until all of it is there again."""

    limit: int
    remaining: int
    reset: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """refused: why, None if admitted. wait: seconds after which asking again makes sense."""

    refused: Reason | None = None
    wait: float = 0.0
    requests: Reading | None = None
    tokens: Reading | None = None


@dataclass(frozen=True, slots=True)
class Levels:
    """Both buckets as they are now, in units, and the tokens held."""

    requests: int
    tokens: int
    held: int


def verdict(rights: Rights, refused: Reason | None, wait: int, levels: Levels) -> Verdict:
    """As clients are told. wait: microseconds."""
    requests = _reading(rights.requests_per_minute, levels.requests, 0)
    tokens = _reading(rights.tokens_per_minute, levels.tokens, levels.held)
    return Verdict(refused, wait / 1e6, requests, tokens)


def _reading(limit: int | None, level: int, held: int) -> Reading | None:
    if limit is None:
        return None
    remaining = max(0, limit - held - -(-level // UNIT))
    return Reading(limit, remaining, (level + held * UNIT) / limit / 1e6)
