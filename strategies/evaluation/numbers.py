"""Numbers in texts, as people and models write them."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

LONGEST = 400
"""Characters of a number."""
_MIXED = re.compile(r"([-+]?)(\d+)\s+(\d+)\s*/\s*(\d+)")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")


def plain(text: str) -> str:
    """LaTeX and typography around numbers and letters undone: fractions, thousands, minus signs, full-width characters."""
    text = unicodedata.normalize("NFKC", text).replace("−", "-").replace("–", "-")
    text = re.sub(r"\{,\}|\\[,!;: ]", "", text.replace("\\\\", "\n"))
    text = re.sub(r"\\(?:text|mathrm|mathbf|textbf|mbox|operatorname)\s*\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"(-?)\\[dt]?frac\s*\{\s*(-?[\d.,]+)\s*\}\s*\{\s*([\d.,]+)\s*\}", r"\1\2/\3", text)
    text = re.sub(r"\\[dt]?frac\s*(\d)\s*(\d)", r"\1/\2", text)
    text = re.sub(r"([\d.]+)\s*(?:\\times|×|\\cdot|\*)\s*10\s*\^\s*\{?\s*([-+]?\d{1,3})\s*\}?", r"\1e\2", text)
    text = re.sub(r"\\([$%#&_])", r"\1", text)
    return re.sub(r"\\(?:left|right|displaystyle)\b|\\[()\[\]]|\$(?!\s?\d)", " ", text)


def number(text: str) -> Fraction | None:
    """A number, fraction or mixed number (1 1/2) as text, thousands set off by commas or not; None if it is none, or absurdly long."""
    text = plain(text).strip().strip("$").strip()
    if len(text) > LONGEST or re.search(r"[eE][-+]?\d{4}", text):
        return None
    if mixed := _MIXED.fullmatch(text):
        sign, whole, top, bottom = mixed[1], int(mixed[2]), int(mixed[3]), int(mixed[4])
        return None if bottom == 0 else (whole + Fraction(top, bottom)) * (-1 if sign == "-" else 1)
    text = _THOUSANDS.sub(lambda found: found[0].replace(",", ""), text).replace(" ", "")
    top_text, _, bottom_text = text.partition("/")
    try:
        value = Fraction(top_text)
        return value / Fraction(bottom_text) if bottom_text else value
    except (ValueError, ZeroDivisionError):
        return None
