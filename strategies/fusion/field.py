"""What may come next in an answer that is not left to its group alone: a guide's rule, penalties and biases, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from strategies.fusion.base import Guide
from strategies.fusion.shaping import Shaping
from strategies.vocabulary import Inventory

FEW = 512
"""So many allowed pieces at most are bounded one by one."""
MOST_ASKED = 16_384
"""Tokens that one search for something allowed may look up per member, about: a single piece may have more."""
SEARCHES = 16
"""Searches per piece."""


class Field:
    """See the module. `begin` before anything else is asked about a piece; `said` when it is chosen.

    only: the one piece that may come next. few: all that may come next, where they are few. named: pieces to be looked at though no list
    has them: the few, and those whose factor is above one. wished: those that a bias names, whose exact values are worth a look-up.
    """

    __slots__ = (
        "_batches", "_begun", "_guide", "_inventory", "_mask", "_searched", "_shaping", "few", "named", "only", "wished",
    )  # fmt: skip

    def __init__(self, guide: Guide | None, shaping: Shaping | None, inventory: Inventory) -> None:
        self._guide = guide
        self._shaping = shaping
        self._inventory = inventory
        self._begun = False
        self._mask: bytes | None = None
        self._batches: Iterator[list[int]] | None = None
        self._searched = 0
        self.only: int | None = None
        self.few: Sequence[int] | None = None
        self.named: frozenset[int] = frozenset()
        self.wished: Sequence[int] = ()

    def begin(self) -> None:
        """Look at the next piece. Does nothing if that was done."""
        if self._begun:
            return
        self._begun = True
        self._mask = None if self._guide is None else self._guide.allowed()
        self.only = self.few = None
        self.wished, raised = (), []
        if self._shaping is not None:
            self.wished = [piece for piece in self._shaping.wanted() if self.factor(piece)]
            raised = [piece for piece in self._shaping.raised() if self.factor(piece)]
        if self._mask is not None and self._mask.count(1) <= FEW:
            self.few = [piece for piece in self._marked() if self.factor(piece)]
            self.only = self.few[0] if len(self.few) == 1 else None
        self.named = frozenset((*raised, *(self.few or ())))

    def poor(self, listed: Mapping[int, float], left: Mapping[int, float], unseen: float) -> bool:
        """Whether it is hardly known what is likeliest: few pieces may come, or the rule leaves little of what is listed, and less than may
        be unlisted. Elsewhere, to look through all that may come takes some hundred milliseconds a piece, and proves what is nearly
        always so."""
        if self.few is not None:
            return True
        mass = sum(left.values())
        return self._mask is not None and 2.0 * mass < sum(listed.values()) and mass < unseen

    def factor(self, piece: int) -> float:
        """What the piece's probability is multiplied by; 0.0: it may not come next."""
        if self._mask is not None and not self._mask[piece]:
            return 0.0
        return 1.0 if self._shaping is None else self._shaping.factor(piece)

    def apply(self, scores: Mapping[int, float]) -> dict[int, float]:
        """Of pooled probabilities those that may come next and have any, shaped."""
        mask = self._mask
        if mask is None:
            left = {piece: p for piece, p in scores.items() if p > 0.0}
        else:
            left = {piece: p for piece, p in scores.items() if mask[piece] and p > 0.0}
        return left if self._shaping is None else self._shaping.apply(left)

    def batch(self) -> list[int]:
        """The next pieces to look for something allowed among; empty when that was enough, or all."""
        if self._searched >= SEARCHES:
            return []
        if self._batches is None:
            self._batches = self._cut()
        self._searched += 1
        return next(self._batches, [])

    def some(self) -> int | None:
        """A piece to say where nothing is known of any that may come next: an end if it may, else the first that is no white space. None:
        there is no guide, or it allows nothing. What is banned may come too, where the guide leaves nothing else."""
        marked = [] if self._mask is None else self._marked()
        unbanned = [piece for piece in marked if self.factor(piece)] or marked
        ends = [piece for piece in unbanned if piece in self._inventory.ends]
        text = [piece for piece in unbanned if not self._inventory.pieces[piece].isspace()]
        return next(iter(ends or text or unbanned), None)

    def again(self) -> None:
        """The members were asked anew: what a search found does not hold any more."""
        self._batches = None

    def said(self, piece: int) -> None:
        """This piece was chosen, or this end."""
        self._begun = False
        self._batches = None
        self._searched = 0
        if self._guide is not None:
            self._guide.said(piece)
        if self._shaping is not None and piece not in self._inventory.ends:
            self._shaping.said(piece)

    def _marked(self) -> list[int]:
        if self._mask is None:
            return list(range(len(self._inventory.pieces)))
        marked: list[int] = np.flatnonzero(np.frombuffer(self._mask, np.uint8)).tolist()
        return marked

    def _cut(self) -> Iterator[list[int]]:
        """All that may come next, in batches whose tokens are not too many."""
        batch: list[int] = []
        room = MOST_ASKED
        for piece in self._marked() if self.few is None else self.few:
            if not self.factor(piece):
                continue
            room -= self._inventory.most[piece]
            if room < 0 and batch:
                yield batch
                batch, room = [], MOST_ASKED - self._inventory.most[piece]
            batch.append(piece)
        if batch:
            yield batch
