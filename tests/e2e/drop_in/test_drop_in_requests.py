"""What requests may say: lines 23 to 25, 28, 29 and 32."""

from __future__ import annotations

import json
from typing import Any

import pytest
from inprocess import CHAT, KEY, PATHS, TEXT, WIRINGS, Gateway

every_path = pytest.mark.parametrize("wiring", PATHS)
every_wiring = pytest.mark.parametrize("wiring", WIRINGS.values(), ids=WIRINGS.keys())


def content(gateway: Gateway, wiring: str, **fields: Any) -> str:
    reply = gateway.chat(wiring, **fields)
    assert reply.status == 200, reply.body
    return reply.json()["choices"][0]["message"]["content"]


@every_wiring
def test_content_parts_equal_strings(gateway: Gateway, wiring: str) -> None:
    """drop-in 23: also of the `developer` role, which every model knows as system."""
    parts = [{"type": "text", "text": "JSON "}, {"type": "text", "text": "please"}]
    one = content(gateway, wiring, messages=[{"role": "user", "content": parts}])
    assert one == content(gateway, wiring, messages=[{"role": "user", "content": "JSON please"}])
    if "far" not in wiring:
        assert json.loads(one) == {"x": 5, "name": "是"}
    talk = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    assert content(gateway, wiring, messages=talk)


@every_path
@pytest.mark.parametrize(
    "fields",
    [
        {"something_new": {"x": [1]}, "reasoning_effort": "low", "verbosity": "low"},
        {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "safety_identifier": "s"},
        {"prediction": None, "prompt_cache_key": "k"},
        {
            **dict.fromkeys(("temperature", "top_p", "n", "stream", "stop", "seed", "user", "logit_bias", "modelnet")),
            **dict.fromkeys(("tools", "tool_choice", "response_format", "logprobs", "top_logprobs", "max_tokens")),
            **dict.fromkeys(("stream_options", "functions", "function_call", "parallel_tool_calls", "metadata")),
        },
        {"frequency_penalty": 0, "presence_penalty": 0, "n": 1, "logprobs": False, "response_format": {"type": "text"}},
        {"stop": [], "tools": None, "temperature": 0, "top_p": 1},
    ],
)
def test_unknown_and_empty_fields_are_fine(gateway: Gateway, wiring: str, fields: dict[str, Any]) -> None:
    """drop-in 23: null equals absent; what is unknown is tolerated."""
    assert content(gateway, wiring, **fields) == content(gateway, wiring)


def test_unknown_fields_reach_the_server_of_the_answer(gateway: Gateway) -> None:
    """drop-in 23: as they came, alone and at the end of a chain."""
    fields = {"something_new": {"x": [1, None]}, "user": "u", "reasoning_effort": "low", "metadata": {"a": "b"}}
    for wiring in ("far", "a>far"):
        content(gateway, wiring, **fields)
        assert gateway.scripted.requests[-1].items() >= fields.items()
        assert "modelnet" not in gateway.scripted.requests[-1]


@every_path
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": ...}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": {"role": "user"}}, "messages"),
        ({"messages": [{"role": "user", "content": "a\x00b"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"content": "no role"}]}, "messages[0].role"),
        ({"temperature": "warm"}, "temperature"),
        ({"stream": "yes"}, "stream"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"seed": "x"}, "seed"),
        ({"stop": 5}, "stop"),
    ],
)
def test_mistakes_are_400_and_named(gateway: Gateway, wiring: str, fields: dict[str, Any], param: str) -> None:
    """drop-in 24: never 422, never 500."""
    reply = gateway.chat(wiring, **fields)
    assert (reply.status, reply.error["param"]) == (400, param)


def test_a_request_without_a_model(gateway: Gateway) -> None:
    """drop-in 24."""
    for model in (..., None, "", 5):
        reply = gateway.chat(model)  # type: ignore[arg-type]
        assert (reply.status, reply.error["param"]) == (400, "model")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"model": NaN}', b"[" * 50_000, b"{}\x00"])
def test_malformed_bodies_are_400(gateway: Gateway, body: bytes) -> None:
    """drop-in 24: no JSON object, broken Unicode, nesting without end, NUL bytes."""
    reply = gateway.call("POST", CHAT, body)
    assert (reply.status, reply.error["type"]) == (400, "invalid_request_error")


def test_too_large_is_413(gateway: Gateway) -> None:
    """drop-in 24: announced, and as it comes; the gateway serves on."""
    for headers in ({}, {"content-length": "999999999"}):
        reply = gateway.call("POST", CHAT, b"x" * 200_000, headers)
        assert (reply.status, reply.error["code"]) == (413, "request_too_large")
    assert gateway.chat().status == 200


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", "application/json;charset=UTF-8", "text/plain", None]
)
def test_content_types(gateway: Gateway, kind: str | None) -> None:
    """drop-in 24: a charset is accepted, and so is none at all."""
    assert gateway.chat("a", {"content-type": kind or ""}).json()["choices"][0]["message"]["content"] == TEXT


@every_wiring
def test_stream_options_mean_nothing_without_stream(gateway: Gateway, wiring: str) -> None:
    """drop-in 25: OpenAI's own SDK tests send it. Nobody reads what it holds then."""
    for options in ({"include_usage": True}, {}, {"include_usage": "yes"}, "none"):
        assert content(gateway, wiring, stream_options=options)
        assert content(gateway, wiring, stream=False, stream_options=options)


@every_path
def test_every_response_names_its_request(gateway: Gateway, wiring: str) -> None:
    """drop-in 29: errors and streams included; the client's own name if it is sane."""
    for fields in ({}, {"stream": True}, {"messages": []}, {"model": "nobody"}):
        for given, kept in (("mine-123", True), ("not sane\t!", False), ("x" * 200, False), (None, False)):
            reply = gateway.chat(**{"model": wiring, **fields}, headers={"x-request-id": given} if given else {})
            found = reply.headers["x-request-id"]
            assert found
            assert (found == given) == kept
    for method, path in (("GET", CHAT), ("GET", "/nowhere"), ("OPTIONS", CHAT), ("GET", "/v1/models")):
        assert gateway.call(method, path).headers["x-request-id"]


@pytest.mark.parametrize("wiring", ["far", "a>far"])
@pytest.mark.parametrize("stream", [True, False])
def test_nothing_of_the_client_goes_upstream_but_the_request(gateway: Gateway, wiring: str, stream: bool) -> None:
    """drop-in 32: neither its key nor its cookies; nothing in a request chooses a host."""
    headers = {"cookie": "session=1", "x-forwarded-host": "evil.example", "openai-organization": "org"}
    fields = {"base_url": "http://evil.example/v1", "api_key": "sk-evil", "api_base": "http://evil.example"}
    assert gateway.chat(wiring, headers, stream=stream, **fields).status == 200
    sent = gateway.scripted.headers[-1]
    assert sent["authorization"] == "Bearer sk-upstream-secret"
    assert sent["host"] == gateway.scripted.base_url.removeprefix("http://").removesuffix("/v1")
    assert not {"cookie", "openai-organization", "x-forwarded-host"} & sent.keys()
    assert KEY not in repr(sent)
    assert KEY not in repr(gateway.scripted.requests[-1])
