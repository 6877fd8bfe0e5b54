"""From bytes to text: half characters and half stop strings are held back."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from backends.textout import TextOut


def through(chunks: list[bytes], stops: list[str]) -> tuple[str, bool]:
    out = TextOut(stops)
    text = "".join(out.feed(chunk) for chunk in chunks)
    return text + out.finish(), out.stopped


@given(st.text(), st.lists(st.integers(0, 60)))
def test_any_cut_of_the_bytes_gives_the_same_text(text: str, cuts: list[int]) -> None:
    data = text.encode("utf-8", "surrogatepass") if text.isprintable() else text.encode("utf-8", "replace")
    edges = [0, *sorted(min(c, len(data)) for c in cuts), len(data)]
    chunks = [data[a:b] for a, b in itertools.pairwise(edges)]
    assert through(chunks, [])[0] == data.decode("utf-8", "replace")


@given(st.text("ab中👍", max_size=40), st.lists(st.text("ab中👍", min_size=1, max_size=4), max_size=3))
def test_the_text_ends_before_the_first_stop_string(text: str, stops: list[str]) -> None:
    """Byte by byte, the answer is what stands before the earliest stop string, and a held-back half of one is given back."""
    first = min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))
    chunks = [bytes([b]) for b in text.encode()]
    got, stopped = through(chunks, stops)
    assert through([text.encode()], stops) == (got, stopped)
    completed = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if completed:
        end = min(completed)  # the stop string that is complete first ends the answer
        expected = min(text.find(stop) for stop in stops if stop in text and text.find(stop) + len(stop) == end)
        assert (got, stopped) == (text[:expected], True)
    else:
        assert (got, stopped) == (text[:first], False)


def test_tokens_that_end_inside_a_character_at_the_end_are_left_out() -> None:
    assert through([b"ok ", b"so \xe4\xb8"], []) == ("ok ", False)
    assert through([b"ok ", b"so \xe4", b"\xb8\xad\xe4", b"\xb8"], []) == ("ok ", False)
    assert through([b"ok ", b"so \xe4", b"\xb8\xad\xe4", b"\xb8\xad"], []) == ("ok so \u4e2d\u4e2d", False)
    # Not at the end it is an error of the model's.
    assert through([b"ok ", b"so \xe4\xb8", b"!"], []) == ("ok so \ufffd!", False)
    assert through([b"ok ", b"\xff"], []) == ("ok \ufffd", False)


def test_what_was_held_back_for_a_stop_string_is_given_without_the_half_character_behind_it() -> None:
    out = TextOut(["ST\u4e2dOP"])
    assert out.feed(b"ok S") == "ok "
    assert out.feed(b"T") == ""
    assert out.feed(b"\xe4\xb8") == ""
    assert out.finish() == "ST"
    assert out.waiting == 2


def test_text_is_given_as_soon_as_it_is_certain() -> None:
    out = TextOut(["STOP"])
    assert out.feed(b"abcS") == "abc"
    assert out.feed(b"Tx") == "STx"
    assert out.feed(b"STO") == ""
    assert out.feed(b"P rest") == ""
    assert out.stopped
    assert out.feed(b"more") == ""
    assert out.finish() == ""
