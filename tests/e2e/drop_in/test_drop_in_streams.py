"""Streams, off the wire, over every kind of wiring: lines 1 to 11."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import openai
import pytest
from inprocess import CHAT, KEY, TEXT, WIRINGS, Gateway

USAGE = {"stream_options": {"include_usage": True}}
every_wiring = pytest.mark.parametrize("wiring", WIRINGS.values(), ids=WIRINGS.keys())


@every_wiring
def test_events_end_with_done_and_the_body_with_them(gateway: Gateway, wiring: str) -> None:
    """drop-in 1, 6: `data: {json}` each, [DONE] last, no `id:` lines; the body closes at once and the connection is used again."""
    with gateway.raw(wiring, stream=True) as sock:
        sock.settimeout(10)
        file = sock.makefile("rb")
        headers = b"".join(iter(file.readline, b"\r\n")).decode().lower()
        assert "content-type: text/event-stream" in headers
        data = b""
        while size := int(file.readline(), 16):
            data += file.read(size)
            assert file.readline() == b"\r\n"
            if data.endswith(b"data: [DONE]\n\n"):
                done = time.monotonic()
        assert time.monotonic() - done < 2
        assert file.readline() == b"\r\n"
        sock.sendall(f"GET /healthz HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\r\n".encode())
        assert file.readline().startswith(b"HTTP/1.1 200")
    *events, last, end = data.decode().split("\n\n")
    assert (last, end) == ("data: [DONE]", "")
    for event in events:
        assert event.startswith("data: {")
        assert "\n" not in event
        assert json.loads(event[6:])


@every_wiring
@pytest.mark.parametrize("n", [1, 2])
def test_every_choice_opens_once_and_ends_once(gateway: Gateway, wiring: str, n: int) -> None:
    """drop-in 2, 4, 6, 12: role and empty content first, never again; one finish per choice and nothing of it afterwards."""
    if wiring == "far" and n > 1:
        pytest.skip("the scripted server knows one choice")
    reply = gateway.chat(wiring, stream=True, n=n, modelnet={"stages": True} if wiring not in ("a", "far") else ...)
    assert all(len(chunk["choices"]) == 1 for chunk in reply.chunks())
    assert {choice["index"] for chunk in reply.chunks() for choice in chunk["choices"]} == set(range(n))
    for index in range(n):
        first, *rest = reply.deltas(index)
        assert (first["role"], first["content"]) == ("assistant", "")
        assert not any("role" in delta for delta in rest)
        reasons = [choice["finish_reason"] for choice in reply.choices(index)]
        assert reasons == [None] * (len(reasons) - 1) + ["stop"]


@every_wiring
def test_one_identity_over_the_whole_stream(gateway: Gateway, wiring: str) -> None:
    """drop-in 3: across all stages; `model` is what the client asked for."""
    chunks = gateway.chat(wiring, stream=True, **USAGE).chunks()
    assert len({(chunk["id"], chunk["created"], chunk["object"]) for chunk in chunks}) == 1
    assert {chunk["model"] for chunk in chunks} == {wiring}
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert chunks[0]["id"].startswith("chatcmpl-")


@every_wiring
def test_usage_is_one_chunk_more_where_it_was_asked_for(gateway: Gateway, wiring: str) -> None:
    """drop-in 5, 6: after the finish, before [DONE], without choices; none unasked."""
    reply = gateway.chat(wiring, stream=True, **USAGE)
    *others, last = reply.chunks()
    assert last["choices"] == []
    assert others[-1]["choices"][0]["finish_reason"] == "stop"
    assert all(chunk["choices"] and chunk.get("usage") is None for chunk in others)
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + last["usage"]["completion_tokens"] > 0
    assert last["usage"] == gateway.chat(wiring).json()["usage"]
    unasked = gateway.chat(wiring, stream=True)
    assert all(chunk["choices"] and chunk.get("usage") is None for chunk in unasked.chunks())


@pytest.mark.parametrize("wiring", [wiring for name, wiring in WIRINGS.items() if name != "server"])
def test_usage_in_every_chunk_where_that_was_asked_for(gateway: Gateway, wiring: str) -> None:
    """drop-in 5: vLLM's `continuous_usage_stats`. Where an answer is handed on, it is the server that tells."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = gateway.chat(wiring, stream=True, stream_options=options).chunks()
    written = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert written == sorted(written)
    assert chunks[-1]["usage"] == last["usage"]
    assert last["choices"] == []


@every_wiring
def test_the_parts_join_to_the_whole(gateway: Gateway, wiring: str) -> None:
    """drop-in 7, 8, 11: byte for byte; nothing of the stages before."""
    whole = gateway.chat(wiring).json()["choices"][0]["message"]
    streamed = gateway.chat(wiring, stream=True)
    assert streamed.content() == whole["content"]
    assert "是的 😀" in whole["content"]
    if wiring not in ("far", "a>far"):
        assert whole["content"] == TEXT
    assert not any("reasoning" in delta or "reasoning_content" in delta for delta in streamed.deltas())
    assert not {"reasoning", "reasoning_content"} & whole.keys()


@pytest.mark.parametrize("wiring", ["a>b", "a>far", "s2p:a>b|c", "p2s:a|b>c", "(a>b)|c", "duo"])
def test_stages_are_shown_on_request_as_reasoning(gateway: Gateway, wiring: str) -> None:
    """drop-in 8: under both names, the same in both, none after content has begun; the answer is as without."""
    reply = gateway.chat(wiring, stream=True, modelnet={"stages": True})
    kinds = []
    for delta in reply.deltas()[1:-1]:
        assert delta.get("reasoning") == delta.get("reasoning_content")
        kinds.append("reasoning" if delta.get("reasoning") else "content")
    assert kinds == sorted(kinds, reverse=True)
    assert set(kinds) == {"reasoning", "content"}
    assert reply.content() == gateway.chat(wiring).json()["choices"][0]["message"]["content"]
    message = gateway.chat(wiring, modelnet={"stages": True}).json()["choices"][0]["message"]
    reasoning = "".join(delta.get("reasoning") or "" for delta in reply.deltas())
    assert message["reasoning"] == message["reasoning_content"] == reasoning
    assert TEXT in reasoning


def test_a_models_own_reasoning_is_no_content(gateway: Gateway) -> None:
    """drop-in 8."""
    reply = gateway.chat("thinker", stream=True)
    assert reply.content() == "So."
    assert "".join(delta.get("reasoning_content") or "" for delta in reply.deltas()) == "let me think"


@pytest.mark.parametrize("wiring", ["silent", "a>silent", "a|silent", "far"])
def test_silence_is_filled_with_comments(gateway: Gateway, wiring: str) -> None:
    """drop-in 9: before the first token, between events only. The longest that can be configured is 15 s."""
    messages = [{"role": "user", "content": "hang"}]
    with gateway.raw(wiring, stream=True, messages=messages) as sock:
        file = sock.makefile("rb")
        assert file.readline().startswith(b"HTTP/1.1 200")
        while file.readline() != b"\r\n":
            pass
        lines = [file.readline() for _ in range(8)]
    assert [line for line in lines if line.startswith(b":")] == [b": keep-alive\n"] * 2
    from gateway.settings import Settings

    with pytest.raises(ValueError, match="keepalive_seconds"):
        Settings.model_validate({"models": {"a": {"backend": "fake"}}, "server": {"keepalive_seconds": 16}})


def test_comments_between_tokens_fall_into_no_event(gateway: Gateway) -> None:
    """drop-in 9: slower than the keep-alive, every event is still whole."""
    backend = gateway.backends["slow"]
    before = backend.settings
    object.__setattr__(backend, "settings", type(before)(answer="one two three", delay=0.4))
    try:
        reply = gateway.chat("slow", stream=True, max_tokens=4)
    finally:
        object.__setattr__(backend, "settings", before)
    assert ": keep-alive" in reply.events()[2:-3]
    assert reply.events()[-1] == "[DONE]"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("wiring", "said", "status", "code"),
    [
        ("gone", "Why?", 502, "backend_unavailable"),
        ("a>gone", "Why?", 502, "backend_unavailable"),
        ("a|gone", "Why?", 502, "backend_unavailable"),
        ("a>b|gone", "Why?", 502, "backend_unavailable"),
        ("(a>gone)|c", "Why?", 502, "backend_unavailable"),
        ("far", "fall", 502, "backend_unavailable"),
        ("a>far", "fall", 502, "backend_unavailable"),
        ("far", "refuse", 400, "request_rejected"),
        ("a>far", "refuse", 400, "request_rejected"),
    ],
)
def test_failure_before_the_first_byte_is_a_status(
    gateway: Gateway, wiring: str, said: str, status: int, code: str, stream: bool
) -> None:
    """drop-in 10: also after earlier stages have run."""
    reply = gateway.chat(wiring, stream=stream, messages=[{"role": "user", "content": said}])
    assert reply.headers["content-type"] == "application/json"
    assert (reply.status, reply.error["code"]) == (status, code)


@pytest.mark.parametrize("wiring", ["torn", "a>torn", "a|torn", "a>b|torn", "far", "a>far"])
def test_failure_in_the_middle_never_looks_like_success(gateway: Gateway, wiring: str) -> None:
    """drop-in 10: an error event, then the end; no finish, no [DONE], and the official client raises."""
    messages: Any = [{"role": "user", "content": "break" if "far" in wiring else "Why?"}]
    reply = gateway.chat(wiring, stream=True, messages=messages, **USAGE)
    assert reply.status == 200
    *before, last = reply.events()
    error = json.loads(last)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == "backend_unavailable"
    assert "[DONE]" not in before
    assert all(choice["finish_reason"] is None for choice in reply.choices())
    with pytest.raises(openai.APIError):
        list(gateway.client.chat.completions.create(model=wiring, messages=messages, stream=True))
    whole = gateway.chat(wiring, messages=messages)
    assert whole.status == (
        200 if wiring == "far" else 502
    )  # not streamed, the scripted server has nothing to break off


@every_wiring
def test_no_character_is_torn(gateway: Gateway, wiring: str) -> None:
    """drop-in 11: one byte per read at the client, whatever the models' tokens are."""
    with gateway.raw(wiring, stream=True) as sock:
        data = b""
        while b"[DONE]" not in data:
            data += sock.recv(1)
    text = re.sub(rb"\r\n[0-9a-f]+\r\n", b"", data).decode()
    found = "".join(json.loads(line[6:])["choices"][0]["delta"].get("content") or "" for line in _data(text))
    assert "是的 😀" in found


def _data(text: str) -> list[str]:
    return [line for line in text.split("\n\n") if line.startswith("data: {")]


@every_wiring
def test_nothing_on_the_way_may_buffer(gateway: Gateway, wiring: str) -> None:
    """drop-in 11: said to proxies; no compression, though the client offers it."""
    reply = gateway.chat(wiring, {"accept-encoding": "gzip, br"}, stream=True)
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.headers["x-accel-buffering"] == "no"
    assert "content-encoding" not in reply.headers
    assert "content-length" not in reply.headers


@pytest.mark.parametrize("wiring", ["slow", "a>slow", "a|slow", "far"])
def test_tokens_come_as_they_are_written(gateway: Gateway, wiring: str) -> None:
    """drop-in 11: the first long before the last."""
    messages: Any = [{"role": "user", "content": "slowly"}]
    stream = gateway.client.chat.completions.create(model=wiring, messages=messages, stream=True, max_tokens=12)
    times = [time.monotonic() for chunk in stream if chunk.choices and chunk.choices[0].delta.content]
    assert times[-1] - times[0] > 0.25


def test_the_clients_own_stream_helper_puts_it_together(gateway: Gateway) -> None:
    """drop-in 2, 7: as openai-node's `.stream()` does, it needs the role first."""
    for wiring in WIRINGS.values():
        with gateway.client.chat.completions.stream(
            model=wiring, messages=[{"role": "user", "content": "Why?"}]
        ) as events:
            for _ in events:
                pass
            final = events.get_final_completion()
        assert final.choices[0].message.content == gateway.chat(wiring).json()["choices"][0]["message"]["content"]
        assert final.choices[0].message.role == "assistant"
    assert CHAT.startswith("/v1")
