"""Clients that leave, that do not read, that come back; and the end of the process: lines 30 and 31."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import openai
import pytest
from inprocess import ASK, AT_ONCE, CHAT, KEY, TEXT, Gateway, serving

SLOW = ["slow", "a>slow", "slow>a", "a|slow", "a>b|slow", "(a>slow)|b", "far", "a>far"]
SILENT = ["silent", "a>silent", "silent>a", "a|silent", "a>b|silent", "(silent>a)|b", "far", "a>far"]


def best_of(attempts: int, leave: Callable[[], float]) -> float:
    """The quickest of a few: what the gateway does, not what else the machine is doing. One that is quick enough will do."""
    took = leave()
    for _ in range(attempts - 1):
        if took >= AT_ONCE:
            took = min(took, leave())
    return took


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("wiring", SLOW)
def test_leaving_in_the_middle_of_a_stream_cancels_everything(gateway: Gateway, wiring: str, n: int) -> None:
    """drop-in 30: every call of the request within 100 ms; slots and gauges are given back."""
    messages = [{"role": "user", "content": "slowly"}]

    def leave() -> float:
        with gateway.raw(wiring, stream=True, n=n, messages=messages, modelnet={"stages": True}) as sock:
            while sock.recv(4096).count(b"data:") < 1:
                pass
            time.sleep(0.12)
            assert gateway.busy() >= 1
        return gateway.until(lambda: gateway.busy() == 0)

    if wiring == "far" and n > 1:
        pytest.skip("handed on with n as it came")
    assert best_of(3, leave) < AT_ONCE
    gateway.until(gateway.idle)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("wiring", SILENT)
def test_leaving_before_the_first_token_cancels_everything(gateway: Gateway, wiring: str, stream: bool) -> None:
    """drop-in 30: streaming or not, and nobody has said a word."""
    messages = [{"role": "user", "content": "hang"}]

    def leave() -> float:
        with gateway.raw(wiring, stream=stream, messages=messages):
            gateway.until(lambda: gateway.busy() > 0)
            time.sleep(0.1)
        return gateway.until(lambda: gateway.busy() == 0)

    assert best_of(3, leave) < AT_ONCE
    gateway.until(gateway.idle)


@pytest.mark.parametrize("wiring", SLOW)
def test_leaving_while_an_answer_is_written_cancels_everything(gateway: Gateway, wiring: str) -> None:
    """drop-in 30: without streaming."""
    messages = [{"role": "user", "content": "slowly" if "far" not in wiring else "hang"}]

    def leave() -> float:
        with gateway.raw(wiring, messages=messages):
            gateway.until(lambda: gateway.busy() > 0)
            time.sleep(0.15)
        return gateway.until(lambda: gateway.busy() == 0)

    assert best_of(3, leave) < AT_ONCE
    gateway.until(gateway.idle)


def test_the_connection_of_a_client_that_left_serves_nobody_else(gateway: Gateway) -> None:
    """drop-in 31: the official client stops reading in the middle and goes on with its next request."""
    for wiring in ("slow", "a|slow", "far"):
        stream = gateway.client.chat.completions.create(model=wiring, messages=ASK, stream=True)
        next(iter(stream))
        stream.close()
        answer = gateway.client.chat.completions.create(model="a", messages=ASK)
        assert answer.choices[0].message.content == TEXT


def test_a_slow_reader_stalls_nobody_else(gateway: Gateway) -> None:
    """drop-in 31: its own model waits, after a bounded number of events; others are served at once."""
    backend = gateway.backends["b"]
    before = backend.settings
    long = "one two three four five six seven eight nine ten " * 80
    object.__setattr__(backend, "settings", type(before)(answer=long, context=100_000, split="character"))
    try:
        written = backend.counters.deltas
        # Reasoning of every stage and token lists make a lot of bytes, more than sockets hold.
        fields = {
            "logprobs": True,
            "top_logprobs": 20,
            "max_tokens": 20_000,
            "messages": [{"role": "user", "content": "count"}],
        }
        with gateway.raw("a|b", stream=True, **fields) as sock:
            sock.recv(100)
            for _ in range(3):
                began = time.monotonic()
                assert gateway.chat().json()["choices"][0]["message"]["content"] == TEXT
                assert gateway.chat("a>c", stream=True).events()[-1] == "[DONE]"
                assert time.monotonic() - began < 3
        assert backend.counters.deltas - written < 20_000
    finally:
        object.__setattr__(backend, "settings", before)
    gateway.until(gateway.idle)


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses", "/v1/embeddings"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
def test_other_methods_are_405(gateway: Gateway, path: str, method: str) -> None:
    """drop-in 31: as JSON, with the method that is allowed; HEAD without a body."""
    began = time.monotonic()
    reply = gateway.call(method, path)
    assert time.monotonic() - began < 2  # an answer without a body goes out by itself
    assert reply.status == 405
    assert reply.headers["allow"] == "POST"
    assert reply.headers["content-type"] == "application/json"
    if method == "HEAD":
        assert reply.body == b""
    else:
        assert reply.error["code"] == "method_not_allowed"


def test_browsers_may_ask_first(gateway: Gateway) -> None:
    """drop-in 31: preflights need no key; answers and errors carry the headers."""
    ask = {
        "origin": "http://localhost:5173",
        "authorization": "",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type, x-stainless-os",
    }
    reply = gateway.call("OPTIONS", CHAT, None, ask)
    assert (reply.status, reply.body) == (204, b"")
    assert reply.headers["access-control-allow-origin"] == "http://localhost:5173"
    assert "x-stainless-os" in reply.headers["access-control-allow-headers"]
    assert "POST" in reply.headers["access-control-allow-methods"]
    for fields, status in (({}, 200), ({"stream": True}, 200), ({"messages": []}, 400)):
        for model in ("a", "far"):
            reply = gateway.chat(model, {"origin": "http://localhost:5173"}, **fields)
            assert reply.status == status
            assert reply.headers["access-control-allow-origin"] == "http://localhost:5173"
            assert "x-request-id" in reply.headers["access-control-expose-headers"]
    reply = gateway.call("OPTIONS", CHAT, None, {**ask, "origin": "https://evil.example"})
    assert "access-control-allow-origin" not in reply.headers


@pytest.mark.parametrize("model", ["slow", "a|slow", "far"])
def test_shutting_down_lets_streams_finish(model: str) -> None:
    """drop-in 31: those that do so in the configured time; new requests find nobody."""
    with serving(server={"shutdown_seconds": 10.0, "keepalive_seconds": 1.0}) as gateway:
        found: list[Any] = []

        def ask() -> None:
            messages = [{"role": "user", "content": "slowly"}]
            found.append(gateway.chat(model, stream=True, messages=messages, max_tokens=20))

        reader = threading.Thread(target=ask)
        reader.start()
        gateway.until(lambda: gateway.busy() > 0)
        gateway.server.stop()
        reader.join(timeout=20)
        assert found[0].events()[-1] == "[DONE]"
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            gateway.chat()


@pytest.mark.parametrize("model", ["silent", "a|silent", "far"])
@pytest.mark.parametrize("stream", [True, False])
def test_shutting_down_ends_what_does_not_finish(model: str, stream: bool) -> None:
    """drop-in 10, 31: streams with an error event, others with a 503; never as if they were whole."""
    with serving(server={"shutdown_seconds": 0.5, "keepalive_seconds": 0.2}) as gateway:
        found: list[Any] = []

        def ask() -> None:
            found.append(gateway.chat(model, stream=stream, messages=[{"role": "user", "content": "hang"}]))

        reader = threading.Thread(target=ask)
        reader.start()
        gateway.until(lambda: gateway.busy() > 0)
        time.sleep(0.3)
        began = time.monotonic()
        gateway.server.stop()
        reader.join(timeout=20)
        assert time.monotonic() - began < 5
        (reply,) = found
        assert reply.status == (200 if stream else 503)
        error = json.loads(reply.events()[-1])["error"] if stream else reply.error
        assert error["code"] == "overloaded"


def test_a_client_that_leaves_is_no_error(gateway: Gateway) -> None:
    """drop-in 30: in the metrics it is 499; nobody is called to mend anything."""

    def left() -> float:
        text = gateway.app.metrics.text().decode()
        lines = [line for line in text.splitlines() if line.startswith("modelnet_requests_total") and '"499"' in line]
        return sum(float(line.split()[-1]) for line in lines)

    before = left()
    with gateway.raw("silent"):
        gateway.until(lambda: gateway.busy() > 0)
    gateway.until(lambda: left() == before + 1)
    with pytest.raises(openai.APITimeoutError):
        gateway.client.with_options(timeout=0.3).chat.completions.create(model="silent", messages=ASK)
    gateway.until(lambda: left() == before + 2)
    assert KEY not in gateway.app.metrics.text().decode()
