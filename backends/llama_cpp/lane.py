"""One sequence of a context as the event loop sees it: the tokens it holds and what was read behind the last of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from backends.errors import BackendError, BackendUnavailable, ContextTooLong, SessionClosed
from backends.llama_cpp.worker import Done, Read, Stopped, Work, Worker

SINGLY = 4
"""Appends of up to so many tokens go one by one, whatever is asked for: on a CPU that costs little more than one pass, and how a
text was cut into appends does not show in the numbers."""


class Lane:
    """Posts work for one sequence and awaits it. The prompt is posted on making it; the first `look` awaits it."""

    def __init__(
        self,
        name: str,
        worker: Worker,
        sequence: int,
        prompt: Sequence[int],
        kept: int,
        room: int,
        vocabulary: int,
        read: Read,
    ) -> None:
        """kept: tokens of the prompt that the sequence holds already. room: those it can hold. vocabulary: number of ids. read: what is
        made of each row of logits.

        Raises BackendUnavailable.
        """
        self._name = name
        self._worker = worker
        self._sequence = sequence
        self._room = room
        self._vocabulary = vocabulary
        self._read = read
        self._tokens = [*prompt]
        self.prompt_tokens = len(prompt)
        self.closed = False
        self._broken: BackendError | None = None
        self.prompt_read = False  # the sequence holds all of the prompt
        self._stale = True  # the cache may hold other tokens than `_tokens`
        self._last: Any = None  # what was read behind the last token; None: nothing yet, or rewound
        self._rows: list[Any] = []  # what the last append read, if nothing was rewound since
        self._prompt, pending = self._post(0, 1, singly=False, at=kept)
        self._pending: asyncio.Future[list[Any] | Exception] | None = pending

    @property
    def room(self) -> int:
        """Tokens that it can hold."""
        return self._room

    @property
    def left(self) -> int:
        """Tokens that still fit."""
        return self._room - len(self._tokens)

    @property
    def kept_tokens(self) -> int:
        """Tokens of the prompt that did not have to be read; known once something was read behind it."""
        return self._prompt.kept

    @property
    def last(self) -> Any:
        """What was read at the current position, or None."""
        self.check()
        return self._last

    @property
    def rows(self) -> list[Any]:
        """What was read behind each of the tokens appended last, as far as it was asked for; nothing after a rewind."""
        self.check()
        return self._rows

    def read_by(self, read: Read) -> None:
        """Make something else of the rows that are asked for from now on."""
        self._read = read

    def check(self) -> None:
        """Raises SessionClosed, or what broke the lane before."""
        if self.closed:
            raise SessionClosed(self._name, f"The session of model {self._name!r} is closed.")
        if self._broken is not None:
            raise self._broken

    async def look(self) -> Any:
        """What is read at the current position. Raises BackendUnavailable, SessionClosed."""
        self.check()
        await self._settle()
        if self._last is None:  # after a rewind: the last token's logits are gone, so it is decoded again
            self._stale = True
            _, self._pending = self._post(len(self._tokens) - 1, 1, singly=True)
            await self._settle()
        return self._last

    async def append(self, ids: Sequence[int], *, rows: int, singly: bool) -> list[Any]:
        """Append n >= 1 ids; what is read behind the last `rows` of them. Raises ContextTooLong as well."""
        self.check()
        if not all(0 <= id < self._vocabulary for id in ids):
            raise ValueError(f"ids must be in 0..{self._vocabulary - 1}")
        if len(ids) > self.left:
            total = len(self._tokens) + len(ids)
            message = f"The answer of model {self._name!r} has filled its context of {self._room} tokens."
            raise ContextTooLong(self._name, message, tokens=total, limit=self._room)
        await self._settle()
        start = len(self._tokens)
        self._tokens.extend(map(int, ids))  # ctypes takes no numpy integers
        _, self._pending = self._post(start, rows, singly=singly)
        return await self._settle()

    def rewind(self, n: int) -> None:
        """Drop the last n ids. Raises ValueError when they are not all appended ones."""
        self.check()
        if not 0 <= n <= len(self._tokens) - self.prompt_tokens:
            raise ValueError(f"can't drop {n} of {len(self._tokens) - self.prompt_tokens} appended ids")
        if n:
            del self._tokens[-n:]
            self._stale = True
            self._last, self._rows = None, []

    def close(self, keep: int = 0) -> None:
        """Empty the sequence but for its first `keep` tokens; its number may be given to another at once, for posts keep their order.
        Idempotent."""
        if not self.closed:
            self.closed = True
            self._last, self._rows = None, []
            self._worker.free(self._sequence, keep)

    def _post(
        self, start: int, rows: int, *, singly: bool, at: int = 0
    ) -> tuple[Work, asyncio.Future[list[Any] | Exception]]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Any] | Exception] = loop.create_future()
        tokens = self._tokens[start:]
        cut, self._stale = self._stale, False
        work = Work(self._sequence, start, tokens, rows, singly, cut, self._read, _deliver(loop, future), at)
        try:
            self._worker.submit(work)
        except Stopped as error:
            raise self._break(error) from error
        return work, future

    async def _settle(self) -> list[Any]:
        """Await what is pending. A caller who leaves meanwhile leaves a lane that can only be closed."""
        future, self._pending = self._pending, None
        if future is None:
            return []
        try:
            outcome = await future
        except asyncio.CancelledError:
            self._broken = SessionClosed(self._name, f"A call on the session of model {self._name!r} was abandoned.")
            raise
        self.check()  # closed by another task meanwhile
        if isinstance(outcome, Exception):
            raise self._break(outcome) from outcome
        self._last, self._rows = outcome[-1], outcome
        self.prompt_read = True
        return outcome

    def _break(self, error: Exception) -> BackendError:
        self.prompt_read = False  # the sequence was emptied
        self._broken = BackendUnavailable(self._name, f"Model {self._name!r} failed while computing.")
        return self._broken


def _deliver(loop: asyncio.AbstractEventLoop, future: asyncio.Future[list[Any] | Exception]) -> Done:
    def settle(outcome: list[Any] | Exception) -> None:
        if not future.done():
            future.set_result(outcome)

    def done(outcome: list[Any] | Exception) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, outcome)

    return done
