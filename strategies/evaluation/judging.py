"""Finds the answer in a text, and compares it."""

from __future__ import annotations

import re

from strategies.evaluation.questions import AnswerKind, Question

_NUMBER = r"-?\$?\s?-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:\s*/\s*\d+)?|-?\.\d+"
_MARKED = re.compile(
    r"(?:####|\\boxed\{|(?:final\s+)?answer\s*(?:is|:|=)+|答案\s*(?:是|为|：|:)+)[\s*$`\\({:]*(" + _NUMBER + ")",
    re.IGNORECASE,
)
_LETTER_MARKED = re.compile(
    r"(?:答案|选项?|answer)\s*(?:是|为|is|：|:|应为|应选|选)*[\s*(\[（【]*([A-D])(?![A-Za-z])", re.IGNORECASE
)


def answer_in(text: str, kind: AnswerKind) -> str | None:
    """The answer that a text gives: the last marked one (`####`, `\\boxed{}`, "answer is", 答案), else the last one that stands there."""
    if kind == "number":
        found = _MARKED.findall(text) or re.findall(_NUMBER, text)
        return re.sub(r"[\s,$]", "", found[-1]) if found else None
    if kind == "choice":
        found = _LETTER_MARKED.findall(text) or re.findall(r"(?<![A-Za-z])([A-D])(?![A-Za-z])", text)
        return found[-1].upper() if found else None
    marked = text.rsplit("####", 1)
    last = marked[1] if len(marked) == 2 else (text.strip().splitlines() or [""])[-1]
    return last.strip().rstrip(".") or None


def is_right(question: Question, text: str) -> bool:
    """Whether the text gives the question's answer. Numbers are compared as numbers."""
    given = answer_in(text, question.kind)
    if given is None:
        return False
    if question.kind == "number":
        value = _value(given)
        return value is not None and abs(value - float(question.answer.replace(",", ""))) < 1e-6
    return re.sub(r"\s", "", given).lower() == re.sub(r"\s", "", question.answer).lower()


def _value(number: str) -> float | None:
    top, _, bottom = number.partition("/")
    try:
        return float(top) / float(bottom) if bottom else float(top)
    except (ValueError, ZeroDivisionError):
        return None
