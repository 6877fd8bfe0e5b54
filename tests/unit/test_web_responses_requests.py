"""The Responses API: what is asked for, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from edge import edge, fake
from responses_api import PATH, WEATHER, ask, valid

pytestmark = pytest.mark.anyio


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
