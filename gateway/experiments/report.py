"""The ledger's rows of a route → what can be said of its arms, and what can't.

Requests whose arm was chosen by an override are counted, but not compared. A winner is named only if every arm has enough subjects, the
arms got the shares that they were due, and one is the best with a probability that chance seldom reaches: with k equal arms, some arm
gets that far in at most 1 - level of all reports.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import orjson

from gateway.experiments.statistics import (
    Floats,
    Interval,
    PerSubject,
    Quantile,
    best,
    interval,
    posterior,
    quantiles,
    share_mismatch,
)
from gateway.keys.key import NANO
from gateway.ledger.tables import Observation

Metric = Literal["feedback", "errors", "seconds", "first_token", "tokens", "cost"]

METRICS: dict[Metric, tuple[bool, bool]] = {
    "feedback": (True, True),
    "errors": (False, True),
    "seconds": (False, False),
    "first_token": (False, False),
    "tokens": (False, False),
    "cost": (False, False),
}
"""Metric → (more is better, it lies between 0 and 1)."""

QUANTILES = (0.5, 0.9, 0.99)
MISMATCH = 0.001
"""Shares that are off by what happens so seldom mean that assignment or bookkeeping is broken."""
FEWEST = 30
"""Subjects that an arm needs before it can win or lose."""
LEVEL = 0.95
_BUCKETS = 48


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its middle 95 %. subjects: with anything to say about it. best: the probability that no other arm is better."""

    mean: float | None
    interval: Interval | None
    subjects: int
    best: float | None = None


@dataclass(slots=True)
class ArmReport:
    """requests: compared ones. overrides: left out. cost: in the currency, of all requests. timeline: requests per slice of time."""

    arm: str
    requests: int = 0
    subjects: int = 0
    overrides: int = 0
    errors: int = 0
    refused: int = 0
    abandoned: int = 0
    fell_back: int = 0
    tokens: int = 0
    cost: float = 0.0
    scored: int = 0
    seconds: list[Quantile] = field(default_factory=list)
    first_token: list[Quantile] = field(default_factory=list)
    estimates: dict[str, Estimate] = field(default_factory=dict)
    timeline: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    """shadows: arms whose answers nobody saw. mismatch: the probability of shares this far off. crossed: subjects seen in several arms.

    winner: None where `why` says why not.
    """

    route: str
    since: float
    until: float
    currency: str
    metric: Metric
    level: float
    arms: list[ArmReport]
    shadows: list[ArmReport]
    mismatch: float
    crossed: int
    winner: str | None
    why: str

    def value(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(slots=True)
class _Arm:
    seen: list[Observation] = field(default_factory=list)
    overrides: int = 0


def report(
    route: str,
    rows: Iterable[Observation],
    since: float,
    until: float,
    *,
    arms: Iterable[str] = (),
    metric: Metric = "feedback",
    currency: str = "USD",
    level: float = LEVEL,
    fewest: int = FEWEST,
    seed: int = 0,
) -> Report:
    """rows: in order of time. arms: the configured ones, listed even if nothing was seen of them. seed: of the random draws."""
    generator = np.random.default_rng(seed)
    found: dict[str, _Arm] = {name: _Arm() for name in arms}
    shadows: dict[str, _Arm] = {}
    first: dict[str, Observation] = {}
    arms_of: dict[str, set[str]] = {}
    for row in rows:
        group = shadows if row.shadow_of is not None else found
        arm = group.setdefault(row.arm, _Arm())
        if row.arm_by == "override":
            arm.overrides += 1
            continue
        arm.seen.append(row)
        if row.shadow_of is None and row.subject is not None:
            first.setdefault(row.subject, row)
            arms_of.setdefault(row.subject, set()).add(row.arm)
    compared = [_arm_report(name, arm, since, until, generator) for name, arm in found.items()]
    _compare(compared, found, generator)
    mismatch = _mismatch(first.values(), list(found))
    made = Report(
        route=route,
        since=since,
        until=until,
        currency=currency,
        metric=metric,
        level=level,
        arms=compared,
        shadows=[_arm_report(name, arm, since, until, generator) for name, arm in shadows.items()],
        mismatch=mismatch,
        crossed=sum(len(several) > 1 for several in arms_of.values()),
        winner=None,
        why="",
    )
    made.winner, made.why = _verdict(made, fewest)
    return made


def _arm_report(name: str, arm: _Arm, since: float, until: float, generator: np.random.Generator) -> ArmReport:
    seen = arm.seen
    answered = [row for row in seen if row.outcome == "ok"]
    slices = np.histogram([row.at for row in seen], bins=_BUCKETS, range=(since, max(until, since + 1)))[0]
    return ArmReport(
        arm=name,
        requests=len(seen),
        subjects=len({row.subject for row in seen}),
        overrides=arm.overrides,
        errors=sum(row.outcome == "error" for row in seen),
        refused=sum(row.outcome == "refused" for row in seen),
        abandoned=sum(row.outcome == "abandoned" for row in seen),
        fell_back=sum(row.attempts is not None for row in seen),
        tokens=sum(row.tokens for row in seen),
        cost=sum(row.nano for row in seen) / NANO,
        scored=sum(row.score is not None for row in seen),
        seconds=quantiles([(row.subject or "", row.seconds) for row in answered], QUANTILES, generator),
        first_token=quantiles(
            [(row.subject or "", row.first_token) for row in answered if row.first_token is not None],
            QUANTILES,
            generator,
        ),
        timeline=[int(count) for count in slices],
    )


def _samples(arm: _Arm, metric: Metric) -> PerSubject:
    """What the arm's requests say about a metric. Refused ones say nothing: they never reached a model."""
    pairs: list[tuple[str, float]] = []
    for row in arm.seen:
        value: float | None
        if row.outcome == "refused":
            continue
        if metric == "feedback":
            value = row.score
        elif metric == "errors":
            value = float(row.outcome == "error") if row.outcome != "abandoned" else None
        elif metric == "tokens":
            value = float(row.tokens)
        elif metric == "cost":
            value = row.nano / NANO
        else:
            value = getattr(row, metric) if row.outcome == "ok" else None
        if value is not None:
            pairs.append((row.subject or "", value))
    return PerSubject.of(pairs)


def _compare(reports: list[ArmReport], arms: Mapping[str, _Arm], generator: np.random.Generator) -> None:
    for metric, (higher, bounded) in METRICS.items():
        samples = {name: _samples(arm, metric) for name, arm in arms.items()}
        draws = {
            name: posterior(sample, bounded, generator)
            for name, sample in samples.items()
            if sample.subjects > (0 if bounded else 1)
        }
        chances = best(draws, higher) if len(draws) == len(samples) > 1 else {}
        for made in reports:
            drawn, sample = draws.get(made.arm), samples[made.arm]
            made.estimates[metric] = Estimate(
                sample.mean, _around(sample.mean, drawn), sample.subjects, chances.get(made.arm)
            )


def _around(mean: float | None, drawn: Floats | None) -> Interval | None:
    """The middle 95 %, and the mean itself: of few subjects who all agree it lies at the edge of what can be, and what was drawn inside."""
    if mean is None or drawn is None:
        return None
    low, high = interval(drawn)
    return min(low, mean), max(high, mean)


def _mismatch(first: Iterable[Observation], arms: list[str]) -> float:
    """From every subject's first request: which arm it got, and what part each arm was due at that moment."""
    observed, expected = dict.fromkeys(arms, 0.0), dict.fromkeys(arms, 0.0)
    for row in first:
        if row.shares is None:
            continue
        observed[row.arm] += 1
        for arm, share in orjson.loads(row.shares).items():
            expected[arm] = expected.get(arm, 0.0) + share
    names = list(expected)
    return share_mismatch([observed.get(name, 0.0) for name in names], [expected[name] for name in names])


def _verdict(made: Report, fewest: int) -> tuple[str | None, str]:
    """The winner by the chosen metric, or why there is none."""
    metric = made.metric
    if len(made.arms) < 2:
        return None, "there is only one arm"
    thin = [
        f"{arm.arm} {arm.estimates[metric].subjects}" for arm in made.arms if arm.estimates[metric].subjects < fewest
    ]
    if thin:
        return None, f"too few subjects with {_WORDS[metric]} (each arm needs {fewest}): {', '.join(thin)}"
    if made.mismatch < MISMATCH:
        return None, (
            f"the arms did not get the shares that they were due (p = {made.mismatch:.1g}): "
            "something loses requests of one arm, so no comparison can be trusted"
        )
    chances = {arm.arm: arm.estimates[metric].best or 0.0 for arm in made.arms}
    leader = max(chances, key=lambda arm: chances[arm])
    needed = 1 - (1 - made.level) / len(made.arms)
    if chances[leader] < needed:
        return None, (
            f"the data does not carry a winner: {leader} is the best by {_WORDS[metric]} with probability "
            f"{chances[leader]:.3f}, and {needed:.3f} is needed"
        )
    return leader, f"the best by {_WORDS[metric]} with probability {chances[leader]:.3f} ({needed:.3f} is needed)"


_WORDS: dict[Metric, str] = {
    "feedback": "feedback",
    "errors": "share of errors",
    "seconds": "time to the whole answer",
    "first_token": "time to the first text",
    "tokens": "tokens per request",
    "cost": "cost per request",
}
