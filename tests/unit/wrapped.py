"""Backends under guard, and what was heard of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio

from backends import errors
from backends.protocol import (
    EmbeddingBackend,
    ForwardingBackend,
    PreparingBackend,
    RawBackend,
    TextBackend,
    TokenBackend,
    TokenizerBackend,
)
from backends.types import Message, TextDelta, TextEvent, TextRequest
from backends.wrappers import Guard, Policy, State, Watcher, guarded

ASK = TextRequest((Message("user", "Why?"),))
ABILITIES = (
    TextBackend,
    TokenBackend,
    PreparingBackend,
    RawBackend,
    ForwardingBackend,
    EmbeddingBackend,
    TokenizerBackend,
)


class Ear(Watcher):
    """Keeps all it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, ...]] = []

    def failed(self, model: str, cause: str) -> None:
        self.heard.append(("failed", cause))

    def retried(self, model: str, cause: str) -> None:
        self.heard.append(("retried", cause))

    def unaffordable(self, model: str) -> None:
        self.heard.append(("unaffordable",))

    def hedged(self, model: str) -> None:
        self.heard.append(("hedged",))

    def hedge_won(self, model: str) -> None:
        self.heard.append(("hedge won",))

    def turned(self, model: str, state: State) -> None:
        self.heard.append(("turned", state))

    def count(self, *what: str) -> int:
        return self.heard.count(what)


class TextOnly:
    """The least that a backend can be. plan: what each entering does: an error, or None for an answer; then the last one for ever.

    after: seconds before the n-th stream's first event. broken: it breaks off behind its first event.
    """

    name = "m"

    def __init__(self, *plan: errors.BackendError | None, after: Sequence[float] = (), broken: bool = False) -> None:
        self.plan = list(plan) or [None]
        self.after = list(after)
        self.broken = broken
        self.entered = self.left = self.cancelled = 0

    @asynccontextmanager
    async def stream(self, request: TextRequest) -> AsyncIterator[AsyncIterator[TextEvent]]:
        error = self.plan.pop(0) if len(self.plan) > 1 else self.plan[0]
        number = self.entered
        self.entered += 1
        try:
            if error is not None:
                raise error
            yield self._events(number)
        except anyio.get_cancelled_exc_class():
            self.cancelled += 1
            raise
        finally:
            self.left += 1

    async def _events(self, number: int) -> AsyncIterator[TextEvent]:
        if number < len(self.after):
            await anyio.sleep(self.after[number])
        yield TextDelta(f"answer {number}")
        if self.broken:
            raise errors.BackendUnavailable("m", "It broke off.")

    async def start(self) -> None: ...
    async def ready(self) -> None: ...
    async def aclose(self) -> None: ...


def unreached(message: str = "It can't be reached.") -> errors.BackendError:
    error = errors.BackendUnavailable("m", message)
    error.repeatable = True
    return error


def full(retry_after: float | None) -> errors.BackendError:
    error = errors.BackendOverloaded("m", "It is full.", retry_after)
    error.repeatable = retry_after is not None
    return error


def made(backend: Any, ear: Ear | None = None, clock: Any = None, **policy: Any) -> Any:
    extra = {} if clock is None else {"clock": clock}
    return guarded(backend, Guard("m", Policy(**{"pause": 0.001, **policy}), ear, **extra))


async def said(backend: Any) -> str:
    with anyio.fail_after(5):
        async with backend.stream(ASK) as events:
            return "".join([event.text async for event in events if isinstance(event, TextDelta)])
