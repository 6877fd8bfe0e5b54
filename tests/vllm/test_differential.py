"""The same calls of the official client, to a real vLLM itself and through the gateway: the same answers, field by field.

Ids, times and the name of the model aside. What differs, and why, is listed in docs/vllm.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import httpx
import openai
import pytest
from served import gateway
from vllm_engines import KEY, Engine, bring_up

ASK: Any = [{"role": "user", "content": "Name three rivers. 请用中文。 😀"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"enum": ["Oslo", "京都"]}}, "required": ["city"]},
        },
    }
]
SCHEMA: Any = {
    "type": "object",
    "properties": {"n": {"enum": [1, 22]}},
    "required": ["n"],
    "additionalProperties": False,
}

CHAT: dict[str, dict[str, Any]] = {
    "plain": {},
    "sampled": {"temperature": 0.8, "top_p": 0.9, "seed": 3, "extra_body": {"top_k": 20, "min_p": 0.01}},
    "several": {"n": 3, "temperature": 1.0, "seed": 5},
    "stopped": {"stop": ["e"]},
    "no stops": {"stop": []},
    "penalties": {"frequency_penalty": 1.0, "presence_penalty": 0.5, "logit_bias": {"28": -100}},
    "logprobs alone": {"logprobs": True, "top_logprobs": 0},
    "newer name": {"max_tokens": None, "max_completion_tokens": 5},
    "parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": "there"}]}
        ]
    },
    "history": {
        "messages": [{"role": "system", "content": "Be brief."}, *ASK, {"role": "assistant", "content": "No."}, *ASK]
    },
    "schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}},
    "logprobs": {"logprobs": True, "top_logprobs": 2},
    "json": {"response_format": {"type": "json_object"}},
    "named tool": {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
    "forbidden tool": {"tools": TOOLS, "tool_choice": "none"},
    "token ids": {"extra_body": {"return_token_ids": True, "min_tokens": 3, "ignore_eos": True}},
    "unknown fields": {"extra_body": {"odd": {"x": [None, 1.5]}}, "user": "u", "metadata": {"a": "b"}},
}
COMPLETIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "several prompts": {"prompt": ["One, two,", "Red, 绿,"], "n": 2, "temperature": 1.0, "seed": 5},
    "stopped": {"stop": ["e"]},
    "echo": {"echo": True},
    "logprobs": {"logprobs": 0},
    "echoed logprobs": {"echo": True, "logprobs": 0},
    "token ids": {"prompt": [504, 253, 1024]},
    "penalties": {"frequency_penalty": 1.0, "logit_bias": {"28": -100}},
}
VOLATILE = {"id", "created", "model"}


@pytest.fixture(scope="module")
def both(
    servers: dict[str, Engine], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[openai.OpenAI, openai.OpenAI]]:
    """A client of the engine, and one of a gateway where both kinds of backends reach it."""
    engine = servers["smol"]
    bring_up([engine])
    url = engine.url
    config = f"""
models:
  smol: {{backend: openai, base_url: "{url}", api_key: "{KEY}"}}
  own: {{backend: vllm, urls: ["{url}"], model: smol, api_key: "{KEY}"}}
"""
    with (
        gateway(tmp_path_factory.mktemp("differential"), config) as through,
        openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=60) as bare,
    ):
        # From here on the prompt is in vLLM's cache for everybody, which moves log-probabilities a little.
        chat(bare, "smol", {})
        yield bare, through


def chat(client: openai.OpenAI, model: str, call: dict[str, Any], **more: Any) -> Any:
    return client.chat.completions.create(
        **{"model": model, "messages": ASK, "max_tokens": 10, "temperature": 0, **call, **more}
    )


def plain(answer: Any) -> Any:
    """As it was sent, without what is never twice the same."""
    return without(answer.model_dump(exclude_unset=True))


def without(value: Any) -> Any:
    """Log-probabilities vary a little with what shares a batch."""
    if isinstance(value, dict):
        kept = {key: without(each) for key, each in value.items() if key not in VOLATILE}
        if "function" in value and "id" in value:
            kept["id"] = bool(value["id"])  # of a tool call
        return kept
    if isinstance(value, list):
        return [without(each) for each in value]
    return pytest.approx(value, abs=0.1) if isinstance(value, float) else value


def joined(chunks: Iterable[Any]) -> dict[str, Any]:
    """What a stream says in all, however it is cut: vLLM sends as one chunk what was written while nobody took it."""
    shape: dict[str, set[str]] = {"chunk": set(), "choice": set(), "delta": set()}
    told: dict[str, Any] = {"choices": {}, "shape": shape, "models": set(), "ids": set()}
    for chunk in chunks:
        said = chunk.model_dump(exclude_unset=True)
        shape["chunk"] |= {key for key, value in said.items() if value is not None}
        told["ids"].add(said["id"])
        told["models"].add(said["model"])
        if said.get("usage"):
            told["usage"] = said["usage"]
            told["usage alone"] = said["choices"] == []
        for choice in said["choices"]:
            into = told["choices"].setdefault(
                choice["index"], {"text": "", "logprobs": [], "calls": "", "first": choice.get("delta")}
            )
            delta = choice.get("delta") or {}
            shape["choice"] |= {key for key, value in choice.items() if value is not None}
            shape["delta"] |= delta.keys()
            into["text"] += delta.get("content") or ""
            for call in delta.get("tool_calls") or []:
                into["calls"] += (call["function"].get("name") or "") + (call["function"].get("arguments") or "")
            probs = choice.get("logprobs") or {}
            into["logprobs"] += without(probs.get("content") or [])
            if choice.get("finish_reason"):
                assert "finish" not in into
                into["finish"] = (choice["finish_reason"], choice.get("stop_reason"))
    told["ids"] = len(told["ids"])
    return told


@pytest.mark.parametrize("model", ["smol", "own"])
@pytest.mark.parametrize("name", CHAT)
def test_chat(both: tuple[openai.OpenAI, openai.OpenAI], name: str, model: str) -> None:
    bare, through = both
    found = chat(through, model, CHAT[name])
    assert plain(found) == plain(chat(bare, "smol", CHAT[name]))
    assert found.model == model


@pytest.mark.parametrize("name", CHAT)
def test_streamed_chat(both: tuple[openai.OpenAI, openai.OpenAI], name: str) -> None:
    bare, through = both
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    found = joined(chat(through, "smol", CHAT[name], **usage))
    assert found == joined(chat(bare, "smol", CHAT[name], **usage))
    assert found["usage alone"]
    unasked = joined(chat(through, "smol", CHAT[name], stream=True))
    assert "usage" not in unasked
    assert unasked["choices"] == found["choices"]


def completion(client: openai.OpenAI, model: str, call: dict[str, Any], **more: Any) -> Any:
    return client.completions.create(
        **{"model": model, "prompt": "One, two, three,", "max_tokens": 8, "temperature": 0, **call, **more}
    )


@pytest.mark.parametrize("model", ["smol", "own"])
@pytest.mark.parametrize("name", COMPLETIONS)
def test_completions(both: tuple[openai.OpenAI, openai.OpenAI], name: str, model: str) -> None:
    bare, through = both
    found = completion(through, model, COMPLETIONS[name])
    assert plain(found) == plain(completion(bare, "smol", COMPLETIONS[name]))
    assert found.model == model


@pytest.mark.parametrize("name", COMPLETIONS)
def test_streamed_completions(both: tuple[openai.OpenAI, openai.OpenAI], name: str) -> None:
    bare, through = both
    told = []
    for client in (through, bare):
        texts: dict[int, str] = {}
        ends: dict[int, Any] = {}
        usage = None
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        for chunk in completion(client, "smol", COMPLETIONS[name], **stream):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                texts[choice.index] = texts.get(choice.index, "") + choice.text
                if choice.finish_reason:
                    assert choice.index not in ends
                    ends[choice.index] = choice.finish_reason, (choice.model_extra or {}).get("stop_reason")
        assert usage is not None
        told.append((texts, ends, usage.model_dump(exclude_unset=True)))
    assert told[0] == told[1]


@pytest.mark.parametrize("path", ["tokenize", "detokenize"])
def test_tokens(both: tuple[openai.OpenAI, openai.OpenAI], path: str) -> None:
    body = {
        "tokenize": {"prompt": "One, 二 🎂", "add_special_tokens": False},
        "detokenize": {"tokens": [504, 253, 1024]},
    }
    told = []
    for client in both:
        url = str(client.base_url).removesuffix("v1/") + path
        told.append(client.post(url, cast_to=httpx.Response, body={"model": "smol", **body[path]}).json())
    assert told[0] == told[1]


@pytest.mark.parametrize(
    "call",
    [
        {"max_tokens": 100_000},
        {"messages": [{"role": "user", "content": "word " * 20_000}]},
        {"messages": []},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "nope"}}}},
        {"extra_body": {"top_k": -7}},
        {"tool_choice": {"type": "function", "function": {"name": "nobody"}}, "tools": TOOLS},
    ],
    ids=lambda call: next(iter(call)),
)
def test_errors(both: tuple[openai.OpenAI, openai.OpenAI], call: dict[str, Any]) -> None:
    """The same exception of the client's."""
    kinds = []
    for client in both:
        with pytest.raises(openai.APIStatusError) as caught:
            chat(client, "smol", call)
        assert caught.value.message
        kinds.append((type(caught.value), caught.value.status_code))
    assert kinds[0] == kinds[1]
