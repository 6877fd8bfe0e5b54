"""Errors: lines 26 to 28."""

from __future__ import annotations

import re
from typing import Any

import openai
import pytest
from inprocess import ASK, CHAT, KEY, WIRINGS, Gateway, serving

both_ways = pytest.mark.parametrize("stream", [True, False])


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "unknown_url"),
        ("POST", "/v1/nowhere", 404, "unknown_url"),
        ("GET", "/v1", 404, "unknown_url"),
        ("GET", "/v1/chat/completions/x", 404, "unknown_url"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("PUT", CHAT, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/models/nobody", 404, "model_not_found"),
        ("GET", "/v1/models/a%3E", 404, "model_not_found"),
    ],
)
def test_errors_of_paths_have_the_one_form(gateway: Gateway, method: str, path: str, status: int, code: str) -> None:
    """drop-in 26: routes that are not there, and methods."""
    reply = gateway.call(method, path)
    assert (reply.status, reply.error["code"]) == (status, code)
    assert reply.headers["content-type"] == "application/json"


@both_ways
@pytest.mark.parametrize(
    ("wiring", "said", "status", "code"),
    [
        ("odd", "Why?", 500, "internal_error"),
        ("a|odd", "Why?", 500, "internal_error"),
        ("far", "fall", 502, "backend_unavailable"),
        ("a>far", "fall", 502, "backend_unavailable"),
        ("far", "refuse", 400, "request_rejected"),
        ("a>far", "refuse", 400, "request_rejected"),
        ("refused", "Why?", 502, "backend_auth_failed"),
        ("full", "Why?", 503, "overloaded"),
        ("late", "Why?", 504, "timeout"),
    ],
)
def test_errors_give_nothing_away(
    gateway: Gateway, wiring: str, said: str, status: int, code: str, stream: bool
) -> None:
    """drop-in 26, 27: no traceback, no host, no key; `code` is a string though the server's was a number."""
    reply = gateway.chat(wiring, stream=stream, messages=[{"role": "user", "content": said}])
    assert (reply.status, reply.error["code"]) == (status, code)
    text = reply.body.decode()
    assert not re.search(r"Traceback|hunter2|\.py|10\.\d|127\.0|localhost|sk-|:\d{4}", text)


@pytest.mark.parametrize(
    "model", ["nobody", "a>nobody", "a|", "a>>b", "pi:a>b", "(a|b", "s2p:a|b", "a b", "A", "a" * 2000, "a,b"]
)
@both_ways
def test_unknown_models_and_bad_grammar_are_404(gateway: Gateway, model: str, stream: bool) -> None:
    """drop-in 27: `model_not_found`, with the place in the name; as the SDK's own class."""
    reply = gateway.chat(model, stream=stream)
    assert (reply.status, reply.error["code"], reply.error["param"]) == (404, "model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        gateway.client.chat.completions.create(model=model, messages=ASK)


@pytest.mark.parametrize("authorization", ["", "Bearer wrong", "Bearer ", KEY, f"Basic {KEY}", f"Bearer {KEY}x"])
def test_missing_and_wrong_keys_are_401(gateway: Gateway, authorization: str) -> None:
    """drop-in 27: everywhere but at the probes; never the key itself."""
    for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("GET", "/nowhere")):
        reply = gateway.call(method, path, {"model": "a", "messages": ASK}, {"authorization": authorization})
        assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
        assert KEY not in reply.body.decode()
    assert gateway.call("GET", "/healthz", headers={"authorization": authorization}).status == 200


@both_ways
def test_saturated_is_503_with_retry_after(stream: bool) -> None:
    """drop-in 27, 28: worth another try; the place is given back."""
    with serving(limits={"concurrent_requests": 1}) as gateway:
        with gateway.raw("silent", stream=True):
            gateway.until(lambda: gateway.busy() > 0)
            reply = gateway.chat(stream=stream)
            assert (reply.status, reply.error["code"]) == (503, "overloaded")
            assert int(reply.headers["retry-after"]) >= 1
            assert "x-should-retry" not in reply.headers
        gateway.until(gateway.idle)
        assert gateway.chat(stream=stream).status == 200


@pytest.mark.parametrize("wiring", ["silent", "a>silent", "a|silent", "far"])
def test_too_slow_is_504(wiring: str) -> None:
    """drop-in 27, 28: a repetition would be as slow; a stream that has begun ends with an error event."""
    with serving(limits={"request_seconds": 0.5}) as gateway:
        messages: Any = [{"role": "user", "content": "hang"}]
        reply = gateway.chat(wiring, messages=messages)
        assert (reply.status, reply.error["code"], reply.headers["x-should-retry"]) == (504, "timeout", "false")
        reply = gateway.chat(wiring, messages=messages, stream=True)
        assert reply.status == 200  # keep-alives have sent the headers
        assert '"code":"timeout"' in reply.events()[-1]
        gateway.until(gateway.idle)


@pytest.mark.parametrize(
    ("wiring", "status", "again"),
    [("gone", 502, True), ("full", 503, True), ("late", 504, False), ("refused", 502, False), ("odd", 500, False)],
)
@both_ways
def test_sdks_are_told_where_a_retry_cant_help(
    gateway: Gateway, wiring: str, status: int, again: bool, stream: bool
) -> None:
    """drop-in 28: a retry multiplies the fan-out; the official client obeys the header."""
    reply = gateway.chat(wiring, stream=stream)
    assert reply.status == status
    assert reply.headers.get("x-should-retry") == (None if again else "false")
    opened = gateway.backends[wiring].counters.opened
    with pytest.raises(openai.InternalServerError):
        gateway.client.with_options(max_retries=1).chat.completions.create(model=wiring, messages=ASK)
    assert gateway.backends[wiring].counters.opened - opened == (2 if again else 1)


def test_errors_are_the_clients_own_classes(gateway: Gateway) -> None:
    """drop-in 26, 27: with code, param and the request's id."""
    create: Any = gateway.client.chat.completions.create
    for wiring in WIRINGS.values():
        with pytest.raises(openai.BadRequestError) as caught:
            create(model=wiring, messages=ASK, temperature=9)
        assert caught.value.param == "temperature"
        assert caught.value.request_id
    with pytest.raises(openai.AuthenticationError) as closed:
        gateway.client.with_options(api_key="sk-wrong").models.list()
    assert closed.value.code == "invalid_api_key"


@both_ways
@pytest.mark.parametrize("wiring", ["a|gone", "a>b|gone", "a|gone>c", "(a>gone|b)|c"])
def test_a_group_that_lost_a_member_says_so(wiring: str, stream: bool) -> None:
    """drop-in 10, 34: where groups may go on without one, the answer is whole, and a header and the extension tell who is missing."""
    with serving(limits={"on_member_failure": "drop"}) as gateway:
        reply = gateway.chat(wiring, stream=stream)
        assert reply.status == 200
        assert reply.headers["x-modelnet-degraded"] == "gone"
        value = reply.chunks()[-1] if stream else reply.json()
        (dropped,) = [each for stage in value["modelnet"]["stages"] for each in stage.get("dropped", ())]
        assert (dropped["model"], dropped["piece"], dropped["late"]) == ("gone", 0, False)
        assert "gone" in dropped["reason"]
        assert "x-modelnet-degraded" not in gateway.chat("a|b", stream=stream).headers


def test_a_member_that_leaves_late_is_in_the_extension(gateway: Gateway) -> None:
    """drop-in 10: the headers of a stream are gone by then."""
    with serving(limits={"on_member_failure": "drop"}) as own:
        reply = own.chat("a|torn", stream=True)
        assert "x-modelnet-degraded" not in reply.headers
        (stage,) = reply.chunks()[-1]["modelnet"]["stages"]
        assert stage["dropped"][0]["model"] == "torn"
        assert stage["dropped"][0]["piece"] > 0
        assert reply.events()[-1] == "[DONE]"
        assert own.chat("a|torn").headers["x-modelnet-degraded"] == "torn"
