"""What a request may say, and how it is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from edge import CHAT, edge, fake, question

from backends.types import Message

pytestmark = pytest.mark.anyio


async def status_and_param(body: Any) -> tuple[int, str | None]:
    async with edge(fake("a"), fake("b")) as e:
        reply = await e.call("POST", CHAT, body)
        return reply.status, reply.error["param"] if reply.status != 200 else None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ...}, "model"),
        ({"model": None}, "model"),
        ({"model": 7}, "model"),
        ({"model": ""}, "model"),
        ({"messages": ...}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": {"role": "user"}}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "alien", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["hi"]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": "a\x00b"}]}, "messages[0].content"),
        ({"user": "a\x00b"}, "user"),
        ({"stream": "yes"}, "stream"),
        ({"stream": True, "stream_options": 1}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": -1}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"n": 1.5}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"seed": "x"}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"stop": 5}, "stop"),
        ({"stop": [5]}, "stop"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"presence_penalty": "much"}, "presence_penalty"),
        ({"logprobs": "yes"}, "logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"logit_bias": []}, "logit_bias"),
        ({"tools": {}}, "tools"),
        ({"tool_choice": 1}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {}}, "response_format"),
        ({"modelnet": []}, "modelnet"),
        ({"modelnet": {"stages": "yes"}}, "modelnet.stages"),
    ],
)
async def test_mistakes_are_400_and_named(fields: dict[str, Any], param: str) -> None:
    """drop-in 12, 24: never 422, always with `param`."""
    assert await status_and_param(question(**fields)) == (400, param)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"model": NaN}', b'{"a": "\\ud800"}', b"[" * 5000, b"{}\x00"]
)
async def test_what_is_no_json_object_is_400(body: bytes) -> None:
    """drop-in 24: malformed bodies, NUL bytes, broken Unicode, nesting without end."""
    assert await status_and_param(body) == (400, None)


@pytest.mark.parametrize(("levels", "status"), [(126, 200), (129, 400), (1000, 400)])
@pytest.mark.parametrize("inside", ["", "\\u0000"])
async def test_deep_bodies_are_400(levels: int, status: int, inside: str) -> None:
    """Deeper than what can be walked and written again: told, not a failure. NULs in deep places are still found."""
    value = "[" * levels + f'"{inside}"' + "]" * levels
    body = json.dumps(question(field="HERE")).replace('"HERE"', value)
    assert (await status_and_param(body.encode()))[0] == (400 if inside else status)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logprobs": True}, "logprobs"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"presence_penalty": -0.5}, "presence_penalty"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"web_search_options": {}}, "web_search_options"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content",
        ),
    ],
)
@pytest.mark.parametrize("model", ["a", "a>b", "a|b"])
async def test_what_cant_be_honoured_is_refused(model: str, fields: dict[str, Any], param: str) -> None:
    """drop-in 15, 18, 22: never silently ignored."""
    async with edge(fake("a"), fake("b")) as e:
        reply = await e.chat(model, **fields)
        assert (reply.status, reply.error["param"], reply.error["code"]) == (400, param, "unsupported_parameter")


@pytest.mark.parametrize(
    "fields",
    [
        {"frequency_penalty": 0, "presence_penalty": 0.0},
        {"n": 1, "logprobs": False, "top_logprobs": 0},
        {"tools": [], "tool_choice": "none", "parallel_tool_calls": True},
        {"tools": None, "tool_choice": None, "functions": None},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"},
        {"tool_choice": "auto"},
        {"response_format": {"type": "text"}, "logit_bias": {}, "modalities": ["text"]},
        {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "safety_identifier": "s"},
        {"reasoning_effort": "low", "prediction": None, "something_new": [1, {"x": None}]},
        {"max_tokens": None, "temperature": None, "top_p": None, "stop": None, "seed": None, "stream": None, "n": None},
        {"temperature": 0, "top_p": 1, "max_tokens": 16.0, "seed": 0},
        {"stream_options": None, "modelnet": None},
        {"user": "a\\u0000b"},
    ],
)
@pytest.mark.parametrize("model", ["a", "a>b", "a|b"])
async def test_neutral_and_unknown_fields_are_fine(model: str, fields: dict[str, Any]) -> None:
    """drop-in 23: null equals absent; unknown fields are tolerated."""
    async with edge(fake("a"), fake("b")) as e:
        assert (await e.chat(model, **fields)).status == 200


async def test_content_parts_equal_strings() -> None:
    """drop-in 23: text parts, refusals, the developer role; names and tool results stay with their message."""
    backend = fake("a")
    async with edge(backend) as e:
        parts = [{"type": "text", "text": "Why "}, {"type": "text", "text": "so?"}]
        messages = [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": "Hi", "name": "Ann"},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "c1"}]},
            {"role": "tool", "content": "42", "tool_call_id": "c1"},
            {"role": "user", "content": parts},
        ]
        assert (await e.chat(messages=messages)).status == 200
        assert backend.requests[0].messages == (
            Message("system", "Be brief."),
            Message("user", "Hi", {"name": "Ann"}),
            Message("assistant", "No."),
            Message("assistant", "", {"tool_calls": [{"id": "c1"}], "content": None}),
            Message("tool", "42", {"tool_call_id": "c1"}),
            Message("user", "Why so?"),
        )


async def test_a_single_models_server_gets_what_it_can_honour() -> None:
    """drop-in 15, 22, 23: unknown fields, penalties and formats go on as they came; what is ours stays here."""
    backend = fake("a")
    fields = {
        "something_new": {"x": [1]},
        "user": "u",
        "response_format": {"type": "json_object"},
        "logit_bias": {"5": 1},
        "frequency_penalty": 0.5,
        "top_k": 5,
    }
    async with edge(backend, fake("b"), servers=("a",)) as e:
        image = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": "data:x"}}]
        reply = await e.chat(
            messages=[{"role": "user", "content": image}],
            modelnet={"stages": True},
            n=2,
            seed=3,
            max_tokens=9,
            **fields,
        )
        assert reply.status == 200
        request = backend.requests[0]
        assert request.extra == {key: value for key, value in fields.items() if key != "frequency_penalty"}
        assert request.sampling.frequency_penalty == 0.5
        assert (request.sampling.max_tokens, request.sampling.seed) == (9, 3)
        assert request.messages[0].content == "What?"
        assert request.messages[0].extra["content"] == image
        assert (await e.chat("a>b", **fields)).error["code"] == "unsupported_parameter"
        assert (await e.chat("a", tools=[{"type": "function"}])).error["param"] == "tools"


@pytest.mark.parametrize(("model", "status"), [("a", 200), ("b>a", 200), ("a|b", 400), ("a>b", 400), ("a>a|b", 400)])
async def test_penalties_need_one_writer_with_a_sampler(model: str, status: int) -> None:
    """drop-in 15: a group can't honour them, nor can a scripted model."""
    backend = fake("a")
    async with edge(backend, fake("b"), servers=("a",)) as e:
        reply = await e.chat(model, presence_penalty=0.5)
        assert reply.status == status
        if status == 200:
            assert backend.requests[-1].sampling.presence_penalty == 0.5
        else:
            assert reply.error["param"] == "presence_penalty"


async def test_clients_choose_no_hosts() -> None:
    """drop-in 32: neither key nor routing fields of a request reach a backend."""
    backend = fake("a")
    async with edge(backend, servers=("a",)) as e:
        body = question(model="a", messages=[{"role": "user", "content": "x"}], stream=False)
        await e.call("POST", CHAT, body, {"authorization": "Bearer client-key", "x-forwarded-host": "elsewhere"})
        assert backend.requests[0].extra == {}
        assert "client-key" not in repr(backend.requests[0])


async def test_content_type_may_name_a_charset_or_nothing() -> None:
    """drop-in 24: clients differ."""
    async with edge(fake("a")) as e:
        for kind in ("application/json; charset=utf-8", "application/json;charset=UTF-8", "text/plain"):
            assert (await e.call("POST", CHAT, question(), {"content-type": kind})).status == 200


async def test_too_large_is_413() -> None:
    """drop-in 24: by the announced length, and by what really comes."""
    async with edge(fake("a"), limits={"body_bytes": 500}) as e:
        large = json.dumps(question(user="x" * 600)).encode()
        for headers in ({}, {"content-length": str(len(large))}, {"content-length": "9" * 5000}):
            reply = await e.call("POST", CHAT, large, headers)
            assert (reply.status, reply.error["code"]) == (413, "request_too_large")
        assert (await e.chat()).status == 200


async def test_too_many_messages_is_400() -> None:
    """drop-in 24: limits come from the configuration."""
    async with edge(fake("a"), limits={"messages": 2}) as e:
        reply = await e.chat(messages=[{"role": "user", "content": "x"}] * 3)
        assert (reply.status, reply.error["param"]) == (400, "messages")


@pytest.mark.parametrize("model", ["a", "a>b", "a|b"])
async def test_the_body_of_a_whole_answer(model: str) -> None:
    """drop-in 17, 21, 22: logprobs null, no empty tool_calls, refusal present; the model is echoed as sent."""
    async with edge(fake("a"), fake("b")) as e:
        value = (await e.chat(f" {model} ")).json()
        assert value["object"] == "chat.completion"
        assert value["model"] == f" {model} "
        assert value["id"].startswith("chatcmpl-")
        assert isinstance(value["created"], int)
        assert value["system_fingerprint"].startswith("fp_")
        (choice,) = value["choices"]
        assert choice["logprobs"] is None
        assert choice["message"].keys() == {"role", "content", "refusal"}
        assert choice["message"]["refusal"] is None
        again = (await e.chat(f" {model} ")).json()
        assert again["choices"] == value["choices"]
        assert again["id"] != value["id"]
