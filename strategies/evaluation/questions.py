"""Questions with known answers, from plain data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from strategies.evaluation.numbers import number

AnswerKind = Literal["number", "choice", "expression", "text", "fuzzy", "judge"]
"""How an answer is found and compared: as a number, a letter, up to algebra, word by word, nearly word by word, by a judge."""

KINDS: tuple[AnswerKind, ...] = get_args(AnswerKind)
LETTERS = "ABCDEFGHIJ"

END_NUMBER = "Show the calculation in a few short lines. The last line says only: #### answer"
END_CHOICE_ZH = "最后一行只写：答案：字母"
END_CHOICE = "The last line says only: Answer: letter"

_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_ALGEBRA = re.compile(r"[\sA-Za-z0-9+\-*/^().,{}\[\]=\\_]+")


@dataclass(frozen=True, slots=True)
class Question:
    """`text` is all that is asked, with how to end the answer; `stem` is the question alone.

    answer: a number, a letter, an expression (as Python or LaTeX writes it), or a short text. also: other right texts.
    choices: what the letters stand for.
    """

    id: str
    text: str
    answer: str
    kind: AnswerKind
    stem: str = ""
    also: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()


def question_from(row: Mapping[str, Any]) -> Question:
    """From one object of a question set: `question`, `answer`, optional `id`, `kind`, `also`; with `A`, `B`… a multiple choice.

    Of an answer with its derivation, as GSM8K has them, only what stands behind `####` counts. Without `kind` the answer
    tells: a number or fraction, an expression (operators or a set of values), else a text. `instruction` replaces how the
    answer should end; empty asks the question as it stands.
    Raises ValueError if it is no object, or a field is missing or not text.
    """
    if not isinstance(row, Mapping):
        raise ValueError("a question is an object")  # noqa: TRY004 - as below
    index = row["answer"] if isinstance(row.get("answer"), int) and not isinstance(row["answer"], bool) else None
    for key in ("question", "answer"):
        value = row.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            row = {**row, key: str(value)}
        elif not isinstance(value, str):
            # A fault of the data, as all others here: one kind of error for whoever reads the file.
            raise ValueError(f"a question needs a text field {key!r}")  # noqa: TRY004
    stem, answer = row["question"].strip(), row["answer"].rsplit("####", 1)[-1].strip()
    if not stem or not answer:
        raise ValueError("a question and its answer are not empty")
    name = str(row.get("id", stem[:40]))
    kind, also = _kind(row), tuple(str(text) for text in _list(row, "also"))
    choices = _choices(row)
    if choices and kind in (None, "choice"):
        answer = _letter(answer if index is None else index, choices)
        listed = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=False))
        end = END_CHOICE_ZH if _CHINESE.search(stem) else END_CHOICE
        return Question(name, _ask(f"{stem}\n{listed}", row, end), answer, "choice", stem, also, choices)
    if kind == "choice":
        raise ValueError("a multiple choice needs its choices in the fields A, B…")
    for text in (answer, *also) if kind == "number" else ():
        if number(text.rstrip("%")) is None:
            raise ValueError(f"the answer {text!r} is no number, so nobody could be right")
    return Question(name, _ask(stem, row, END_NUMBER), answer, kind or kind_of(answer), stem, also)


def kind_of(answer: str) -> AnswerKind:
    """What an answer without a declared kind is taken for."""
    if number(answer) is not None:
        return "number"
    if re.fullmatch(r"\d+(?:-\d+)+", answer):  # a score, a date
        return "text"
    letters = re.findall(r"[A-Za-z]+", re.sub(r"\\[A-Za-z]+", "", answer))
    words = [
        word
        for word in letters
        if len(word) > 1 and word not in ("sqrt", "exp", "log", "ln", "sin", "cos", "tan", "pi")
    ]
    algebraic = re.search(r"[+*/^=\\]|\d\s*-|\d\s*,\s*-?\d|[a-z]\d|\d[a-z]|[a-z]\s*-\s*\d", answer)
    return "expression" if algebraic and not words and _ALGEBRA.fullmatch(answer) else "text"


def _ask(question: str, row: Mapping[str, Any], end: str) -> str:
    end = str(row.get("instruction", end))
    return f"{question}\n{end}" if end else question


def _kind(row: Mapping[str, Any]) -> AnswerKind | None:
    kind = row.get("kind")
    if kind in (None, ""):
        return None
    if kind not in KINDS:
        raise ValueError(f"kind is one of {', '.join(KINDS)}, not {kind!r}")
    found: AnswerKind = kind
    return found


def _list(row: Mapping[str, Any], key: str) -> list[Any]:
    value = row.get(key) or []
    return value if isinstance(value, list) else [value]


def _choices(row: Mapping[str, Any]) -> tuple[str, ...]:
    """From the fields A, B…, or a list `choices` (texts, or Hugging Face's {"text": […]})."""
    listed = row.get("choices")
    if isinstance(listed, Mapping):
        listed = listed.get("text")
    if isinstance(listed, list):
        return tuple(str(text) for text in listed)[: len(LETTERS)]
    found = []
    for letter in LETTERS:
        value = row.get(letter)
        if value is None or (isinstance(value, str) and not value.strip()):
            break
        found.append(str(value))
    return tuple(found) if len(found) > 1 else ()


def _letter(answer: str | int, choices: tuple[str, ...]) -> str:
    """The letter of an answer given as a letter, as one choice's text, or as an index from 0: a number that is no text, or no choice's
    text. Raises ValueError."""
    letters = LETTERS[: len(choices)]
    if isinstance(answer, str):
        if len(answer) == 1 and answer.upper() in letters:
            return answer.upper()
        if choices.count(answer) == 1:
            return letters[choices.index(answer)]
    if str(answer).isdecimal() and int(answer) < len(choices):
        return letters[int(answer)]
    raise ValueError(f"the answer {answer!r} is none of the letters {letters}")
