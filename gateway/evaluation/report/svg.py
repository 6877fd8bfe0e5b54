"""Small plots as SVG text: a frame with two axes, and marks on it.

Colours are CSS variables of the page (`--ink`, `--grid`, `--s0`…), so that a plot follows light and dark; each has a fallback, so that
it can stand alone in a file. The picture is drawn for 480 units of width: letters are then readable on a phone, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH = 480.0
PALETTE = ("#4269d0", "#d9603b", "#2f8f6b", "#a463c9", "#b8860b", "#6c7a89")
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "circle")


@dataclass(frozen=True, slots=True)
class Scale:
    """From values to units of the picture; log: by their logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log10(max(v, 1e-12)) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * ((value - low) / (high - low) if high > low else 0.5)

    def ticks(self, count: int = 5) -> list[float]:
        """Round numbers inside."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)) - 1, math.ceil(math.log10(self.high)) + 1)
            for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
                found = [m * 10.0**p for p in powers for m in steps if self.low <= m * 10.0**p <= self.high]
                if len(found) >= 3:
                    return found[:: max(1, len(found) // 6)]
            return found
        raw = (self.high - self.low) / max(1, count)
        power = 10.0 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
        step = next((m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw), 10 * power)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


@dataclass(slots=True)
class Plot:
    """Elements in the order of drawing."""

    height: float
    title: str
    parts: list[str] = field(default_factory=list)

    def line(
        self,
        x1: float,
        y1: float,
        x2: float,
        y2: float,
        colour: str = "var(--grid,#ddd)",
        width: float = 1.0,
        dash: str = "",
    ) -> None:
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width:g}"{dashed}/>'
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        anchor: str = "start",
        size: float = 13,
        colour: str = "var(--ink,#222)",
        turn: bool = False,
    ) -> None:
        turned = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turn else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" text-anchor="{anchor}" fill="{colour}"'
            f' stroke="var(--page,#fff)" stroke-width="3" paint-order="stroke"{turned}>{escape(text)}</text>'
        )

    def box(
        self, x: float, y: float, width: float, height: float, colour: str, title: str = "", opacity: float = 1.0
    ) -> None:
        told = f"<title>{escape(title)}</title>" if title else ""
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{height:.1f}" fill="{colour}"'
            f' fill-opacity="{opacity:g}">{told}</rect>'
        )

    def path(self, points: Sequence[tuple[float, float]], colour: str, width: float = 1.5, dash: str = "") -> None:
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        d = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<path d="{d}" fill="none" stroke="{colour}" stroke-width="{width:g}"{dashed}/>')

    def mark(self, x: float, y: float, kind: int, title: str, size: float = 5.0, hollow: bool = False) -> None:
        """A symbol; kinds differ in shape and colour, so that colour is never all that tells."""
        colour, shape = series(kind), SHAPES[kind % len(SHAPES)]
        look = (
            f'fill="var(--page,#fff)" stroke="{colour}" stroke-width="2"'
            if hollow
            else f'fill="{colour}" fill-opacity="0.85" stroke="var(--page,#fff)"'
        )
        r, third = size, 0.67 * size
        cross = f"h{third}v{-third}h{third}v{third}h{third}v{third}h{-third}v{third}h{-third}v{-third}h{-third}z"
        d = {
            "square": f"M{x - r:.1f},{y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}z",
            "triangle": f"M{x:.1f},{y - r * 1.2:.1f}l{r * 1.2},{r * 2.1}h{-r * 2.4}z",
            "diamond": f"M{x:.1f},{y - r * 1.3:.1f}l{r * 1.3},{r * 1.3}l{-r * 1.3},{r * 1.3}l{-r * 1.3},{-r * 1.3}z",
            "cross": f"M{x - r:.1f},{y - r / 3:.1f}" + cross,
        }.get(shape)
        body = f'<path d="{d}" {look}>' if d else f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:g}" {look}>'
        self.parts.append(f"{body}<title>{escape(title)}</title></{'path' if d else 'circle'}>")

    def svg(self) -> str:
        """The picture. It has a name for screen readers, and no width of its own."""
        body = "".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {self.height:g}" role="img"'
            f' aria-label="{escape(self.title, quote=True)}" font-family="system-ui,sans-serif">{body}</svg>'
        )


def series(kind: int) -> str:
    """A colour of the page, with its fallback."""
    index = kind % len(PALETTE)
    return f"var(--s{index},{PALETTE[index]})"


def axes(
    plot: Plot, x: Scale, y: Scale, x_label: str, y_label: str,
    x_text: Callable[[float], str] = "{:g}".format, y_text: Callable[[float], str] = "{:g}".format,
) -> None:  # fmt: skip
    """Grid, numbers and names. y runs upwards: its start is the bottom."""
    soft = "var(--soft,#666)"
    for value in x.ticks():
        plot.line(x(value), y.start, x(value), y.end)
        plot.text(x(value), y.start + 16, x_text(value), "middle", 12, soft)
    for value in y.ticks():
        plot.line(x.start, y(value), x.end, y(value))
        plot.text(x.start - 6, y(value) + 4, y_text(value), "end", 12, soft)
    plot.line(x.start, y.start, x.end, y.start, soft)
    plot.text((x.start + x.end) / 2, y.start + 34, x_label, "middle", 13, soft)
    plot.text(x.start - 36, (y.start + y.end) / 2, y_label, "middle", 13, soft, turn=True)


def legend(plot: Plot, names: Sequence[tuple[int, str]], y: float, x: float = 44.0) -> float:
    """One row after the other; the y below it."""
    left = x
    for kind, name in names:
        wide = 20 + 7.2 * len(name)
        if x + wide > WIDTH - 6 and x > left:
            x, y = left, y + 18
        plot.mark(x + 6, y - 4, kind, name)
        plot.text(x + 16, y, name)
        x += wide + 8
    return y + 18


class Labels:
    """Texts beside points, where there is room: to the right, left, above or below; else left out."""

    def __init__(self, points: Sequence[tuple[float, float]], right: float, top: float, bottom: float) -> None:
        self._taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in points]
        self._right, self._top, self._bottom = right, top, bottom

    def place(self, plot: Plot, x: float, y: float, text: str) -> bool:
        wide, high = 6.6 * len(text), 13.0
        for dx, dy, anchor in _AROUND:
            left = x + dx - {"start": 0, "end": wide, "middle": wide / 2}[anchor]
            box = left, y + dy - high + 2, left + wide, y + dy + 2
            inside = box[0] >= 42 and box[2] <= self._right and box[1] >= self._top and box[3] <= self._bottom
            if inside and not any(_overlap(box, other) for other in self._taken):
                plot.text(x + dx, y + dy, text, anchor, 12)
                self._taken.append(box)
                return True
        return False


_AROUND = (
    *((8, -7, "start"), (9, 4, "start"), (-8, -7, "end"), (-9, 4, "end")),
    *((0, -11, "middle"), (0, 19, "middle"), (8, 16, "start"), (-8, 16, "end")),
)


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
