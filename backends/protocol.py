"""The contracts of a backend. Ability is a type, not a flag: a `TokenBackend` is a `TextBackend` that opens sessions.

Order of operations
    `stream` and `open` may be entered any number of times, concurrently, from one event loop. A session is used by one
    task at a time. `aclose` ends the backend; nothing is entered after it.
Cancellation
    Leaving the `async with` block of a stream or a session, by whatever way, frees all it held (slot, KV cache,
    connection) before the block is left or at once afterwards without anyone's help.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, runtime_checkable

from backends.seats import Seats
from backends.types import ForwardRequest, LogProbs, Message, SomeIds, TextEvent, TextRequest, TopK, Usage, Vocabulary


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

    async def lookup(self, ids: SomeIds) -> LogProbs:
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
class WideningSession(Session, Protocol):
    """A session that can list more tokens than it was opened for."""

    def widen(self, k: int) -> bool:
        """From the next distribution on list at least k tokens (fewer only where `open` says so), never fewer than before. Whether
        these are more than before."""
        ...


@runtime_checkable
class DraftingSession(Session, Protocol):
    """A session that scores a draft in one pass, and keeps what it found behind every id of it until the next call that moves it."""

    @property
    def draft_noise(self) -> float | None:
        """How far a likely token's log-probability (nats) in a scored draft may be from that of single steps. 0.0: equal to the last
        bit, there and in all steps behind it. None: it is not to be sent drafts."""
        ...

    @property
    def reads_singly(self) -> bool:
        """Whether a draft takes as many passes as it has ids, so that it spares none: only waiting, where others are slower."""
        ...

    async def recall(self, back: int, ids: SomeIds) -> LogProbs:
        """As `lookup`, but `back` ids before the end of the draft just scored (1 <= back < its length), from the same pass.

        Raises CapabilityMissing where that is not kept; where nothing is kept of steps, RuntimeError if the session has moved since.
        """
        ...

    @property
    def kept_steps(self) -> int:
        """Over how many of the latest steps of one id each `recall` goes back as well."""
        ...


@runtime_checkable
class RoomySession(Session, Protocol):
    """A session that knows when it will be full."""

    @property
    def context(self) -> int | None:
        """Tokens that prompt and appended ids may have together, one or two less at most. None: its server does not say."""
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


class Forwarded(Protocol):
    """A server's answer to a forwarded request, in the form in which the client gets it."""

    @property
    def usage(self) -> Usage | None:
        """What was spent by now: as the server says or, where it has said nothing, estimated from what came. None: nothing came."""
        ...

    @property
    def wrote(self) -> bool:
        """Whether text of the answer has come by now."""
        ...

    @property
    def over(self) -> bool:
        """Whether all of it has been read: what `read` gave last was the end."""
        ...

    async def read(self) -> bytes:
        """More of it, as soon as it is here: of a stream whole events, [DONE] last; else the one JSON body. b"" at the end.

        Nothing more is read from the server before it is asked for. Raises as `TextBackend.stream`; a stream that breaks off raises.
        """
        ...


@runtime_checkable
class ForwardingBackend(TextBackend, Protocol):
    """Its server speaks the OpenAI API: also takes a client's request as it came, and gives the answer as it comes.

    `stream` also reads what is no conversation (`backends.raw`), where the server continues texts.
    """

    def forward(self, request: ForwardRequest) -> AbstractAsyncContextManager[Forwarded]:
        """Entering waits for a place as `stream` does, and for the server's status. Raises as `stream`."""
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


class Reading(Protocol):
    """A conversation that is read while its last answer is still written. One call at a time."""

    async def prepare(self, messages: Sequence[Message], *, ended: bool) -> int:
        """Have the engine read as much of the conversation as is known.

        ended: it may be whole as it is, so that its end is worth reading too, where the engine has nothing else to do.
        Returns once it is read: after how many more tokens (at least 1) another call is worth its while; 0 if it had no place free, in
        which case nothing was read. Costs time and nothing else: it waits for no place, takes none that others wait for, and counts in
        no statistics. May be cancelled at any moment. Raises CapabilityMissing where the server keeps nothing or can't be asked, else
        any BackendError.
        """
        ...

    def open(
        self, messages: Sequence[Message], *, k: int, max_tokens: int | None = None
    ) -> AbstractAsyncContextManager[Session]:
        """As `TokenBackend.open`. What was read is not read again; of the rest nobody can tell the difference. Ends the reading."""
        ...

    async def close(self) -> None:
        """Free what is held. Idempotent."""
        ...


@runtime_checkable
class PreparingBackend(TokenBackend, Protocol):
    """Its engine keeps what it has read: of a prompt that begins like an earlier one, it reads only what is new."""

    def reading(self, *, k: int | None) -> Reading:
        """Nothing is read yet, and it must be closed. k: of the session that will be opened with it; None where a `stream` will follow."""
        ...


@runtime_checkable
class RawBackend(TokenBackend, Protocol):
    """Also reads prompts that are no conversation (`backends.raw`), in `stream` and in `open`."""

    async def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a whole prompt. special: with what the model wants before any text (BOS). Control tokens are recognised
        by their spelling."""
        ...

    async def render(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation in the model's own chat template, as `open` reads them. Raises RequestRejected."""
        ...

    async def context_size(self) -> int:
        """The most tokens that prompt and answer may have together."""
        ...


@runtime_checkable
class EmbeddingBackend(Protocol):
    """Turns texts into vectors."""

    async def embed(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The server's answer, as it came. fields: of OpenAI's embeddings request, all but `model`.

        Raises CapabilityMissing where the server has no embeddings, else as `TextBackend.stream`.
        """
        ...


@runtime_checkable
class TokenizerBackend(Protocol):
    """A server that tells tokens, as vLLM's `/tokenize` and `/detokenize` do."""

    async def tokenize(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The server's answer, as it came. fields: all but `model`. Raises as `EmbeddingBackend.embed`."""
        ...

    async def detokenize(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """As `tokenize`."""
        ...


@runtime_checkable
class SeatedBackend(Protocol):
    """Its streams and sessions take places, of which there may be only so many."""

    @property
    def seats(self) -> Seats:
        """The places, as they are now."""
        ...


@runtime_checkable
class ReplicatedBackend(Protocol):
    """Its model is on several servers."""

    @property
    def replicas(self) -> int:
        """How many there are."""
        ...

    @property
    def replicas_out(self) -> int:
        """How many of them are left out for a while, because they failed."""
        ...
