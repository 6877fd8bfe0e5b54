"""Choices, sampling and log-probabilities: lines 12 to 15, 17 and 18."""

from __future__ import annotations

import math
from typing import Any

import pytest
from inprocess import GROUPS, PATHS, TEXT, WIRINGS, Gateway, Reply

OURS = [wiring for wiring in WIRINGS.values() if "far" not in wiring]
LONG: Any = [{"role": "user", "content": "count"}]


@pytest.mark.parametrize("wiring", OURS)
def test_several_choices(gateway: Gateway, wiring: str) -> None:
    """drop-in 12: 0 to n-1, side by side when streamed."""
    whole = gateway.chat(wiring, n=3).json()
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in whole["choices"]} == {TEXT}
    reply = gateway.chat(wiring, n=3, stream=True, messages=LONG, max_tokens=30)
    order = [choice["index"] for chunk in reply.chunks() for choice in chunk["choices"]]
    assert set(order) == {0, 1, 2}
    assert order != sorted(order)
    assert len({reply.content(index) for index in range(3)}) == 1


@pytest.mark.parametrize("wiring", PATHS)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("n", 10_000),
        ("temperature", -1),
        ("temperature", 2.1),
        ("top_p", -0.1),
        ("top_p", 1.1),
        ("min_p", 2),
        ("top_logprobs", 21),
        ("top_logprobs", -1),
        ("frequency_penalty", 3),
        ("presence_penalty", -3),
        ("logit_bias", {"5": 101}),
        ("logit_bias", {"word": 1}),
        ("max_tokens", 0),
        ("stop", ["a", "b", "c", "d", "e"]),
        ("stop", "x" * 513),
    ],
)
def test_out_of_range_is_400(gateway: Gateway, wiring: str, field: str, value: Any) -> None:
    """drop-in 12, 13, 15, 17."""
    reply = gateway.chat(wiring, logprobs=True, **{field: value})
    assert (reply.status, reply.error["param"]) == (400, field)


@pytest.mark.parametrize("wiring", OURS)
@pytest.mark.parametrize("stream", [True, False])
def test_stop(gateway: Gateway, wiring: str, stream: bool) -> None:
    """drop-in 13: string, list, `[]` or null; over the borders of tokens and deltas; never emitted."""
    for stop, expected in (
        ("的 😀, b", "Answer: 是"),
        (["zzz", " because", "so"], "Answer: 是的 😀,"),
        ([], TEXT),
        (None, TEXT),
        ("", TEXT),
    ):
        reply = gateway.chat(wiring, stop=stop, stream=stream)
        assert _content(reply, stream) == expected
        assert _reason(reply, stream) == "stop"


@pytest.mark.parametrize("wiring", OURS)
@pytest.mark.parametrize("stream", [True, False])
def test_budgets(gateway: Gateway, wiring: str, stream: bool) -> None:
    """drop-in 14: the newer name wins; cut text ends with `length`."""
    for fields in ({"max_tokens": 3}, {"max_completion_tokens": 3}, {"max_tokens": 50, "max_completion_tokens": 3}):
        reply = gateway.chat(wiring, messages=LONG, stream=stream, **fields)
        assert _reason(reply, stream) == "length"
        assert 0 < len(_content(reply, stream)) < 20


def test_budgets_of_the_stages_before(gateway: Gateway) -> None:
    """drop-in 14: they have one of their own (`limits.stage_max_tokens`), the request's is the answer's."""
    stages = gateway.chat("a>b", messages=LONG, max_tokens=3).json()["modelnet"]["stages"]
    assert stages[0]["usage"]["completion_tokens"] > 3
    assert stages[1]["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("wiring", GROUPS)
def test_a_seed_makes_answers_repeatable(gateway: Gateway, wiring: str) -> None:
    """drop-in 15: drawn at random, yet the same; another seed gives another answer."""

    def asked(seed: int) -> list[str]:
        reply = gateway.chat(wiring, temperature=2, seed=seed, n=2, messages=LONG, max_tokens=40)
        return [choice["message"]["content"] for choice in reply.json()["choices"]]

    first = asked(7)
    assert asked(7) == first
    assert first[0] != first[1]
    assert asked(8) != first


@pytest.mark.parametrize("wiring", GROUPS)
def test_penalties_and_biases_change_what_a_group_says(gateway: Gateway, wiring: str) -> None:
    """drop-in 15: honoured."""
    plain = gateway.chat(wiring).json()["choices"][0]["message"]["content"]
    banned = [str(id) for id in gateway.backends["a"].model.encode(b"because so.")]
    for fields in (
        {"frequency_penalty": 2, "presence_penalty": 2, "messages": LONG, "max_tokens": 60},
        {"logit_bias": dict.fromkeys(banned, -100)},
    ):
        told = gateway.chat(wiring, **fields)
        assert told.status == 200
        without = {key: value for key, value in fields.items() if key in ("messages", "max_tokens")}
        assert told.json()["choices"][0]["message"]["content"] != (
            gateway.chat(wiring, **without).json()["choices"][0]["message"]["content"] if without else plain
        )


@pytest.mark.parametrize(
    ("wiring", "fields", "param"),
    [
        ("text", {"logprobs": True}, "logprobs"),
        ("a>text", {"logit_bias": {"5": 1}}, "logit_bias"),
        ("text", {"min_p": 0.5}, "min_p"),
        ("a", {"frequency_penalty": 1}, "frequency_penalty"),
        ("a>b", {"presence_penalty": 1}, "presence_penalty"),
        ("a|b", {"repetition_penalty": 1.3}, "repetition_penalty"),
        ("a>b", {"top_k": 5}, "top_k"),
        ("a|b", {"modelnet": {"fuser": "none"}}, "modelnet.fuser"),
        ("a>b", {"modelnet": {"record": True}}, "modelnet.record"),
    ],
)
def test_what_a_wiring_cant_honour_is_refused(
    gateway: Gateway, wiring: str, fields: dict[str, Any], param: str
) -> None:
    """drop-in 15, 18: a 400 that names the field and says why, before any model is asked."""
    opened = sum(backend.counters.opened for backend in gateway.backends.values())
    reply = gateway.chat(wiring, **fields)
    assert (reply.status, reply.error["param"], reply.error["code"]) == (400, param, "unsupported_parameter")
    assert len(reply.error["message"]) > 20
    assert sum(backend.counters.opened for backend in gateway.backends.values()) == opened


def test_sampling_reaches_the_server_that_honours_it(gateway: Gateway) -> None:
    """drop-in 15: alone, and at the end of a chain."""
    fields = {"seed": 3, "frequency_penalty": 0.5, "presence_penalty": 0.25, "logit_bias": {"5": 1}, "top_k": 4}
    for wiring in ("far", "a>far"):
        assert gateway.chat(wiring, **fields).status == 200
        assert gateway.scripted.requests[-1].items() >= fields.items()


@pytest.mark.parametrize("wiring", WIRINGS.values())
def test_logprobs_are_null_when_off(gateway: Gateway, wiring: str) -> None:
    """drop-in 17."""
    assert gateway.chat(wiring).json()["choices"][0].get("logprobs") is None
    assert all(choice.get("logprobs") is None for choice in gateway.chat(wiring, stream=True).choices())


@pytest.mark.parametrize("wiring", WIRINGS.values())
@pytest.mark.parametrize("top", [0, 3])
def test_logprobs(gateway: Gateway, wiring: str, top: int) -> None:
    """drop-in 17, 18: whole and streamed alike; the tokens join to the text; a group's are the pooled ones."""
    whole = gateway.chat(wiring, logprobs=True, top_logprobs=top).json()["choices"][0]
    told = whole["logprobs"]
    assert told["refusal"] is None
    text = b"".join(bytes(entry["bytes"]) for entry in told["content"])
    assert (
        text.decode() == whole["message"]["content"] == gateway.chat(wiring).json()["choices"][0]["message"]["content"]
    )
    for entry in told["content"]:
        assert set(entry) == {"token", "bytes", "logprob", "top_logprobs"}
        assert entry["logprob"] <= 1e-9
        assert len(entry["top_logprobs"]) <= top
        assert (entry["top_logprobs"] == []) == (top == 0)
        for other in entry["top_logprobs"]:
            assert set(other) == {"token", "bytes", "logprob"}
        values = [other["logprob"] for other in entry["top_logprobs"]]
        assert values == sorted(values, reverse=True)
    reply = gateway.chat(wiring, logprobs=True, top_logprobs=top, stream=True)
    streamed = [
        entry for choice in reply.choices() if choice.get("logprobs") for entry in choice["logprobs"]["content"]
    ]
    assert streamed == told["content"]


@pytest.mark.parametrize("wiring", GROUPS)
def test_a_groups_logprobs_are_probabilities_of_the_pool(gateway: Gateway, wiring: str) -> None:
    """drop-in 18: greedy, the piece that is said leads the list, and the list's mass is at most one."""
    content = gateway.chat(wiring, logprobs=True, top_logprobs=5).json()["choices"][0]["logprobs"]["content"]
    for entry in content:
        first = entry["top_logprobs"][0]
        assert (first["bytes"], first["logprob"]) == (entry["bytes"], entry["logprob"])
        assert sum(math.exp(other["logprob"]) for other in entry["top_logprobs"]) <= 1 + 1e-9


def _content(reply: Reply, stream: bool) -> str:
    return reply.content() if stream else reply.json()["choices"][0]["message"]["content"]


def _reason(reply: Reply, stream: bool) -> str:
    choices = reply.choices() if stream else reply.json()["choices"]
    return choices[-1]["finish_reason"]
