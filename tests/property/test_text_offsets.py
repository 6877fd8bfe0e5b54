"""`text_offset` of completions: where a token's first byte is in the text, whatever its bytes are."""

from __future__ import annotations

import codecs

from hypothesis import given
from hypothesis import strategies as st

from backends.types import TokenLogprob
from gateway.wire.completions.logprobs import LegacyLogprobs

PARTS = [
    b"a",
    "é".encode(),
    "龘".encode(),
    "😀".encode(),
    b"\xf4",
    b"\xf0\x9f",
    b"\xe9",
    b"\x80",
    b"\xff",
    "\ufffd".encode(),
    b"",
]


def places(data: bytes) -> list[int]:
    """Of every byte: the index of the character that it is part of."""
    broken: list[tuple[int, int]] = []

    def keep(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeDecodeError)
        broken.append((error.start, error.end))
        return "", error.end

    codecs.register_error("modelnet-test-keep", keep)
    data.decode(errors="modelnet-test-keep")
    found: list[int] = []
    at = character = 0
    ends = dict(broken)
    while at < len(data):
        if at in ends:
            size = ends[at] - at
        else:
            size = next(size for size in (1, 2, 3, 4) if _is_character(data[at : at + size]))
        found += [character] * size
        at, character = at + size, character + 1
    assert character == len(data.decode(errors="replace"))
    return found


def _is_character(data: bytes) -> bool:
    try:
        return len(data.decode()) == 1
    except UnicodeDecodeError:
        return False


@given(st.lists(st.one_of(st.sampled_from(PARTS), st.binary(max_size=3)), max_size=12))
def test_a_token_is_where_its_first_byte_is(tokens: list[bytes]) -> None:
    where = places(b"".join(tokens))
    value = LegacyLogprobs(0).values([TokenLogprob(token, -1.0, ()) for token in tokens])
    at = 0
    for token, offset in zip(tokens, value["text_offset"], strict=True):
        if token:
            assert offset == where[at]
        at += len(token)
