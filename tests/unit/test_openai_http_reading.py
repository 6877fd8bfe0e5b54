"""What a server's chunks say beside text: log-probabilities and tool calls, in all the forms that servers give them."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from upstream import ASK, DONE, chunk, presentable_error, read, server, writes

from backends import errors
from backends.openai_http.calls import CallReader, Malformed
from backends.openai_http.failures import from_event, from_response, not_protocol
from backends.openai_http.sse import SSEEvent
from backends.openai_http.wire import ChatReader
from backends.types import Sampling, TextDelta, TextEnd, TextRequest, TokenLogprob, ToolCallDelta, Usage

pytestmark = pytest.mark.anyio


def said(delta: dict[str, Any], **choice: Any) -> bytes:
    return b"data: " + orjson.dumps({"choices": [{"index": 0, "delta": delta, **choice}]}) + b"\n\n"


def call(index: int | None = 0, **fields: Any) -> dict[str, Any]:
    place = {} if index is None else {"index": index}
    function = {key: fields.pop(key) for key in ("name", "arguments") if key in fields}
    return {"tool_calls": [{**place, **fields, "function": function}]}


def joined(deltas: list[ToolCallDelta]) -> list[tuple[str, str, str]]:
    """(id, name, arguments) of every call, held to the contract on the way."""
    calls: dict[int, list[str]] = {}
    for delta in deltas:
        if delta.index not in calls:
            assert delta.index == len(calls)
            assert delta.id and delta.name
            calls[delta.index] = [delta.id, delta.name, ""]
        else:
            assert delta.id is None and delta.name is None
        calls[delta.index][2] += delta.arguments
    return [(id, name, arguments) for id, name, arguments in calls.values()]


def read_calls(*deltas: dict[str, Any]) -> list[tuple[str, str, str]]:
    reader = CallReader()
    found = [part for delta in deltas for part in reader.read(delta)]
    return joined([*found, *reader.finish()])


async def test_log_probabilities_come_with_their_text() -> None:
    """drop-in 17: bytes where the server gives them; a token that is part of a character has no text of its own."""
    entry = {
        "token": "\ufffd",
        "bytes": [0xE4, 0xBD],
        "logprob": -0.5,
        "top_logprobs": [
            {"token": "\ufffd", "bytes": [0xE4, 0xBD], "logprob": -0.5},
            {"token": "b", "logprob": -2, "bytes": None},
        ],
    }
    parts = [
        said({"content": ""}, logprobs={"content": [entry]}),
        said({"content": "你"}, logprobs={"content": [{"token": "?", "bytes": [0xA0], "logprob": -1}]}),
        said({"content": "x"}, logprobs=None),
        said({}, finish_reason="stop"),
        DONE,
    ]
    async with server(writes(*parts)) as backend:
        assert await read(backend) == [
            TextDelta("", tokens=(TokenLogprob(b"\xe4\xbd", -0.5, ((b"\xe4\xbd", -0.5), (b"b", -2.0))),)),
            TextDelta("你", tokens=(TokenLogprob(b"\xa0", -1.0),)),
            TextDelta("x"),
            TextEnd("stop", Usage()),
        ]


async def test_a_tool_call_as_openai_streams_it() -> None:
    """drop-in 19: id and name on the first fragment, arguments as they come."""
    parts = [
        said({"role": "assistant", "content": None, **call(id="c1", type="function", name="f", arguments="")}),
        said(call(arguments='{"x":')),
        said(call(arguments=' "你"}')),
        said(call(1, id="c2", type="function", name="g", arguments="{}")),
        said({}, finish_reason="tool_calls"),
        DONE,
    ]
    async with server(writes(*parts)) as backend:
        events = await read(backend)
    assert events[-1] == TextEnd("tool_calls", Usage())
    deltas = [part for event in events if isinstance(event, TextDelta) for part in event.tool_calls]
    assert joined(deltas) == [("c1", "f", '{"x": "你"}'), ("c2", "g", "{}")]
    assert deltas[0] == ToolCallDelta(0, "c1", "f", "")


@pytest.mark.parametrize(
    ("reason", "kept"), [("stop", "tool_calls"), ("function_call", "tool_calls"), ("length", "length")]
)
async def test_an_answer_that_calls_ends_so(reason: str, kept: str) -> None:
    """drop-in 19: vLLM says "stop" where the request named the tool."""
    parts = [said(call(id="c", name="f", arguments="{}")), said({}, finish_reason=reason), DONE]
    async with server(writes(*parts)) as backend:
        assert (await read(backend))[-1] == TextEnd(kept, Usage())


def test_forms_of_calls() -> None:
    """drop-in 19: what servers make of it."""
    whole = {"x": 1}
    # Repeated ids and names.
    assert read_calls(
        call(id="c", name="f", arguments='{"x"'), call(id="c", name="f", arguments=":1}"), call(id="", arguments="")
    ) == [("c", "f", '{"x":1}')]
    # All calls under index 0, told apart by their ids.
    assert read_calls(call(id="c", name="f", arguments="{}"), call(id="d", name="f", arguments="{}")) == [
        ("c", "f", "{}"),
        ("d", "f", "{}"),
    ]
    # And without ids: by beginning again, which repeating the name is not.
    again = read_calls(
        call(name="f", arguments='{"x"'), call(name="f", arguments=":1}"), call(name="f", arguments="{}")
    )
    assert [each[1:] for each in again] == [("f", '{"x":1}'), ("f", "{}")]
    # No index at all: the place in the list counts.
    two = {"tool_calls": [{"id": i, "function": {"name": i, "arguments": whole}} for i in "cd"]}
    assert read_calls(two) == [("c", "c", '{"x":1}'), ("d", "d", '{"x":1}')]
    # Indices with gaps.
    assert read_calls(call(3, id="c", name="f"), call(7, id="d", name="g")) == [("c", "f", "{}"), ("d", "g", "{}")]
    # The name comes later, or not in one piece with the arguments.
    assert read_calls(call(id="c", arguments='{"x"'), call(name="f"), call(arguments=":1}")) == [("c", "f", '{"x":1}')]
    # The older form.
    older = [{"function_call": {"name": "f", "arguments": ""}}, {"function_call": {"arguments": "{}"}}]
    ((id, name, arguments),) = read_calls(*older)
    assert (name, arguments) == ("f", "{}")
    assert id.startswith("call_")
    # No arguments: the fragments still join to valid JSON.
    ((_, _, arguments),) = read_calls(call(id="c", name="f", arguments=""))
    assert json.loads(arguments) == {}


@pytest.mark.parametrize(
    "delta", [{"tool_calls": "x"}, {"tool_calls": {"a": 1}}, {"tool_calls": ["x"]}, {"tool_calls": [None]}]
)
def test_what_is_no_call(delta: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        CallReader().read(delta)


def test_half_a_call_is_no_success() -> None:
    """drop-in 10."""
    reader = ChatReader("m")
    assert reader.read(SSEEvent(json.dumps({"choices": [{"delta": call(id="c", arguments="{}")}]}))) is None
    with pytest.raises(errors.BackendUnavailable):
        reader.rest()


@pytest.mark.parametrize(
    "body",
    [
        {"choices": "x"},
        {"choices": [5]},
        {"choices": [{"delta": "x"}]},
        {"choices": [{"delta": {}, "logprobs": "x"}]},
        {"choices": [{"delta": {}, "logprobs": {"content": [{"token": "x"}]}}]},
        {"choices": [{"delta": {}, "logprobs": {"content": [{"logprob": -1}]}}]},
        {"choices": [{"delta": {}, "logprobs": {"content": [{"token": "x", "bytes": [300], "logprob": -1}]}}]},
        {"choices": [{"delta": {"tool_calls": 5}}]},
        [],
        "x",
    ],
)
async def test_odd_chunks_are_errors_of_ours(body: Any) -> None:
    """drop-in 10: never an exception that no table knows."""
    async with server(
        writes(chunk("a"), b"data: " + orjson.dumps(body) + b"\n\n", chunk(finish="stop"), DONE)
    ) as backend:
        with pytest.raises(errors.BackendUnavailable) as caught:
            await read(backend)
        presentable_error(backend, caught.value)


async def test_sampling_that_only_some_servers_know_is_sent() -> None:
    """drop-in 15: as the fields that vLLM and llama.cpp read."""
    from backends.openai_http.wire import chat_body

    async with server(writes()) as backend:
        request = TextRequest(ASK.messages, Sampling(min_p=0.1, logit_bias={5: 1.5}))
        body = chat_body("up", backend._settings, request)
    assert (body["min_p"], body["logit_bias"]) == (0.1, {"5": 1.5})
    assert not {"min_p", "logit_bias"} & chat_body("up", backend._settings, ASK).keys()


def nested(levels: int) -> Any:
    return orjson.loads(b"[" * levels + b"]" * levels)


@pytest.mark.parametrize("levels", [10, 300, 1010])
def test_errors_that_nest_deeper_than_can_be_written(levels: int) -> None:
    """A server's error body is read, whatever it is: up to 1024 levels are read, 250 can be written again."""
    deep = nested(levels)
    for payload in ({"error": deep}, {"error": {"message": deep, "code": deep, "type": deep}}, deep):
        assert isinstance(from_event("m", payload), errors.BackendError)
        assert isinstance(not_protocol("m", payload), errors.BackendUnavailable)
    for body in (b'{"error":%b}', b'{"error":{"message":%b}}', b'{"detail":%b}', b"%b"):
        raw = body % (b"[" * levels + b"]" * levels)
        assert isinstance(from_response("m", 400, {}, raw), errors.RequestRejected)
