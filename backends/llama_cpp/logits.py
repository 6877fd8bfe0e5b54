"""From a row of logits to what is asked of it: top-k, exact values, a drawn token. Runs in the worker's thread.

All of it works on a threshold: candidates are the entries within some distance of the largest, and only they are sorted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from backends.types import Ids, LogProbs, Sampling, TopK

Logits = NDArray[np.float32]
"""One row, float32 [vocabulary size]. May hold -inf, never NaN."""


class Row:
    """A distribution: its logits, and the logarithm of the sum of their exponentials (float64)."""

    __slots__ = ("_log_total", "_peak", "_weights", "logits")

    def __init__(self, logits: Logits) -> None:
        """logits: float32 [V]; kept, so hand over a copy of what will change."""
        self.logits = logits
        self._peak = float(logits.max())
        weights = logits.astype(np.float64)
        weights -= self._peak
        np.exp(weights, out=weights)
        self._weights: NDArray[np.float64] | None = weights
        self._log_total = float(np.log(weights.sum()))

    def logprobs(self, ids: Ids) -> LogProbs:
        """Log-probabilities of `ids`, float64 [n], nats."""
        return (self.logits[ids].astype(np.float64) - self._peak) - self._log_total

    def top(self, k: int) -> TopK:
        """The k likeliest, k >= 1. Call it once: it uses up the exponentials."""
        weights, self._weights = self._weights, None
        if weights is None:
            raise RuntimeError("a row gives its top once")
        ids = largest(self.logits, k)
        if len(ids) == len(weights):
            outside = 0.0
        else:
            weights[ids] = 0.0  # not "all minus listed": a small rest would drown in rounding
            outside = float(weights.sum()) * float(np.exp(-self._log_total))
        return TopK(ids, self.logprobs(ids), min(1.0, outside))


def largest(logits: Logits, k: int) -> Ids:
    """Ids of the k largest entries, int32 [min(k, V)], descending; ties: the smaller id first."""
    k = min(k, len(logits))
    candidates = np.flatnonzero(logits >= _threshold(logits, k))
    order = np.lexsort((candidates, -logits[candidates]))[:k]
    return candidates[order].astype(np.int32)


def _threshold(logits: Logits, k: int) -> np.float32:
    """A value that at least k entries reach, and not many more."""
    peak = logits.max()
    for distance in (4.0, 8.0, 14.0):
        threshold = np.float32(peak - distance)
        if k <= np.count_nonzero(logits >= threshold) <= 2048 + 4 * k:
            return threshold
    found: np.float32 = np.partition(logits, len(logits) - k)[len(logits) - k]
    return found


class Draw:
    """Draws one token after another by the rules of a request. Remembers what it drew, for the penalties."""

    def __init__(self, sampling: Sampling, temperature: float, top_p: float) -> None:
        """temperature, top_p: what counts where the request says nothing."""
        self._temperature = temperature if sampling.temperature is None else sampling.temperature
        self._top_p = top_p if sampling.top_p is None else sampling.top_p
        self._frequency = sampling.frequency_penalty or 0.0
        self._presence = sampling.presence_penalty or 0.0
        seed = sampling.seed
        self._random = np.random.Generator(np.random.PCG64(None if seed is None else seed % 2**64))
        self._drawn: dict[int, int] = {}

    def __call__(self, logits: Logits) -> int:
        """The next id. logits: float32 [V], not changed."""
        if self._frequency or self._presence:
            logits = self._penalised(logits)
        if self._temperature <= 0 or self._top_p <= 0:
            id = int(logits.argmax())
        else:
            id = self._drawn_from(logits)
        self._drawn[id] = self._drawn.get(id, 0) + 1
        return id

    def _penalised(self, logits: Logits) -> Logits:
        if not self._drawn:
            return logits
        logits = logits.copy()
        ids = np.fromiter(self._drawn.keys(), np.int64)
        counts = np.fromiter(self._drawn.values(), np.float64)
        logits[ids] -= (counts * self._frequency + self._presence).astype(np.float32)
        return logits

    def _drawn_from(self, logits: Logits) -> int:
        scaled = logits.astype(np.float64)
        scaled -= scaled.max()
        scaled /= self._temperature
        weights = np.exp(scaled, out=scaled)
        if self._top_p >= 1:
            return _pick(weights, self._random.random())
        ids = _nucleus(logits, weights, self._top_p)
        return int(ids[_pick(weights[ids], self._random.random())])


def _nucleus(logits: Logits, weights: NDArray[np.float64], top_p: float) -> Ids:
    """The fewest likeliest ids whose weights reach the share `top_p` of all."""
    wanted = top_p * weights.sum()
    k = 64
    while True:
        ids = largest(logits, k)
        reached = weights[ids].cumsum()
        if reached[-1] >= wanted or len(ids) == len(logits):
            return ids[: int(np.searchsorted(reached, wanted)) + 1]
        k *= 8


def _pick(weights: NDArray[np.float64], share: float) -> int:
    """The index at which the running sum of the weights passes `share` (in [0, 1)) of the whole."""
    running = weights.cumsum()
    return min(int(np.searchsorted(running, share * running[-1], side="right")), len(weights) - 1)
