"""A report as one HTML page that needs nothing else: no scripts, no fonts, no other files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from html import escape

from gateway.experiments.report import ArmReport, Metric, Report

_COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2")
_WIDTH, _LEFT, _ROW = 640, 150, 26

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1f2937; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #e5e7eb; }
td:first-child, th:first-child { text-align: left; } h2 { margin-top: 2rem; font-size: 1.1rem; } small { color: #6b7280; }
.verdict { padding: .8rem 1rem; border-left: 4px solid #9ca3af; background: #f9fafb; } .named { border-color: #059669; }
svg text { font: 12px system-ui, sans-serif; fill: #374151; }
"""


def page(report: Report) -> str:
    """The whole document."""
    title = f"Route {escape(report.route)}"
    won = report.winner is not None
    verdict = f"<strong>{escape(report.winner or 'No winner')}</strong>: {escape(report.why)}."
    parts = [
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{title}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{title}</h1><p><small>{_moment(report.since)} to {_moment(report.until)}</small></p>",
        f"<p class='verdict{' named' if won else ''}'>{verdict}</p>",
        _table(report),
        _intervals(report, "feedback", "Feedback, mean score", lambda value: f"{value:.3f}"),
        _intervals(report, "errors", "Errors, share of requests", lambda value: f"{value * 100:.2f} %"),
        _quantile_plot(report.arms),
        _intervals(report, "cost", f"Cost per request, {escape(report.currency)}", lambda value: f"{value:.6f}"),
        _timeline(report),
        _notes(report),
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part)


def _notes(report: Report) -> str:
    return (
        "<h2>How to read this</h2><p>Lines are 95 % intervals; subjects, not requests, count as independent. "
        f"Shares as due: p = {report.mismatch:.3g}. Subjects seen in several arms: {report.crossed}. "
        "Looking often and stopping at the first winner finds one too often: decide beforehand when to look.</p>"
    )


def _table(report: Report) -> str:
    headings = (
        "arm",
        "requests",
        "subjects",
        "errors",
        "refused",
        "left",
        "fell back",
        "tokens",
        report.currency,
        "scored",
    )
    rows = []
    for arm in [*report.arms, *report.shadows]:
        name = arm.arm if arm in report.arms else f"{arm.arm} (shadow)"
        cells = (
            *(name, arm.requests, arm.subjects, arm.errors, arm.refused, arm.abandoned, arm.fell_back, arm.tokens),
            *(f"{arm.cost:.4f}", arm.scored),
        )
        rows.append("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    chances = _chances(report)
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>{chances}"


def _chances(report: Report) -> str:
    metrics = (
        [m for m in report.arms[0].estimates if report.arms[0].estimates[m].best is not None] if report.arms else []
    )
    if not metrics:
        return ""
    head = "".join(f"<th>{escape(metric)}</th>" for metric in metrics)
    rows = "".join(
        f"<tr><td>{escape(arm.arm)}</td>"
        + "".join(f"<td>{arm.estimates[metric].best or 0.0:.3f}</td>" for metric in metrics)
        + "</tr>"
        for arm in report.arms
    )
    return f"<h2>Probability of being the best</h2><table><tr><th>arm</th>{head}</tr>{rows}</table>"


def _intervals(report: Report, metric: Metric, title: str, write: Callable[[float], str]) -> str:
    shown = [
        (arm.arm, estimate.interval[0], estimate.mean, estimate.interval[1])
        for arm in report.arms
        if (estimate := arm.estimates[metric]).interval is not None and estimate.mean is not None
    ]
    return _ranges(title, shown, write)


def _quantile_plot(arms: Sequence[ArmReport]) -> str:
    parts = []
    for title, of in (("Seconds to the whole answer", "seconds"), ("Seconds to the first text", "first_token")):
        shown = [
            (f"{arm.arm} p{quantile.at * 100:g}", quantile.low, quantile.value, quantile.high)
            for arm in arms
            for quantile in getattr(arm, of)
        ]
        parts.append(_ranges(title, shown, lambda value: f"{value:.3f} s"))
    return "".join(parts)


def _ranges(title: str, shown: Sequence[tuple[str, float, float, float]], write: Callable[[float], str]) -> str:
    """A line for every (name, low, value, high), on one scale."""
    if not shown:
        return ""
    low, high = min(item[1] for item in shown), max(item[3] for item in shown)
    span = (high - low) or abs(high) or 1.0
    low, span = low - 0.05 * span, span * 1.1

    def x(value: float) -> float:
        return _LEFT + (value - low) / span * (_WIDTH - _LEFT - 110)

    height = _ROW * len(shown) + 10
    lines = []
    arms = list(dict.fromkeys(name.rsplit(" p", 1)[0] for name, *_ in shown))
    for index, (name, begin, value, end) in enumerate(shown):
        y = _ROW * index + 18
        colour = _COLOURS[arms.index(name.rsplit(" p", 1)[0]) % len(_COLOURS)]
        lines.append(
            f"<text x='0' y='{y + 4}'>{escape(name[:22])}</text>"
            f"<line x1='{x(begin):.1f}' x2='{x(end):.1f}' y1='{y}' y2='{y}' stroke='{colour}' stroke-width='3'/>"
            f"<circle cx='{x(value):.1f}' cy='{y}' r='5' fill='{colour}'/>"
            f"<text x='{_WIDTH - 100}' y='{y + 4}'>{escape(write(value))}</text>"
        )
    return f"<h2>{title}</h2><svg viewBox='0 0 {_WIDTH} {height}' width='{_WIDTH}' role='img'>{''.join(lines)}</svg>"


def _timeline(report: Report) -> str:
    highest = max((max(arm.timeline, default=0) for arm in report.arms), default=0)
    if not highest:
        return ""
    paths = []
    for index, arm in enumerate(report.arms):
        step = (_WIDTH - 10) / max(1, len(arm.timeline) - 1)
        points = " ".join(f"{5 + i * step:.1f},{115 - 105 * n / highest:.1f}" for i, n in enumerate(arm.timeline))
        colour = _COLOURS[index % len(_COLOURS)]
        paths.append(f"<polyline points='{points}' fill='none' stroke='{colour}' stroke-width='2'/>")
        paths.append(f"<text x='{10 + 120 * index}' y='140' style='fill:{colour}'>{escape(arm.arm[:16])}</text>")
    return (
        f"<h2>Requests over time</h2><svg viewBox='0 0 {_WIDTH} 150' width='{_WIDTH}' role='img'>{''.join(paths)}</svg>"
    )


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
