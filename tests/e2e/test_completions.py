"""Text completions through the official client: handed to a server that has them, read raw by a model here, as a message by wirings."""

from __future__ import annotations

import itertools
import re
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from served import KEY, gateway, upstream

CONFIG = """
models:
  far: {{backend: openai, base_url: "{far}", model: far}}
  engine: {{backend: vllm, urls: ["{far}"], model: far}}
  slow: {{backend: openai, base_url: "{slow}", model: slow}}
  plain: {{backend: openai, base_url: "{plain}"}}
  a: {{backend: fake, answer: "{{last}} and so on."}}
  b: {{backend: fake, answer: "{{last}} and so forth."}}
aliases:
  continued: {{expression: far}}
  duo: {{expression: "s2p:a>a|b"}}
server: {{keepalive_seconds: 0.3}}
"""
NATIVE = ["far", "engine", "continued"]
ALL = [*NATIVE, "a", "a>b", "a|b", "p2s:a|b>a", "duo", "a>far"]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    folder = tmp_path_factory.mktemp("completions")
    with (
        upstream(folder, "far", "--answer", "{last} and so on.") as far,
        upstream(
            folder, "slow", "--answer", "one two three four five six seven eight nine ten", "--delay", "0.1"
        ) as slow,
        upstream(folder, "plain", "--dialect", "plain") as plain,
        gateway(folder, CONFIG.format(far=far, slow=slow, plain=plain)) as client,
    ):
        yield client


@pytest.mark.parametrize("model", ALL)
def test_whole_and_streamed_answers_agree(client: openai.OpenAI, model: str) -> None:
    """drop-in 3, 5, 7, 16, 34."""
    whole = client.completions.create(model=model, prompt="Once upon 是的 😀", max_tokens=200)
    chunks = list(
        client.completions.create(
            model=model, prompt="Once upon 是的 😀", max_tokens=200, stream=True, stream_options={"include_usage": True}
        )
    )
    assert whole.model == model
    assert {chunk.model for chunk in chunks} == {model}
    assert len({chunk.id for chunk in chunks}) == 1
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == whole.choices[0].text != ""
    ends = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert ends == [whole.choices[0].finish_reason] == ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens > 0


@pytest.mark.parametrize("model", [*NATIVE, "a"])
def test_a_single_model_continues_the_prompt_itself(client: openai.OpenAI, model: str) -> None:
    """drop-in 16: lists, echo, token ids, n."""
    answers = client.completions.create(model=model, prompt=["One", "Two"], n=2, echo=True).choices
    assert [c.text for c in answers] == ["OneOne and so on."] * 2 + ["TwoTwo and so on."] * 2
    root = str(client.base_url).removesuffix("/v1/")
    ids: Any = client.post(f"{root}/tokenize", body={"model": model, "prompt": "Two"}, cast_to=object)
    by_ids = client.completions.create(model=model, prompt=[ids["tokens"]]).choices
    assert [c.text for c in by_ids] == ["Two and so on."]


@pytest.mark.parametrize("fields", [{}, {"echo": True, "logprobs": 2}, {"n": 2, "stop": "so"}, {"max_tokens": 3}])
@pytest.mark.parametrize("model", NATIVE)
def test_what_is_not_handed_on_as_it_came_says_the_same(client: openai.OpenAI, model: str, fields: Any) -> None:
    """Through the engine, where a request holds something of ours; by ids too."""
    root = str(client.base_url).removesuffix("/v1/")
    ids: Any = client.post(f"{root}/tokenize", body={"model": model, "prompt": "One"}, cast_to=object)
    for prompt in ("One", ids["tokens"], ["One", "Two"]):
        forwarded = client.completions.create(model=model, prompt=prompt, **fields)
        ours = client.completions.create(model=model, prompt=prompt, **fields, extra_body={"modelnet": {}})
        assert [c.to_dict() for c in ours.choices] == [c.to_dict() for c in forwarded.choices]
        assert ours.usage is not None
        assert forwarded.usage is not None
        assert ours.usage.completion_tokens == forwarded.usage.completion_tokens


@pytest.mark.parametrize("model", [*NATIVE, "a"])
def test_logprobs(client: openai.OpenAI, model: str) -> None:
    """drop-in 16: the older form, of the echoed prompt too."""
    (choice,) = client.completions.create(model=model, prompt="One", echo=True, logprobs=2, max_tokens=3).choices
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None
    assert choice.logprobs.token_logprobs is not None
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.token_logprobs[0] is None
    assert all(value < 0 for value in choice.logprobs.token_logprobs[1:])


@pytest.mark.parametrize("model", ["far", "a", "a>b"])
def test_refusals(client: openai.OpenAI, model: str) -> None:
    """drop-in 16, 24."""
    for field, value in {"suffix": "end", "best_of": 2, "n": 0, "logprobs": 9, "prompt": [[]]}.items():
        with pytest.raises(openai.BadRequestError) as refused:
            client.completions.create(model=model, **{"prompt": "One", field: value})  # type: ignore[arg-type]
        assert (refused.value.param or "").startswith(field)


def test_a_server_without_completions_is_a_404(client: openai.OpenAI) -> None:
    for stream, ours in itertools.product((True, False), ({}, {"modelnet": {}})):
        with pytest.raises(openai.NotFoundError) as missing:
            client.completions.create(model="plain", prompt="One", stream=stream, extra_body=ours)
        assert (missing.value.code, missing.value.param) == ("unsupported_endpoint", "model")


def test_the_first_token_comes_before_the_last_is_written(client: openai.OpenAI) -> None:
    """drop-in 11."""
    times = [time.monotonic() for _ in client.completions.create(model="slow", prompt="One", stream=True)]
    assert times[-1] - times[0] > 0.4


@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_client_that_leaves_frees_everything(client: openai.OpenAI, stream: str) -> None:
    """drop-in 30: of a request that was handed on."""
    parts = urlsplit(str(client.base_url))
    body = f'{{"model": "slow", "prompt": "One", "stream": {stream}}}'
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
    with socket.create_connection((parts.hostname, parts.port), timeout=5) as sock:
        sock.sendall(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
        until(lambda: active(client) == 1)
        time.sleep(0.2)
    left = time.monotonic()
    until(lambda: active(client) == 0)
    assert time.monotonic() - left < 0.5


def active(client: openai.OpenAI) -> float:
    root = str(client.base_url).removesuffix("/v1/")
    text: Any = client.get(f"{root}/metrics", cast_to=str)
    found = re.search(r"^modelnet_active_requests ([0-9.]+)$", text, re.MULTILINE)
    assert found is not None
    return float(found[1])


def until(condition: Any) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
