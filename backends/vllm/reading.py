"""A conversation that a vLLM server reads while it is written, in a session that its stage can take over."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio

from backends.errors import BackendOverloaded, CapabilityMissing
from backends.protocol import Session
from backends.types import Message
from backends.vllm.connection import Connection
from backends.vllm.replica import Replica

if TYPE_CHECKING:
    from backends.vllm.backend import VLLMBackend

BLOCK = 16
"""Tokens that vLLM keeps at a time, where the extension is too old to say."""
ADMISSION = 2.0
"""Seconds in which a server that has a place free lets a session in; one that does not has none."""
SELDOM = 64
"""Tokens that are worth another call, where each reads the conversation's end too, or others use the server: a pass over so many is hardly
longer than a step."""
OFTEN = 8
"""Tokens that are, where a call reads just these on a server with nothing else to do: a step's time, and little is left in the end."""
FIELD = "modelnet"
"""Of an OPEN's JSON object; see `modelnet_vllm.early`."""


class VLLMReading:
    """See `backends.protocol.Reading`. Where the extension can have one session follow another, what was read stays in a session; elsewhere
    in the engine's prefix cache alone."""

    def __init__(self, backend: VLLMBackend, k: int | None) -> None:
        self._backend = backend
        self._k = k
        self._turn = anyio.Lock()  # a call that was cancelled may still be on its way out when the stage opens
        self.replica: Replica | None = None  # that counts it
        self._held: tuple[Connection, int] | None = None  # a session, which may be opened still

    async def prepare(self, messages: Sequence[Message], *, ended: bool) -> int:
        """See `backends.protocol.Reading`. Where a server's sessions are half taken, it is left to those who have them."""
        async with self._turn:
            backend = self._backend
            replica = backend.may_read(messages, self.replica)
            if replica is not self.replica:
                await self._end()
            if self.replica is None and (replica.out or backend.seats.free <= backend.readings):
                return 0
            self._count(replica)
            try:
                return await self._prepare(replica, messages, ended)
            finally:
                if self._held is None:
                    self._count(None)

    @asynccontextmanager
    async def open(
        self, messages: Sequence[Message], *, k: int, max_tokens: int | None = None
    ) -> AsyncIterator[Session]:
        async with self._backend.open(messages, k=k, max_tokens=max_tokens, reading=self) as session:
            await self.close()
            yield session

    async def close(self) -> None:
        async with self._turn:
            await self._end()
            self._count(None)

    async def followed(self, connection: Connection, prompt: dict[str, Any]) -> dict[str, Any]:
        """The prompt of a session that goes on from what was read on this connection; as it is where nothing was. Ends the reading."""
        async with self._turn:
            held = self._held
            if held is None or held[0] is not connection:
                return prompt
            self._held = None
            self._count(None)
            return {**prompt, FIELD: {"after": held[1]}}

    async def _prepare(self, replica: Replica, messages: Sequence[Message], ended: bool) -> int:
        backend = self._backend
        connection = await replica.connection()
        backend.fits(connection, None)
        holds = bool(connection.info.get("early"))
        kept = int(connection.info.get("prefix_cache", BLOCK))
        if not kept and not (holds and self._k):
            said = f"The server of model {backend.name!r} keeps nothing of what it has read (its prefix cache is off)."
            raise CapabilityMissing(backend.name, said)
        if replica.load + replica.readings > max(1, connection.info["sessions"] // 2):
            return 0
        idle = replica.load == 0 and replica.readings == 1
        if not await self._read(connection, messages, whole=ended and idle, holds=holds):
            return 0
        backend.warmed(messages, replica)
        if holds:
            return OFTEN if idle else SELDOM
        return max(SELDOM, kept)

    async def _read(self, connection: Connection, messages: Sequence[Message], *, whole: bool, holds: bool) -> bool:
        """Whether the server had a place free, and has now read the messages."""
        prompt = self._backend.prompt(messages)
        k = 1 if self._k is None else min(self._k, len(await self._backend.vocabulary()))
        if holds:
            end = "blocks" if self._k is None else "whole"  # what fills none, a request of its own reads once more
            prompt[FIELD] = {"early": end if whole else "settled"}
        if self._held is not None and self._held[0] is connection:
            prompt[FIELD]["after"] = self._held[1]
        else:
            await self._end()
        number = connection.new_session()
        self._held = connection, number
        read = stays = False
        try:
            session = None
            with anyio.move_on_after(ADMISSION):
                session = await self._backend.begin(connection, number, prompt, k, 1, _nothing)
            if session is not None:
                await session.step()
                read, stays = True, holds
        except BackendOverloaded:
            pass  # or its place was wanted meanwhile
        except anyio.get_cancelled_exc_class():
            stays = holds  # what is under way is of use to the stage
            raise
        finally:
            if not stays:
                await self._end()
        return read

    async def _end(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            with anyio.CancelScope(shield=True):
                await held[0].end_session(held[1])

    def _count(self, replica: Replica | None) -> None:
        """Have this server count it, and no other."""
        if self.replica is not None:
            self.replica.readings -= 1
        self.replica = replica
        if replica is not None:
            replica.readings += 1


def _nothing() -> None:
    return
