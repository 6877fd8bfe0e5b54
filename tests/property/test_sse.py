"""However a stream of events is cut into reads, the same events come out."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.openai_http.sse import SSEError, SSEEvent, SSEParser

LINES = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12)
EVENTS = st.lists(st.lists(LINES, min_size=1, max_size=3), max_size=5)


def parse(chunks: list[bytes]) -> list[SSEEvent]:
    parser = SSEParser()
    return [event for chunk in chunks for event in parser.feed(chunk)] + parser.finish()


def cut(data: bytes, at: list[int]) -> list[bytes]:
    borders = [0, *sorted(min(place, len(data)) for place in at), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(borders)]


@given(EVENTS, st.sampled_from(["\n", "\r\n", "\r"]), st.booleans(), st.booleans(), st.lists(st.integers(0, 300)))
def test_events_survive_any_writing_and_cutting(
    events: list[list[str]], end: str, space: bool, comments: bool, at: list[int]
) -> None:
    text = ""
    for lines in events:
        text += f": keep-alive{end}{end}" if comments else ""
        # Without the optional space, a value that itself begins with one would lose it.
        text += "".join(f"data:{' ' if space or line.startswith(' ') else ''}{line}{end}" for line in lines) + end
    wanted = [SSEEvent("\n".join(lines)) for lines in events]
    data = text.encode()
    assert parse([data]) == wanted
    assert parse(cut(data, at)) == wanted
    assert parse([data[n : n + 1] for n in range(len(data))]) == wanted


PIECES = [
    b"data:",
    b"data: ",
    b"event: x",
    b"id: 1",
    b"data",
    b":",
    b" ",
    b"\r",
    b"\n",
    b"\r\n",
    b"a",
    "中".encode(),
    b"\xef\xbb\xbf",
]


@given(st.lists(st.sampled_from(PIECES)), st.lists(st.integers(0, 60)))
def test_cutting_never_matters_even_in_nonsense(pieces: list[bytes], at: list[int]) -> None:
    data = b"".join(pieces)
    assert parse(cut(data, at)) == parse([data]) == parse([data[n : n + 1] for n in range(len(data))])


def test_the_rules_by_example() -> None:
    assert parse([b"\xef\xbb\xbfdata: a\n\n"]) == [SSEEvent("a")]
    assert parse([b"data:a\ndata:  b\ndata\n\n"]) == [SSEEvent("a\n b\n")]
    assert parse([b"event: error\ndata: x\n\ndata: y\n\n"]) == [SSEEvent("x", "error"), SSEEvent("y")]
    assert parse([b": hello\n\n\n\nid: 7\n\n"]) == []
    assert parse([b"data: first\n\ndata: last without a blank line"]) == [
        SSEEvent("first"),
        SSEEvent("last without a blank line"),
    ]


@pytest.mark.parametrize("data", [b"data: " + b"x" * 200, b"data: 0123456789\n" * 20])
def test_sizes_are_limited(data: bytes) -> None:
    parser = SSEParser(limit=100)
    with pytest.raises(SSEError):
        for byte in data:
            parser.feed(bytes([byte]))


def test_what_is_no_utf8_is_an_error() -> None:
    with pytest.raises(SSEError):
        parse([b"data: \xff\xfe\n\n"])
