"""What was computed last is kept a while: exact values of any token where a session stands, or stood a moment ago, need no pass then."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from modelnet_vllm.top import Distributions

MOST_SESSIONS = 384
"""Sessions that something is kept of; beyond it, nothing of the one that was longest without a pass."""

INPUTS = 3
"""Of a session, the latest that are kept."""

MOST_BATCHES = 4
"""Batches of logits kept whole."""

MOST_DRAFTED = 256
"""Rows kept of drafts; beyond it, of the oldest draft only the last row."""

Key = tuple[str, int]
"""Path of an API server's link, number of a session."""


class Kept:
    """The rows of one session's input: of a draft all of them, else that of its end only.

    distributions: what they are views of, until `detach` makes the last one a copy. row: of the end. drafted: rows before it that are the
    session's own.
    """

    __slots__ = ("_rows", "seq", "size")

    def __init__(self, seq: int, distributions: Distributions, row: int, drafted: int = 0) -> None:
        self.seq = seq
        self.size = drafted + 1
        begin, end = row - drafted, row + 1
        self._rows = distributions.logits[begin:end], distributions.lse[begin:end], distributions.event

    def detach(self) -> None:
        """Keep the last row only, and let the others go."""
        logits, lse, event = self._rows
        logits = logits[-1:].clone()
        if event is not None:  # of the copy: other threads have streams of their own
            import torch

            event = torch.Event(logits.device)
            event.record()
        self._rows = logits, lse[-1:], event  # at once: another thread may be reading

    def logprobs(self, ids: NDArray[np.int32], back: int = 0) -> NDArray[np.float32] | None:
        """float32 [n], nats, so many places before the last one; the same bits as in the list. Ids outside the output layer: -inf.
        None: that place is not kept."""
        import torch

        logits, lse, event = self._rows
        if back >= len(logits):
            return None
        if event is not None:
            event.synchronize()
        row = logits[-1 - back]
        size = row.shape[0]
        inside = (ids >= 0) & (ids < size)
        index = torch.from_numpy(np.where(inside, ids, 0).astype(np.int64)).to(row.device)
        values: NDArray[np.float32] = (row[index] - lse[-1 - back, 0]).cpu().numpy()
        return np.where(inside, values, np.float32(-np.inf))


class Keeping:
    """What is kept of all sessions. Any thread may call."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[Key, dict[int, Kept]] = OrderedDict()  # → number of the input → its rows
        # The latest batches, oldest first: whose rows they hold.
        self._batches: deque[list[tuple[Key, Kept]]] = deque()
        self._drafts: OrderedDict[tuple[Key, int], Kept] = OrderedDict()
        self._drafted = 0
        self._lock = threading.Lock()

    def batch(self, rows: Iterable[tuple[Key, int]], distributions: Distributions) -> None:
        """One row for each of these sessions: (session, number of its input)."""
        with self._lock:
            batch = [(key, Kept(seq, distributions, row)) for row, (key, seq) in enumerate(rows)]
            for key, kept in batch:
                self._keep(key, kept)
            self._batches.append(batch)
            if len(self._batches) > MOST_BATCHES:
                # Sessions that go on step together mostly, so few rows are left in an old batch: they are copied out of it.
                for key, kept in self._batches.popleft():
                    if self._sessions.get(key, {}).get(kept.seq) is kept:
                        kept.detach()

    def draft(self, key: Key, seq: int, distributions: Distributions) -> None:
        """All rows are this session's, in order."""
        rows = distributions.logits.shape[0]
        with self._lock:
            kept = Kept(seq, distributions, rows - 1, rows - 1)
            self._keep(key, kept)
            self._drafts[key, seq] = kept
            self._drafted += rows
            while self._drafted > MOST_DRAFTED:
                _, oldest = self._drafts.popitem(last=False)
                self._drafted -= oldest.size
                oldest.detach()

    def logprobs(self, key: Key, seq: int, ids: NDArray[np.int32], back: int) -> NDArray[np.float32] | None:
        """As `Kept.logprobs`, of that input; None also where that is too long ago."""
        with self._lock:
            kept = self._sessions.get(key, {}).get(seq)
        return None if kept is None else kept.logprobs(ids, back)

    def forget(self, key: Key) -> None:
        with self._lock:
            self._forget(key)

    def forget_link(self, path: str) -> None:
        with self._lock:
            for key in [key for key in self._sessions if key[0] == path]:
                self._forget(key)

    def _keep(self, key: Key, kept: Kept) -> None:
        inputs = self._sessions.pop(key, {})
        for seq in [seq for seq in inputs if seq == kept.seq or seq <= kept.seq - INPUTS]:
            self._let_go(key, inputs, seq)
        inputs[kept.seq] = kept
        self._sessions[key] = inputs
        if len(self._sessions) > MOST_SESSIONS:
            self._forget(next(iter(self._sessions)))

    def _forget(self, key: Key) -> None:
        inputs = self._sessions.pop(key, {})
        for seq in [*inputs]:
            self._let_go(key, inputs, seq)

    def _let_go(self, key: Key, inputs: dict[int, Kept], seq: int) -> None:
        del inputs[seq]
        draft = self._drafts.pop((key, seq), None)
        if draft is not None:
            self._drafted -= draft.size
