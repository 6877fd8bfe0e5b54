"""What counts of right answers say, and what they don't.

All tests are exact or by resampling with a seed, so that no table of a distribution is needed; p-values of resampling are (b+1)/(n+1)
and never zero. Everything that compares two wirings is *paired*: both were asked the same questions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959963984540054
RESAMPLES = 4000


def wilson(right: int, asked: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a share (E. B. Wilson 1927); z = 1.96 gives 95 %. (0, 1) if nothing was asked."""
    if asked == 0:
        return 0.0, 1.0
    share, square = right / asked, z * z
    centre = share + square / (2 * asked)
    spread = z * math.sqrt(share * (1 - share) / asked + square / (4 * asked * asked))
    whole = 1 + square / asked
    # At the ends they are equal, up to rounding.
    low = 0.0 if right == 0 else max(0.0, (centre - spread) / whole)
    return low, 1.0 if right == asked else min(1.0, (centre + spread) / whole)


def newcombe(right_a: int, asked_a: int, right_b: int, asked_b: int) -> tuple[float, float]:
    """95 % interval of the difference of two shares from *different* samples (R. G. Newcombe 1998, method 10)."""
    (low_a, high_a), (low_b, high_b) = wilson(right_a, asked_a), wilson(right_b, asked_b)
    a, b = right_a / asked_a, right_b / asked_b
    return (
        a - b - math.hypot(a - low_a, high_b - b),
        a - b + math.hypot(high_a - a, b - low_b),
    )


@dataclass(frozen=True, slots=True)
class Paired:
    """Two wirings on the same questions. only_a: right by a alone. p: McNemar's test, exact, two-sided.

    low, high: 95 % interval of the difference of their shares, a - b (`newcombe_paired`).
    """

    both: int
    only_a: int
    only_b: int
    neither: int
    p: float
    difference: float
    low: float
    high: float

    @property
    def asked(self) -> int:
        return self.both + self.only_a + self.only_b + self.neither


def paired(a: Sequence[bool], b: Sequence[bool]) -> Paired:
    """a[i] and b[i] answer the same question."""
    left, right = np.asarray(a, dtype=np.int64), np.asarray(b, dtype=np.int64)
    both, only_a = int((left & right).sum()), int((left & (1 - right)).sum())
    only_b = int(((1 - left) & right).sum())
    neither = len(left) - both - only_a - only_b
    low, high = newcombe_paired(both, only_a, only_b, neither)
    difference = float((left - right).mean()) if len(left) else 0.0
    return Paired(both, only_a, only_b, neither, mcnemar(only_a, only_b), difference, low, high)


def newcombe_paired(both: int, only_a: int, only_b: int, neither: int) -> tuple[float, float]:
    """95 % interval of the difference of two shares of the *same* questions (R. G. Newcombe 1998, paired data, method 10).

    Wilson's intervals of both shares, joined by how much the two go together. Unlike resampling it keeps a width where the two never
    differed: a handful of questions without a difference shows nothing. (nan, nan) of nothing.
    """
    asked = both + only_a + only_b + neither
    if not asked:
        return math.nan, math.nan
    right_a, right_b = both + only_a, both + only_b
    (low_a, high_a), (low_b, high_b) = wilson(right_a, asked), wilson(right_b, asked)
    a, b = right_a / asked, right_b / asked
    together: float = both * neither - only_a * only_b
    if together > 0:
        together = max(together - asked / 2, 0)  # continuity correction
    spread = math.sqrt(right_a * (asked - right_a) * right_b * (asked - right_b))
    phi = together / spread if spread else 0.0

    def joined(x: float, y: float) -> float:
        return math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y))

    return a - b - joined(a - low_a, high_b - b), a - b + joined(high_a - a, b - low_b)


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p-value (Q. McNemar 1947): of the questions that one alone got right, each is either's with even odds."""
    n, k = only_a + only_b, min(only_a, only_b)
    if n == 0:
        return 1.0
    tail: int = sum(math.comb(n, i) for i in range(k + 1))
    return min(1.0, 2 * tail / (1 << n))


def detectable(questions: int, differing: float, alpha: float, power: float = 0.8) -> float:
    """The smallest difference of two shares that McNemar's exact test finds at `alpha` in a share `power` of runs; inf if it finds none.

    differing: share of the questions that only one of the two gets right; where the difference is larger, that much.
    By enumeration: how many questions differ is binomial, and of these how many are one wiring's.
    """

    needed: dict[int, int | None] = {}

    def found(difference: float) -> float:
        share = max(differing, difference)
        favoured = (share + difference) / (2 * share)
        centre, spread = questions * share, 5 * math.sqrt(questions * share * (1 - share)) + 1
        total = 0.0
        for differ in range(max(0, math.floor(centre - spread)), min(questions, math.ceil(centre + spread)) + 1):
            if differ not in needed:
                needed[differ] = _needed(differ, alpha)
            if (least := needed[differ]) is not None:
                of_one = sum(_binomial(k, differ, favoured) for k in range(least, differ + 1))
                total += _binomial(differ, questions, share) * of_one
        return total

    if questions == 0 or mcnemar(questions, 0) >= alpha or found(1.0) < power:
        return math.inf
    low, high = 0.0, 1.0
    while high - low > 0.005:
        middle = (low + high) / 2
        low, high = (low, middle) if found(middle) >= power else (middle, high)
    return high


def _needed(differ: int, alpha: float) -> int | None:
    """How many of so many questions that differ one wiring has to have for McNemar's test to find it; None if all are too few."""
    tail, least = 0.0, None
    for k in range(differ, differ // 2, -1):
        tail += 2 * _binomial(k, differ, 0.5)
        if tail >= alpha:
            break
        least = k
    return least


def _binomial(k: int, n: int, p: float) -> float:
    """The chance of k out of n."""
    if p in (0.0, 1.0):
        return float(k == n * p)
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(ways + k * math.log(p) + (n - k) * math.log1p(-p))


def bootstrap(
    values: Sequence[float] | NDArray[np.generic], seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """95 % percentile interval of the mean. (nan, nan) of nothing."""
    sample = np.asarray(values, dtype=np.float64)
    if not len(sample):
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    means = np.concatenate(
        # in blocks: 4000 × a thousand questions need not stand in memory at once
        [sample[rng.integers(0, len(sample), (block, len(sample)))].mean(axis=1) for block in _blocks(resamples, 500)]
    )
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _blocks(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]


def holm(ps: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (S. Holm 1979), in the order given."""
    adjusted, worst = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        worst = max(worst, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = worst
    return adjusted


@dataclass(frozen=True, slots=True)
class Cochran:
    """Whether k wirings differ at all on the same questions. q: Cochran's Q (W. G. Cochran 1950); p: by permutation."""

    q: float
    p: float
    wirings: int
    questions: int


def cochran(right: NDArray[np.bool_], seed: int = 0, permutations: int = RESAMPLES) -> Cochran:
    """right: [questions, wirings]. Under "no difference" the wirings of a question may be exchanged."""
    table = np.asarray(right, dtype=np.int64)
    questions, wirings = table.shape
    mixed = table[(table.sum(axis=1) > 0) & (table.sum(axis=1) < wirings)]
    if wirings < 2 or not len(mixed):
        return Cochran(0.0, 1.0, wirings, questions)
    observed, rng = _q(mixed.sum(axis=0), mixed), np.random.default_rng(seed)
    at_least = 0
    for block in _blocks(permutations, 200):
        shuffled = rng.permuted(np.broadcast_to(mixed, (block, *mixed.shape)), axis=2)
        at_least += int((_q(shuffled.sum(axis=1), mixed) >= observed - 1e-9).sum())
    return Cochran(float(observed), (at_least + 1) / (permutations + 1), wirings, questions)


def _q(columns: NDArray[np.int64], table: NDArray[np.int64]) -> NDArray[np.float64]:
    k, rows = table.shape[1], table.sum(axis=1)
    total = rows.sum()
    spread = ((columns - total / k) ** 2).sum(axis=-1)
    return np.asarray(k * (k - 1) * spread / (k * total - (rows**2).sum()), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Fit:
    """y ≈ slope · x, without an intercept. low, high: 95 % bootstrap interval of the slope. r2: share of the variation explained."""

    slope: float
    low: float
    high: float
    r2: float
    points: int


def proportional(x: Sequence[float], y: Sequence[float], seed: int = 0) -> Fit | None:
    """Least squares through the origin; None of fewer than two points."""
    left, right = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(left) < 2 or not (left**2).sum():
        return None
    slope = float((left * right).sum() / (left**2).sum())
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(left), (RESAMPLES // 4, len(left)))
    slopes = (left[drawn] * right[drawn]).sum(axis=1) / np.maximum((left[drawn] ** 2).sum(axis=1), 1e-300)
    low, high = np.percentile(slopes, [2.5, 97.5])
    total = ((right - right.mean()) ** 2).sum()
    r2 = 1 - ((right - slope * left) ** 2).sum() / total if total else math.nan
    return Fit(slope, float(low), float(high), float(r2), len(left))
