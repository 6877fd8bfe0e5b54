"""The fake model behind the contract of every backend."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio

from backends.errors import BackendUnavailable, CapabilityMissing
from backends.fake.model import Answer, FakeModel
from backends.fake.session import FakeSession, too_long
from backends.fake.settings import FakeSettings, Fault
from backends.protocol import Session
from backends.raw import raw_ids
from backends.seats import Seat, Seats
from backends.textout import TextOut
from backends.types import Message, TextDelta, TextEnd, TextEvent, TextRequest, Usage, Vocabulary


@dataclass(slots=True)
class Counters:
    """What is going on, for tests: after any run, `streams`, `sessions` and `waiting` must be 0.

    streams, sessions: open now. opened, closed: in all, streams and sessions together. waiting: for a seat, now.
    most: the most that were open at once. deltas: written in all. passes: forward passes (step or score) in all.
    """

    streams: int = 0
    sessions: int = 0
    opened: int = 0
    closed: int = 0
    most: int = 0
    deltas: int = 0
    passes: int = 0
    waiting: int = 0


class FakeBackend:
    """A scripted `TokenBackend`.

    settings: what it says and how it fails. answer: a function from the conversation to the text, instead of
    `settings.answer` and its rules. model: a whole model of your own, instead of both.
    `faults` may be replaced while it runs. Of a request's sampling, `max_tokens` and `stop` are honoured; the text is
    scripted, so the rest makes no difference.
    """

    def __init__(
        self,
        name: str,
        settings: FakeSettings | None = None,
        *,
        answer: Answer | None = None,
        model: FakeModel | None = None,
    ) -> None:
        self._name = name
        self.settings = settings = settings or FakeSettings()
        self.model = model or FakeModel(
            answer or self._scripted, words=settings.words, seed=settings.seed, confidence=settings.confidence
        )
        self.faults: tuple[Fault, ...] = settings.faults
        self._struck: dict[Fault, int] = {}
        self._seats = Seats(name, settings.seats, settings.queue)
        self._counters = Counters()
        self._closed = False

    @property
    def name(self) -> str:
        return self._name

    @property
    def counters(self) -> Counters:
        """Live numbers; the same object at every call."""
        self._counters.waiting = self._seats.waiting
        return self._counters

    @property
    def seats(self) -> Seats:
        """See `backends.protocol.SeatedBackend`."""
        return self._seats

    async def start(self) -> None:
        await self._strike("start", "both")

    async def ready(self) -> None:
        if self._closed:
            raise BackendUnavailable(self._name, f"Model {self._name!r} is closed.")
        await self._strike("ready", "both")

    async def aclose(self) -> None:
        self._closed = True

    async def why_not_fused(self) -> str | None:
        """None if it opens token sessions, else the reason."""
        return None if self.settings.sessions else "it is configured to stream text only"

    async def vocabulary(self) -> Vocabulary:
        return self.model.vocabulary

    async def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Nothing stands before a text here, with `special` or without."""
        return self.model.encode(text.encode())

    async def render(self, messages: Sequence[Message]) -> list[int]:
        return self.model.render(messages)

    async def context_size(self) -> int:
        return self.settings.context

    # Text

    @asynccontextmanager
    async def stream(self, request: TextRequest) -> AsyncIterator[AsyncIterator[TextEvent]]:
        async with await self._admit():
            self._begin("streams")
            try:
                await self._strike("enter", "stream")
                prompt = len(self.model.render(request.messages))
                self._must_fit(prompt, request.sampling.max_tokens)
                events = self._events(request, prompt)
                try:
                    yield events
                finally:
                    await events.aclose()
            finally:
                self._end("streams")

    async def _events(self, request: TextRequest, prompt: int) -> AsyncGenerator[TextEvent, None]:
        pieces, finish, tokens = self._script(request)
        thoughts = re.findall(r"\s*\S+|\s+$", self.settings.reasoning)
        deltas = [TextDelta("", thought) for thought in thoughts] + [TextDelta(piece) for piece in pieces]
        for n, delta in enumerate(deltas):
            await self._pause(n, "stream")
            self._counters.deltas += 1
            yield delta
        await self._strike("token", "stream", len(deltas))
        usage = self.settings.usage or Usage(prompt, tokens)
        yield TextEnd(self.settings.finish_reason or finish, usage)

    def _script(self, request: TextRequest) -> tuple[list[str], str, int]:
        """The answer's deltas, its finish reason and its length in tokens."""
        messages = request.messages
        if raw_ids(messages) is not None:
            messages = self.model.messages(self.model.render(messages))
        ids = self.model.encode(self.model.answer(messages).encode())
        kept = ids[: request.sampling.max_tokens]
        out = TextOut(request.sampling.stop)
        pieces: list[str] = []
        tokens = 0
        for id in kept:
            tokens += 1
            pieces.append(out.feed(self.model.vocabulary.tokens[id]))
            if out.stopped:
                break
        pieces.append(out.finish())
        pieces = [piece for piece in pieces if piece]
        whole = "".join(pieces)
        match self.settings.split:
            case "character":
                pieces = list(whole)
            case "word":
                pieces = re.findall(r"\s*\S+|\s+$", whole)
            case "whole":
                pieces = [whole] if whole else []
        return pieces, "stop" if out.stopped or len(kept) == len(ids) else "length", tokens

    # Tokens

    @asynccontextmanager
    async def open(
        self, messages: Sequence[Message], *, k: int, max_tokens: int | None = None
    ) -> AsyncIterator[Session]:
        if reason := await self.why_not_fused():
            raise CapabilityMissing(self._name, f"Model {self._name!r} opens no token sessions: {reason}.")
        if k < 1:
            raise ValueError("k must be at least 1")
        seat = await self._admit()
        self._begin("sessions")

        def freed() -> None:
            self._end("sessions")
            seat.release()

        async def pause(passes: int) -> None:
            await self._pause(passes, "session")
            self._counters.passes += 1

        prompt = self.model.render(messages)
        session = FakeSession(self._name, self.model, self.settings, prompt, k, pause, freed)
        try:
            await self._strike("enter", "session")
            self._must_fit(len(prompt), max_tokens)
            yield session
        finally:
            await session.close()

    # Seats, delays and faults

    async def _admit(self) -> Seat:
        if self._closed:
            raise BackendUnavailable(self._name, f"Model {self._name!r} is closed.")
        return await self._seats.take()

    def _must_fit(self, prompt: int, max_tokens: int | None) -> None:
        if (needed := prompt + (max_tokens or 1)) > self.settings.context:
            raise too_long(self._name, needed, self.settings.context)

    def _begin(self, kind: str) -> None:
        counters = self._counters
        setattr(counters, kind, getattr(counters, kind) + 1)
        counters.opened += 1
        counters.most = max(counters.most, counters.streams + counters.sessions)

    def _end(self, kind: str) -> None:
        setattr(self._counters, kind, getattr(self._counters, kind) - 1)
        self._counters.closed += 1

    async def _pause(self, n: int, of: str) -> None:
        """Before the n-th delta or pass, from 0."""
        await anyio.sleep(self.settings.delay if n else self.settings.first_delay)
        await self._strike("token", of, n)

    async def _strike(self, on: str, of: str, n: int = 0) -> None:
        """Do what the faults say for this moment."""
        for fault in self.faults:
            if fault.on != on or ("both" not in (fault.of, of) and fault.of != of):
                continue
            if on == "token" and (n < fault.after if fault.action == "slow" else n != fault.after):
                continue
            struck = self._struck.get(fault, 0)
            if fault.times is not None and struck >= fault.times:
                continue
            self._struck[fault] = struck + 1
            match fault.action:
                case "raise":
                    raise fault.exception(self._name)
                case "hang":
                    await anyio.sleep_forever()
                case "slow":
                    await anyio.sleep(fault.seconds)

    def _scripted(self, messages: Sequence[Message]) -> str:
        last = next((message.content for message in reversed(messages) if message.role == "user"), "")
        rule = next((rule for rule in self.settings.rules if rule.contains in last), None)
        answer = self.settings.answer if rule is None else rule.answer
        # One pass over the template: what a user writes is never read as a placeholder.
        return re.sub(r"\{(name|last)\}", lambda found: self._name if found[1] == "name" else last, answer)
