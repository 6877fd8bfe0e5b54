"""Whether two expressions are the same up to algebra, by math-verify (an optional dependency: it brings SymPy).

It reads LaTeX with a real grammar and never evaluates a text as Python, as SymPy's own reader would. Its blind spots are taken
care of here: powers as `**`, single letters that it would take for units, and `i` and `e` as ordinary variables.

Models write anything (`9**9**9**9`), and comparing can take for ever: call this where it can be stopped from outside.
"""

from __future__ import annotations

import logging
import re
from typing import Any

LONGEST = 600
"""Characters; nothing longer is compared."""

_RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"
_LOWERED = str.maketrans(_RAISED, "0123456789-")
_FUNCTIONS = ("sqrt", "exp", "log", "ln", "sin", "cos", "tan", "pi")


def equal(answer: str, given: str) -> bool:
    """Raises ImportError without math-verify. answer: the right one, in Python's or LaTeX's notation, or values between commas."""
    from math_verify import LatexExtractionConfig, parse, verify
    from math_verify.parser import NormalizationConfig

    if max(len(answer), len(given)) > LONGEST:
        return False
    for name in ("math_verify", "latex2sympy2_extended"):  # they warn of every text that they can't read
        logging.getLogger(name).setLevel(logging.CRITICAL)
    normal = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
    config = [LatexExtractionConfig(normalization_config=normal)]
    renamed = _renaming(answer)
    if "=" not in answer:
        given = _values(given)

    def read(text: str) -> Any:
        latex = to_latex(text, renamed)
        return parse(f"${latex}$", extraction_config=config, fallback_mode="no_fallback", parsing_timeout=None)

    try:
        left, right = read(answer), read(given)
        return bool(left and right and verify(left, right, timeout_seconds=None))
    except Exception:  # noqa: BLE001 - whatever a library for algebra makes of what a model wrote, it is not shown to be right
        return False


def _values(text: str) -> str:
    """x = 1 or x = 2 → 1, 2."""
    text = re.sub(r"\\text\s*\{\s*(or|and)\s*\}", r" \1 ", text)
    text = re.sub(r"\s+(?:or|and)\s+|\s*[或和]\s*", ", ", text)
    if "," not in text:  # f'(x) = …, dy/dx = …
        return text.rsplit("=", 1)[-1]
    return re.sub(r"(?<![\\A-Za-z])[A-Za-z](?:_\{?\d\}?)?\s*=\s*(?=[^,=]*(?:,|$))", "", text)


def to_latex(text: str, renamed: dict[str, str] | None = None) -> str:
    """An expression of Python's notation as LaTeX; LaTeX stays what it is. renamed: letters that stand for others."""
    text = text.strip().strip("$`").replace("−", "-").replace("·", "*").replace("×", "*").replace("√", "sqrt")
    text = re.sub(r"\\(?:left|right|,|;|!|quad|displaystyle)(?![A-Za-z])", "", text).replace("\\ ", " ")
    text = re.sub(f"[{_RAISED}]+", lambda m: "^" + m[0].translate(_LOWERED), text)
    text = _powers(text.replace("**", "^"))
    text = _calls(text)
    for old, new in (renamed or {}).items():
        text = re.sub(rf"(?<![\\A-Za-z]){old}(?![A-Za-z])", new, text)
    # "54 l" is a product, not 54 litres.
    return re.sub(r"(?<=[0-9)}])\s*(?=[A-Za-z](?![A-Za-z]))", " \\\\cdot ", text).replace("*", " \\cdot ")


def _powers(text: str) -> str:
    """x^10, x^-2 and x^(n+1) with braces around the exponent."""
    text = re.sub(r"\^\s*(-?\d+(?:\.\d+)?|-?[A-Za-z](?![A-Za-z]))", r"^{\1}", text)
    return re.sub(r"\^\s*\(([^()]*)\)", r"^{\1}", text)


def _calls(text: str) -> str:
    """sqrt(…), exp(…) and their like as LaTeX, parentheses balanced."""
    for name in _FUNCTIONS:
        pattern = re.compile(rf"(?<![\\A-Za-z]){name}(?![A-Za-z])\s*(\(?)")
        start = 0
        while (match := pattern.search(text, start)) is not None:
            if name in ("sqrt", "exp") and match[1]:
                end = _closing(text, match.end() - 1)
                inner = text[match.end() : end]
                written = f"\\sqrt{{{inner}}}" if name == "sqrt" else f"e^{{{inner}}}"
                text = text[: match.start()] + written + text[end + 1 :]
                start = match.start() + (6 if name == "sqrt" else 3)
            else:
                text = text[: match.start()] + "\\" + text[match.start() :]
                start = match.end()
    return text


def _closing(text: str, opening: int) -> int:
    depth = 0
    for position in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position
    return len(text)


def _renaming(answer: str) -> dict[str, str]:
    """In an answer of Python's notation every letter is a variable: i is not the imaginary unit, e not Euler's number."""
    if "\\" in answer:
        return {}
    used = set(re.findall(r"(?<![A-Za-z])[A-Za-z](?![A-Za-z])", answer))
    free = [letter for letter in "zyxwvutsrqpnmkjhgfdcba" if letter not in used]
    return {letter: free.pop(0) for letter in ("i", "I", "e", "E") if letter in used}
