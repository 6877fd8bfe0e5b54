"""Text and its tokens come out together: whatever is cut, held back or cut off."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from backends.textout import TextOut
from backends.types import TokenLogprob
from strategies.engine.tokens import TokensOut

stops = st.lists(st.text("ab中👍", min_size=1, max_size=4), max_size=3)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges) if a < b]


@given(st.text("ab中👍", max_size=30), st.lists(st.integers(0, 60), max_size=12), stops, st.binary(max_size=2))
def test_tokens_join_to_the_text_of_every_part(text: str, cuts: list[int], stops: list[str], broken: bytes) -> None:
    """Also where the bytes are no UTF-8 at all. The text is what comes without tokens."""
    chunks = pieces(text.encode() + broken, cuts)
    plain, out = TextOut(stops), TokensOut(stops)
    expected = "".join(plain.feed(chunk) for chunk in chunks) + plain.finish()
    parts = [out.feed(TokenLogprob(chunk, -float(n))) for n, chunk in enumerate(chunks)]
    parts.append(out.finish())
    assert "".join(text for text, _ in parts) == expected
    assert out.stopped == plain.stopped
    for text, tokens in parts:
        assert b"".join(token.text for token in tokens).decode("utf-8", "replace") == text
        assert all(token.text for token in tokens)
    told = [token for _, tokens in parts for token in tokens]
    assert [token.logprob for token in told] == [-float(n) for n in range(len(told))]
    assert all(chunk.startswith(token.text) for token, chunk in zip(told, chunks, strict=False))


def test_tokens_wait_for_their_text_and_text_for_its_tokens() -> None:
    out = TokensOut(["stop"])
    a, b, c = (TokenLogprob(text, -1.0) for text in (b"one \xe4\xb8", b"\xad st", b"ill"))
    assert out.feed(a) == ("", ())
    assert out.feed(b) == ("one 中"[:0], ())
    assert out.feed(c) == ("one 中 still", (a, b, c))
    assert out.finish() == ("", ())


def test_of_a_token_that_a_stop_string_cuts_the_beginning_is_left() -> None:
    out = TokensOut(["four"])
    assert out.feed(TokenLogprob(b"three f", -1.0)) == ("", ())
    assert out.feed(TokenLogprob(b"our five", -2.0)) == ("three ", (TokenLogprob(b"three ", -1.0),))
    assert out.stopped
    assert out.feed(TokenLogprob(b"six", -3.0)) == ("", ())
    assert out.finish() == ("", ())


def test_tokens_that_end_in_half_a_character_are_not_told() -> None:
    out = TokensOut()
    first = TokenLogprob(b"one", -1.0)
    assert out.feed(first) == ("one", (first,))
    assert out.feed(TokenLogprob(b" \xe4", -1.0)) == ("", ())
    assert out.feed(TokenLogprob(b"\xb8", -2.0)) == ("", ())
    assert out.finish() == ("", ())
