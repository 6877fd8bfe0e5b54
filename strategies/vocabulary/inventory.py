"""The pieces that a set of vocabularies has in common, and how each one's tokens are spelled in them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from backends.types import Vocabulary
from strategies.vocabulary.table import Table, table_of

END = 0
"""Piece id of the virtual end where tokenizers differ; its bytes are empty, so it is first in byte order."""

MOST_COUNTS, MOST_LISTS = 200_000, 10_000
"""Counts and lists of tokens that a speller remembers before it forgets them all."""


class Inventory:
    """Pieces of a set of vocabularies. Immutable but for the spellings it remembers.

    same: whether all members share one tokenizer; then a piece id is a token id, and end ids are pieces of their own.
    pieces: piece id → bytes. ends: piece ids that end the text. spellers: one per vocabulary, in the order given.
    """

    __slots__ = ("ends", "pieces", "same", "spellers")

    def __init__(self, vocabularies: Sequence[Vocabulary]) -> None:
        self.same = len({vocabulary.fingerprint for vocabulary in vocabularies}) == 1
        self.pieces: Sequence[bytes]
        self.ends: frozenset[int]
        tables = [table_of(vocabulary) for vocabulary in vocabularies]
        if self.same:
            self.pieces = vocabularies[0].tokens
            self.ends = vocabularies[0].end_ids
            shared = Speller(tables[0], None)
            self.spellers = tuple(shared for _ in tables)
            return
        common = set.intersection(*(set(table.by_bytes) for table in tables))
        common.update(bytes([value]) for value in range(256))
        self.pieces = (b"", *sorted(common))
        self.ends = frozenset((END,))
        index = {text: piece for piece, text in enumerate(self.pieces)}
        longest = max(map(len, common))
        by_table: dict[int, Speller] = {}
        for table in tables:
            by_table.setdefault(id(table), Speller(table, (index, longest)))
        self.spellers = tuple(by_table[id(table)] for table in tables)


class Speller(dict[int, tuple[int, ...]]):
    """token id → piece ids. A dict that fills itself, so that the hot loop pays one look-up for a known token."""

    __slots__ = ("_continuing", "_counts", "_index", "first", "table")

    def __init__(self, table: Table, index: tuple[dict[bytes, int], int] | None) -> None:
        super().__init__()
        self.table = table
        self._index = index
        self._counts: dict[tuple[bytes, int], int] = {}
        self._continuing: dict[tuple[int, ...], list[int]] = {}
        self.first = _Firsts(self)
        """token id → the first piece of its spelling, -1 if it is empty."""

    @property
    def same(self) -> bool:
        """Whether pieces are tokens."""
        return self._index is None

    def __missing__(self, token: int) -> tuple[int, ...]:
        spelling = self._spell(token)
        self[token] = spelling
        return spelling

    def _spell(self, token: int) -> tuple[int, ...]:
        if self._index is None:
            return (token,)
        vocabulary = self.table.vocabulary
        if token in vocabulary.end_ids:
            return (END,)
        index, longest = self._index
        text = vocabulary.tokens[token]
        spelling = []
        at = 0
        while at < len(text):
            end = min(len(text), at + longest)
            while text[at:end] not in index:  # ends at the latest with a single byte, and all of those are pieces
                end -= 1
            spelling.append(index[text[at:end]])
            at = end
        return tuple(spelling)

    def continuing(self, said: bytes, spoken: tuple[int, ...], piece: int, piece_bytes: bytes) -> list[int]:
        """Ids of all tokens whose spelling begins with `spoken` and then `piece`. Not to be changed.

        said: the bytes of `spoken`, joined. piece_bytes: the bytes of `piece`.
        """
        if self._index is None:
            return [piece]
        if piece == END:
            return [] if spoken else sorted(self.table.vocabulary.end_ids)
        wanted = (*spoken, piece)
        found = self._continuing.get(wanted)
        if found is None:
            length = len(wanted)
            found = [t for t in self.table.starting_with(said + piece_bytes) if self[t][:length] == wanted]
            if len(self._continuing) >= MOST_LISTS:
                self._continuing.clear()
            self._continuing[wanted] = found
        return found

    def count_continuing(self, said: bytes, piece: int, piece_bytes: bytes) -> int:
        """An upper bound of `len(continuing(…))` that spells nothing: tokens that begin with these bytes."""
        if self._index is None:
            return 1
        if piece == END:
            return 0 if said else len(self.table.vocabulary.end_ids)
        count = self._counts.get((said, piece))
        if count is None:
            if len(self._counts) >= MOST_COUNTS:
                self._counts.clear()
            count = self._counts[said, piece] = self.table.count_starting_with(said + piece_bytes)
        return count

    def encode(self, text: bytes, piece: int) -> tuple[int, ...]:
        """Token ids that say `text`, the last piece of which is `piece` (which decides it where pieces are tokens)."""
        return (piece,) if self._index is None else self.table.encode(text)


class _Firsts(dict[int, int]):
    """First pieces; fills itself as the speller does."""

    __slots__ = ("_speller",)

    def __init__(self, speller: Speller) -> None:
        super().__init__()
        self._speller = speller

    def __missing__(self, token: int) -> int:
        spelling = self._speller[token]
        first = self[token] = spelling[0] if spelling else -1
        return first


@lru_cache(maxsize=64)
def inventory_of(vocabularies: tuple[Vocabulary, ...]) -> Inventory:
    """The inventory of a set of vocabularies, built once per set."""
    return Inventory(vocabularies)
