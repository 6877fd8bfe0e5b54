"""Questions with known answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

AnswerKind = Literal["number", "choice", "text"]

LETTERS = "ABCD"


@dataclass(frozen=True, slots=True)
class Question:
    """`text` is all that is asked, with how to end the answer. `answer`: a number, a letter, or a short text."""

    id: str
    text: str
    answer: str
    kind: AnswerKind


def question_from(row: Mapping[str, Any]) -> Question:
    """From one object of a JSON-lines set: `question`, `answer`, optional `id`; with `A` to `D` it is a multiple choice.

    Of an answer with its derivation, as GSM8K has them, only what stands behind `####` counts.
    Raises ValueError if it is no object, or a field is missing or not text.
    """
    if not isinstance(row, Mapping):
        raise ValueError("a question is an object")  # noqa: TRY004 - as below
    for key in ("question", "answer"):
        if not isinstance(row.get(key), str):
            # A fault of the data, as all others here: one kind of error for whoever reads the file.
            raise ValueError(f"a question needs a text field {key!r}")  # noqa: TRY004
    text, answer = row["question"].strip(), row["answer"].rsplit("####", 1)[-1].strip()
    name = str(row.get("id", text[:40]))
    if all(isinstance(row.get(letter), str) for letter in LETTERS):
        choices = "\n".join(f"{letter}. {row[letter]}" for letter in LETTERS)
        return Question(name, f"{text}\n{choices}\n最后一行只写：答案：字母", answer.upper(), "choice")
    kind: AnswerKind = "number" if _is_number(answer) else "text"
    return Question(
        name, f"{text}\nShow the calculation in a few short lines. The last line says only: #### answer", answer, kind
    )


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", ""))
    except ValueError:
        return False
    return True
