"""A backend under guard. It has the abilities of the one inside, no more and no fewer: ability is a type."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import cache, partial
from typing import Any

from backends.protocol import (
    EmbeddingBackend,
    Forwarded,
    ForwardingBackend,
    PreparingBackend,
    RawBackend,
    Reading,
    Session,
    TextBackend,
    TokenBackend,
    TokenizerBackend,
)
from backends.types import ForwardRequest, Message, TextEvent, TextRequest, Vocabulary
from backends.wrappers.guard import Guard
from backends.wrappers.hedge import hedged
from backends.wrappers.passage import Passage, ask


class Guarded:
    """See `backends.protocol.TextBackend`. What it does not know itself is the inner backend's."""

    def __init__(self, inner: Any, guard: Guard) -> None:
        self._inner = inner
        self._guard = guard

    def __getattr__(self, name: str) -> Any:
        if name == "_inner":  # not there yet: while it is being made or copied
            raise AttributeError(name)
        return getattr(self._inner, name)

    @property
    def name(self) -> str:
        name: str = self._inner.name
        return name

    async def start(self) -> None:
        await self._inner.start()

    async def ready(self) -> None:
        """Also raises where the breaker is open."""
        if self._guard.state == "open":
            raise self._guard.open_error()
        await self._inner.ready()

    async def aclose(self) -> None:
        await self._inner.aclose()

    def stream(self, request: TextRequest) -> AbstractAsyncContextManager[AsyncIterator[TextEvent]]:
        passage = partial(
            Passage[AsyncIterator[TextEvent]], self._guard, "stream", partial(self._inner.stream, request)
        )
        after = self._guard.policy.hedge_after
        return passage() if after is None else hedged(self._guard, passage, after)


class _Tokens(Guarded):
    async def vocabulary(self) -> Vocabulary:
        vocabulary: Vocabulary = await self._inner.vocabulary()
        return vocabulary

    def open(
        self, messages: Sequence[Message], *, k: int, max_tokens: int | None = None
    ) -> AbstractAsyncContextManager[Session]:
        return Passage(self._guard, "session", partial(self._inner.open, messages, k=k, max_tokens=max_tokens))


class _Prepares(Guarded):
    def reading(self, *, k: int | None) -> Reading:
        return _Reading(self._inner.reading(k=k), self._guard)


class _Reading:
    """See `backends.protocol.Reading`. What is prepared is neither counted nor repeated, and not asked for where the backend is to be left
    alone; the session is under guard as any."""

    def __init__(self, inner: Reading, guard: Guard) -> None:
        self._inner = inner
        self._guard = guard

    async def prepare(self, messages: Sequence[Message], *, ended: bool) -> int:
        if self._guard.state != "closed":
            return 0
        return await self._inner.prepare(messages, ended=ended)

    def open(
        self, messages: Sequence[Message], *, k: int, max_tokens: int | None = None
    ) -> AbstractAsyncContextManager[Session]:
        return Passage(self._guard, "session", partial(self._inner.open, messages, k=k, max_tokens=max_tokens))

    async def close(self) -> None:
        await self._inner.close()


class _Raw(Guarded):
    async def encode(self, text: str, *, special: bool = True) -> list[int]:
        ids: list[int] = await self._inner.encode(text, special=special)
        return ids

    async def render(self, messages: Sequence[Message]) -> list[int]:
        ids: list[int] = await self._inner.render(messages)
        return ids

    async def context_size(self) -> int:
        size: int = await self._inner.context_size()
        return size


class _Forwards(Guarded):
    def forward(self, request: ForwardRequest) -> AbstractAsyncContextManager[Forwarded]:
        return Passage(self._guard, "forward", partial(self._inner.forward, request))


class _Embeds(Guarded):
    async def embed(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        return await ask(self._guard, partial(self._inner.embed, fields))


class _Tokenizes(Guarded):
    async def tokenize(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        return await ask(self._guard, partial(self._inner.tokenize, fields))

    async def detokenize(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        return await ask(self._guard, partial(self._inner.detokenize, fields))


_ABILITIES: tuple[tuple[type, type[Guarded]], ...] = (
    (TokenBackend, _Tokens),
    (PreparingBackend, _Prepares),
    (RawBackend, _Raw),
    (ForwardingBackend, _Forwards),
    (EmbeddingBackend, _Embeds),
    (TokenizerBackend, _Tokenizes),
)
"""A protocol, and what guards it."""


def guarded(backend: TextBackend, guard: Guard) -> TextBackend:
    """The backend under guard. A backend that is guarded already gets this guard instead of its own."""
    bare = inner(backend)
    has = tuple(made for protocol, made in _ABILITIES if isinstance(bare, protocol))
    wrapper: TextBackend = _type(has)(bare, guard)
    return wrapper


def inner(backend: TextBackend) -> TextBackend:
    """The backend itself, without a guard around it."""
    if isinstance(backend, Guarded):
        bare: TextBackend = backend._inner
        return bare
    return backend


def guard_of(backend: TextBackend) -> Guard | None:
    """Its guard, if it has one."""
    return backend._guard if isinstance(backend, Guarded) else None


@cache
def _type(has: tuple[type[Guarded], ...]) -> type[Guarded]:
    """The class with just these abilities."""
    return type("Guarded", has or (Guarded,), {})
