"""llguidance's view of an inventory: its tokens are the group's pieces."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache

from llguidance import LLTokenizer, TokenizerWrapper

from strategies.vocabulary import Inventory

MOST_PIECES = 1_000_000
"""Of all tokenizers that are kept, together: about 200 MB."""

_SPECIAL = b"\xff"  # the library's mark of a special token; no text begins with this byte

_kept: OrderedDict[int, tuple[Sequence[bytes], LLTokenizer]] = OrderedDict()
_lock = threading.Lock()


class _Pieces:
    """What `TokenizerWrapper` wraps."""

    bos_token_id = None

    def __init__(self, pieces: Sequence[bytes], ends: Sequence[int], special: Sequence[int]) -> None:
        self.special_token_ids = special
        self.tokens = [b"" if piece.startswith(_SPECIAL) else piece for piece in pieces]
        self.eos_token_id = ends[0]
        self._bytes = {piece: id for id, piece in enumerate(self.tokens) if len(piece) == 1}

    def __call__(self, text: bytes) -> list[int]:
        """Never needed, since our grammars force no tokens; but a client's own might find a way to ask."""
        each = (text[at : at + 1] for at in range(len(text)))
        return [self._bytes[byte] for byte in each if byte in self._bytes]


def tokenizer_of(inventory: Inventory) -> LLTokenizer:
    """The tokenizer whose ids are the inventory's pieces and whose ends are its ends. Built once: see the package for what it costs.

    Call it in a thread. Even so it holds Python up while it builds.
    """
    pieces = inventory.pieces
    with _lock:
        found = _kept.get(id(pieces))  # models that share a tokenizer share the very same table
        if found is None:
            found = _kept[id(pieces)] = pieces, _build(pieces, sorted(inventory.ends))
            while len(_kept) > 1 and sum(len(kept) for kept, _ in _kept.values()) > MOST_PIECES:
                _kept.popitem(last=False)
        else:
            _kept.move_to_end(id(pieces))
        return found[1]


@lru_cache(maxsize=1)
def byte_tokenizer() -> LLTokenizer:
    """One whose pieces are the 256 bytes, behind the end. It has a special token, since to look for one where there is none is more
    than the library can bear."""
    return _build((b"", *(bytes([value]) for value in range(256)), b"<|none|>"), [0], [257])


def _build(pieces: Sequence[bytes], ends: Sequence[int], special: Sequence[int] = ()) -> LLTokenizer:
    # In two steps, so that others have a turn in between: each holds Python's lock.
    plain = LLTokenizer(TokenizerWrapper(_Pieces(pieces, ends, special)), eos_token=list(ends), slices=[])
    return plain.with_slices(LLTokenizer.general_slices())
