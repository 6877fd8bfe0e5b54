"""What of an unfinished answer may be read already."""

from __future__ import annotations

from strategies.prompting import partial_answer


def test_what_is_sure_of_an_answer_that_is_being_written() -> None:
    marks = ("<think>", "</think>")
    for written, sure in (
        ("", ""),
        ("Hel", ""),
        ("Hello wor", "Hello"),
        ("One.\nTw", "One."),
        ("长江是亚洲最长的河流，" * 4, "长江是亚洲最长的河流，" * 4),
    ):
        assert partial_answer(written, None) == sure
    for written, sure in (
        ("<think>I wonder what", ""),
        ("I wonder. Perhaps it", ""),  # a block may have been opened in the prompt
        ("I wonder.</think>It is tw", "It is"),
        ("<think>a</think>It is tw", "It is"),
        ("<think>a</think>It is<think>or no", ""),
        ("<think>I wonder.</think>", ""),
        ("<think>I wonder.</think>\n", ""),
    ):
        assert partial_answer(written, marks) == sure
    assert partial_answer("<think>a</think>It is two.", marks, ended=True) == "It is two."
    assert partial_answer("<think>I wonder.</think>", marks, ended=True) == ""
    assert partial_answer("Hello wor", None, ended=True) == "Hello wor"
    assert partial_answer("%a%It is so%no", ("%", "%")) == ""
    assert partial_answer("%a%It is so", ("%", "%")) == "It is"
