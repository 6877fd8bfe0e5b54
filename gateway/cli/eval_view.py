"""What `modelnet eval` shows in the terminal: the short form of a report."""

from __future__ import annotations

import math

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gateway.evaluation.compare import Difference
from gateway.evaluation.report.content import Content
from strategies.evaluation.published import Published, claims, recompute
from strategies.evaluation.summary import mean


def overview(content: Content) -> RenderableType:
    """Every wiring over all tasks, and what to use."""
    table = _table("wiring", "right", "95 %", "s/question", "first token, s", "tokens written", "no answer", "failed")
    comparisons = {c.wiring: c for c in content.advice.comparisons}
    from gateway.evaluation.report.plots import points

    for point in sorted(points(content), key=lambda p: (-p.share, p.seconds)):
        mine = [c for c in content.cells if c.wiring == point.wiring and c.answered]
        right, asked = sum(c.right for c in mine), sum(c.answered for c in mine)
        verdict = comparisons[point.wiring].verdict if point.wiring in comparisons else ""
        style = {"better": "green", "worse": "red"}.get(verdict, "")
        table.add_row(
            Text(point.wiring, style), f"{right}/{asked} {100 * point.share:.0f} %", f"{100 * point.low:.0f}-{100 * point.high:.0f}",
            f"{point.seconds:.1f}", _number(mean([c.first_token for c in mine])), _number(mean([c.completion_tokens for c in mine]), 0),
            str(sum(c.none for c in mine)), str(sum(c.failed for c in mine)),
        )  # fmt: skip
    silent = {c.wiring: 0 for c in content.cells} | {c.wiring: 1 for c in content.cells if c.answered}
    for wiring in (w for w, answered in silent.items() if not answered):
        table.add_row(wiring, *["-"] * 6, str(sum(c.failed for c in content.cells if c.wiring == wiring)))
    advice = [Text(content.advice.headline, "bold"), *(Text(reason) for reason in content.advice.reasons)]
    return Group(table, Text(), *advice, Text())


def comparison(found: list[Difference]) -> RenderableType:
    """Two runs, wiring by wiring."""
    table = _table("task", "wiring", "A", "B", "B - A, points (95 %)", "alone A:B", "p", "corrected", "seconds B/A")
    for d in found:
        r = d.result
        table.add_row(
            d.task, d.wiring, f"{r.both + r.only_a}/{r.asked}", f"{r.both + r.only_b}/{r.asked}",
            f"{_points(r.difference)} ({_points(r.high)} to {_points(r.low)})", f"{r.only_a}:{r.only_b}",
            f"{r.p:.3f}", f"{d.adjusted:.3f}", _number(d.seconds_ratio, 2),
        )  # fmt: skip
    shown = [d for d in found if d.adjusted < 0.05]
    said = f"{len(shown)} of {len(found)} differences hold after correction." if shown else "No difference shown."
    changed = [
        f"{d.task}, {d.wiring}: only A right {', '.join(d.only_a) or '-'}; only B right {', '.join(d.only_b) or '-'}"
        for d in found
        if d.only_a or d.only_b
    ]
    left_out = [
        f"{d.task}, {d.wiring}: {d.changed} other questions of the same ids are left out" for d in found if d.changed
    ]
    return Group(table, Text(), Text(said, "bold"), *(Text(line) for line in (*left_out, *changed)))


def _points(difference: float) -> str:
    """Of B - A, where A - B is given. No difference is +0.0."""
    return f"{100 * (0.0 - difference):+.1f}"


def recomputed(paper: Published) -> RenderableType:
    """Printed numbers that do not come out of the printed tables, and what the tables show."""
    checks = recompute(paper)
    table = _table("printed number", "printed", "recomputed", "")
    for check in checks:
        told = {True: "same", False: "DIFFERS", None: "its table was not printed"}[check.agrees]
        again = "-" if check.recomputed is None else f"{check.recomputed:.3f}"
        table.add_row(check.what, f"{check.printed:g}", again, Text(told, "bold red" if check.agrees is False else ""))
    shown = _table("task", "structure", "against", "right, %", "points (95 %)", "shown")
    for c in claims(paper):
        shown.add_row(
            c.task,
            c.better,
            c.worse,
            f"{c.shares[0]:g} : {c.shares[1]:g}",
            f"{100 * c.low:+.1f} to {100 * c.high:+.1f}",
            "yes" if c.shown else "no",
        )
    return Group(table, Text(), shown)


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left", overflow="fold")
    return table


def _number(value: float, digits: int = 1) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
