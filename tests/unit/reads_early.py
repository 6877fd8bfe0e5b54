"""A scripted model that reads early."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from backends.fake import FakeBackend
from backends.protocol import Reading, Session
from backends.types import Message


class ReadsEarly(FakeBackend):
    """What it comes to, `prepare` says. held: readings that are not closed. followed: sessions that were opened with one."""

    followed = 0

    @property
    def held(self) -> list[Reading]:
        found: list[Reading] = self.__dict__.setdefault("_held", [])
        return found

    async def prepare(self, messages: Sequence[Message], *, ended: bool) -> int:
        return 16

    def reading(self, *, k: int | None) -> Reading:
        return _Reading(self, k)


class _Reading:
    def __init__(self, model: ReadsEarly, k: int | None) -> None:
        self._model = model
        self.k = k

    async def prepare(self, messages: Sequence[Message], *, ended: bool) -> int:
        if self not in self._model.held:
            self._model.held.append(self)
        return await self._model.prepare(messages, ended=ended)

    @asynccontextmanager
    async def open(
        self, messages: Sequence[Message], *, k: int, max_tokens: int | None = None
    ) -> AsyncIterator[Session]:
        assert k == self.k
        self._model.followed += self in self._model.held
        async with self._model.open(messages, k=k, max_tokens=max_tokens) as session:
            await self.close()
            yield session

    async def close(self) -> None:
        if self in self._model.held:
            self._model.held.remove(self)
