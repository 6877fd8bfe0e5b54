"""What tokens cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache

from gateway.keys.key import NANO

PER = 1_000_000
"""Prices are for so many tokens."""


@dataclass(frozen=True, slots=True)
class Price:
    """Of a model, in the currency, per million tokens read and written."""

    prompt: float = 0.0
    completion: float = 0.0


@dataclass(frozen=True, slots=True)
class Prices:
    """A model without a price costs nothing. currency: a label, e.g. USD."""

    currency: str = "USD"
    models: Mapping[str, Price] = field(default_factory=dict)

    def nano(self, model: str, prompt_tokens: int, completion_tokens: int) -> int:
        """Billionths of the currency, rounded up: parts never add up to less than they are."""
        price = self.models.get(model)
        if price is None:
            return 0
        return -(-(_scaled(price.prompt) * prompt_tokens + _scaled(price.completion) * completion_tokens) // _SCALE)

    def total(self, spent: Iterable[tuple[str, int, int]]) -> int:
        """Of (model, tokens read, tokens written), in billionths."""
        return sum(self.nano(*part) for part in spent)


_SCALE = 1_000_000


@lru_cache(maxsize=1024)
def _scaled(price: float) -> int:
    """Millionths of a billionth per token. As written in the configuration: 0.1 is a tenth, not the double next to it."""
    return round(Fraction(repr(price)) * NANO * _SCALE / PER)
