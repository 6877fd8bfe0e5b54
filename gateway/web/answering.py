"""Writing an answer to one client while its runs go on: as a stream, or as one JSON body.

A sink takes the events of every choice in the order in which they come. The stream sends its headers with the first text that
the client may see, or with the first keep-alive if that is due earlier; until then a failure is a real HTTP status. Every write
is one or more whole events, one write at a time, so a keep-alive never falls into an event.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import anyio
import orjson

from backends.types import Usage
from gateway.observability.record import RequestRecord
from gateway.runtime import Prepared
from gateway.web.asgi import Disconnected, Scope, Send, encoded, send_error, send_json
from gateway.wire import sse
from gateway.wire.answers import Answer, Choice, Piece, completion, extension_value, usage_value
from gateway.wire.errors import APIError
from strategies.engine.events import Event, Finished

_FINISH_REASONS = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})


@dataclass(frozen=True, slots=True)
class Identity:
    """What is the same in all parts of an answer. model: as the client wrote it."""

    id: str
    created: int
    model: str
    fingerprint: str


class Sink(Protocol):
    """Takes what the runs say."""

    closed: bool

    async def take(self, choice: int, event: Event) -> None:
        """An event of a choice's run."""
        ...

    async def end(self) -> None:
        """Every run has finished."""
        ...

    async def fail(self, error: APIError) -> None:
        """The request has failed."""
        ...


class _Answering:
    """What both sinks keep."""

    def __init__(
        self, identity: Identity, prepared: Prepared, n: int, show_stages: bool, record: RequestRecord
    ) -> None:
        self.identity = identity
        self.prepared = prepared
        self.choices = [Choice(prepared.plan, show_stages) for _ in range(n)]
        self.record = record
        self.closed = False  # the last write has begun: a client that leaves from now on has its answer

    def finished(self) -> list[Finished]:
        """How every choice ended. Raises RuntimeError for one that never did: a run must not just stop."""
        ends = [choice.finished for choice in self.choices]
        if any(end is None for end in ends):
            raise RuntimeError("a run ended without saying so")
        return [end for end in ends if end is not None]

    def usage(self) -> dict[str, int]:
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
        return extension_value(self.prepared.plan, self.prepared.wiring, reports)


class Whole(_Answering):
    """One JSON body at the end."""

    def __init__(self, scope: Scope, send: Send, *common: Any) -> None:
        super().__init__(*common)
        self._scope = scope
        self._send = send
        self._pieces: list[list[Piece]] = [[] for _ in self.choices]

    async def take(self, choice: int, event: Event) -> None:
        pieces = self.choices[choice].read(event)
        if any(not piece.reasoning for piece in pieces):
            self.record.wrote()
        self._pieces[choice].extend(pieces)

    async def end(self) -> None:
        answers = [
            Answer(
                "".join(piece.text for piece in pieces if not piece.reasoning),
                "".join(piece.text for piece in pieces if piece.reasoning),
                finish_reason(end),
            )
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
        )
        self.closed = True
        await send_json(self._send, 200, orjson.dumps(body))

    async def fail(self, error: APIError) -> None:
        self.closed = True
        await send_error(self._scope, self._send, error)


class Stream(_Answering):
    """Server-sent events. `keep_alive` runs beside the runs."""

    def __init__(self, scope: Scope, send: Send, include_usage: bool, *common: Any) -> None:
        super().__init__(*common)
        self._scope = scope
        self._send = send
        identity = self.identity
        self._writer = sse.ChunkWriter(
            id=identity.id,
            created=identity.created,
            model=identity.model,
            fingerprint=identity.fingerprint,
            with_usage=include_usage,
        )
        self._lock = anyio.Lock()
        self._opened = False
        self._last_write = time.monotonic()
        self._introduced: set[int] = set()

    async def take(self, choice: int, event: Event) -> None:
        pieces = self.choices[choice].read(event)
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

    async def fail(self, error: APIError) -> None:
        if not self._opened:
            self.closed = True
            await send_error(self._scope, self._send, error)
            return
        # No [DONE]: what a client has got so far must not look like a whole answer.
        self.record.error = error.code or error.type
        await self._write(sse.event(error.value()), more=False)

    async def keep_alive(self, seconds: float) -> None:
        """Write a comment whenever nothing was written for that long. Runs until cancelled."""
        while True:
            silent = time.monotonic() - self._last_write
            if silent >= seconds:
                await self._write(sse.KEEP_ALIVE)
            else:
                await anyio.sleep(seconds - silent)

    def _piece(self, choice: int, piece: Piece) -> bytes:
        data = self._introduce(choice)
        if piece.reasoning:
            return data + self._writer.reasoning(choice, piece.text, piece.stage)
        self.record.wrote()
        return data + self._writer.content(choice, piece.text)

    def _introduce(self, choice: int) -> bytes:
        if choice in self._introduced:
            return b""
        self._introduced.add(choice)
        return self._writer.role(choice)

    def _finish(self, choice: int, end: Finished) -> bytes:
        # With usage asked for, the parts come with it in the last chunk.
        extension = None if self._writer.with_usage else self.extension([choice])
        return self._writer.finish(choice, finish_reason(end), extension)

    async def _write(self, data: bytes, more: bool = True) -> None:
        async with self._lock:
            if self.closed:
                return
            try:
                if not self._opened:
                    await self._send({"type": "http.response.start", "status": 200, "headers": encoded(sse.HEADERS)})
                    self._opened = True
                self.closed = not more
                await self._send({"type": "http.response.body", "body": data, "more_body": more})
            except OSError as error:  # servers may say so this way
                raise Disconnected from error
            self._last_write = time.monotonic()


def finish_reason(end: Finished) -> str:
    """One that OpenAI's clients know: some servers have words of their own for an ordinary end."""
    return end.finish_reason if end.finish_reason in _FINISH_REASONS else "stop"
