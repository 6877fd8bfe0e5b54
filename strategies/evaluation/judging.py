"""Says whether a text gives a question's answer."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from strategies.evaluation.finding import Found, How, find
from strategies.evaluation.numbers import number, plain
from strategies.evaluation.questions import AnswerKind, Question

Equal = Callable[[str, str], bool]
"""(right expression, given one) → whether they are the same up to algebra. `strategies.evaluation.symbolic.equal` is one."""

FUZZY = 0.8
"""Share of agreement from which on a fuzzy text is taken for the same."""
ROUNDED_DIGITS = 3
"""Significant digits that a rounded decimal needs to stand for a fraction that has no end."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """given: the answer that was found, None if the text gives none; such an answer is not right."""

    right: bool
    given: str | None
    how: How | None


def judge(question: Question, text: str, equal: Equal | None = None, *, cut: bool = False) -> Verdict:
    """Find the answer and compare it. equal: for expressions; without it they are compared as texts and numbers. cut: see `find`.

    A question of the kind `judge` is compared as a fuzzy text here: what a judging model says is the caller's.
    """
    found = find(text, question.kind, question.choices, cut=cut)
    if found is None:
        return Verdict(False, None, None)
    answers = (question.answer, *question.also)
    right = any(_same(question, answer, found.value, equal) for answer in answers)
    return Verdict(right, found.value, found.how)


def answer_in(text: str, kind: AnswerKind) -> str | None:
    """The answer that a text gives."""
    found: Found | None = find(text, kind)
    return None if found is None else found.value


def is_right(question: Question, text: str) -> bool:
    """Whether the text gives the question's answer."""
    return judge(question, text).right


def _same(question: Question, answer: str, given: str, equal: Equal | None) -> bool:
    kind = question.kind
    if kind == "number":
        return same_number(answer, given)
    if kind == "choice":
        return given.upper() == answer.upper()
    if kind == "expression":
        return _same_expression(question, answer, given, equal)
    left, right = words(answer), words(given)
    if left == right:
        return True
    if kind == "text":
        return "".join(left.split()) == "".join(right.split())
    # A short answer inside a sentence, or a sentence with other words around the same ones.
    held = f" {left} " in f" {right} " if left.isascii() else left in right
    return held or difflib.SequenceMatcher(None, left, right, autojunk=False).ratio() >= FUZZY


def _same_expression(question: Question, answer: str, given: str, equal: Equal | None) -> bool:
    if squeezed(answer) == squeezed(given):
        return True
    # "Factor x**2 - 1": the question's own expression is equal to the answer, but it answers nothing.
    if len(squeezed(given)) > 3 and re.search(r"\W", squeezed(given)) and squeezed(given) in squeezed(question.stem):
        return False
    if (value := number(answer)) is not None and (other := number(given)) is not None:
        return value == other
    return equal(answer, given) if equal is not None else False


def squeezed(text: str) -> str:
    """An expression without spaces and multiplication signs, powers written one way."""
    text = plain(text).replace("**", "^").replace("\\cdot", "").replace("\\times", "")
    return re.sub(r"[\s*{}]", "", text)


def words(text: str) -> str:
    """A text in small letters, one space between words, without punctuation and articles."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"[^\w\s.+\-/%]|(?<!\d)\.|\.(?!\d)", " ", text)
    return " ".join(word for word in text.split() if word not in ("the", "a", "an"))


def same_number(answer: str, given: str) -> bool:
    """Exactly; a fraction without end (3/91) also by its decimal, correctly rounded to three significant digits or more.

    A percentage is right as it stands and as its hundredth, on either side.
    """
    right, value = number(answer.rstrip("%")), number(given.rstrip("%"))
    if right is None or value is None:
        return False
    if (
        value == right
        or (given.endswith("%") and value / 100 == right)
        or (answer.endswith("%") and value == right / 100)
    ):
        return True
    if abs(value - right) <= Fraction(1, 10**9) * max(Fraction(1), abs(right)):  # a decimal with its last digits cut
        return True
    if right.denominator == 1 or "." in answer or "." not in given:
        return False
    decimals = len(given.rsplit(".", 1)[1])
    digits = given.replace("-", "").replace(".", "").lstrip("0")
    return len(digits) >= ROUNDED_DIGITS and abs(right - value) <= Fraction(1, 2 * 10**decimals)
