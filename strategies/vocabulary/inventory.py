"""The pieces that a set of vocabularies has in common, and how each one's tokens are spelled in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from backends.types import Ids, Vocabulary
from strategies.vocabulary.table import Table, table_of

END = 0
"""Piece id of the virtual end where tokenizers differ; its bytes are empty, so it is first in byte order."""

MOST_COUNTS, MOST_LISTS = 200_000, 10_000
"""Counts and lists of tokens that a speller remembers before it forgets them all."""


class Common:
    """What a set of tokenizers has in common, whoever uses them and in whatever order. Immutable but for what it remembers.

    pieces: piece id → bytes. ends: piece ids that end the text. spellers: fingerprint → how that tokenizer's tokens are spelled.
    """

    __slots__ = ("ends", "most", "pieces", "same", "spellers")

    def __init__(self, vocabularies: Sequence[Vocabulary]) -> None:
        """vocabularies: with different fingerprints."""
        self.most = _Most(self)
        """piece → the most tokens that any of the tokenizers has that begin with its bytes."""
        self.same = len(vocabularies) == 1
        self.pieces: Sequence[bytes]
        self.ends: frozenset[int]
        tables = [table_of(vocabulary) for vocabulary in vocabularies]
        if self.same:
            self.pieces = vocabularies[0].tokens
            self.ends = vocabularies[0].end_ids
            self.spellers = {vocabularies[0].fingerprint: Speller(tables[0], self.pieces, None)}
            return
        common = set.intersection(*(set(table.by_bytes) for table in tables))
        common.update(bytes([value]) for value in range(256))
        self.pieces = (b"", *sorted(common))
        self.ends = frozenset((END,))
        index = {text: piece for piece, text in enumerate(self.pieces)}
        longest = max(map(len, common))
        self.spellers = {
            table.vocabulary.fingerprint: Speller(table, self.pieces, (index, longest)) for table in tables
        }


class _Most(dict[int, int]):
    """Counts; fills itself as the speller does."""

    __slots__ = ("_common",)

    def __init__(self, common: Common) -> None:
        super().__init__()
        self._common = common

    def __missing__(self, piece: int) -> int:
        self[piece] = most = max(speller.beginning[piece] for speller in self._common.spellers.values())
        return most


class Inventory:
    """Pieces of a group: what its tokenizers have in common, seen from its members.

    same: whether all members share one tokenizer; then a piece id is a token id, and end ids are pieces of their own.
    pieces: piece id → bytes. ends: piece ids that end the text. spellers: one per member, in the order given. most: see `Common`.
    """

    __slots__ = ("ends", "most", "pieces", "same", "spellers")

    def __init__(self, vocabularies: Sequence[Vocabulary], common: Common | None = None) -> None:
        common = common or Common(distinct(vocabularies))
        self.same, self.pieces, self.ends, self.most = common.same, common.pieces, common.ends, common.most
        self.spellers = tuple(common.spellers[vocabulary.fingerprint] for vocabulary in vocabularies)


def distinct(vocabularies: Sequence[Vocabulary]) -> list[Vocabulary]:
    """One for each fingerprint, in the order of these."""
    return [one for _, one in sorted({vocabulary.fingerprint: vocabulary for vocabulary in vocabularies}.items())]


@dataclass(frozen=True, slots=True, eq=False)
class Continuing:
    """All tokens of one vocabulary whose spelling begins with certain pieces.

    ids: in byte order, so the first `complete` of them are those that the pieces spell whole. beyond: the others.
    """

    ids: Ids
    complete: int
    beyond: Ids


class Speller(dict[int, tuple[int, ...]]):
    """token id → piece ids. A dict that fills itself, so that the hot loop pays one look-up for a known token."""

    __slots__ = ("_continuing", "_counts", "_index", "_sorted", "beginning", "first", "table")

    def __init__(self, table: Table, pieces: Sequence[bytes], index: tuple[dict[bytes, int], int] | None) -> None:
        """index: ids of the pieces by their bytes, and the longest one's length; None where pieces are tokens."""
        super().__init__()
        self.table = table
        self._index = index
        self._counts: dict[tuple[bytes, int], int] = {}
        self._continuing: dict[tuple[int, ...], Continuing] = {}
        self._sorted = None if index is None else _first_pieces(table, index[0])
        firsts = None if self._sorted is None else self._sorted[1]
        self.beginning = _Beginnings(firsts, len(pieces), len(table.vocabulary.end_ids))
        """piece → how many tokens' spellings begin with it: `len(continuing(…))` where nothing was said."""
        self.first = _first_of_each(table, self._sorted)
        """token id → the first piece of its spelling, -1 if it is empty; int32 [vocabulary size]."""

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

    def continuing(self, said: bytes, spoken: tuple[int, ...], piece: int, piece_bytes: bytes) -> Continuing:
        """All tokens whose spelling begins with `spoken` and then `piece`.

        said: the bytes of `spoken`, joined. piece_bytes: the bytes of `piece`.
        """
        wanted = (*spoken, piece)
        found = self._continuing.get(wanted)
        if found is None:
            if len(self._continuing) >= MOST_LISTS:
                self._continuing.clear()
            ids = self._going_on(said, wanted, said + piece_bytes)
            length, complete = len(wanted), 0
            while complete < len(ids) and len(self[ids[complete]]) == length:
                complete += 1
            array = np.array(ids, np.int32)
            found = self._continuing[wanted] = Continuing(array, complete, array[complete:])
        return found

    def _going_on(self, said: bytes, wanted: tuple[int, ...], text: bytes) -> list[int]:
        """Ids of the tokens whose spelling begins with `wanted`, in byte order; `text`: the bytes of `wanted`."""
        if self._sorted is None:
            return [wanted[-1]]
        if wanted[-1] == END:
            return [] if said else sorted(self.table.vocabulary.end_ids)
        start, stop = self.table.range_starting_with(text)
        ids, firsts = self._sorted
        alike: list[int] = ids[start:stop][firsts[start:stop] == wanted[0]].tolist()
        length = len(wanted)
        return alike if length == 1 else [t for t in alike if self[t][:length] == wanted]

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


def _first_pieces(table: Table, index: dict[bytes, int]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """All text tokens in byte order, and the first piece of each one's spelling: the longest piece that its bytes begin with.

    One walk over tokens and pieces side by side, both in byte order; `open` are the pieces that the present token begins with.
    """
    pieces = iter(sorted(index))
    following = next(pieces, None)
    firsts = []
    open_: list[bytes] = []
    for text in table.keys:
        while following is not None and following <= text:
            while open_ and not following.startswith(open_[-1]):
                open_.pop()
            open_.append(following)
            following = next(pieces, None)
        while not text.startswith(open_[-1]):  # ends at the latest with its first byte, and all bytes are pieces
            open_.pop()
        firsts.append(index[open_[-1]])
    return np.array(table.ids, np.int32), np.array(firsts, np.int32)


class _Beginnings(dict[int, int]):
    """Counts; fills itself as the speller does."""

    __slots__ = ("_counts", "_ends")

    def __init__(self, firsts: NDArray[np.int32] | None, pieces: int, ends: int) -> None:
        """firsts: the first piece of every text token, None where pieces are tokens. ends: how many tokens end the text."""
        super().__init__()
        self._counts = None if firsts is None else np.bincount(firsts, minlength=pieces)
        self._ends = ends

    def __missing__(self, piece: int) -> int:
        if self._counts is None:
            count = 1
        else:
            count = self._ends if piece == END else int(self._counts[piece])
        self[piece] = count
        return count


def _first_of_each(table: Table, found: tuple[Ids, Ids] | None) -> Ids:
    """found: what `_first_pieces` gave; None where pieces are tokens."""
    if found is None:
        return np.arange(len(table.vocabulary), dtype=np.int32)
    first = np.full(len(table.vocabulary), -1, np.int32)
    first[found[0]] = found[1]
    first[list(table.vocabulary.end_ids)] = END
    return first


KEPT = 8
"""Sets of tokenizers whose pieces are remembered, those that were worked out last."""

_kept: dict[tuple[str, ...], Common] = {}
_keeping = Lock()


def inventory_of(vocabularies: Sequence[Vocabulary]) -> Inventory:
    """The inventory of a group. What its tokenizers have in common is worked out once per set of them, and then remembered."""
    members = distinct(vocabularies)
    key = tuple(vocabulary.fingerprint for vocabulary in members)
    common = _kept.get(key)
    if common is None:
        with _keeping:  # whoever else wants it waits, instead of working it out too
            common = _kept.get(key)
            if common is None:
                common = _kept[key] = Common(members)
                while len(_kept) > KEPT:
                    del _kept[next(iter(_kept))]
    return Inventory(vocabularies, common)


def forget_inventories() -> None:
    """For measuring what working them out costs."""
    with _keeping:
        _kept.clear()
