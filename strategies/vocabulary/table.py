"""One vocabulary, indexed by bytes."""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache

from backends.types import Vocabulary


class Table:
    """A vocabulary's text tokens by their bytes: exact, by prefix, and as a longest-match encoder. Immutable."""

    __slots__ = ("_longest", "by_bytes", "ids", "keys", "vocabulary")

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        ends = vocabulary.end_ids
        by_bytes: dict[bytes, tuple[int, ...]] = {}
        for token, text in enumerate(vocabulary.tokens):
            if text and token not in ends:
                by_bytes[text] = (*by_bytes[text], token) if text in by_bytes else (token,)
        self.by_bytes = by_bytes
        """bytes → ids that say just them, ascending (SentencePiece may have `a` twice: as text and as a byte)."""
        tokens = vocabulary.tokens
        self.ids = sorted([id for id, text in enumerate(tokens) if text and id not in ends], key=tokens.__getitem__)
        self.keys = [tokens[id] for id in self.ids]
        """The text tokens' bytes in byte order, and their ids."""
        self._longest = max(map(len, by_bytes), default=0)

    def count_starting_with(self, prefix: bytes) -> int:
        """How many text tokens begin with `prefix`, the token that is just `prefix` included."""
        start, stop = self.range_starting_with(prefix)
        return stop - start

    def encode(self, text: bytes) -> tuple[int, ...]:
        """Ids whose bytes join to `text`, greedy longest match from the left.

        Not always the tokenizer's own choice, but valid tokens with just these bytes. Where no token begins with a byte, that
        byte is left out, as tokenizers without a fallback leave it out of a prompt; so there may be no ids at all.
        """
        ids: list[int] = []
        at = 0
        while at < len(text):
            for end in range(min(len(text), at + self._longest), at, -1):
                found = self.by_bytes.get(text[at:end])
                if found is not None:
                    ids.append(found[0])
                    at = end
                    break
            else:
                at += 1
        return tuple(ids)

    def range_starting_with(self, prefix: bytes) -> tuple[int, int]:
        """Where in `keys` and `ids` the tokens are whose bytes begin with `prefix`: from, up to."""
        if not prefix:
            return 0, len(self.keys)
        start = bisect_left(self.keys, prefix)
        after = _successor(prefix)
        return start, len(self.keys) if after is None else bisect_left(self.keys, after, start)


def _successor(prefix: bytes) -> bytes | None:
    """The least byte string greater than every string that begins with `prefix`; None if there is none (all 0xFF)."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None


@lru_cache(maxsize=64)
def table_of(vocabulary: Vocabulary) -> Table:
    """The vocabulary's table, built once (vocabularies are compared by identity)."""
    return Table(vocabulary)
