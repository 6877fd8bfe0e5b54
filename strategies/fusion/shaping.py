"""Penalties and biases on a pooled distribution, with OpenAI's semantics, in pieces.

Formula. log P'(v) = log P(v) + bias(v) − frequency · count(v) − presence · [count(v) > 0], count(v) being how often the answer has said
piece v so far (the prompt is not counted; nor is the end). So the shaped score of a piece is its pooled probability times a factor
that is known exactly, and every bound of the probability times that factor is a bound of the score: certificates carry over.

The result is not scaled to one: neither the largest score nor a draw asks for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

STRONGEST = 250.0
"""Nats. A factor reaches no further either way, so that no score leaves the range of a float."""
BAN = -100.0
"""A bias of this or less forbids a piece altogether."""


class Shaping:
    """The factors of one answer. Keys are piece ids; a fuser that numbers its pieces otherwise makes them its own by `renamed`."""

    __slots__ = ("_bias", "_counts", "_frequency", "_presence")

    def __init__(self, frequency: float = 0.0, presence: float = 0.0, bias: Mapping[int, float] | None = None) -> None:
        self._frequency = frequency
        self._presence = presence
        self._bias = dict(bias or {})
        self._counts: dict[int, int] = {}

    def renamed(self, name: Callable[[int], int]) -> Shaping:
        """The same with its biases keyed by `name(id)`; nothing said yet."""
        return Shaping(self._frequency, self._presence, {name(piece): value for piece, value in self._bias.items()})

    def said(self, piece: int) -> None:
        """The answer goes on with this piece."""
        self._counts[piece] = self._counts.get(piece, 0) + 1

    def factor(self, piece: int) -> float:
        """What the piece's probability is multiplied by; 0.0: it is banned."""
        nats = bias = self._bias.get(piece, 0.0)
        if bias <= BAN:
            return 0.0
        if count := self._counts.get(piece, 0):
            nats -= self._frequency * count + self._presence
        return math.exp(max(-STRONGEST, min(STRONGEST, nats))) if nats else 1.0

    def apply(self, scores: Mapping[int, float]) -> dict[int, float]:
        """The shaped scores; banned pieces are left out."""
        shaped = dict(scores)
        for piece in (*self._bias, *self._counts):
            if piece in shaped:
                factor = self.factor(piece)
                if factor:
                    shaped[piece] = scores[piece] * factor
                else:
                    del shaped[piece]
        return shaped

    def raised(self) -> list[int]:
        """Pieces with a factor above one: those that may win though no list has them."""
        touched = dict.fromkeys((*self._bias, *self._counts)) if self._negative() else self._bias
        return [piece for piece in touched if self.factor(piece) > 1.0]

    def wanted(self) -> list[int]:
        """Pieces that were raised by name: their exact values are worth a look-up wherever they are not listed."""
        return [piece for piece, value in self._bias.items() if value > 0.0]

    def _negative(self) -> bool:
        return self._frequency < 0.0 or self._presence < 0.0
