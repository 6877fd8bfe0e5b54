"""A token sequence in a vLLM server, by its number on a connection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from backends.errors import CapabilityMissing, SessionClosed
from backends.types import LogProbs, SomeIds, TopK
from backends.vllm import frames
from backends.vllm.connection import Connection

STEPS = 2
"""Steps over which a server that can be asked about places before (`recall` in WELCOME) keeps what it found."""

LINE = 32
"""Distributions kept of those places."""

SEEN = 256
"""Distributions that a session keeps for the way back."""


class VLLMSession:
    """See `backends.protocol.Session`. After a call that was cancelled, only `close` is left.

    times: seconds for the first step and for every other. freed: called once, when the session is closed. noise: of a scored draft.
    """

    def __init__(
        self,
        name: str,
        connection: Connection,
        number: int,
        prompt_tokens: int,
        times: tuple[float, float],
        freed: Callable[[], None],
        noise: float | None = None,
    ) -> None:
        self._name = name
        self._connection = connection
        self._number = number
        self._prompt = prompt_tokens
        self._timeout, self._next_timeout = times
        self._freed = freed
        self._noise = noise
        self._appended = 0
        self._drop = 0  # ids rewound here and still there in the server
        self._here: TopK | None = None
        self._line: list[TopK] = []  # what was found at the last places, one after another, since the session jumped
        self._seen: dict[int, TopK] = {}  # ids appended → what a step found there, ascending
        self._closed = False

    @property
    def prompt_tokens(self) -> int:
        return self._prompt

    @property
    def context(self) -> int | None:
        return self._connection.info.get("context")

    async def step(self, append: Sequence[int] = ()) -> TopK:
        self._alive()
        if not len(append):
            # A position that was seen costs nothing, even after a rewind: the server goes back with the next ids.
            self._here = self._here or self._seen.get(self._appended)
            if self._here is not None:
                return self._here
        (top,) = await self._move(frames.Step, append)
        self._seen[self._appended] = top
        if len(self._seen) > SEEN:
            del self._seen[next(iter(self._seen))]
        return top

    async def score(self, draft: Sequence[int]) -> list[TopK]:
        self._alive()
        if not len(draft):
            raise ValueError("a draft has at least one id")
        return await self._move(frames.Score, draft)

    @property
    def draft_noise(self) -> float | None:
        return self._noise

    @property
    def reads_singly(self) -> bool:
        return self._connection.info.get("drafts") == "steps"

    async def recall(self, back: int, ids: SomeIds) -> LogProbs:
        self._alive()
        if back < 1:
            raise RuntimeError("recall is for the places of a draft just scored, but the last, and of steps before")
        if back >= len(self._line):
            raise CapabilityMissing(self._name, "The server does not keep the values of that place any more.")
        return await self._values(self._line[-1 - back], ids, back)

    @property
    def kept_steps(self) -> int:
        return STEPS if self._connection.info.get("recall") else 0

    async def lookup(self, ids: SomeIds) -> LogProbs:
        """From the last TopK where it lists them all, else from the server's row at this position."""
        self._alive()
        if self._here is None:
            raise RuntimeError("lookup is for after a step or score, and before a rewind")
        return await self._values(self._here, ids)

    async def _values(self, top: TopK, ids: SomeIds, back: int = 0) -> LogProbs:
        """top: what is listed there."""
        wanted = [int(id) for id in ids]
        known = dict(zip(top.ids.tolist(), top.logprobs.tolist(), strict=True))
        missing = [id for id in dict.fromkeys(wanted) if id not in known]
        if missing:
            if back and not self._connection.info.get("recall"):
                raise CapabilityMissing(self._name, "The server keeps the values of a draft's last place only.")
            if self._drop:  # the server still stands where this session was before its rewind
                await self._move(frames.Step, ())
                self._here = top
            make = partial(_lookup, self._number, np.asarray(missing, np.int32), back)
            answer = await self._connection.ask(frames.Values, make, self._next_timeout)
            self._alive()
            if len(answer.values) != len(missing):
                raise CapabilityMissing(self._name, "The server does not keep the values of that place any more.")
            known |= dict(zip(missing, answer.values.tolist(), strict=True))
        return np.array([known[id] for id in wanted], dtype=np.float64)

    async def rewind(self, n: int) -> None:
        self._alive()
        if not 0 <= n <= self._appended:
            raise ValueError(f"can't drop {n} of {self._appended} appended ids")
        if n:
            self._appended -= n
            self._drop += n
            self._here = None
            self._line = []
            for position in [position for position in self._seen if position > self._appended]:
                del self._seen[position]

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            await self._connection.end_session(self._number)
        finally:
            self._freed()

    async def _move(self, kind: type[frames.Step | frames.Score], append: Sequence[int]) -> list[TopK]:
        ids = np.asarray(append, np.int32)
        make = partial(_moved, kind, self._number, self._drop, ids)
        goes_on = kind is frames.Score or len(ids) == 1
        answer = await self._connection.ask(frames.Tops, make, self._timeout)
        self._alive()
        self._timeout = self._next_timeout
        self._appended += len(ids)
        dropped, self._drop = self._drop, 0
        logprobs = answer.logprobs.astype(np.float64)
        tops = [
            TopK(row, values, outside)
            for row, values, outside in zip(answer.ids, logprobs, answer.outside.tolist(), strict=True)
        ]
        self._here = tops[-1]
        self._line = [*(self._line if goes_on and not dropped else ())[-LINE:], *tops]
        return tops

    def _alive(self) -> None:
        if self._closed:
            raise SessionClosed(self._name, "The session is closed.")


def _moved(kind: type[frames.Step | frames.Score], session: int, drop: int, ids: object, request: int) -> frames.Frame:
    return kind(session, request, drop, ids)


def _lookup(session: int, ids: object, back: int, request: int) -> frames.Frame:
    return frames.Lookup(session, request, ids, back)
