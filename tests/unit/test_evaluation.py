"""Answers are found where people and models put them, and a share is given with its uncertainty."""

from __future__ import annotations

import pytest

from strategies.evaluation import Question, answer_in, is_right, question_from, wilson


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
    [("答案：B", "B"), ("选 C。因为 A 不对", "C"), ("The answer is (d)", "D"), ("ABBA", None), ("B", "B")],
)
def test_letters_are_found(text: str, expected: str | None) -> None:
    assert answer_in(text, "choice") == expected


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
