"""Bounded admission: so many at once, so many waiting, the next one is turned away."""

from __future__ import annotations

import math
from contextvars import ContextVar
from types import TracebackType
from typing import Self

import anyio

from backends.errors import BackendOverloaded

BEHIND: ContextVar[bool] = ContextVar("modelnet.behind", default=False)
"""Set where a place is to be taken only while nobody else waits for one: for copies of requests, whose answers nobody waits for."""
_LOOK_SECONDS = 0.05


class Seat:
    """A place that was given. Release it once; more often does no harm."""

    __slots__ = ("_owner",)

    def __init__(self, owner: Seats) -> None:
        self._owner: Seats | None = owner

    def release(self) -> None:
        owner, self._owner = self._owner, None
        if owner is not None:
            owner._give_back()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Seats:
    """`total` places (None: no limit), given in the order of asking, and at most `queue` callers waiting for one."""

    def __init__(self, model: str, total: int | None, queue: int) -> None:
        if total is not None and total < 1:
            raise ValueError("there must be at least one seat")
        if queue < 0:
            raise ValueError("a queue can't be shorter than 0")
        self._model = model
        self._queue = queue
        self._free = None if total is None else anyio.Semaphore(total)
        self.taken = 0
        self.waiting = 0

    @property
    def free(self) -> float:
        """How many could be taken now without waiting; infinity where there is no limit."""
        return math.inf if self._free is None else self._free.value

    async def take(self) -> Seat:
        """Wait for a place. Raises BackendOverloaded when the queue is full."""
        if self._free is not None:
            try:
                self._free.acquire_nowait()  # `acquire` yields even where it need not: who has a place isn't waiting
            except anyio.WouldBlock:
                await (self._wait_behind if BEHIND.get() else self._wait)(self._free)
        self.taken += 1
        return Seat(self)

    async def _wait(self, free: anyio.Semaphore) -> None:
        if self.waiting >= self._queue:
            raise BackendOverloaded(self._model, f"Model {self._model!r} is at capacity; try again shortly.", 1.0)
        self.waiting += 1
        try:
            await free.acquire()
        finally:
            self.waiting -= 1

    async def _wait_behind(self, free: anyio.Semaphore) -> None:
        """Takes no place in the queue either; how long that goes on is for the caller to bound."""
        while True:
            await anyio.sleep(_LOOK_SECONDS)
            if not self.waiting and free.value > 0:
                free.acquire_nowait()
                return

    def _give_back(self) -> None:
        self.taken -= 1
        if self._free is not None:
            self._free.release()
