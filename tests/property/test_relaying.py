"""A stream that is passed on says what the server said, whatever that is and however its bytes are cut."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from backends.openai_http.relay import Relay

HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7}
DONE = b"data: [DONE]\n\n"

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ['"', "\\", '\\"', '"},"logprobs":null', "\n\ndata: ", "data: [DONE]", '"model":"up"', '"usage"', "\u2028", "up"]
)
DELTAS = st.one_of(
    st.builds(lambda text: {"content": text}, TEXTS),
    st.builds(lambda text: {"reasoning_content": text}, TEXTS),
    st.builds(lambda text, more: {"content": text, "model": more}, TEXTS, TEXTS),
    st.builds(
        lambda text: {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"arguments": text}}]},
        TEXTS,
    ),
    st.just({}),
)
MORE = st.sampled_from([{}, {}, {}, {"service_tier": "x"}, {"usage": None}, {"model_extra": {"model": "up"}}])


def written(value: Any, spaced: bool) -> bytes:
    separators = (", ", ": ") if spaced else (",", ":")
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=separators).encode() + b"\n\n"


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[dict[str, Any]], bytes]:
    """The chunks of a good stream, and its bytes."""
    spaced, model_first = draw(st.booleans()), draw(st.booleans())
    deltas = [{"role": "assistant", "content": ""}, *draw(st.lists(DELTAS, max_size=12)), {}]
    for delta in [delta for delta in deltas if "tool_calls" in delta][1:]:
        del delta["tool_calls"][0]["id"], delta["tool_calls"][0]["type"]  # who repeats them is no good server
    values = []
    for index, delta in enumerate(deltas):
        finish = "stop" if index == len(deltas) - 1 else None
        body = {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **draw(MORE)}
        name = {"model": "up"}
        values.append({**HEAD, **name, **body} if model_first else {**HEAD, **body, **name})
    return values, b"".join(written(value, spaced) for value in values) + DONE


@given(streams(), st.lists(st.integers(1, 400), max_size=40), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_all_is_said_once(stream: tuple[list[dict[str, Any]], bytes], cuts: list[int], newline: bytes) -> None:
    values, data = stream
    data = data.replace(b"\n", newline)
    relay = Relay("m", "mine", 1, "no")
    passed = b""
    for size in [*cuts, len(data)]:
        passed += relay.feed(data[:size])
        data = data[size:]
    assert relay.failure is None
    assert relay.over
    assert passed.endswith(DONE)
    said = [json.loads(event.removeprefix(b"data: ")) for event in passed.removesuffix(DONE).split(b"\n\n")[:-1]]
    assert said == [{**value, "model": "mine"} for value in values]


@given(streams(), st.integers(0, 400), st.binary(max_size=60))
def test_what_is_broken_never_looks_whole(stream: tuple[list[dict[str, Any]], bytes], cut: int, noise: bytes) -> None:
    """A stream cut in its middle, noise behind it or not: [DONE] only where the server finished its choice."""
    data = stream[1][:cut] + noise
    relay = Relay("m", "mine", 1, "no")
    passed = relay.feed(data) + relay.finish()
    finished = b'"finish_reason":"stop"' in passed.replace(b" ", b"")
    assert relay.over == passed.endswith(DONE)
    assert not relay.over or finished or b"[DONE]" in data
