"""What a sample says about an arm, and how sure that is.

Requests of one subject are alike, so subjects are what is counted as independent. The posterior of a mean over them is the Bayesian
bootstrap: random weights, Dirichlet(1, …, 1), for the subjects (Rubin, "The Bayesian bootstrap", Annals of Statistics 9(1), 1981).
Quantities that lie between 0 and 1 get two made-up subjects besides, one of each extreme: with one yes or no per subject that is
exactly the posterior Beta(1 + yes, 1 + no), and a handful of equal answers does not look like certainty.

For many subjects the same distribution is taken as the normal one that it has become.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DRAWS = 4000
"""Of every posterior: probabilities are right to about 0.01."""
MANY = 2000
"""Subjects from which on the normal distribution is used."""
QUANTILE_DRAWS = 400
QUANTILE_WORK = 40_000_000
"""Most numbers that the intervals of quantiles are computed from: fewer draws where there are more requests."""

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class PerSubject:
    """A quantity added up for every subject: float64 [subjects] each. count: of what was added."""

    total: Floats
    count: Floats

    @classmethod
    def of(cls, pairs: Sequence[tuple[str, float]]) -> PerSubject:
        """From (subject, value)."""
        found: dict[str, list[float]] = {}
        for subject, value in pairs:
            entry = found.setdefault(subject, [0.0, 0.0])
            entry[0] += value
            entry[1] += 1
        table = np.array(list(found.values()), dtype=np.float64).reshape(-1, 2)
        return cls(table[:, 0].copy(), table[:, 1].copy())

    @property
    def subjects(self) -> int:
        return len(self.count)

    @property
    def mean(self) -> float | None:
        """Over everything that was added; None for nothing."""
        return float(self.total.sum() / self.count.sum()) if self.subjects else None


def posterior(sample: PerSubject, bounded: bool, generator: np.random.Generator) -> Floats:
    """Draws of the mean, float64 [DRAWS]. bounded: it lies between 0 and 1. Needs a subject, or two made-up ones."""
    total, count = sample.total, sample.count
    if bounded:
        total, count = np.append(total, [0.0, 1.0]), np.append(count, [1.0, 1.0])
    if len(count) > MANY:
        mean = total.sum() / count.sum()
        # The delta method for a ratio of two means over subjects.
        error = math.sqrt(float(np.square(total - mean * count).sum())) / float(count.sum())
        return generator.normal(mean, error, DRAWS)
    weights = generator.standard_exponential((DRAWS, len(count)))
    drawn: Floats = (weights @ total) / (weights @ count)
    return drawn


def interval(draws: Floats) -> Interval:
    """The middle 95 %."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def best(posteriors: Mapping[str, Floats], higher: bool) -> dict[str, float]:
    """The probability of each arm that it is the best of all, from as many draws of each."""
    names = list(posteriors)
    table = np.stack([posteriors[name] for name in names])
    winners = np.bincount((table if higher else -table).argmax(axis=0), minlength=len(names))
    return {name: float(won / table.shape[1]) for name, won in zip(names, winners, strict=True)}


@dataclass(frozen=True, slots=True)
class Quantile:
    """Of a sample, with the middle 95 % of its posterior over subjects."""

    at: float
    value: float
    low: float
    high: float


def quantiles(
    pairs: Sequence[tuple[str, float]], at: Sequence[float], generator: np.random.Generator
) -> list[Quantile]:
    """Of the values of (subject, value); none for an empty sample."""
    if not pairs:
        return []
    values = np.array([value for _, value in pairs])
    _, subject = np.unique([subject for subject, _ in pairs], return_inverse=True)
    order = np.argsort(values, kind="stable")
    values, subject = values[order], subject[order]
    draws = max(50, min(QUANTILE_DRAWS, QUANTILE_WORK // len(values)))
    drawn = np.empty((draws, len(at)))
    for row in range(draws):
        reached = np.cumsum(generator.standard_exponential(int(subject.max()) + 1)[subject])
        drawn[row] = values[np.searchsorted(reached, np.array(at) * reached[-1]).clip(max=len(values) - 1)]
    found = values[np.ceil(np.array(at) * len(values)).astype(int).clip(1) - 1]
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return [
        # The posterior may leave out the value itself where there are very few.
        Quantile(q, float(v), min(float(begin), float(v)), max(float(end), float(v)))
        for q, v, begin, end in zip(at, found, low, high, strict=True)
    ]


def chi_square_tail(statistic: float, freedom: int) -> float:
    """The probability that a χ² variable is at least this large. By Q(a+1, x) = Q(a, x) + x^a e^-x / Γ(a+1), from Q(1/2) or Q(1)."""
    x = statistic / 2
    if x <= 0:
        return 1.0
    a, tail = (1.0, math.exp(-x)) if freedom % 2 == 0 else (0.5, math.erfc(math.sqrt(x)))
    while a < freedom / 2:
        tail += math.exp(a * math.log(x) - x - math.lgamma(a + 1))
        a += 1
    return min(1.0, tail)


def share_mismatch(observed: Sequence[float], expected: Sequence[float]) -> float:
    """How likely counts this far from the expected ones are, if the shares were kept. Cells where nothing is expected must be empty."""
    cells = [(seen, due) for seen, due in zip(observed, expected, strict=True) if due > 0]
    if any(seen > 0 for seen, due in zip(observed, expected, strict=True) if due <= 0):
        return 0.0
    if len(cells) < 2:
        return 1.0
    return chi_square_tail(sum((seen - due) ** 2 / due for seen, due in cells), len(cells) - 1)
