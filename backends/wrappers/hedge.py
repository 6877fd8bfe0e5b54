"""Hedging: a stream that stays silent is asked for a second time, beside the first; whoever writes first is listened to.

The other one is cancelled at once. Both do their work until then, so this is paid twice: it is off unless configured, and every
second attempt is taken from the backend's budget of repetitions.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream

from backends.errors import BackendUnavailable
from backends.types import TextEvent
from backends.wrappers.guard import Guard

Make = Callable[[], AbstractAsyncContextManager[AsyncIterator[TextEvent]]]


@asynccontextmanager
async def hedged(guard: Guard, make: Make, after: float) -> AsyncIterator[AsyncIterator[TextEvent]]:
    """The events of one of two streams. after: seconds of silence before the second. Raises as `make()` does, from the first event."""
    race = _Race(guard, make, after)
    stopped: BaseException | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(race.run)
        events = race.events()
        try:
            yield events
        except BaseException as error:  # noqa: BLE001 - kept out of the task group, which would wrap it; raised again below
            stopped = error
        await events.aclose()
        tasks.cancel_scope.cancel()
    if stopped is not None:
        raise stopped


class _Race:
    def __init__(self, guard: Guard, make: Make, after: float) -> None:
        self._guard = guard
        self._make = make
        self._after = after
        self._scopes: list[anyio.CancelScope] = []
        self._errors: list[Exception] = []
        self._winner: MemoryObjectReceiveStream[TextEvent] | None = None
        self._failure: Exception | None = None  # of the winner, after it began
        self._decided = anyio.Event()

    async def run(self) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._attempt, 0)
            with anyio.move_on_after(self._after):
                await self._decided.wait()
            if self._decided.is_set() or not self._guard.budget.take():
                return
            self._guard.watcher.hedged(self._guard.name)
            tasks.start_soon(self._attempt, 1)

    async def events(self) -> AsyncGenerator[TextEvent, None]:
        await self._decided.wait()
        if self._winner is None:
            raise self._errors[0]
        async for event in self._winner:
            yield event
        if self._failure is not None:
            raise self._failure

    async def _attempt(self, number: int) -> None:
        scope = anyio.CancelScope()
        self._scopes.append(scope)
        send, receive = anyio.create_memory_object_stream[TextEvent](0)
        with scope, send, receive:
            began = False
            try:
                async with self._make() as events:
                    async for event in events:
                        if not began:
                            if self._decided.is_set():
                                return
                            began = True
                            self._won(number, receive)
                        await send.send(event)
            except Exception as error:  # noqa: BLE001 - raised to whoever reads the events
                if began:
                    self._failure = error
                else:
                    self._errors.append(error)
            else:
                if not began:
                    said = f"The server of model {self._guard.name!r} ended without an answer."
                    self._errors.append(BackendUnavailable(self._guard.name, said))
            send.close()
            if not began:
                self._lost()
                return
            await anyio.sleep_forever()  # what was sent may not be read yet; the block's end cancels this

    def _won(self, number: int, receive: MemoryObjectReceiveStream[TextEvent]) -> None:
        self._winner = receive
        self._decided.set()
        if number:
            self._guard.watcher.hedge_won(self._guard.name)
        for other, scope in enumerate(self._scopes):
            if other != number:
                scope.cancel()

    def _lost(self) -> None:
        """An attempt has ended without an event. If it was the last one under way, that is the result."""
        if len(self._errors) == len(self._scopes):
            self._decided.set()
