"""Asking /v1/responses, and reading what comes as the official client does."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from edge import Edge, Recorder, Reply
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from backends.types import TextDelta, TextEnd, TextEvent, TextRequest, ToolCallDelta, Usage

PATH = "/v1/responses"


WIRINGS = ["a", "a>b", "a|b", "s2p:a>b|c", "p2s:a|b>c", "(a>b)|c"]
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
WEATHER = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


class Scripted(Recorder):
    """A server that says what a test wants."""

    def __init__(self, name: str, events: list[TextEvent]) -> None:
        super().__init__(name)
        self.events = events

    @asynccontextmanager
    async def stream(self, request: TextRequest) -> AsyncIterator[AsyncIterator[TextEvent]]:
        self.requests.append(request)

        async def events() -> AsyncIterator[TextEvent]:
            for event in self.events:
                yield event

        yield events()


def calls(*parts: ToolCallDelta, text: str = "") -> list[TextEvent]:
    head: list[TextEvent] = [TextDelta(text)] if text else []
    return [*head, *(TextDelta("", tool_calls=(part,)) for part in parts), TextEnd("tool_calls", Usage(5, 7))]


async def ask(e: Edge, model: str = "a", **fields: Any) -> Reply:
    body = {"model": model, "input": "Why?", **fields}
    return await e.call("POST", PATH, {key: value for key, value in body.items() if value is not ...})


def events_of(reply: Reply) -> list[dict[str, Any]]:
    """Every event, checked against the official client's types, its name and its number."""
    events = []
    for number, block in enumerate(reply.body.decode().removesuffix("\n\n").split("\n\n")):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        assert type(EVENT.validate_python(event)).__name__ != "dict"
        events.append(event)
    return events


def valid(value: Mapping[str, Any]) -> Response:
    """The response object as the official client's type, strictly."""
    return Response.model_validate(value)
