"""How many tokens a text is taken to have where nobody has counted them: estimates, and named so wherever they are told.

A prompt is a token for every four bytes, OpenAI's rule of thumb, and a few for the template. An answer is one for every piece in which
it came, as most servers write it, or for every four bytes where that is more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backends.raw import raw_ids
from backends.types import Message, Usage

ESTIMATED = {"usage_estimated": True}
"""How clients are told, under `modelnet`."""
BYTES_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 4


MOST_TOKENS = 1_000_000_000
"""Of one answer and its prompt, that a server is believed to have counted: sums of it are charged, and kept in databases."""


def believable(count: object) -> bool:
    """Whether a server may have counted so many tokens. One that says a number below zero would give back what others have spent."""
    return type(count) is int and 0 <= count <= MOST_TOKENS


def prompt_tokens(messages: Sequence[Message]) -> int:
    """Of a conversation, or a raw prompt; at least 1."""
    if (ids := raw_ids(messages)) is not None:
        return len(ids)
    return max(1, sum(TOKENS_PER_MESSAGE + -(-_size(message.content) // BYTES_PER_TOKEN) for message in messages))


def body_tokens(size: int) -> int:
    """Of a request that is not read, from the bytes of its body; at least 1."""
    return max(1, size // BYTES_PER_TOKEN)


@dataclass(slots=True)
class Tally:
    """What has come of an answer so far. size: bytes of text."""

    pieces: int = 0
    size: int = 0

    def saw(self, *texts: str) -> None:
        """One more piece, if it says anything."""
        if size := sum(map(_size, texts)):
            self.pieces += 1
            self.size += size

    def usage(self, prompt: int) -> Usage:
        """prompt: its tokens."""
        return Usage(prompt, max(self.pieces, -(-self.size // BYTES_PER_TOKEN)), estimated=True)


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
