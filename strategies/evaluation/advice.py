"""Which wiring to use, with the evidence, or that no difference was shown.

The rule is fixed before looking: the yardstick is the best single model. A wiring is *better* only if its paired test against that
one holds after correction for all comparisons made (Holm, 5 %). Of the better ones the most accurate is recommended; if none is
better, the best single model. A faster one takes its place only if it is shown not to lose more than MARGIN against it: that no
difference was shown between two does not make them equal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from strategies.evaluation.statistics import Paired, detectable, holm, paired
from strategies.evaluation.summary import Grid, mean

ALPHA = 0.05
WHOLE = 0.9
"""Share of the most questions that any wiring answered which one has to have answered to stand beside the others."""
MARGIN = 0.05
"""Share of right answers that may be given up for a faster wiring (the lower end of the 95 % interval must stay above it)."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A wiring against another on the questions that both answered. adjusted: p corrected for the number of comparisons. seconds: means, of
    either."""

    wiring: str
    against: str
    result: Paired
    adjusted: float
    seconds: tuple[float, float]

    @property
    def seconds_ratio(self) -> float:
        return self.seconds[0] / self.seconds[1] if self.seconds[1] else math.nan

    @property
    def verdict(self) -> str:
        if self.adjusted >= ALPHA:
            return "no difference shown"
        return "better" if self.result.difference > 0 else "worse"


@dataclass(frozen=True, slots=True)
class Advice:
    """wiring: what to use; None if nothing was asked, or nothing right. shown: whether it is shown to be better than the best single model.

    visible: the smallest difference of two shares that this many questions would show in four of five runs (0 to 1), inf if they can show
    none, nan if nothing was compared.
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
    found: list[Comparison] = []
    for wiring in wirings:
        right = grid.right([wiring, against], tasks)
        if wiring == against or not len(right):
            continue
        rows = grid.common([wiring, against], tasks)
        took, beside = (mean([grid.records[t, w, q].seconds for t, q in rows]) for w in (wiring, against))
        result = paired(list(right[:, 0]), list(right[:, 1]))
        found.append(Comparison(wiring, against, result, result.p, (took, beside)))
    return corrected(found)


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """All of one table, corrected for their number."""
    adjusted = holm([c.result.p for c in comparisons])
    return [replace(c, adjusted=p) for c, p in zip(comparisons, adjusted, strict=True)]


def advise(grid: Grid, tasks: Sequence[str] | None = None) -> Advice:
    """On these tasks together, every question weighing the same."""
    tallies = {w: tally for w in grid.wirings if (tally := _tally(grid, w, tasks)).asked}
    most = max((tally.asked for tally in tallies.values()), default=0)
    # One that was left off early was asked fewer questions: its share can't stand beside the others'.
    whole = {w: tally for w, tally in tallies.items() if tally.asked >= WHOLE * most}
    if not whole:
        return Advice(None, None, False, "Nothing was answered yet.", (), (), math.nan)
    left_out = [w for w in grid.wirings if w in tallies and w not in whole]
    if not any(tally.right for tally in whole.values()):
        headline = f"Nothing to choose by: no wiring was right on any of the {most} questions."
        return Advice(None, None, False, headline, _left_out(left_out), (), math.nan)
    singles = [w for w in whole if grid.structure(w) == "single"]
    if not singles:
        return _without_baseline(grid, whole, tasks, left_out)
    baseline = _top(singles, whole)
    comparisons = compare(grid, [*(w for w in whole if w not in singles), *singles], baseline, tasks)
    verdicts = {c.wiring: c for c in comparisons}
    others = [w for w in whole if w not in singles and w in verdicts]
    better = [w for w in others if verdicts[w].verdict == "better"]
    worse = [w for w in others if verdicts[w].verdict == "worse"]
    visible = _visible(comparisons)
    reasons = [f"Yardstick: {baseline}, the single model that was right most often ({whole[baseline]})."]
    if better:
        top = _top(better, whole)
        equals = [top, *(c.wiring for c in compare(grid, better, top, tasks) if _as_good(c))]
        chosen = min(equals, key=lambda w: whole[w].seconds)
        reasons += [_evidence(verdicts[chosen])]
        if chosen != top:
            reasons.append(
                f"{top} was right more often ({whole[top]}), but by no more than {100 * MARGIN:.0f} points, and is slower."
            )
        headline = f"Use {chosen}: shown to be right more often than {baseline}."
    else:
        ties = [baseline, *(w for w in singles if w in verdicts and _as_good(verdicts[w]))]
        chosen = min(ties, key=lambda w: whole[w].seconds)
        headline = f"No difference shown: no wiring is shown to beat {baseline}, the best single model."
        if others:
            reasons.append("The best of the others: " + _evidence(verdicts[_top(others, whole)]))
        if chosen != baseline:
            reasons.append(
                f"{chosen} is faster, and shown to lose no more than {100 * MARGIN:.0f} points against {baseline}."
            )
        headline += f" Use {chosen} alone."
        if math.isinf(visible):
            reasons.append(
                f"{most} questions can't show any difference between so many wirings, however large: ask more questions, or fewer wirings."
            )
        elif not math.isnan(visible):
            reasons.append(
                f"{most} questions would show a difference of about {100 * visible:.0f} points in four of five such runs, "
                f"and seldom a smaller one."
            )
    if worse:
        reasons.append(f"Shown to be right less often than {baseline}: {', '.join(worse)}.")
    reasons += _left_out(left_out)
    return Advice(chosen, baseline, bool(better), headline, tuple(reasons), tuple(comparisons), visible)


@dataclass(frozen=True, slots=True)
class _Tally:
    """A wiring on the questions that it answered. seconds: mean."""

    right: int
    asked: int
    seconds: float

    @property
    def share(self) -> float:
        return self.right / self.asked

    def __str__(self) -> str:
        return f"{self.right} of {self.asked}"


def _tally(grid: Grid, wiring: str, tasks: Sequence[str] | None) -> _Tally:
    found = [grid.records[task, wiring, question] for task, question in grid.common([wiring], tasks)]
    return _Tally(sum(record.right for record in found), len(found), mean([record.seconds for record in found]))


def _top(wirings: Sequence[str], tallies: Mapping[str, _Tally]) -> str:
    return max(wirings, key=lambda w: (tallies[w].share, -tallies[w].seconds))


def _left_out(wirings: Sequence[str]) -> tuple[str, ...]:
    if not wirings:
        return ()
    return (
        f"Left out, having answered under {100 * WHOLE:.0f} % of the questions that others did: {', '.join(wirings)}.",
    )


def _without_baseline(
    grid: Grid, whole: Mapping[str, _Tally], tasks: Sequence[str] | None, left_out: Sequence[str]
) -> Advice:
    top = _top(list(whole), whole)
    comparisons = compare(grid, list(whole), top, tasks)
    ties = [top, *(c.wiring for c in comparisons if c.verdict == "no difference shown")]
    chosen = min([top, *(c.wiring for c in comparisons if _as_good(c))], key=lambda w: whole[w].seconds)
    if len(whole) == 1:
        headline = f"Only {top} was asked: there is nothing to compare it with."
    elif len(ties) == 1:
        headline = f"Use {top}: shown to be right more often than every other one."
    else:
        headline = f"No difference shown between {', '.join(ties)}. Use {chosen}."
    reasons = (
        f"{top} was right most often ({whole[top]}).",
        "No single model was asked: whether working together pays is not known.",
        *_left_out(left_out),
    )
    shown = len(ties) == 1 and len(whole) > 1
    return Advice(chosen, None, shown, headline, reasons, tuple(comparisons), _visible(comparisons))


def _as_good(c: Comparison) -> bool:
    return c.result.low > -MARGIN


def _visible(comparisons: Sequence[Comparison]) -> float:
    """At the median share of questions on which two wirings differed, by the very test that the verdicts are made with."""
    if not comparisons:
        return math.nan
    shares = sorted((c.result.only_a + c.result.only_b) / c.result.asked for c in comparisons)
    asked = sorted(c.result.asked for c in comparisons)[len(comparisons) // 2]
    return detectable(asked, max(shares[len(shares) // 2], 1 / asked), ALPHA / len(comparisons))


def _evidence(c: Comparison) -> str:
    r = c.result
    return (
        f"{c.wiring} was right on {r.both + r.only_a} of {r.asked}, {c.against} on {r.both + r.only_b} of {r.asked}: "
        f"{100 * r.difference:+.1f} points (95 % {100 * r.low:+.1f} to {100 * r.high:+.1f}), right alone {r.only_a} to {r.only_b}, "
        f"p = {r.p:.3g}, corrected {c.adjusted:.3g}; {c.seconds[0]:.1f} s a question against {c.seconds[1]:.1f} s."
    )
