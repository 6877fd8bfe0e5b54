"""The contracts of a backend. Ability is a type, not a flag: a `TokenBackend` is a `TextBackend` that opens sessions.

Order of operations
    `stream` and `open` may be entered any number of times, concurrently, from one event loop. A session is used by one
    task at a time. `aclose` ends the backend; nothing is entered after it.
Cancellation
    Leaving the `async with` block of a stream or a session, by whatever way, frees all it held (slot, KV cache,
    connection) before the block is left or at once afterwards without anyone's help.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

from backends.types import LogProbs, Message, TextEvent, TextRequest, TopK, Vocabulary


class Session(Protocol):
    """One model's side of a fused generation: a token sequence it has read, and what it would say next."""

    @property
    def prompt_tokens(self) -> int:
        """Length of the rendered prompt, in tokens."""
        ...

    async def step(self, append: Sequence[int] = ()) -> TopK:
        """Append 0..n ids; return the distribution of the next token.

        `step(())` right after `open` gives the distribution after the prompt.
        Raises ContextTooLong when the ids do not fit, SessionClosed, BackendUnavailable, BackendTimeout.
        """
        ...

    async def score(self, draft: Sequence[int]) -> list[TopK]:
        """Append the draft (n >= 1 ids); return n distributions, the i-th following its first i+1 ids.

        Afterwards the session stands behind the draft's last id, as after `step(draft)`. Raises as `step`.
        """
        ...

    async def lookup(self, ids: Sequence[int]) -> LogProbs:
        """Exact log-probabilities, float64 [len(ids)], nats, at the current position; no forward pass.

        Only after a `step` or `score`, and before a `rewind`. Raises CapabilityMissing where the server can't, or not so
        many at once.
        """
        ...

    async def rewind(self, n: int) -> None:
        """Drop the last n appended ids (never the prompt: ValueError). What follows is a `step` or `score`."""
        ...

    async def close(self) -> None:
        """Free everything. Idempotent; also done on leaving the block that `open` gave."""
        ...


@runtime_checkable
class TextBackend(Protocol):
    """Streams text."""

    @property
    def name(self) -> str:
        """The catalogue name of its model."""
        ...

    def stream(self, request: TextRequest) -> AbstractAsyncContextManager[AsyncIterator[TextEvent]]:
        """Text deltas as they are written, then exactly one TextEnd.

        Failures before the first event are raised on entering the block or by the first event; later ones by the event
        they hit. A stream that breaks off raises; it never just ends.
        """
        ...

    async def start(self) -> None:
        """Load the model or check its settings; called once, before anything else. Raises a BackendError."""
        ...

    async def ready(self) -> None:
        """Return if the model can serve now; raise a BackendError that says why not."""
        ...

    async def aclose(self) -> None:
        """Free the model. Idempotent."""
        ...


@runtime_checkable
class TokenBackend(TextBackend, Protocol):
    """Also opens token sessions."""

    async def vocabulary(self) -> Vocabulary:
        """The model's vocabulary; computed or fetched once, then kept."""
        ...

    def open(
        self, messages: Sequence[Message], *, k: int, max_tokens: int | None = None
    ) -> AbstractAsyncContextManager[Session]:
        """Admit a session: wait in a bounded queue for a place, render the model's own chat template, start reading.

        k: how many tokens a TopK lists at least (fewer only where the server's limit or the vocabulary is smaller).
        max_tokens: room wanted behind the prompt, in tokens; None: whatever is left of the context.
        Entering waits only for a *place*, not for the prompt to be read (the first `step` does): a caller that opens the
        members of a group one after another, in the order of their names, can't deadlock with another that does likewise.
        Raises BackendOverloaded, ContextTooLong, CapabilityMissing, BackendUnavailable.
        """
        ...
