"""Token sessions on a lane."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from backends.llama_cpp.lane import SINGLY, Lane
from backends.llama_cpp.logits import Logits, Row
from backends.llama_cpp.worker import Read
from backends.types import LogProbs, SomeIds, TopK

DRAFT_NOISE = 0.75
"""As `DraftingSession.draft_noise` says it, of drafts that are read in one pass: more than was measured with weights of 4 bits."""

Seen = tuple[TopK, Row]


def read_top(k: int) -> Read:
    """Reads a row as its top k, and keeps the row for exact look-ups."""

    def read(logits: Logits) -> Seen:
        row = Row(logits)
        return row.top(k), row

    return read


class LlamaCppSession:
    """See `backends.protocol.Session`. After a call that was cancelled, only `close` is left."""

    def __init__(
        self, lane: Lane, leave: Callable[[], None], k: int, k_max: int | None = None, *, exact: bool = True
    ) -> None:
        """lane: one that reads by `read_top(k)`. leave: gives the seat back; idempotent. k_max: the largest k there can be. exact: all that
        is appended is read token by token, drafts as well; else drafts and long appends in one pass."""
        self._exact = exact
        self._lane = lane
        self._leave = leave
        self._k = k
        self._k_max = k_max

    @property
    def prompt_tokens(self) -> int:
        return self._lane.prompt_tokens

    @property
    def context(self) -> int:
        return self._lane.room

    def widen(self, k: int) -> bool:
        k = min(k, self._k_max or k)
        if k <= self._k:
            return False
        self._k = k
        self._lane.read_by(read_top(k))
        return True

    async def step(self, append: Sequence[int] = ()) -> TopK:
        if len(append) == 0:
            seen: Seen = await self._lane.look()
        else:
            (seen,) = await self._lane.append(append, rows=1, singly=self._exact or len(append) <= SINGLY)
        return seen[0]

    async def score(self, draft: Sequence[int]) -> list[TopK]:
        self._lane.check()
        if len(draft) == 0:
            raise ValueError("a draft has at least one id")
        singly = self._exact or len(draft) == 1
        return [top for top, _row in await self._lane.append(draft, rows=len(draft), singly=singly)]

    @property
    def draft_noise(self) -> float | None:
        return 0.0 if self._exact else DRAFT_NOISE

    @property
    def reads_singly(self) -> bool:
        return self._exact

    @property
    def kept_steps(self) -> int:
        return 0

    async def lookup(self, ids: SomeIds) -> LogProbs:
        seen: Seen | None = self._lane.last
        if seen is None:
            raise ValueError("there is nothing to look up before a step, or between a rewind and the next step")
        return _values(seen, ids)

    async def recall(self, back: int, ids: SomeIds) -> LogProbs:
        rows: Sequence[Seen] = self._lane.rows
        if not 1 <= back < len(rows):
            raise RuntimeError("recall is for the places of a draft just scored, but the last")
        return _values(rows[-1 - back], ids)

    async def rewind(self, n: int) -> None:
        self._lane.rewind(n)

    async def close(self) -> None:
        self._leave()


def _values(seen: Seen, ids: SomeIds) -> LogProbs:
    wanted, size = np.asarray(ids, np.int32), len(seen[1].logits)
    if wanted.size and not 0 <= wanted.min() <= wanted.max() < size:
        raise ValueError(f"ids must be in 0..{size - 1}")
    return seen[1].logprobs(wanted)
