"""Answers are found where people and models put them, and a share is given with its uncertainty."""

from __future__ import annotations

import pytest

from strategies.evaluation import Question, answer_in, is_right, question_from, wilson
from strategies.evaluation.finding import find
from strategies.evaluation.questions import AnswerKind


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3 + 4 = 7\n#### 7", "7"),
        ("So the total is $57,500.", "57500"),
        ("The answer is **42**. I used 6 and 7.", "42"),
        (r"Thus \boxed{-3.5} holds", "-3.5"),
        ("答案是：12", "12"),
        ("The answer is: $1,294.50 per week", "1294.50"),
        ("one half is 1/2", "1/2"),
        ("First answer: 3. Then again, final answer: 4", "4"),
        ("no number here", None),
        ("", None),
    ],
)
def test_numbers_are_found(text: str, expected: str | None) -> None:
    assert answer_in(text, "number") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("答案：B", "B"), ("选 C。因为 A 不对", "C"), ("The answer is (d)", "D"), ("ABBA", None), ("B", "B"),
        ("A. one\nB. two\nC. three\nD. four", None), ("A. one\nB. two\nC. three\nD. four\n\nB. two", "B"), ("B. two, of course", "B"),
        ("A. one\nB. two\n\nA.\n\nA.\n\nA.", "A"), ("A\nB\nC\nD", None), ("A\nNo, wait.\nB", "B"),
    ],
)  # fmt: skip
def test_letters_are_found(text: str, expected: str | None) -> None:
    assert answer_in(text, "choice") == expected


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("The answer is 50.\n\nThe answer is 5", "number", "50"),
        ("The answer is 50.\n\nThe answer is 5.", "number", "5"),
        ("#### 12\n#### 1", "number", "12"),
        ("#### 18", "number", "18"),  # nothing else says anything
        ("#### 3*x**2\nSo:\n#### 3*x*", "expression", "3*x**2"),
        ("A. msgsnd\nB. shmat\nA", "choice", None),
        ("A.\n\nA.\n\nA", "choice", "A"),
    ],
)
def test_what_a_cut_has_torn_is_not_taken_for_an_answer(text: str, kind: AnswerKind, expected: str | None) -> None:
    found = find(text, kind, "wxyz" if kind == "choice" else (), cut=True)
    assert (None if found is None else found.value) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I didn't realize that the GCF of the terms was 3y^3.", None), ("So\n\n#### answer", None),
        ("Show it in a few lines.\nsin(x)*cos(x) + log(x)*sqrt(x)", "sin(x)*cos(x) + log(x)*sqrt(x)"),
    ],
)  # fmt: skip
def test_sentences_are_no_expressions(text: str, expected: str | None) -> None:
    assert answer_in(text, "expression") == expected


def test_numbers_are_compared_as_numbers() -> None:
    question = Question("q", "?", "57500", "number")
    assert is_right(question, "#### $57,500.00")
    assert not is_right(question, "#### 5750")
    assert not is_right(question, "#### 1/0")


def test_question_sets() -> None:
    assert question_from({"id": "x", "question": "2+2?", "answer": "4"}).kind == "number"
    choice = question_from({"question": "哪个？", "answer": "a", "A": "1", "B": "2", "C": "3", "D": "4"})
    assert (choice.kind, choice.answer) == ("choice", "A")
    assert "B. 2" in choice.text
    assert is_right(question_from({"question": "?", "answer": "2*x + 1"}), "so\n#### 2*x+1")
    with pytest.raises(ValueError, match="answer"):
        question_from({"question": "?"})


def test_wilson_interval_is_the_published_one() -> None:
    """Against values worked out by hand: 8 of 10, 0 of 20."""
    low, high = wilson(8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)
    assert round(wilson(0, 20)[1], 4) == 0.1611
    assert wilson(0, 0) == (0.0, 1.0)


def test_an_answer_with_its_derivation_is_what_stands_behind_the_mark() -> None:
    """GSM8K as it is published."""
    question = question_from({"question": "?", "answer": "48/2 = <<48/2=24>>24\n48+24 = 72\n#### 1,072"})
    assert (question.answer, question.kind) == ("1,072", "number")
    assert is_right(question, "#### 1072")
