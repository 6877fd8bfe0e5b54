"""The plots of a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.evaluation.report.content import Content
from gateway.evaluation.report.svg import WIDTH, Labels, Plot, Scale, axes, legend, series
from strategies.evaluation.statistics import wilson
from strategies.evaluation.summary import mean

ORDER = ("single", "si", "pi", "s2p", "p2s", "mixed")
NAMES = {"single": "one model", "si": "SI chain", "pi": "PI group", "s2p": "S2P", "p2s": "P2S", "mixed": "mixed"}


@dataclass(frozen=True, slots=True)
class Point:
    """A wiring over all tasks. share: every question weighing the same; cost: tokens, or money where there are prices."""

    wiring: str
    structure: str
    share: float
    low: float
    high: float
    seconds: float
    cost: float


def points(content: Content) -> list[Point]:
    """Of every wiring that was asked, over the questions that it answered."""
    found, money = [], in_money(content)
    for wiring in content.grid.wirings:
        mine = [c for c in content.cells if c.wiring == wiring and c.answered]
        if mine:
            right, asked = sum(c.right for c in mine), sum(c.answered for c in mine)
            low, high = wilson(right, asked)
            tokens = mean([c.prompt_tokens + c.completion_tokens for c in mine])
            cost = mean([c.cost or 0.0 for c in mine]) if money else tokens
            found.append(
                Point(wiring, mine[0].structure, right / asked, low, high, mean([c.seconds for c in mine]), cost)
            )
    return found


def in_money(content: Content) -> bool:
    """Whether every answer has a price: else tokens are what all can be compared by."""
    answered = [c for c in content.cells if c.answered]
    return bool(content.prices) and all(c.cost is not None for c in answered)


def frontier(found: Sequence[Point], by_cost: bool = False) -> list[Point]:
    """Those that no other one beats in both: at least as often right and cheaper, or the other way round."""
    best, front = -1.0, []
    for point in sorted(found, key=lambda p: (p.cost if by_cost else p.seconds, -p.share)):
        if point.share > best:
            best = point.share
            front.append(point)
    return front


def pareto(content: Content, by_cost: bool = False) -> str:
    """Accuracy against what it takes; the line joins what nothing else beats."""
    found = [p for p in points(content) if (p.cost if by_cost else p.seconds) > 0]
    if not found:
        return ""

    def cost(point: Point) -> float:
        return point.cost if by_cost else point.seconds

    unit = (
        "seconds a question"
        if not by_cost
        else ("money a question" if in_money(content) else "tokens a question, read and written")
    )
    plot = Plot(350, f"Accuracy against {unit}")
    bottom = legend(plot, [(ORDER.index(s), NAMES[s]) for s in ORDER if any(p.structure == s for p in found)], 16)
    values = [cost(p) for p in found]
    log = max(values) / min(values) > 4
    low, high = (min(values) / 1.25, max(values) * 1.3) if log else (0.0, max(values) * 1.12)
    x = Scale(low, high, 46, WIDTH - 12, log)
    y = _shares([p.low for p in found], [p.high for p in found], 300, bottom)
    axes(plot, x, y, unit + (" (log)" if log else ""), "right, %", _short)
    front = frontier(found, by_cost)
    steps: list[tuple[float, float]] = []
    for point in front:
        if steps:
            steps.append((x(cost(point)), steps[-1][1]))
        steps.append((x(cost(point)), y(100 * point.share)))
    steps.append((x.end, steps[-1][1]))
    plot.path(steps, "var(--soft,#666)", 1.2, "4 3")
    labels = Labels([(x(cost(p)), y(100 * p.share)) for p in found], WIDTH - 4, bottom - 8, 300)
    for point in found:
        cx, colour = x(cost(point)), series(ORDER.index(point.structure))
        plot.line(cx, y(100 * point.low), cx, y(100 * point.high), colour, 0.8)
        said = f"{point.wiring}: {100 * point.share:.0f} % ({100 * point.low:.0f} to {100 * point.high:.0f}), {_short(cost(point))} {unit}"
        plot.mark(cx, y(100 * point.share), ORDER.index(point.structure), said)
    best = [
        max((p for p in found if p.structure == s), key=lambda p: p.share)
        for s in dict.fromkeys(p.structure for p in found)
    ]
    for point in dict.fromkeys((*front, *best)):
        labels.place(plot, x(cost(point)), y(100 * point.share), point.wiring)
    return plot.svg()


def spread(content: Content) -> str:
    """One dot per path, structure by structure: how much the order matters."""
    found = points(content)
    rows = [s for s in ORDER if any(p.structure == s for p in found)]
    if len(found) < 2:
        return ""
    height = 44.0 * len(rows) + 56
    plot = Plot(height, "Accuracy of every path, by structure")
    shares = [100 * p.share for p in found]
    x = Scale(max(0.0, min(shares) - 6), min(100.0, max(shares) + 6), 92, WIDTH - 14)
    bottom = height - 44
    for value in x.ticks():
        plot.line(x(value), 6, x(value), bottom)
        plot.text(x(value), bottom + 16, f"{value:g}", "middle", 12, "var(--soft,#666)")
    plot.text((x.start + x.end) / 2, bottom + 34, "right, %, all questions", "middle", 12, "var(--soft,#666)")
    singles = [p.share for p in found if p.structure == "single"]
    if singles:
        best = x(100 * max(singles))
        plot.line(best, 6, best, bottom, series(0), 1.2, "3 3")
    for i, structure in enumerate(rows):
        y = 28.0 + 44 * i
        mine = [p for p in found if p.structure == structure]
        plot.text(84, y + 4, NAMES[structure], "end")
        centre = x(100 * mean([p.share for p in mine]))
        plot.line(centre, y - 13, centre, y + 13, "var(--ink,#222)", 2)
        taken: list[tuple[float, float]] = []
        for point in sorted(mine, key=lambda p: p.share):
            px, py = x(100 * point.share), y
            while any(abs(px - ox) < 9 and abs(py - oy) < 7 for ox, oy in taken):
                py = y + (y - py) + (7 if py <= y else 0)  # 0, +7, -7, +14…
                if abs(py - y) > 14:
                    break
            taken.append((px, py))
            plot.mark(px, py, ORDER.index(structure), f"{point.wiring}: {100 * point.share:.0f} %", 4.5)
    return plot.svg()


def flow(content: Content) -> str:
    """What later stages do to the answers that they are handed."""
    writers = sorted(content.writers, key=lambda s: (s.role, -s.gain))
    if not writers:
        return ""
    height = 46.0 * len(writers) + 44
    plot = Plot(height, "What later stages do to the answers they are handed")
    parts = (
        ("kept right", "var(--good,#2f8f6b)", 0.9),
        ("put right", "var(--good,#2f8f6b)", 0.45),
        ("lost", "var(--bad,#c8452f)", 0.9),
        ("left wrong", "var(--soft,#888)", 0.3),
    )
    x0 = 8.0
    for name, colour, opacity in parts:
        plot.box(x0, 8, 12, 12, colour, opacity=opacity)
        plot.text(x0 + 17, 18, name)
        x0 += 28 + 6.6 * len(name)
    for i, step in enumerate(writers):
        y = 44.0 + 46 * i
        total = step.before + step.repaired + step.wrong
        plot.text(8, y, f"{'|'.join(step.models)} as {step.role}: {step.gain:+d} of {total}")
        left, whole = 8.0, WIDTH - 16
        for (name, colour, opacity), count in zip(
            parts, (step.kept, step.repaired, step.lost, step.wrong), strict=True
        ):
            wide = whole * count / total
            plot.box(left, y + 6, wide, 16, colour, f"{name}: {count} of {total}", opacity)
            if wide > 22:
                plot.text(left + wide / 2, y + 18, str(count), "middle", 11)
            left += wide
    return plot.svg()


def pace(content: Content) -> str:
    """One step of every group beside its slowest member and the sum of its members."""
    groups = [g for g in content.slowest.groups if g.slowest_ms and math.isfinite(g.ms)]
    if not groups:
        return ""
    height = 46.0 * len(groups) + 84
    plot = Plot(height, "One step of a group, beside its members")
    high = max(max(g.ms, g.sum_ms) for g in groups) * 1.08
    x, bottom = Scale(0, high, 8, WIDTH - 24), height - 44
    for value in x.ticks():
        plot.line(x(value), 24, x(value), bottom)
        plot.text(x(value), bottom + 16, f"{value:g}", "middle", 12, "var(--soft,#666)")
    plot.text((x.start + x.end) / 2, bottom + 34, "ms a step (a piece of text)", "middle", 12, "var(--soft,#666)")
    plot.box(8, 6, 12, 12, series(2), opacity=0.55)
    plot.text(25, 16, "the group's step")
    plot.line(150, 4, 150, 20, series(1), 3)
    plot.text(157, 16, "slowest member alone")
    plot.line(306, 4, 306, 20, series(3), 3, "3 2")
    plot.text(313, 16, "sum of the members")
    for i, group in enumerate(groups):
        y = 44.0 + 46 * i
        plot.text(8, y, "|".join(group.members))
        plot.box(
            x.start,
            y + 6,
            x(group.ms) - x.start,
            16,
            series(2),
            f"{group.ms:.1f} ms, {group.to_slowest:.2f} × the slowest",
            0.55,
        )
        plot.line(x(group.slowest_ms), y + 2, x(group.slowest_ms), y + 26, series(1), 3)
        plot.line(x(group.sum_ms), y + 2, x(group.sum_ms), y + 26, series(3), 3, "3 2")
    return plot.svg()


def _shares(lows: Sequence[float], highs: Sequence[float], start: float, end: float) -> Scale:
    low, high = 100 * min(lows), 100 * max(highs)
    return Scale(max(0.0, low - 3), min(100.0, high + 3), start, end)


def _short(value: float) -> str:
    if value >= 1e4:
        return f"{value / 1e3:.0f}k"
    if value >= 1000:
        return f"{value / 1e3:.1f}k"
    return f"{value:.3g}"
