"""Answers that are not streamed, and requests, as they are passed on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from relayed import USAGE

from backends import errors
from backends.openai_http.relay import whole_answer
from backends.openai_http.splice import with_fields, with_model
from backends.types import Usage

# Answers that are not streamed

ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 0,
    "model": "up",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hi", "refusal": None, "x": 1},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": USAGE,
    "kv_transfer_params": {"a": None},
}


def test_a_whole_answer() -> None:
    """drop-in 3, 23: the name changes, nothing else does, not even a space."""
    for separators in ((",", ":"), (", ", ": ")):
        data = json.dumps(ANSWER, separators=separators).encode()
        given, usage = whole_answer("m", "mine", data)
        assert given == data.replace(b'"up"', b'"mine"')
        assert usage == Usage(3, 2, 1)
    assert whole_answer("m", "up", data)[0] is data


@pytest.mark.parametrize("told", [{}, {"usage": None}, {"usage": {"prompt_tokens": 0, "completion_tokens": 0}}])
def test_a_whole_answer_without_usage(told: Any) -> None:
    """drop-in 34: an estimate that is named so, a token for every four bytes of all that it says."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "x" * 8}}
    message = {"content": "x" * 16, "refusal": "x" * 8, "reasoning": "x" * 8, "tool_calls": [call, 3]}
    answer = {
        **ANSWER,
        "model": "mine",
        "choices": [{"message": message}, {"text": "x" * 4}, {"message": 1}, 2],
        "usage": 0,
    }
    data = json.dumps({**{key: answer[key] for key in answer if key != "usage"}, **told}).encode()
    given, usage = whole_answer("m", "mine", data, 9)
    assert usage == Usage(9, 11, estimated=True)
    value = json.loads(given)
    assert value["usage"] == {"prompt_tokens": 9, "completion_tokens": 11, "total_tokens": 20}
    assert value["modelnet"] == {"usage_estimated": True}


def test_a_whole_answer_that_speaks_of_models() -> None:
    """Where splicing could hit something else, it is parsed."""
    value = {**ANSWER, "choices": [{**ANSWER["choices"][0], "model": "up", "note": '"model"'}]}  # type: ignore[index]
    given, _ = whole_answer("m", "mine", json.dumps(value).encode())
    assert json.loads(given) == {**value, "model": "mine"}
    escaped = json.dumps(ANSWER).replace('"model"', '"mod\\u0065l"').encode()
    assert json.loads(whole_answer("m", "mine", escaped)[0]) == {**ANSWER, "model": "mine"}


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        ({"content": "hi"}, {"content": "hi", "refusal": None}),
        ({"content": "hi", "refusal": None, "tool_calls": []}, {"content": "hi", "refusal": None}),
        ({"content": "", "tool_calls": [CALL]}, {"content": None, "refusal": None, "tool_calls": [CALL]}),
        (
            {"content": "so", "refusal": None, "tool_calls": [CALL]},
            {"content": "so", "refusal": None, "tool_calls": [CALL]},
        ),
        (
            {"tool_calls": [{"id": "c", "function": {"name": "f", "arguments": {"a": "é"}}}]},
            {
                "content": None,
                "refusal": None,
                "tool_calls": [{**CALL, "function": {"name": "f", "arguments": '{"a":"é"}'}}],
            },
        ),
    ],
)
def test_messages_are_as_clients_know_them(message: Any, wanted: Any) -> None:
    """drop-in 17, 19, 21, 22: and the rest stays."""
    data = json.dumps(
        {**ANSWER, "choices": [{"index": 0, "message": message, "finish_reason": "eos", "y": 1}]}
    ).encode()
    (choice,) = json.loads(whole_answer("m", "mine", data)[0])["choices"]
    assert choice == {"index": 0, "message": wanted, "logprobs": None, "finish_reason": "stop", "y": 1}


def test_a_whole_answer_without_identity() -> None:
    given = json.loads(whole_answer("m", "mine", b'{"choices":[]}')[0])
    assert given["id"].startswith("chatcmpl-")
    assert isinstance(given["created"], int)
    assert (given["object"], given["model"]) == ("chat.completion", "mine")


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", errors.BackendUnavailable),
        (b"<html>", errors.BackendUnavailable),
        (b"[]", errors.BackendUnavailable),
        (b'{"choices":null}', errors.BackendUnavailable),
        (b'{"error":{"message":"no","code":400}}', errors.RequestRejected),
        (b'{"choices":[{"index":0,"message":{},"finish_reason":"abort"}]}', errors.BackendUnavailable),
    ],
)
def test_what_is_no_answer_raises(data: bytes, kind: type[errors.BackendError]) -> None:
    with pytest.raises(kind):
        whole_answer("m", "mine", data)


# Splicing


@pytest.mark.parametrize(
    "body",
    [
        '{"model":"a","x":1}',
        ' {\n "x" : {"m":["model is"]}, "model" :\t"a" }',
        '{"model":"a\\"b","x":"\\\\"}',
        '{"x":"is \\"model\\":\\"a\\" it","model":"a"}',
    ],
)
def test_a_model_is_spliced(body: str) -> None:
    spliced = with_model(body.encode(), b'"new"')
    assert spliced is not None
    assert json.loads(spliced) == {**json.loads(body), "model": "new"}


@pytest.mark.parametrize(
    "body",
    [
        '{"model":"a","model":"b"}',
        '{"model":"a","x":{"model":"b"}}',
        '{"x":["model"],"model":"a"}',
        '{"mod\\u0065l":"a","x":{"model":"b"}}',
    ],
)
def test_what_is_unclear_is_not_spliced(body: str) -> None:
    """A client must not get another model than the one that was checked."""
    assert with_model(body.encode(), b'"new"') is None


def test_fields_are_spliced() -> None:
    assert with_fields(b'  {"a":1}', {"b": {"c": True}, "d": "e"}) == b'  {"b":{"c":true},"d":"e","a":1}'
    assert with_fields(b'{"a":1,"b":null}', {"b": 2}) is None  # the last of two would win
    assert with_fields(b'{"\\u0062":null}', {"b": 2}) is None
