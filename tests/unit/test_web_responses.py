"""The Responses API at the edge: what is read, what is refused, and events in the order that clients need."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from edge import Edge, Recorder, Reply, edge, fake
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from backends.fake import Fault
from backends.types import TextDelta, TextEnd, TextEvent, TextRequest, ToolCallDelta, Usage

pytestmark = pytest.mark.anyio

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


# Answers


@pytest.mark.parametrize("wiring", WIRINGS)
async def test_whole_and_streamed_answers_agree(wiring: str) -> None:
    """drop-in 7, 35: over every kind of wiring, and in the words of its own API."""
    async with edge(fake("a"), fake("b"), fake("c")) as e:
        whole = await ask(e, wiring)
        assert whole.status == 200
        response = valid(whole.json())
        assert (response.object, response.status, response.model) == ("response", "completed", wiring)
        assert response.output_text
        streamed = events_of(await ask(e, wiring, stream=True))
        assert streamed[-1]["type"] == "response.completed"
        last = valid(streamed[-1]["response"])
        assert last.output_text == response.output_text
        assert "".join(x["delta"] for x in streamed if x["type"] == "response.output_text.delta") == last.output_text
        assert last.usage == response.usage
        assert response.usage is not None
        assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens > 0
        assert e.idle()


async def test_the_order_of_events_of_a_text() -> None:
    async with edge(fake("a", "one two")) as e:
        reply = await ask(e, stream=True)
        assert reply.header("content-type") == "text/event-stream; charset=utf-8"
        assert not reply.body.endswith(b"[DONE]\n\n")
        events = events_of(reply)
        kinds = [event["type"].removeprefix("response.") for event in events]
        deltas = kinds.count("output_text.delta")
        assert kinds == [
            *("created", "in_progress", "output_item.added", "content_part.added"),
            *["output_text.delta"] * deltas,
            *("output_text.done", "content_part.done", "output_item.done", "completed"),
        ]
        ids = {event["response"]["id"] for event in events if "response" in event}
        assert len(ids) == 1
        items = {event["item_id"] for event in events if "item_id" in event}
        assert items == {events[2]["item"]["id"]} == {events[-1]["response"]["output"][0]["id"]}
        assert events[0]["response"]["status"] == "in_progress"
        assert events[0]["response"]["output"] == []


async def test_what_stages_wrote_is_reasoning_of_its_own_item() -> None:
    """drop-in 8: on request only, told as done before the answer begins."""
    async with edge(fake("a", "thought"), fake("b", "said")) as e:
        plain = await ask(e, "a>b")
        assert [item["type"] for item in plain.json()["output"]] == ["message"]
        whole = await ask(e, "a>b", modelnet={"stages": True})
        response = valid(whole.json())
        assert [item.type for item in response.output] == ["reasoning", "message"]
        assert response.output_text == "said"
        events = events_of(await ask(e, "a>b", modelnet={"stages": True}, stream=True))
        kinds = [event["type"] for event in events]
        done = kinds.index("response.output_item.done")
        assert kinds.index("response.reasoning_text.done") < done < kinds.index("response.output_text.delta")
        assert events[done]["item"]["content"] == [{"type": "reasoning_text", "text": "thought"}]
        assert events[done]["item"]["summary"] == []


async def test_a_cut_answer_is_incomplete() -> None:
    """drop-in 14."""
    async with edge(fake("a", "one two three four five")) as e:
        response = valid((await ask(e, max_output_tokens=2)).json())
        assert response.status == "incomplete"
        assert response.incomplete_details is not None
        assert response.incomplete_details.reason == "max_output_tokens"
        assert response.max_output_tokens == 2
        events = events_of(await ask(e, max_output_tokens=2, stream=True))
        assert events[-1]["type"] == "response.incomplete"
        assert events[-1]["response"]["output"][0]["status"] == "incomplete"


async def test_an_empty_answer_is_a_message_too() -> None:
    async with edge(fake("a", "")) as e:
        response = valid((await ask(e)).json())
        assert [item.type for item in response.output] == ["message"]
        assert response.output_text == ""


async def test_the_answer_repeats_its_request() -> None:
    async with edge(fake("a")) as e:
        asked = {
            "instructions": "Be brief.",
            "metadata": {"k": "v"},
            "temperature": 0.5,
            "top_p": 0.9,
            "user": "u",
            "store": True,
            "include": ["reasoning.encrypted_content"],
            "service_tier": "auto",
            "stream_options": {"include_obfuscation": False},
        }
        response = valid((await ask(e, **asked)).json())
        assert response.instructions == "Be brief."
        assert response.metadata == {"k": "v"}
        assert (response.temperature, response.top_p, response.user) == (0.5, 0.9, "u")
        assert response.to_dict()["store"] is False


# Requests


async def test_items_become_a_conversation() -> None:
    """drop-in 20, 21, 23: one answer of an assistant is one message; reasoning is left out."""
    backend = fake("a")
    async with edge(backend, servers=("a",)) as e:
        reply = await ask(
            e,
            instructions="Be brief.",
            input=[
                {
                    "role": "user",
                    "content": [{"type": "input_text", "text": "Wea"}, {"type": "input_text", "text": "ther?"}],
                },
                {
                    "type": "reasoning",
                    "id": "rs_1",
                    "summary": [],
                    "content": [{"type": "reasoning_text", "text": "hm"}],
                },
                {
                    "type": "message",
                    "id": "msg_1",
                    "role": "assistant",
                    "status": "completed",
                    "content": [{"type": "output_text", "text": "Let me see.", "annotations": []}],
                },
                {
                    "type": "function_call",
                    "id": "fc_1",
                    "call_id": "c1",
                    "name": "weather",
                    "arguments": '{"city":"柏林"}',
                },
                {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "rain"},
                {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "sun"}]},
                {"role": "developer", "content": "Now answer."},
            ],
        )
        assert reply.status == 200, reply.json()
        (request,) = backend.requests
        turns = [(m.role, m.content) for m in request.messages]
        assert turns == [
            ("system", "Be brief."),
            ("user", "Weather?"),
            ("assistant", "Let me see."),
            ("tool", "rain"),
            ("tool", "sun"),
            ("system", "Now answer."),
        ]
        made = request.messages[2].extra["tool_calls"]
        assert [call["id"] for call in made] == ["c1", "c2"]
        assert json.loads(made[0]["function"]["arguments"]) == {"city": "柏林"}
        assert request.messages[3].extra["tool_call_id"] == "c1"


async def test_images_reach_a_server_and_nobody_else() -> None:
    """drop-in 23."""
    picture = {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "low"}
    asked = [{"role": "user", "content": [{"type": "input_text", "text": "What?"}, picture]}]
    backend = fake("a")
    async with edge(backend, servers=("a",)) as e:
        assert (await ask(e, input=asked)).status == 200
        sent = backend.requests[0].messages[0].extra["content"]
        assert sent[1] == {"type": "image_url", "image_url": {"url": picture["image_url"], "detail": "low"}}
    async with edge(fake("a")) as e:
        reply = await ask(e, input=asked)
        assert (reply.status, reply.error["code"]) == (400, "unsupported_parameter")
        assert reply.error["param"] == "input"


async def test_formats_and_settings_reach_a_server_in_chats_words() -> None:
    """drop-in 22, 23: unknown fields too."""
    backend = fake("a")
    shape = {"type": "json_schema", "name": "point", "schema": {"type": "object"}, "strict": True}
    async with edge(backend, servers=("a",)) as e:
        reply = await ask(
            e,
            text={"format": shape, "verbosity": "low"},
            tools=[WEATHER],
            tool_choice={"type": "function", "name": "weather"},
            parallel_tool_calls=False,
            reasoning={"effort": "low", "summary": "auto"},
            user="u",
            top_k=7,
        )
        assert reply.status == 200, reply.json()
        extra = backend.requests[0].extra
        assert extra["response_format"] == {
            "type": "json_schema",
            "json_schema": {"name": "point", "schema": {"type": "object"}, "strict": True},
        }
        function = {key: value for key, value in WEATHER.items() if key != "type"}
        assert extra["tools"] == [{"type": "function", "function": function}]
        assert extra["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
        assert extra["parallel_tool_calls"] is False
        assert (extra["reasoning_effort"], extra["verbosity"], extra["user"], extra["top_k"]) == ("low", "low", "u", 7)
        assert not {"input", "instructions", "text", "store", "include", "max_output_tokens"} & set(extra)
        valid(reply.json())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ...}, "input"),
        ({"input": []}, "input"),
        ({"input": 7}, "input"),
        ({"input": ["x"]}, "input[0]"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "video"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ({"input": "a\x00b"}, "input"),
        ({"model": ...}, "model"),
        ({"instructions": 7}, "instructions"),
        ({"temperature": 3}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 10**6}, "max_output_tokens"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "nobody"}}, "tool_choice.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.name"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"stream": "yes"}, "stream"),
        ({"metadata": "x"}, "metadata"),
        ({"input": [{"role": "user", "content": [{"type": ["input_text"]}]}]}, "input[0].content[0].type"),
    ],
)
async def test_what_is_refused(fields: dict[str, Any], param: str) -> None:
    """drop-in 12, 24, 35: a 400 that names the field as this API does."""
    async with edge(fake("a")) as e:
        reply = await ask(e, **fields)
        assert reply.status == 400, reply.json()
        assert reply.error["param"] == param
        assert "messages" not in reply.error["message"]
        assert "response_format" not in reply.error["message"]


async def test_refusals_of_a_wiring_have_this_apis_names() -> None:
    """drop-in 22: enforced or refused, here by a model that only streams text."""
    async with edge(fake("a", sessions=False)) as e:
        reply = await ask(e, text={"format": {"type": "json_object"}})
        assert (reply.status, reply.error["code"], reply.error["param"]) == (
            400,
            "unsupported_parameter",
            "text.format",
        )
        assert "response_format" not in reply.error["message"]


async def test_nobody_and_bad_grammar_are_404s() -> None:
    """drop-in 27."""
    async with edge(fake("a")) as e:
        for model in ("nobody", "a>"):
            reply = await ask(e, model)
            assert (reply.status, reply.error["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "resp_1"), ("DELETE", "resp_1"), ("POST", "resp_1/cancel"), ("GET", "resp_1/input_items")],
)
async def test_stored_responses_are_json_404s(method: str, path: str) -> None:
    """drop-in 26, 35."""
    async with edge(fake("a")) as e:
        reply = await e.call(method, f"{PATH}/{path}")
        assert (reply.status, reply.error["code"]) == (404, "response_not_found")
        assert (await e.call("GET", PATH)).status == 405


# Tools


@pytest.mark.parametrize("stream", [True, False])
async def test_tool_calls_are_items(stream: bool) -> None:
    """drop-in 19, 21: text and two calls, each announced, written and done before the next."""
    parts = [
        ToolCallDelta(0, "c1", "weather", '{"city"'),
        ToolCallDelta(0, arguments=': "柏林"}'),
        ToolCallDelta(1, "c2", "now"),
        ToolCallDelta(1, arguments="{}"),
    ]
    async with edge(Scripted("a", calls(*parts, text="Let me see.")), servers=("a",)) as e:
        reply = await ask(e, tools=[WEATHER], stream=stream)
        if stream:
            events = events_of(reply)
            kinds = [event["type"].removeprefix("response.") for event in events]
            assert kinds[-8:] == [
                *("function_call_arguments.delta", "function_call_arguments.done", "output_item.done"),
                *("output_item.added", "function_call_arguments.delta", "function_call_arguments.done"),
                *("output_item.done", "completed"),
            ]
            response = valid(events[-1]["response"])
        else:
            response = valid(reply.json())
        assert [item.type for item in response.output] == ["message", "function_call", "function_call"]
        made = response.output[1]
        assert made.type == "function_call"
        assert (made.call_id, made.name, json.loads(made.arguments)) == ("c1", "weather", {"city": "柏林"})
        assert response.output[2].to_dict()["arguments"] == "{}"
        assert response.status == "completed"


async def test_only_calls_make_no_message() -> None:
    """drop-in 21."""
    async with edge(Scripted("a", calls(ToolCallDelta(0, "c1", "weather", "{}"))), servers=("a",)) as e:
        response = valid((await ask(e, tools=[WEATHER])).json())
        assert [item.type for item in response.output] == ["function_call"]


async def test_calls_that_are_mixed_up_are_an_error() -> None:
    """drop-in 10: never a torn call that looks whole."""
    parts = [ToolCallDelta(0, "c1", "a", "{"), ToolCallDelta(1, "c2", "b", "{}"), ToolCallDelta(0, arguments="}")]
    async with edge(Scripted("a", calls(*parts)), servers=("a",)) as e:
        assert (await ask(e, tools=[WEATHER])).status == 502
        events = events_of(await ask(e, tools=[WEATHER], stream=True))
        assert events[-1]["type"] == "response.failed"


# Failures


async def test_failures_before_and_after_the_first_event() -> None:
    """drop-in 10: a real status, then an event that says failed; nothing looks whole."""
    broken = fake("broken", "one two three", faults=(Fault(on="token", after=2),))
    async with edge(fake("gone", faults=(Fault(on="enter"),)), broken) as e:
        reply = await ask(e, "gone", stream=True)
        assert (reply.status, reply.error["code"]) == (502, "backend_unavailable")
        events = events_of(await ask(e, "broken", stream=True))
        assert events[-1]["type"] == "response.failed"
        response = valid(events[-1]["response"])
        assert response.status == "failed"
        assert response.error is not None
        assert "fails as scripted" in response.error.message
        assert e.idle()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_everything(stream: bool) -> None:
    """drop-in 30."""
    backend = fake("a", faults=(Fault(on="token", after=1, action="hang"),))
    async with edge(backend) as e:
        exchange = e.exchange("POST", PATH, {"model": "a", "input": "Why?", "stream": stream})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.run)
            with anyio.fail_after(5):
                while backend.counters.deltas < 1:
                    await anyio.sleep(0.005)
            exchange.leave()
            with anyio.fail_after(0.5):
                await exchange.finished.wait()
        assert e.idle()


async def test_silent_streams_are_kept_alive() -> None:
    """drop-in 9: comments before the first event, which is still the first."""
    backend = fake("a", "x", first_delay=0.3)
    async with edge(backend, server={"keepalive_seconds": 0.05}) as e:
        reply = await ask(e, stream=True)
        blocks = reply.body.decode().removesuffix("\n\n").split("\n\n")
        assert blocks[0] == ": keep-alive"
        first = next(block for block in blocks if not block.startswith(":"))
        assert first.startswith("event: response.created\n")
