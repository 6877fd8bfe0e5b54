"""POST /v1/responses: chat in the words of the Responses API, over every wiring. Nothing is stored."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from typing import Any

import orjson

from gateway.observability.record import RequestRecord
from gateway.runtime import Prepared
from gateway.web.answering import Answering, Identity, Sink, Whole
from gateway.web.asgi import Scope, Send
from gateway.web.chat import ChatRoute
from gateway.web.eventstream import EventStream
from gateway.wire.answers import Piece
from gateway.wire.decode import ChatRequest
from gateway.wire.errors import APIError
from gateway.wire.responses import (
    Output,
    ResponsesRequest,
    TornCall,
    closing_event,
    decode_responses,
    failed_event,
    in_responses_words,
    response_value,
)
from strategies.engine.events import Event


class ResponsesRoute(ChatRoute):
    """Answers requests to the Responses API."""

    def _decode(self, body: bytes) -> ChatRequest:
        return decode_responses(body, self._limits)

    async def _prepare(self, request: ChatRequest) -> Prepared:
        try:
            return await super()._prepare(request)
        except APIError as error:
            raise in_responses_words(error) from error

    def _sink(self, scope: Scope, send: Send, request: ChatRequest, prepared: Prepared, record: RequestRecord) -> Sink:
        assert isinstance(request, ResponsesRequest)
        identity = Identity(f"resp_{uuid.uuid4().hex}", int(time.time()), request.model, "")
        common = (identity, prepared, request, record)
        return ResponsesStream(scope, send, *common) if request.stream else ResponsesWhole(scope, send, *common)


class ResponsesWhole(Whole):
    """One response object at the end."""

    async def end(self) -> None:
        output = Output()
        for piece in self._pieces[0]:
            _told(self, output, piece)
        reason = self.finish_reason(self.finished()[0])
        output.finish(reason)
        closing = closing_event(_response(self, output), reason, self.usage(), self.extension([0]), int(time.time()))
        await self.deliver(orjson.dumps(closing["response"]), self.degraded())


class ResponsesStream(EventStream, Answering):
    """Events in the order in which clients need them; see `gateway.wire.responses.output`. It ends with its last event, without
    [DONE], as OpenAI's does."""

    def __init__(self, scope: Scope, send: Send, *common: Any) -> None:
        Answering.__init__(self, *common)
        EventStream.__init__(self, scope, send, self.record)
        self._output = Output()
        self._told = 0

    def restart(self, prepared: Prepared) -> None:
        super().restart(prepared)
        self._output, self._told = Output(), 0  # what was made of them was never sent

    async def take(self, choice: int, event: Event) -> None:
        told = [each for piece in self.choices[choice].read(event) for each in _told(self, self._output, piece)]
        if told:
            await self._write(self._written(told))

    async def end(self) -> None:
        reason = self.finish_reason(self.finished()[0])
        told = self._output.finish(reason)
        usage, extension = self.usage(), self.extension([0])
        told.append(closing_event(_response(self, self._output), reason, usage, extension, int(time.time())))
        await self._write(self._written(told), more=False)

    def _headers(self) -> Any:
        return {**super()._headers(), **self.degraded()}

    def _last_words(self, error: APIError) -> bytes:
        told = self._output.close("incomplete")
        return self._written([*told, failed_event(_response(self, self._output), error)])

    def _written(self, events: Iterable[dict[str, Any]]) -> bytes:
        """The first ones are preceded by those that open a response."""
        if not self._told:
            opening = _response(self, Output())
            begun = [{"type": f"response.{what}", "response": opening} for what in ("created", "in_progress")]
            events = [*begun, *events]
        data: list[bytes] = []
        for event in events:
            kind = event["type"].encode()
            told = orjson.dumps({**event, "sequence_number": self._told})
            data += (b"event: ", kind, b"\ndata: ", told, b"\n\n")
            self._told += 1
        return b"".join(data)


def _response(sink: Answering, output: Output) -> dict[str, Any]:
    assert isinstance(sink.request, ResponsesRequest)
    identity = sink.identity
    return response_value(
        id=identity.id,
        created=identity.created,
        model=identity.model,
        terms=sink.request.terms,
        status="in_progress",
        output=output.items,
    )


def _told(sink: Answering, output: Output, piece: Piece) -> list[dict[str, Any]]:
    """Raises APIError for an answer that this API can't tell."""
    if piece.reasoning:
        return output.reasoning(piece.text)
    sink.record.wrote()
    events: list[dict[str, Any]] = []
    if piece.refusal:
        events += output.refusal(piece.text) if piece.text else []
    elif piece.text or piece.tokens:
        logprobs = () if sink.logprobs is None else sink.logprobs.values(piece.tokens)
        events += output.text(piece.text, logprobs)
    try:
        for part in piece.tool_calls:
            events += output.call(part)
    except TornCall:
        message = "The model's server mixed the parts of several tool calls."
        raise APIError(502, message, type="server_error", code="backend_error", retry=False) from None
    return events
