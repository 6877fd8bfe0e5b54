"""One vocabulary, indexed by bytes."""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from backends.types import Vocabulary
from strategies.vocabulary.shelf import FORMAT, shelf

WORTH_KEEPING = 20_000
"""Tokens from which on reading what was kept is quicker than working it out."""


class Table:
    """A vocabulary's text tokens by their bytes: exact, by prefix, and as a longest-match encoder. Immutable."""

    __slots__ = ("_longest", "ids", "keys", "vocabulary")

    def __init__(self, vocabulary: Vocabulary, ids: NDArray[np.int32] | None = None) -> None:
        """ids: as `text_ids` gives them, if that is known."""
        self.vocabulary = vocabulary
        self.ids = text_ids(vocabulary) if ids is None else ids
        tokens = vocabulary.tokens
        self.keys = [tokens[id] for id in self.ids.tolist()]
        """The text tokens' bytes in byte order, and their ids, int32; ids with the same bytes are ascending (SentencePiece may have
        `a` twice: as text and as a byte)."""
        self._longest = max(map(len, self.keys), default=0)

    def ids_of(self, text: bytes) -> tuple[int, ...]:
        """Ids that say just these bytes, ascending."""
        start = stop = bisect_left(self.keys, text)
        while stop < len(self.keys) and self.keys[stop] == text:
            stop += 1
        return tuple(self.ids[start:stop].tolist())

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
            place = self._longest_in(text[at : at + self._longest])
            if place is None:
                at += 1
            else:
                ids.append(int(self.ids[place]))
                at += len(self.keys[place])
        return tuple(ids)

    def _longest_in(self, text: bytes) -> int | None:
        """Where in `keys` the longest token is that `text` begins with, the first of several; None if there is none.

        The greatest key that is no greater than the text is it, if the text begins with it. Else no key can be it that is longer than
        what those two have in common.
        """
        while text and (after := bisect_right(self.keys, text)):
            key = self.keys[after - 1]
            if text.startswith(key):
                return bisect_left(self.keys, key, 0, after)
            text = text[: next(at for at, (byte, other) in enumerate(zip(text, key, strict=False)) if byte != other)]
        return None

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


def text_ids(vocabulary: Vocabulary) -> NDArray[np.int32]:
    """Ids of all tokens that carry text, in the order of their bytes, int32."""
    tokens, ends = vocabulary.tokens, vocabulary.end_ids
    ids = [id for id, text in enumerate(tokens) if text and id not in ends]
    return np.array(sorted(ids, key=tokens.__getitem__), np.int32)


@lru_cache(maxsize=64)
def digest_of(vocabulary: Vocabulary) -> str:
    """Of all that tables depend on: the fingerprint is not enough, since a server may have told it of itself."""
    digest = hashlib.sha256(f"{FORMAT} {vocabulary.fingerprint} {sorted(vocabulary.end_ids)}\n".encode())
    digest.update(np.fromiter(map(len, vocabulary.tokens), np.int64, len(vocabulary)).tobytes())
    digest.update(b"".join(vocabulary.tokens))
    return digest.hexdigest()


@lru_cache(maxsize=64)
def table_of(vocabulary: Vocabulary) -> Table:
    """The vocabulary's table, built once (vocabularies are compared by identity)."""
    kept = shelf() if len(vocabulary) >= WORTH_KEEPING else None
    if kept is None:
        return Table(vocabulary)
    name = f"table-{digest_of(vocabulary)}"
    ids = (kept.get(name) or {}).get("ids")
    if ids is not None and ids.dtype == np.int32 and ids.ndim == 1 and not ((ids < 0) | (ids >= len(vocabulary))).any():
        return Table(vocabulary, ids)
    table = Table(vocabulary)
    kept.put(name, {"ids": table.ids})
    return table


def forget_tables() -> None:
    """For measuring what building them costs."""
    table_of.cache_clear()
    digest_of.cache_clear()
