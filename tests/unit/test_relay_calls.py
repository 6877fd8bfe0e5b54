"""Tool calls in streams that are handed on: whole, told once, and no more than are wanted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk
from relayed import DONE, HEAD, ROLE, STOP, USAGE, chunk, chunks, relay, renamed, through

from backends.openai_http.relay import Relay, whole_answer


def test_tool_calls_begin_with_who_they_are() -> None:
    """drop-in 19, 21: made up where a server does not say; lists of none are left out."""
    name = {"index": 0, "function": {"name": "f", "arguments": ""}}
    more = {"index": 0, "function": {"arguments": '{"a": 1}'}}
    parts = [chunk({"content": "So", "tool_calls": []}), chunk({"tool_calls": [name]}), chunk({"tool_calls": [more]})]
    found = chunks(through(relay(), *parts, STOP, DONE))
    deltas = [c["choices"][0]["delta"] for c in found]
    assert deltas[:2] == [{"role": "assistant", "content": ""}, {"content": "So"}]
    ((first,), (second,)) = (delta["tool_calls"] for delta in deltas if "tool_calls" in delta)
    assert first == {**name, "type": "function", "id": first["id"]}
    assert first["id"].startswith("call_")
    assert second == more


def test_another_id_is_another_call() -> None:
    """drop-in 19: whole calls one after the other, without an index or all under one; an id that comes too late is none."""

    def call(**fields: Any) -> bytes:
        return chunk({"tool_calls": [{"function": {"name": "f", "arguments": "{}"}, **fields}]})

    for given in ({}, {"index": 0}):
        parts = [call(id=id, **given) for id in "abc"]
        found = [c["choices"][0]["delta"] for c in chunks(through(relay(), *parts, STOP, DONE))]
        calls = [delta["tool_calls"][0] for delta in found if "tool_calls" in delta]
        assert [(each["index"], each["id"]) for each in calls] == [(0, "a"), (1, "b"), (2, "c")]
    parts = [call(index=1), call(index=1, id="late"), call(index=0, id="a"), call(index=0, id="a")]
    found = [c["choices"][0]["delta"] for c in chunks(through(relay(), *parts, STOP, DONE))]
    calls = [delta["tool_calls"][0] for delta in found if "tool_calls" in delta]
    assert [(each["index"], each.get("id")) for each in calls[1:]] == [(1, None), (0, "a"), (0, None)]
    assert calls[0]["id"].startswith("call_")


def test_whole_calls_without_ids_under_one_index_are_calls_of_their_own() -> None:
    """drop-in 19: early Gemini. A server that repeats the name with every part does not begin again."""

    def call(arguments: Any, name: str | None = "f") -> bytes:
        return chunk({"tool_calls": [{"index": 0, "function": {"name": name, "arguments": arguments}}]})

    def joined(*parts: bytes) -> list[str]:
        state = ChatCompletionStreamState()
        for each in chunks(through(relay(), ROLE, *parts, STOP, DONE)):
            state.handle_chunk(ChatCompletionChunk.model_validate(each))
        calls = state.get_final_completion().choices[0].message.tool_calls or []
        assert len({call.id for call in calls}) == len(calls)
        return [f"{call.function.name} {call.function.arguments}" for call in calls]

    assert joined(call('{"a": 1}'), call('{"a": 2}'), call("{}", "g")) == ['f {"a": 1}', 'f {"a": 2}', "g {}"]
    assert joined(call({"a": 1}), call({"a": 2})) == ['f {"a":1}', 'f {"a":2}']
    assert joined(call('{"a": '), call('{"b": 2}'), call("}")) == ['f {"a": {"b": 2}}']
    assert joined(call('{"a": 1}'), call(""), call(None)) == ['f {"a": 1}']
    assert joined(call(""), call('{"a": 1'), call("}"), call(" ")) == ['f {"a": 1} ']
    assert joined(call('{"a": 1}'), call('{"a": 2', "g"), call("}", None)) == ['f {"a": 1}', 'g {"a": 2}']


def test_calls_without_arguments_have_an_empty_object() -> None:
    """drop-in 19, 20: what arguments join to is JSON, also where a server has nothing to say there."""
    first = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}
    other = {"index": 1, "id": "b", "type": "function", "function": {"name": "g"}}
    for parts in (
        (chunk({"tool_calls": [first]}), chunk({"tool_calls": [other]}), chunk({}, "tool_calls")),
        (chunk({"tool_calls": [first]}), chunk({"tool_calls": [other]}, "tool_calls")),
        (chunk({"tool_calls": [first]}), chunk({"tool_calls": [other]})),
    ):
        found = chunks(through(relay(), ROLE, *parts, DONE))
        joined = ["", ""]
        for each in found:
            for call in each["choices"][0]["delta"].get("tool_calls", ()):
                joined[call["index"]] += call["function"].get("arguments", "")
        assert joined == ["{}", "{}"]
        assert [c["choices"][0]["finish_reason"] for c in found][-1] == "tool_calls"
    cut = (chunk({"tool_calls": [first]}), chunk({}, "length"), DONE)
    assert through(relay(), ROLE, *cut) == renamed(ROLE, *cut)
    custom = chunk({"tool_calls": [{"index": 0, "id": "a", "type": "custom", "custom": {"name": "f", "input": ""}}]})
    assert through(relay(), ROLE, custom, STOP, DONE) == renamed(ROLE, custom, STOP, DONE)
    calls = [{key: value for key, value in call.items() if key != "index"} for call in (first, other)]
    choice = {"index": 0, "message": {"role": "assistant", "tool_calls": calls}, "finish_reason": "tool_calls"}
    for reason, wanted in (("tool_calls", ["{}", "{}"]), ("length", ["", None])):
        body = {**HEAD, "choices": [{**choice, "finish_reason": reason}], "usage": USAGE}
        given, _ = whole_answer("m", "mine", json.dumps(body).encode())
        told = json.loads(given)["choices"][0]["message"]["tool_calls"]
        assert [call["function"].get("arguments") for call in told] == wanted


@pytest.mark.parametrize("name", ["weather", "f"])
def test_what_a_call_is_stands_in_its_first_part_only(name: str) -> None:
    """drop-in 19: the official client writes ids and names that come with every part behind each other."""

    def call(index: int, arguments: str, **fields: Any) -> bytes:
        function = {"name": name, "arguments": arguments}
        return chunk({"tool_calls": [{"index": index, "function": function, **fields}]})

    who = {"id": "a", "type": "function"}
    parts = [ROLE, *(call(0, part, **who) for part in ("", '{"a"', ": 1}")), call(1, "{", id="b"), call(1, "}", id="b")]
    state = ChatCompletionStreamState()
    given = chunks(through(relay(), *parts, chunk({}, "tool_calls"), DONE))
    begun = [call for each in given for call in each["choices"][0]["delta"].get("tool_calls", ())]
    assert [("id" in call, "type" in call) for call in begun] == [
        (True, True),
        *[(False, False)] * 2,
        (True, True),
        (False, False),
    ]
    for each in given:
        state.handle_chunk(ChatCompletionChunk.model_validate(each))
    told = state.get_final_completion().choices[0].message.tool_calls or []
    assert [(each.id, each.function.name, each.function.arguments) for each in told] == [
        ("a", name, '{"a": 1}'),
        ("b", name, "{}"),
    ]


def test_calls_of_a_whole_answer_are_whole() -> None:
    """Also where a server counts all of them as the first, and gives them no ids."""
    calls = [{"index": 0, "function": {"name": name, "arguments": "{}"}} for name in "fg"]
    choice = {"index": 0, "message": {"role": "assistant", "content": None, "tool_calls": calls}}
    body = json.dumps({**HEAD, "choices": [{**choice, "finish_reason": "tool_calls"}], "usage": USAGE}).encode()
    for one_call, names in ((False, ["f", "g"]), (True, ["f"])):
        given, _ = whole_answer("m", "mine", body, one_call=one_call)
        told = json.loads(given)["choices"][0]["message"]["tool_calls"]
        assert [(call["function"]["name"], call["type"]) for call in told] == [(name, "function") for name in names]
        assert len({call["id"] for call in told}) == len(names)


@pytest.mark.parametrize("begin", [0, 1])
def test_one_call_at_most(begin: int) -> None:
    """drop-in 20: `parallel_tool_calls: false` is not known to every server."""
    first, other = (
        {"index": begin + number, "id": f"c{number}", "type": "function", "function": {"name": "f", "arguments": "{"}}
        for number in (0, 1)
    )
    more = [{"index": begin + number, "function": {"arguments": "}"}} for number in (0, 1)]
    parts = [ROLE, *(chunk({"tool_calls": calls}) for calls in ([first], [other], more)), chunk({}, "tool_calls"), DONE]
    found = chunks(through(Relay("m", "mine", 1, "no", one_call=True), *parts))
    deltas = [c["choices"][0]["delta"] for c in found]
    assert deltas == [{"role": "assistant", "content": ""}, {"tool_calls": [first]}, {}, {"tool_calls": more[:1]}, {}]
    assert through(relay(), *parts) == renamed(*parts)
    calls = [{key: value for key, value in call.items() if key != "index"} for call in (first, other)]
    message = {"role": "assistant", "content": None, "refusal": None, "tool_calls": calls}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "tool_calls"}
    body = json.dumps({**HEAD, "choices": [choice], "usage": USAGE}).encode()
    for one_call, kept in ((True, calls[:1]), (False, calls)):
        given, _ = whole_answer("m", "mine", body, one_call=one_call)
        assert json.loads(given)["choices"][0]["message"]["tool_calls"] == kept
