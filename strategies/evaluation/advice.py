"""Which wiring to use, with the evidence, or that no difference was shown.

The rule is fixed before looking: the yardstick is the best single model. A wiring is *better* only if its paired test against that
one holds after correction for all comparisons made (Holm, 5 %). Of the better ones the most accurate is recommended; if none is
better, the best single model. A faster one takes its place only if it is shown not to lose more than MARGIN against it: that no
difference was shown between two does not make them equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from strategies.evaluation.statistics import Z95, Paired, holm, paired
from strategies.evaluation.summary import Grid, mean

ALPHA = 0.05
MARGIN = 0.05
"""Share of right answers that may be given up for a faster wiring (the lower end of the 95 % interval must stay above it)."""
Z_POWER = 0.8416212335729143
"""80 % of a normal distribution lie below."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A wiring against another on the questions that both answered. adjusted: p corrected for the number of comparisons."""

    wiring: str
    against: str
    result: Paired
    adjusted: float
    seconds_ratio: float

    @property
    def verdict(self) -> str:
        if self.adjusted >= ALPHA:
            return "no difference shown"
        return "better" if self.result.difference > 0 else "worse"


@dataclass(frozen=True, slots=True)
class Advice:
    """wiring: what to use; None if nothing was asked, or nothing right. shown: whether it is shown to be better than the best single model.

    visible: the smallest difference of two shares that this many questions would show in four of five runs (0 to 1), or nan.
    selected: the recommended one was chosen on the questions that it is judged by.
    """

    wiring: str | None
    baseline: str | None
    shown: bool
    headline: str
    reasons: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    visible: float


def compare(grid: Grid, wirings: Sequence[str], against: str, tasks: Sequence[str] | None = None) -> list[Comparison]:
    """Every wiring against one, Holm-corrected over all of them. Those without common questions are left out."""
    found: list[tuple[str, Paired, float]] = []
    for wiring in wirings:
        right = grid.right([wiring, against], tasks)
        if wiring == against or not len(right):
            continue
        rows = grid.common([wiring, against], tasks)
        took, beside = (mean([grid.records[t, w, q].seconds for t, q in rows]) for w in (wiring, against))
        ratio = took / beside if beside else math.nan
        found.append((wiring, paired(list(right[:, 0]), list(right[:, 1])), ratio))
    return corrected([Comparison(wiring, against, result, result.p, ratio) for wiring, result, ratio in found])


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """All of one table, corrected for their number."""
    adjusted = holm([c.result.p for c in comparisons])
    return [replace(c, adjusted=p) for c, p in zip(comparisons, adjusted, strict=True)]


def advise(grid: Grid, tasks: Sequence[str] | None = None) -> Advice:
    """On these tasks together, every question weighing the same."""
    answered = {w: grid.common([w], tasks) for w in grid.wirings}
    most = max((len(rows) for rows in answered.values()), default=0)
    # One that was left off early was asked fewer questions: its share can't stand beside the others'.
    whole = [w for w, rows in answered.items() if rows and len(rows) >= 0.9 * most]
    if not whole:
        return Advice(None, None, False, "Nothing was answered yet.", (), (), math.nan)
    common = grid.common(whole, tasks)
    share = {w: mean([float(grid.records[t, w, q].right) for t, q in common]) for w in whole}
    seconds = {w: mean([grid.records[t, w, q].seconds for t, q in common]) for w in whole}
    singles = [w for w in whole if grid.structure(w) == "single"]
    others = [w for w in whole if w not in singles]
    if common and not any(share.values()):
        headline = f"Nothing to choose by: no wiring was right on any of the {len(common)} questions."
        return Advice(None, None, False, headline, (), (), math.nan)
    if not singles:
        return _without_baseline(grid, whole, share, seconds, len(common), tasks)
    baseline = max(singles, key=lambda w: (share[w], -seconds[w]))
    comparisons = compare(grid, [*others, *singles], baseline, tasks)
    verdicts = {c.wiring: c for c in comparisons}
    better = [w for w in others if w in verdicts and verdicts[w].verdict == "better"]
    visible = _visible(comparisons, len(common))
    worse = [w for w in others if w in verdicts and verdicts[w].verdict == "worse"]
    reasons = [
        f"Yardstick: {baseline}, the single model that was right most often ({_share(share[baseline], len(common))})."
    ]
    if better:
        top = max(better, key=lambda w: (share[w], -seconds[w]))
        equals = [top, *(c.wiring for c in compare(grid, better, top, tasks) if _as_good(c))]
        chosen = min(equals, key=lambda w: seconds[w])
        c = verdicts[chosen]
        reasons += [_evidence(c, share, seconds, len(common))]
        if chosen != top:
            reasons.append(
                f"{top} was right more often ({_share(share[top], len(common))}), but by no more than {100 * MARGIN:.0f} "
                f"points, and is slower."
            )
        headline = f"Use {chosen}: shown to be right more often than {baseline}."
    else:
        ties = [baseline, *(w for w in singles if w in verdicts and _as_good(verdicts[w]))]
        chosen = min(ties, key=lambda w: seconds[w])
        headline = f"No difference shown: no wiring is shown to beat {baseline}, the best single model."
        if others:
            top = max(others, key=lambda w: (share[w], -seconds[w]))
            reasons.append("The best of the others: " + _evidence(verdicts[top], share, seconds, len(common)))
        if chosen != baseline:
            reasons.append(
                f"{chosen} is faster, and shown to lose no more than {100 * MARGIN:.0f} points against {baseline}."
            )
        headline += f" Use {chosen} alone."
    if not math.isnan(visible) and not better:
        reasons.append(f"{len(common)} questions would show a difference of about {100 * visible:.0f} points or more.")
    if worse:
        reasons.append(f"Shown to be right less often than {baseline}: {', '.join(worse)}.")
    return Advice(chosen, baseline, bool(better), headline, tuple(reasons), tuple(comparisons), visible)


def _without_baseline(
    grid: Grid, whole: Sequence[str], share: dict[str, float], seconds: dict[str, float], n: int,
    tasks: Sequence[str] | None,
) -> Advice:  # fmt: skip
    top = max(whole, key=lambda w: (share[w], -seconds[w]))
    comparisons = compare(grid, whole, top, tasks)
    ties = [top, *(c.wiring for c in comparisons if c.verdict == "no difference shown")]
    chosen = min([top, *(c.wiring for c in comparisons if _as_good(c))], key=lambda w: seconds[w])
    if len(whole) == 1:
        headline = f"Only {top} was asked: there is nothing to compare it with."
    elif len(ties) == 1:
        headline = f"Use {top}: shown to be right more often than every other one."
    else:
        headline = f"No difference shown between {', '.join(ties)}. Use {chosen}."
    reasons = (
        f"{top} was right most often ({_share(share[top], n)}).",
        "No single model was asked: whether working together pays is not known.",
    )
    return Advice(
        chosen, None, len(ties) == 1 and len(whole) > 1, headline, reasons, tuple(comparisons), _visible(comparisons, n)
    )


def _as_good(c: Comparison) -> bool:
    return c.result.low > -MARGIN


def _visible(comparisons: Sequence[Comparison], questions: int) -> float:
    """By the normal approximation of McNemar's test, at the median share of questions on which two wirings differed."""
    shares = sorted((c.result.only_a + c.result.only_b) / c.result.asked for c in comparisons)
    if not shares or not questions:
        return math.nan
    differing = max(shares[len(shares) // 2], 1 / questions)
    return min(1.0, (Z95 + Z_POWER) * math.sqrt(differing / questions))


def _share(share: float, n: int) -> str:
    return f"{round(share * n)} of {n}"


def _evidence(c: Comparison, share: dict[str, float], seconds: dict[str, float], n: int) -> str:
    r = c.result
    return (
        f"{c.wiring} was right on {_share(share[c.wiring], n)}, {c.against} on {_share(share[c.against], n)}: "
        f"{100 * r.difference:+.1f} points (95 % {100 * r.low:+.1f} to {100 * r.high:+.1f}), right alone {r.only_a} to {r.only_b}, "
        f"p = {r.p:.3g}, corrected {c.adjusted:.3g}; {seconds[c.wiring]:.1f} s a question against {seconds[c.against]:.1f} s."
    )
