"""Answers are found where people and models put them, and a share is given with its uncertainty."""

from __future__ import annotations

from fractions import Fraction

import pytest

from gateway.evaluation.runner import said_right
from strategies.evaluation import Question, answer_in, is_right, question_from, wilson
from strategies.evaluation.finding import find
from strategies.evaluation.numbers import number
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
        ("The answer is 18 = 2 * 9.", "18"), ("#### 18 (= 2*9)", "18"), ("#### 7 (7 = 3 + 4)", "7"),
        ("#### 4 + 4 + 3", "4 + 4 + 3"),  # not worked out: what stands there, and no number
        ("The answer is: 4 * 4 * 4 *", "4 * 4 * 4 *"), ("#### 5 x 3 = 15", "15"), ("#### 3/4 = 0.75", "0.75"),
    ],
)  # fmt: skip
def test_numbers_are_found(text: str, expected: str | None) -> None:
    assert answer_in(text, "number") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("答案：B", "B"), ("选 C。因为 A 不对", "C"), ("The answer is (d)", "D"), ("ABBA", None), ("B", "B"),
        ("A. one\nB. two\nC. three\nD. four", None), ("A. one\nB. two\nC. three\nD. four\n\nB. two", "B"), ("B. two, of course", "B"),
        ("A. one\nB. two\n\nA.\n\nA.\n\nA.", "A"), ("A\nB\nC\nD", None), ("A\nNo, wait.\nB", "B"),
        ("The correct answer is a bit tricky, but it must be Ben.", None), ("The answer is a person who is taller: B.", "B"),
        ("the answer is b.", "B"), ("answer: c", "C"), ("The answer is A because of this", "A"),
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


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 1/2", Fraction(3, 2)), ("-1 1/2", Fraction(-3, 2)), ("1,234,567.5", Fraction(2469135, 2)), ("3/4", Fraction(3, 4)),
        ("3,4", None), ("1,23", None), ("1/0", None), ("1 1/0", None), ("nan", None), ("infinity", None), ("50%", None), ("", None),
    ],
)  # fmt: skip
def test_numbers_are_read(text: str, value: Fraction | None) -> None:
    assert number(text) == value


def test_right_answers_that_are_read_wrongly_make_everybody_wrong() -> None:
    """So they are read with care, or refused."""
    options = {"A": "1", "B": "2", "C": "3", "D": "4", "question": "?"}
    assert question_from({**options, "answer": "2"}).answer == "B"  # as its text
    assert question_from({**options, "answer": 2}).answer == "C"  # as an index, as Hugging Face's sets have it
    assert question_from({"question": "?", "choices": ["w", "x"], "answer": "1"}).answer == "B"
    assert question_from({"question": "?", "answer": "3,4"}).kind == "expression"
    assert is_right(question_from({"question": "?", "answer": "1 1/2"}), "#### 1.5")
    assert is_right(question_from({"question": "?", "answer": "50%", "kind": "number"}), "#### 50 %")
    assert is_right(question_from({"question": "?", "answer": "50%", "kind": "number"}), "#### 0.5")
    assert {question_from({"question": "?", "answer": a}).kind for a in ("3-2", "2020-05-01", "nan")} == {"text"}
    for row in ({"answer": "18 dollars"}, {"answer": "18", "also": "many"}):
        with pytest.raises(ValueError, match="is no number"):
            question_from({"question": "?", "kind": "number", **row})


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("RIGHT", True), ("wrong.", False), ("The given answer is not right.", False), ("It isn't correct", False), ("Incorrect", False),
        ("not wrong", True), ("WRONG? No: RIGHT", True), ("well", False), ("It is not quite right", False), (None, None),
    ],
)  # fmt: skip
def test_what_a_judge_says(said: str | None, right: bool | None) -> None:
    assert said_right(said) is right


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
