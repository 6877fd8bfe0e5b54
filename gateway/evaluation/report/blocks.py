"""What sections are made of, and how numbers are written in them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

NAMES = {"single": "single", "si": "SI", "pi": "PI", "s2p": "S2P", "p2s": "P2S", "mixed": "mixed"}


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph; strong: what matters most."""

    text: str
    strong: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """The first column is text, the others are numbers. note: what has to be known to read it. emphasis: rows that stand out."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    texts: int = 1
    emphasis: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Picture:
    """name: of its file, where it becomes one."""

    name: str
    svg: str
    caption: str


Block = Text | Table | Picture


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the report."""

    title: str
    blocks: tuple[Block, ...]


def pair(share: float, seconds: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f} / {seconds:.1f}"


def share_of(part: float | None, rest: float | None) -> str:
    return "-" if part is None or rest is None or not part + rest else f"{100 * part / (part + rest):.1f} %"


def percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f} %"


def with_deviation(value: float, deviation: float) -> str:
    return f"{value:.1f}" + ("" if math.isnan(deviation) else f" ± {deviation:.1f}")


def number(value: float | None, text: Callable[[float], str] = "{:.1f}".format) -> str:
    return "-" if value is None or math.isnan(value) else text(value)


def p_value(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"
