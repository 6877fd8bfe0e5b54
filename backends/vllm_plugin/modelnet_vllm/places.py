"""Who may hold a session: so many at once, with so many tokens of KV cache between them; the others wait in a line.

A session keeps its KV blocks while it waits for its group. If sessions could take all of them, one engine could wait for another
that waits for it. So every session reserves what it will need before it begins, and all together never get more than a share:
whoever has a place can always go on, and requests of other kinds always find blocks.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Full(Exception):
    """The line is full, or nothing is left to grow into."""


class Places:
    """sessions: most at once. tokens: most KV cache for all of them (None: not known, no limit). block: tokens that it is given out in.
    queue: most who wait."""

    def __init__(self, sessions: int, tokens: int | None, block: int, queue: int) -> None:
        self.sessions = sessions
        self.tokens = tokens
        self.block = max(1, block)
        self._queue = queue
        self._line: deque[tuple[asyncio.Future[None], int]] = deque()
        self.taken = 0
        self._reserved = 0

    @property
    def waiting(self) -> int:
        return len(self._line)

    async def take(self, tokens: int) -> Place:
        """Wait for a place with room for so many tokens. First come, first served. Raises Full."""
        wanted = self._rounded(tokens)
        if not self.fits(tokens):
            if len(self._line) >= self._queue:
                raise Full("all places for sessions are taken")
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            entry = future, wanted
            self._line.append(entry)
            try:
                await future
            except asyncio.CancelledError:
                if entry in self._line:
                    self._line.remove(entry)
                elif not future.cancelled():
                    self._free(wanted)  # it was given while we left
                self._serve()
                raise
        else:
            self._give(wanted)
        return Place(self, wanted)

    def fits(self, tokens: int) -> bool:
        """Whether `take` would not have to wait."""
        return not self._line and self._fits(self._rounded(tokens))

    def grow(self, place: Place, tokens: int) -> None:
        """Room for `tokens` in all. Raises Full."""
        more = self._rounded(tokens) - place.tokens
        if more <= 0:
            return
        if self.tokens is not None and self._reserved + more > self.tokens:
            raise Full("there is no room left for a longer session")
        self._reserved += more
        place.tokens += more

    def release(self, place: Place) -> None:
        """Give a place back; more than once does no harm."""
        tokens, place.tokens = place.tokens, -1
        if tokens >= 0:
            self._free(tokens)
            self._serve()

    def _rounded(self, tokens: int) -> int:
        rounded = -(-tokens // self.block) * self.block
        return rounded if self.tokens is None else min(rounded, self.tokens)

    def _fits(self, tokens: int) -> bool:
        room = self.tokens is None or self._reserved + tokens <= self.tokens
        return self.taken < self.sessions and room

    def _give(self, tokens: int) -> None:
        self.taken += 1
        self._reserved += tokens

    def _free(self, tokens: int) -> None:
        self.taken -= 1
        self._reserved -= tokens

    def _serve(self) -> None:
        while self._line and self._fits(self._line[0][1]):
            future, tokens = self._line.popleft()
            if not future.done():
                self._give(tokens)
                future.set_result(None)


class Place:
    """A place that was taken. tokens: what it reserves; -1 once it was given back."""

    __slots__ = ("_owner", "tokens")

    def __init__(self, owner: Places, tokens: int) -> None:
        self._owner = owner
        self.tokens = tokens

    def release(self) -> None:
        self._owner.release(self)
