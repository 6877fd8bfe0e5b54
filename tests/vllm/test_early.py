"""What an OPEN may ask about reading early, and how much of a prompt is settled. Needs no vLLM."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm_engines import extension

early = extension("early")

IDS = st.lists(st.integers(0, 3), max_size=12)


def test_what_is_asked_is_taken_out_of_what_is_rendered() -> None:
    messages = [{"role": "user", "content": "x"}]
    for said, reads, after in (
        ({"early": "whole"}, "whole", None),
        ({"early": "settled", "after": 7}, "settled", 7),
        ({"after": 0}, None, 0),
        ({}, None, None),
    ):
        body = {"messages": messages, early.FIELD: said}
        assert early.asked(body, 9) == early.Asked({"messages": messages}, reads, after)
        assert body[early.FIELD] is said
    assert early.asked({"messages": messages}, 9) == early.Asked({"messages": messages})


@pytest.mark.parametrize(
    "said",
    ["whole", 1, {"early": "all"}, {"early": True}, {"after": -1}, {"after": "1"}, {"after": True}, {"after": 9}],
)
def test_what_is_not_understood_is_refused(said: Any) -> None:
    with pytest.raises(ValueError, match="must be"):
        early.asked({"messages": [], early.FIELD: said}, 9)


@given(IDS, IDS)
def test_what_two_begin_with(a: list[int], b: list[int]) -> None:
    same = early.common(a, b)
    assert a[:same] == b[:same] and (same == min(len(a), len(b)) or a[same] != b[same])


@given(st.lists(st.integers(0, 3), min_size=1), IDS, IDS, IDS, IDS)
def test_what_is_settled_begins_the_next_prompt_too_unless_it_ends_like_the_instruction(
    question: list[int], first: list[int], second: list[int], third: list[int], tail: list[int]
) -> None:
    """Prompts of a question, an answer that grows, and what always stands behind it."""
    before, prompt = question + first + tail, question + first + second + tail
    upto = early.settled(prompt, before)
    assert upto == max(0, len(prompt) - early.common(prompt[::-1], before[::-1]) - 1) <= len(question + first + second)
    assert (question + first + second + third + tail)[:upto] == prompt[:upto]


def test_of_an_answer_all_but_its_last_token_is_settled() -> None:
    assert early.settled([1, 2, 7, 8, 9, 5, 6], [1, 2, 7, 5, 6]) == 4
    assert early.settled([1, 2, 7, 5, 6], [1, 2, 7, 5, 6]) == 0  # nothing is new
