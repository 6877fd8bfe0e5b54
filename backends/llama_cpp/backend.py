"""The embedded backend behind the contract of every backend."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager

import anyio
import anyio.to_thread

from backends.errors import BackendOverloaded, BackendUnavailable, ContextTooLong, RequestRejected
from backends.llama_cpp.cores import Cores
from backends.llama_cpp.engine import Engine, start_engine
from backends.llama_cpp.lane import Lane
from backends.llama_cpp.logits import Draw
from backends.llama_cpp.session import LlamaCppSession, read_top
from backends.llama_cpp.settings import LlamaCppSettings, LlamaCppStats
from backends.llama_cpp.template import TemplateRefused
from backends.llama_cpp.vocab import vocabulary_of
from backends.llama_cpp.worker import Read
from backends.protocol import Session
from backends.raw import raw_ids
from backends.seats import Seats
from backends.textout import TextOut
from backends.types import Message, Sampling, TextDelta, TextEnd, TextEvent, TextRequest, Usage, Vocabulary

_SHORT = 4000
"""Characters of a conversation up to which rendering and encoding it does not hold up the event loop (about 1 ms)."""


class LlamaCppBackend:
    """One model in this process. See `backends.protocol.TokenBackend`.

    turn_stops: for a model without a chat template, the strings that end its turn in the transcript we give it instead; its
        own streams stop there, and whoever drives a session must too. Empty for all others, and before `start`.
    """

    def __init__(self, name: str, settings: LlamaCppSettings, cores: Cores) -> None:
        """cores: the process's one budget, the same for every backend."""
        self._name = name
        self._settings = settings
        self._cores = cores
        self._engine: Engine | None = None
        self._closed = False
        self._seats = Seats(name, settings.seats, settings.queue)
        self._held = 1.0  # seconds that a seat is kept, a running mean
        self._vocabulary: Vocabulary | None = None
        self._building = anyio.Lock()

    @property
    def name(self) -> str:
        return self._name

    @property
    def turn_stops(self) -> tuple[str, ...]:
        return self._engine.turn_stops if self._engine is not None else ()

    @property
    def seats(self) -> Seats:
        """See `backends.protocol.SeatedBackend`."""
        return self._seats

    @property
    def default_sampling(self) -> Sampling:
        """What holds where a request says nothing; whoever drives a session of this model alone does as its streams do."""
        return Sampling(temperature=self._settings.temperature, top_p=self._settings.top_p)

    async def start(self) -> None:
        """Load the model in a thread. Raises BackendUnavailable."""
        if self._engine is None and not self._closed:
            await anyio.to_thread.run_sync(self._load)
            await self.vocabulary()

    def _load(self) -> None:
        # Kept here and not by the awaiting task: that one may have been cancelled meanwhile, and `aclose` must find it.
        self._engine = start_engine(self._name, self._settings, self._cores)

    async def ready(self) -> None:
        self._running()

    async def aclose(self) -> None:
        self._closed = True
        engine, self._engine = self._engine, None
        if engine is not None:
            with anyio.CancelScope(shield=True):
                async with self._building:  # a vocabulary being read holds on to the weights
                    await anyio.to_thread.run_sync(engine.stop)

    async def vocabulary(self) -> Vocabulary:
        engine = self._running()
        async with self._building:
            if self._vocabulary is None:
                engine = self._running()
                self._vocabulary = await anyio.to_thread.run_sync(vocabulary_of, engine.model)
            return self._vocabulary

    def stats(self) -> LlamaCppStats:
        """Counters for metrics; zeros before the start and after the end."""
        worker = self._engine.worker if self._engine is not None else None
        passes, read, decoded = (worker.passes, worker.prompt_tokens, worker.decoded_tokens) if worker else (0, 0, 0)
        seats, kept = self._seats, worker.kept_tokens if worker else 0
        return LlamaCppStats(self._settings.seats, seats.taken, seats.waiting, passes, read, decoded, kept)

    @asynccontextmanager
    async def open(
        self, messages: Sequence[Message], *, k: int, max_tokens: int | None = None
    ) -> AsyncIterator[Session]:
        if k < 1:
            raise ValueError("k is at least 1")
        k_max = self._settings.k_max
        k = min(k, k_max or k)
        async with self._admit(messages, max_tokens, read_top(k)) as (lane, leave):
            yield LlamaCppSession(lane, leave, k, k_max, exact=self._settings.batching == "exact")

    def stream(self, request: TextRequest) -> AbstractAsyncContextManager[AsyncIterator[TextEvent]]:
        """See the protocol. `max_tokens` beyond what the context has left is cut to it."""
        return self._stream(request)

    @asynccontextmanager
    async def _stream(self, request: TextRequest) -> AsyncIterator[AsyncIterator[TextEvent]]:
        draw = Draw(request.sampling, self._settings.temperature, self._settings.top_p)
        vocabulary = await self.vocabulary()
        async with self._admit(request.messages, None, draw) as (lane, _):
            stops = request.sampling.stop
            if raw_ids(request.messages) is None:
                stops = (*stops, *self.turn_stops)
            told = self._settings.prefix_cache
            async with aclosing(_events(lane, vocabulary, TextOut(stops), request.sampling.max_tokens, told)) as events:
                yield events

    @asynccontextmanager
    async def _admit(
        self, messages: Sequence[Message], max_tokens: int | None, read: Read
    ) -> AsyncIterator[tuple[Lane, Callable[[], None]]]:
        """A lane that has begun to read the prompt, and what gives it back early. Raises as `open` does."""
        self._check_queue()
        prompt = await self._encode(messages)
        self._check_room(len(prompt), max_tokens)
        self._check_queue()
        seat = await self._seats.take()
        began, left = time.monotonic(), False
        lane: Lane | None = None
        sequence = -1

        def leave() -> None:
            nonlocal left
            if not left:
                left = True
                keep = 0
                if lane is not None:
                    keep = kept.worth(prompt) if lane.prompt_read else held
                    lane.close(keep)
                if sequence >= 0:
                    kept.give(sequence, prompt[:keep])
                self._held += 0.1 * (time.monotonic() - began - self._held)
                seat.release()

        try:
            engine = self._running()  # it may have been closed while we waited
            kept = engine.kept
            sequence, held = kept.take(prompt)
            lane = Lane(self._name, engine.worker, sequence, prompt, held, engine.context.room, engine.size, read)
            yield lane, leave
        finally:
            leave()

    async def encode(self, text: str, *, special: bool = True) -> list[int]:
        if len(text) <= _SHORT:
            return self._running().prompter.encode_text(text, special)
        async with self._building:
            return await anyio.to_thread.run_sync(self._running().prompter.encode_text, text, special)

    async def render(self, messages: Sequence[Message]) -> list[int]:
        return await self._encode(messages)

    async def context_size(self) -> int:
        return self._running().context.room

    async def _encode(self, messages: Sequence[Message]) -> list[int]:
        engine = self._running()
        if (raw := raw_ids(messages)) is not None:
            return list(raw)
        try:
            if sum(len(message.content) for message in messages) <= _SHORT:
                return engine.prompter.encode(messages)
            async with self._building:
                return await anyio.to_thread.run_sync(self._running().prompter.encode, messages)
        except TemplateRefused as error:
            message = f"The chat template of model {self._name!r} refused the conversation: {error}"
            raise RequestRejected(self._name, message, param="messages") from error

    def _check_room(self, prompt: int, wanted: int | None) -> None:
        limit = self._running().context.room
        total = prompt + max(1, wanted or 1)
        if total > limit:
            asked = f" and {wanted} more for the answer" if wanted is not None else " and at least one for the answer"
            message = (
                f"The conversation is too long for model {self._name!r}: it holds {limit} tokens, "
                f"and the conversation is {prompt}{asked}."
            )
            raise ContextTooLong(self._name, message, tokens=total, limit=limit)

    def _check_queue(self) -> None:
        """Turn away early, and with an idea of when to come back."""
        seats, settings = self._seats, self._settings
        if seats.taken >= settings.seats and seats.waiting >= settings.queue:
            wait = min(60.0, max(1.0, self._held * (seats.waiting + 1) / settings.seats))
            raise BackendOverloaded(
                self._name, f"Model {self._name!r} is at capacity; try again shortly.", round(wait, 1)
            )

    def _running(self) -> Engine:
        """Raises BackendUnavailable if it can't serve."""
        if self._engine is None:
            state = "is closed" if self._closed else "has not been started"
            raise BackendUnavailable(self._name, f"Model {self._name!r} {state}.")
        if not self._engine.worker.alive:
            message = f"Model {self._name!r} has stopped computing."
            raise BackendUnavailable(self._name, message) from self._engine.worker.failure
        return self._engine


async def _events(
    lane: Lane, vocabulary: Vocabulary, out: TextOut, max_tokens: int | None, cached: bool
) -> AsyncGenerator[TextEvent, None]:
    """Draw tokens until the model ends, a stop string is complete, or there is no more room. `lane` reads by drawing.

    cached: tell how much of the prompt was kept from others."""
    room = lane.left if max_tokens is None else min(max_tokens, lane.left)
    written = 0
    reason = "length"
    token = -1
    while written < room:
        token = await lane.look() if written == 0 else (await lane.append([token], rows=1, singly=True))[0]
        if token in vocabulary.end_ids:
            reason = "stop"
            break
        written += 1
        if text := out.feed(vocabulary.tokens[token]):
            yield TextDelta(text)
        if out.stopped:
            reason = "stop"
            break
    if text := out.finish():
        yield TextDelta(text)
    yield TextEnd(reason, Usage(lane.prompt_tokens, written, lane.kept_tokens if cached else None))
