"""Writing an answer to one client while its runs go on: as a stream, or as one JSON body.

A sink takes the events of every choice in the order in which they come. The stream sends its headers with the first text that
the client may see, or with the first keep-alive if that is due earlier; until then a failure is a real HTTP status.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from backends.estimate import ESTIMATED, prompt_tokens
from backends.types import FINISH_REASONS, Usage
from gateway.observability.record import RequestRecord
from gateway.runtime import Prepared
from gateway.web.asgi import Scope, Send
from gateway.web.eventstream import EventStream
from gateway.web.route import OneBody, Outlet
from gateway.wire import sse
from gateway.wire.answers import Choice, Piece, answer, completion, usage_value
from gateway.wire.decode import ChatRequest
from gateway.wire.extension import extension_value
from gateway.wire.logprobs import Logprobs
from gateway.wire.sofar import SoFar
from strategies.engine.events import Event, Finished


@dataclass(frozen=True, slots=True)
class Identity:
    """What is the same in all parts of an answer. model: as the client wrote it."""

    id: str
    created: int
    model: str
    fingerprint: str


class Sink(Outlet, Protocol):
    """Takes what the runs say; `end` once every run has finished."""

    identity: Identity

    @property
    def pristine(self) -> bool:
        """As of `gateway.web.attempts.Restartable`."""
        ...

    def restart(self, prepared: Prepared) -> None:
        """As of `gateway.web.attempts.Restartable`."""
        ...

    async def take(self, choice: int, event: Event) -> None:
        """An event of a choice's run."""
        ...


class Answering:
    """What all sinks keep."""

    def __init__(self, identity: Identity, prepared: Prepared, request: ChatRequest, record: RequestRecord) -> None:
        asked = request.asked
        one_call = asked.tools is not None and not asked.tools.parallel
        self.identity = identity
        self.prepared = prepared
        self.request = request
        self._one_call = one_call
        self.choices = self._choices(prepared)
        self.logprobs = None if asked.logprobs is None else Logprobs(asked.logprobs)
        self.record = record
        self.closed = False  # as in `Outlet`

    @property
    def pristine(self) -> bool:
        """Whether nothing of the answer has gone out; a run ends before any of a whole answer does."""
        return not self.closed

    def restart(self, prepared: Prepared) -> None:
        """Begin again with another wiring. Only while `pristine`."""
        self.prepared = prepared
        self.choices = self._choices(prepared)

    def so_far(self, prepared: Prepared) -> list[SoFar]:
        """Of every choice, where it is to be told in every chunk; else none."""
        if not self.request.continuous_usage:
            return []
        read = [prompt_tokens(self.request.messages_of(choice)) for choice in range(self.request.n)]
        return [SoFar(prepared.plan, prompt) for prompt in read]

    def _choices(self, prepared: Prepared) -> list[Choice]:
        return [Choice(prepared.plan, self.request.show_stages, self._one_call) for _ in range(self.request.n)]

    def finished(self) -> list[Finished]:
        """How every choice ended. Raises RuntimeError for one that never did: a run must not just stop."""
        ends = [choice.finished for choice in self.choices]
        if any(end is None for end in ends):
            raise RuntimeError("a run ended without saying so")
        return [end for end in ends if end is not None]

    def usage(self) -> dict[str, Any]:
        usages = [end.usage for end in self.finished()]
        self.record.usage = sum(usages, Usage())
        return usage_value(usages)

    def extension(self, choices: Sequence[int]) -> dict[str, Any]:
        reports = [
            (index, report)
            for index in choices
            if (end := self.choices[index].finished) is not None
            for report in end.stages
        ]
        recorded = None
        if self.request.asked.record:
            recorded = [(index, each) for index in choices for each in self.choices[index].recorded]
        return extension_value(self.prepared.plan, self.prepared.wiring, reports, recorded)

    def degraded(self) -> dict[str, str]:
        """A header that names the members that left their groups so far, if any did."""
        left = [event.dropped.model for choice in self.choices for event in choice.dropped]
        return {"x-modelnet-degraded": ", ".join(dict.fromkeys(left))} if left else {}

    def finish_reason(self, end: Finished) -> str:
        """One that OpenAI's clients know: some servers have words of their own for an ordinary end."""
        reason = end.finish_reason if end.finish_reason in FINISH_REASONS else "stop"
        return "function_call" if reason == "tool_calls" and self.request.legacy else reason


class Whole(OneBody, Answering):
    """One JSON body at the end."""

    def __init__(self, scope: Scope, send: Send, *common: Any) -> None:
        Answering.__init__(self, *common)
        OneBody.__init__(self, scope, send)
        self._pieces: list[list[Piece]] = [[] for _ in self.choices]

    def restart(self, prepared: Prepared) -> None:
        super().restart(prepared)
        self._pieces = [[] for _ in self.choices]

    async def take(self, choice: int, event: Event) -> None:
        pieces = self.choices[choice].read(event)
        if any(not piece.reasoning for piece in pieces):
            self.record.wrote()
        self._pieces[choice].extend(pieces)

    async def end(self) -> None:
        answers = [
            answer(pieces, self.finish_reason(end), self.logprobs)
            for pieces, end in zip(self._pieces, self.finished(), strict=True)
        ]
        body = completion(
            id=self.identity.id,
            created=self.identity.created,
            model=self.identity.model,
            fingerprint=self.identity.fingerprint,
            answers=answers,
            usage=self.usage(),
            extension=self.extension(range(len(answers))),
            legacy=self.request.legacy,
        )
        await self.deliver(orjson.dumps(body), self.degraded())


class Stream(EventStream, Answering):
    """Server-sent events, as chat chunks. `keep_alive` runs beside the runs."""

    def __init__(self, scope: Scope, send: Send, *common: Any) -> None:
        Answering.__init__(self, *common)
        EventStream.__init__(self, scope, send, self.record)
        identity = self.identity
        self._writer = sse.ChunkWriter(
            id=identity.id,
            created=identity.created,
            model=identity.model,
            fingerprint=identity.fingerprint,
            with_usage=self.request.include_usage,
        )
        self._introduced = 0  # choices
        self._so_far = self.so_far(self.prepared)

    def restart(self, prepared: Prepared) -> None:
        super().restart(prepared)
        self._introduced = 0  # what introduced them was made, and never sent
        self._so_far = self.so_far(prepared)

    async def take(self, choice: int, event: Event) -> None:
        pieces = self.choices[choice].read(event)
        if self._so_far:
            self._spend(choice, event)
        data = b"".join(self._piece(choice, piece) for piece in pieces)
        if isinstance(event, Finished):
            data += self._introduce(choice) + self._finish(choice, event)
        if data:
            await self._write(data)

    async def end(self) -> None:
        usage, data = self.usage(), b""
        if self._writer.with_usage:
            data = self._writer.usage(usage, self.extension(range(len(self.choices))))
        await self._write(data + sse.DONE, more=False)

    def _spend(self, choice: int, event: Event) -> None:
        """The chunks of this event say what their choice has taken by then."""
        running = self._so_far[choice]
        running.saw(event)
        usage = running.usage
        self._tell_spent(usage_value([usage]), ESTIMATED if usage.estimated else {})

    def _tell_spent(self, usage: Mapping[str, Any], extension: Mapping[str, Any]) -> None:
        self._writer.spent(usage, extension)

    def _piece(self, choice: int, piece: Piece) -> bytes:
        data = self._introduce(choice)
        if piece.reasoning:
            return data + self._writer.reasoning(choice, piece.text, piece.stage)
        self.record.wrote()
        if piece.text or piece.tokens:
            told = self.logprobs.values(piece.tokens) if self.logprobs is not None and piece.tokens else None
            write = self._writer.refusal if piece.refusal else self._writer.content
            data += write(choice, piece.text, told)
        if piece.tool_calls:
            data += self._writer.tool_calls(choice, piece.tool_calls, self.request.legacy)
        return data

    def _headers(self) -> Mapping[str, str]:
        return {**super()._headers(), **self.degraded()}

    def _introduce(self, choice: int) -> bytes:
        """First deltas, up to this choice's, in order: the official client fails over a choice that comes before its place."""
        new = range(self._introduced, choice + 1)
        self._introduced = max(self._introduced, choice + 1)
        return b"".join(map(self._writer.role, new))

    def _finish(self, choice: int, end: Finished) -> bytes:
        # With usage asked for, the parts come with it in the last chunk.
        extension = None if self._writer.with_usage else self.extension([choice])
        return self._writer.finish(choice, self.finish_reason(end), extension)
