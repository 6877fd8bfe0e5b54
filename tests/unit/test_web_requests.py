"""What a request may say, and how it is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from edge import CHAT, edge, fake, question

from backends.types import Message

pytestmark = pytest.mark.anyio


FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}
TOOLS = [{"type": "function", "function": FUNCTION}]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}


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
        ({"messages": [{"role": "user", "content": [{"type": ["text"]}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": {}}]}]}, "messages[0].content[0].type"),
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
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"5": "much"}}, "logit_bias"),
        ({"logit_bias": {"99999999999": 1}}, "logit_bias"),
        ({"min_p": 1.5}, "min_p"),
        ({"stop": "x" * 513}, "stop"),
        ({"logprobs": 1}, "logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"tools": {}}, "tools"),
        ({"tool_choice": 1}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tools": ["x"]}, "tools[0]"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"function": {"name": "x" * 65}}]}, "tools[0].function.name"),
        ({"tools": [{"function": {"name": "f", "description": 1}}]}, "tools[0].function.description"),
        ({"tools": [{"function": {"name": "f", "strict": "yes"}}]}, "tools[0].function.strict"),
        ({"tools": [{"function": {"name": "f", "parameters": []}}]}, "tools[0].function.parameters"),
        (
            {"tools": [{"function": {"name": "f", "parameters": {"type": "string"}}}]},
            "tools[0].function.parameters",
        ),
        ({"tools": [*TOOLS, *TOOLS]}, "tools"),
        ({"tools": TOOLS * 129}, "tools"),
        ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "spoon"}}, "tool_choice.type"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tools": TOOLS, "tool_choice": {"function": {"name": "g"}}}, "tool_choice.function.name"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools"),
        ({"tools": TOOLS, "functions": [FUNCTION]}, "functions"),
        ({"functions": {}}, "functions"),
        ({"functions": [{}]}, "functions[0].name"),
        ({"functions": [FUNCTION], "function_call": "required"}, "function_call"),
        ({"functions": [FUNCTION], "function_call": {"name": "g"}}, "function_call.name"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.name"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}},
            "response_format.json_schema.name",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "strict": 1}}},
            "response_format.json_schema.strict",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": "x"}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "alien"}}}},
            "response_format",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"$ref": "#/no"}}}},
            "response_format",
        ),
        ({"modelnet": []}, "modelnet"),
        ({"modelnet": {"stages": "yes"}}, "modelnet.stages"),
        ({"modelnet": {"record": 1}}, "modelnet.record"),
        ({"modelnet": {"stage": True}}, "modelnet.stage"),
        ({"model": "a|b", "modelnet": {"fuser": "magic"}}, "modelnet.fuser"),
        ({"modelnet": {"fuser": 1}}, "modelnet.fuser"),
        ({"modelnet": {"constraint": "x"}}, "modelnet.constraint"),
        ({"modelnet": {"constraint": {"json": {}}}}, "modelnet.constraint"),
        ({"modelnet": {"constraint": {"regex": ""}}}, "modelnet.constraint.regex"),
        ({"modelnet": {"constraint": {"regex": "a("}}}, "modelnet.constraint.regex"),
        ({"modelnet": {"constraint": {"grammar": "start: nothing"}}}, "modelnet.constraint.grammar"),
        ({"modelnet": {"constraint": {"regex": "a"}}, "guided_regex": "a"}, "modelnet.constraint.regex"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": 5}, "guided_json"),
        ({"guided_choice": [1]}, "guided_choice"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs"),
        ({"structured_outputs": {"regex": 5}}, "structured_outputs.regex"),
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
        ({"min_p": 0.1}, "min_p"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"presence_penalty": -0.5}, "presence_penalty"),
        ({"tools": TOOLS}, "tools"),
        ({"functions": [FUNCTION]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": SCHEMA}, "response_format"),
        ({"modelnet": {"constraint": {"regex": "a+"}}}, "modelnet.constraint.regex"),
        ({"guided_regex": "a+"}, "guided_regex"),
        ({"guided_choice": ["a", "b"]}, "guided_choice"),
        ({"structured_outputs": {"json": {"type": "object"}}}, "structured_outputs.json"),
        ({"modelnet": {"fuser": "linear"}}, "modelnet.fuser"),
        ({"modelnet": {"record": True}}, "modelnet.record"),
    ],
)
@pytest.mark.parametrize("model", ["t", "a>t"])
async def test_what_a_stream_of_text_cant_honour_is_refused(model: str, fields: dict[str, Any], param: str) -> None:
    """drop-in 15, 18, 22: a model that opens no token sessions; the reason is told, nothing is silently ignored."""
    async with edge(fake("a"), fake("t", sessions=False)) as e:
        reply = await e.chat(model, **fields)
        assert (reply.status, reply.error["param"], reply.error["code"]) == (400, param, "unsupported_parameter")
        assert e.backends["a"].counters.opened == 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0]"),
        ({"guided_grammar": "root ::= x"}, "guided_grammar"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs"),
        ({"top_k": 5}, "top_k"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"stop_token_ids": [2]}, "stop_token_ids"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content",
        ),
    ],
)
@pytest.mark.parametrize("model", ["a", "a>b", "a|b"])
async def test_what_cant_be_honoured_is_refused(model: str, fields: dict[str, Any], param: str) -> None:
    """drop-in 15: never silently ignored."""
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
        {"functions": [{"name": "f"}], "function_call": "none"},
        {"tool_choice": "auto", "function_call": "auto"},
        {"min_p": 0, "logit_bias": {"5": 0}, "top_k": -1, "repetition_penalty": 1.0, "ignore_eos": False},
        {"structured_outputs": {"json_object": False}, "guided_json": None, "modelnet": {"stages": False}},
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
    async with edge(backend, servers=("a",)) as e:
        call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        parts = [{"type": "text", "text": "Why "}, {"type": "text", "text": "so?"}]
        messages = [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": "Hi", "name": "Ann"},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
            {"role": "assistant", "content": None, "refusal": "Not that."},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "42", "tool_call_id": "c1"},
            {"role": "user", "content": parts},
        ]
        assert (await e.chat(messages=messages)).status == 200
        assert backend.requests[0].messages == (
            Message("system", "Be brief."),
            Message("user", "Hi", {"name": "Ann"}),
            Message("assistant", "No."),
            Message("assistant", "Not that."),
            Message("assistant", "", {"tool_calls": [call], "content": None}),
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
        "min_p": 0.1,
        "logprobs": True,
        "top_logprobs": 2,
        "tools": [*TOOLS, {"type": "function", "function": {"name": "g", "strict": True}}],
        "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [TOOLS[0]]}},
        "parallel_tool_calls": False,
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
        ours = ("frequency_penalty", "logit_bias", "min_p")
        assert request.extra == {key: value for key, value in fields.items() if key not in ours}
        assert (request.sampling.frequency_penalty, request.sampling.min_p) == (0.5, 0.1)
        assert request.sampling.logit_bias == {5: 1.0}
        assert (request.sampling.max_tokens, request.sampling.seed) == (9, 3)
        assert request.messages[0].content == "What?"
        assert request.messages[0].extra["content"] == image
        # A chain whose last model has such a server hands them on too, but no images: the models before could not see them.
        assert (await e.chat("b>a", **fields)).status == 200
        assert backend.requests[-1].extra == request.extra
        assert (await e.chat("a>b", **fields)).error["code"] == "unsupported_parameter"


@pytest.mark.parametrize(("model", "status"), [("a", 200), ("b>a", 200), ("a|b", 200), ("a>b", 400), ("a>a|b", 200)])
async def test_penalties_need_a_sampler(model: str, status: int) -> None:
    """drop-in 15: a model's own or, for a group, ours; a scripted model by itself has none."""
    backend = fake("a")
    async with edge(backend, fake("b"), servers=("a",)) as e:
        reply = await e.chat(model, presence_penalty=0.5)
        assert reply.status == status
        if status == 200:
            asked = [request.sampling.presence_penalty for request in backend.requests]
            assert asked == ([] if model == "a|b" else [0.5])
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
