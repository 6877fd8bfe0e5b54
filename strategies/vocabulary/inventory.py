"""The pieces that a set of vocabularies has in common, and how each one's tokens are spelled in them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.types import Ids, Vocabulary
from strategies.vocabulary.shelf import shelf
from strategies.vocabulary.table import WORTH_KEEPING, Table, digest_of, forget_tables, table_of

END = 0
"""Piece id of the virtual end where tokenizers differ; its bytes are empty, so it is first in byte order."""

ROW = 4
"""Numbers a token in `Speller.rows`."""
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
        shared = _shared(tables)
        self.pieces = (b"", *shared.texts)
        self.ends = frozenset((END,))
        index = {text: piece for piece, text in enumerate(self.pieces)}
        longest = max(map(len, shared.texts))
        self.spellers = {
            table.vocabulary.fingerprint: Speller(table, self.pieces, (index, longest, firsts))
            for table, firsts in zip(tables, shared.firsts, strict=True)
        }


@dataclass(frozen=True, slots=True)
class _Shared:
    """What tables have in common. texts: bytes of all pieces but END, in byte order. firsts: per table and text token, in the order of
    its `keys`, the first piece of its spelling: the longest piece that its bytes begin with; int32."""

    texts: Sequence[bytes]
    firsts: Sequence[NDArray[np.int32]]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """To be kept."""
        lengths = np.fromiter(map(len, self.texts), np.int32, len(self.texts))
        firsts = {f"firsts{number}": values for number, values in enumerate(self.firsts)}
        return {"texts": np.frombuffer(b"".join(self.texts), np.uint8), "lengths": lengths, **firsts}


def _shared(tables: Sequence[Table]) -> _Shared:
    """Read if it was kept, else worked out."""
    kept = shelf() if sum(len(table.keys) for table in tables) >= WORTH_KEEPING else None
    if kept is None:
        return _work_out(tables)
    name = "set-" + hashlib.sha256(" ".join(digest_of(table.vocabulary) for table in tables).encode()).hexdigest()
    found = kept.get(name)
    shared = None if found is None else _read(found, tables)
    if shared is None:
        shared = _work_out(tables)
        kept.put(name, shared.arrays())
    return shared


def _read(found: Mapping[str, NDArray[Any]], tables: Sequence[Table]) -> _Shared | None:
    """Out of what `_Shared.arrays` gave; None if it can't be that."""
    expected = {"texts": np.uint8, "lengths": np.int32, **{f"firsts{n}": np.int32 for n in range(len(tables))}}
    if found.keys() != expected.keys() or any(found[key].dtype != kind for key, kind in expected.items()):
        return None
    lengths, firsts = found["lengths"], [found[f"firsts{n}"] for n in range(len(tables))]
    if len(lengths) < 256 or lengths.min() < 1 or lengths.sum() != len(found["texts"]):
        return None
    for values, table in zip(firsts, tables, strict=True):
        if values.shape != (len(table.keys),) or ((values <= END) | (values > len(lengths))).any():
            return None
    joined, ends = found["texts"].tobytes(), np.cumsum(lengths).tolist()
    return _Shared([joined[start:end] for start, end in zip((0, *ends), ends, strict=False)], firsts)


def _work_out(tables: Sequence[Table]) -> _Shared:
    common = set.intersection(*(set(table.keys) for table in tables))
    common.update(bytes([value]) for value in range(256))
    texts = sorted(common)
    return _Shared(texts, [_first_pieces(table, texts) for table in tables])


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

    __slots__ = ("_index", "_sorted", "beginning", "counts", "first", "lists", "rows", "table")

    def __init__(
        self,
        table: Table,
        pieces: Sequence[bytes],
        index: tuple[Mapping[bytes, int], int, NDArray[np.int32]] | None,
    ) -> None:
        """index: ids of the pieces by their bytes, the longest one's length, and the first piece of every key of the table, int32;
        None where pieces are tokens."""
        super().__init__()
        self.table = table
        self._index = None if index is None else index[:2]
        self.counts: dict[tuple[bytes, int], int] = {}
        """What `count_continuing` found: (said, piece) → count."""
        self.lists: dict[tuple[int, ...], Continuing] = {}
        """What `continuing` found: (*spoken, piece) → tokens."""
        self._sorted = None if index is None else (table.ids, index[2])
        firsts = None if self._sorted is None else self._sorted[1]
        self.beginning = Beginnings(firsts, len(pieces), len(table.vocabulary.end_ids))
        """piece → how many tokens' spellings begin with it: `len(continuing(…))` where nothing was said."""
        self.first = _first_of_each(table, self._sorted)
        """token id → the first piece of its spelling, -1 if it is empty; int32 [vocabulary size]."""
        self.rows = None if index is None else np.zeros(ROW * len(self.first), np.int32)
        """The spellings that this dict has, side by side, for the core: there one look costs one read of memory, and here five, one after
        the other. ROW numbers a token: how many pieces (0: not known yet), then the pieces behind the first, as many as there is
        room for. int32; None where pieces are tokens."""

    @property
    def same(self) -> bool:
        """Whether pieces are tokens."""
        return self._index is None

    def __missing__(self, token: int) -> tuple[int, ...]:
        spelling = self._spell(token)
        self[token] = spelling
        if self.rows is not None:
            row = (len(spelling), *spelling[1:ROW])
            self.rows[ROW * token : ROW * token + len(row)] = row
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
        found = self.lists.get(wanted)
        if found is None:
            if len(self.lists) >= MOST_LISTS:
                self.lists.clear()
            ids = self._going_on(said, wanted, said + piece_bytes)
            length, complete = len(wanted), 0
            while complete < len(ids) and len(self[ids[complete]]) == length:
                complete += 1
            array = np.array(ids, np.int32)
            found = self.lists[wanted] = Continuing(array, complete, array[complete:])
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
        count = self.counts.get((said, piece))
        if count is None:
            if len(self.counts) >= MOST_COUNTS:
                self.counts.clear()
            count = self.counts[said, piece] = self.table.count_starting_with(said + piece_bytes)
        return count

    def encode(self, text: bytes, piece: int) -> tuple[int, ...]:
        """Token ids that say `text`, the last piece of which is `piece` (which decides it where pieces are tokens)."""
        return (piece,) if self._index is None else self.table.encode(text)


def _first_pieces(table: Table, texts: Sequence[bytes]) -> NDArray[np.int32]:
    """For all text tokens in byte order the longest piece that each begins with. texts: of the pieces, in byte order, from id 1 on.

    One walk over tokens and pieces side by side, both in byte order; `open` are the pieces that the present token begins with.
    """
    pieces = enumerate(texts, END + 1)
    following = next(pieces, None)
    firsts = []
    open_: list[tuple[int, bytes]] = []
    for text in table.keys:
        while following is not None and following[1] <= text:
            while open_ and not following[1].startswith(open_[-1][1]):
                open_.pop()
            open_.append(following)
            following = next(pieces, None)
        while not text.startswith(open_[-1][1]):  # ends at the latest with its first byte, and all bytes are pieces
            open_.pop()
        firsts.append(open_[-1][0])
    return np.array(firsts, np.int32)


class Beginnings(dict[int, int]):
    """piece → how many tokens of one tokenizer begin with it; fills itself as the speller does, so that the hot loop meets plain numbers.

    counts: the same, int32 [number of pieces]; None where pieces are tokens: each begins with one.
    """

    __slots__ = ("counts",)

    def __init__(self, firsts: NDArray[np.int32] | None, pieces: int, ends: int) -> None:
        """firsts: the first piece of every text token, None where pieces are tokens. ends: how many tokens end the text."""
        super().__init__()
        self.counts: NDArray[np.int32] | None = None
        if firsts is not None:
            self.counts = np.bincount(firsts, minlength=pieces).astype(np.int32)
            self.counts[END] = ends

    def __missing__(self, piece: int) -> int:
        self[piece] = count = 1 if self.counts is None else int(self.counts[piece])
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
    """For measuring what working them out costs, the tables of their vocabularies included."""
    with _keeping:
        _kept.clear()
        forget_tables()
