"""Text completions, embeddings and tokens of a server, behind the generic HTTP backend."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from aiohttp import web
from upstream import DONE, server, writes

from backends import errors
from backends.fake import FakeBackend, FakeSettings
from backends.fake.server import FakeServer
from backends.openai_http import OpenAIHTTPBackend, OpenAIHTTPSettings
from backends.openai_http.relay import Relay
from backends.openai_http.settings import OpenAIHTTPSettings as Settings
from backends.openai_http.texts import text_body
from backends.protocol import EmbeddingBackend, TokenizerBackend
from backends.raw import is_raw, raw_ids, raw_prompt, raw_text
from backends.types import Message, Sampling, TextDelta, TextEnd, TextEvent, TextRequest, Usage
from backends.vllm import VLLMBackend, VLLMSettings

pytestmark = pytest.mark.anyio

SETTINGS = Settings("http://127.0.0.1:9/v1", max_tokens_field="max_completion_tokens", extra_body={"only": "chat"})


def text(said: str = "", finish: str | None = None, logprobs: Any = None, **fields: Any) -> bytes:
    choice = {"index": 0, "text": said, "logprobs": logprobs, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice], **fields}, ensure_ascii=False).encode() + b"\n\n"


async def read(backend: OpenAIHTTPBackend, request: TextRequest | None = None) -> list[TextEvent]:
    async with backend.stream(request or TextRequest(raw_text("Once"))) as events:
        return [event async for event in events]


def test_raw_prompts_are_no_conversations() -> None:
    assert raw_ids(raw_prompt([1, 2])) == (1, 2)
    assert raw_ids(raw_text("x")) is None
    assert is_raw(raw_text("x"))
    assert not is_raw((Message("user", "x"),))
    assert not is_raw((*raw_text("x"), *raw_text("x")))


def test_bodies_speak_of_completions_as_completions_do() -> None:
    sampling = Sampling(max_tokens=5, temperature=0.5, stop=("x",))
    extra = {"logprobs": True, "top_logprobs": 3, "echo": True, "user": "u"}
    body = text_body("there", SETTINGS, TextRequest(raw_text("Once"), sampling, extra))
    assert body == {
        "model": "there",
        "prompt": "Once",
        "max_tokens": 5,
        "temperature": 0.5,
        "stop": ["x"],
        "logprobs": 3,
        "echo": True,
        "user": "u",
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    by_ids = text_body("there", SETTINGS, TextRequest(raw_prompt([7, 8]), Sampling(), {"only": "mine"}))
    assert (by_ids["prompt"], by_ids["only"]) == ([7, 8], "mine")
    assert "max_tokens" not in by_ids


async def test_streams_of_text() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    told = {
        "tokens": ["One", "bytes:\\xe6\\x98"],
        "token_logprobs": [None, -0.5],
        "top_logprobs": [None, {"x": -2.0, "y": -1.0}],
    }
    parts = [text("One "), text("two", logprobs=told), text("", "length"), text(usage=usage, choices=[]), DONE]
    async with server(writes(*parts)) as backend:
        *deltas, end = await read(backend)
    assert [delta.text for delta in deltas if isinstance(delta, TextDelta)] == ["One ", "two"]
    assert isinstance(deltas[1], TextDelta)
    first, second = deltas[1].tokens
    assert (first.text, first.logprob, first.top) == (b"One", 0.0, ())
    assert (second.text, second.logprob, second.top) == (b"\xe6\x98", -0.5, ((b"y", -1.0), (b"x", -2.0)))
    assert end == TextEnd("length", Usage(3, 2))


@pytest.mark.parametrize(
    "parts",
    [
        [text("One ")],
        [text("One "), b'data: {"error": {"message": "boom"}}\n\n'],
        [text("One ", "abort"), DONE],
        [b'data: {"choices": [{"text": "x", "logprobs": {"tokens": 7}}]}\n\n', DONE],
        [b"data: 7\n\n", DONE],
    ],
)
async def test_streams_of_text_that_break(parts: list[bytes]) -> None:
    """drop-in 10."""
    async with server(writes(*parts)) as backend:
        with pytest.raises(errors.BackendUnavailable):
            await read(backend)


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_servers_without_the_route(status: int) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"detail": "Not Found"}, status=status)

    async with server(handler) as backend:
        with pytest.raises(errors.CapabilityMissing, match="no text completions"):
            await read(backend)
        with pytest.raises(errors.BackendError) as chat:
            await read(backend, TextRequest((Message("user", "Hi"),)))
        assert not isinstance(chat.value, errors.CapabilityMissing)
        with pytest.raises(errors.CapabilityMissing, match="no embeddings"):
            await backend.embed({"input": "x"})
        with pytest.raises(errors.CapabilityMissing, match="tokens"):
            await backend.tokenize({"prompt": "x"})


async def test_a_model_that_is_not_for_embeddings() -> None:
    """vLLM has the route, and says so of the model."""

    async def handler(request: web.Request) -> web.Response:
        message = "The model does not support Embeddings API"
        return web.json_response({"error": {"message": message, "code": 400}}, status=400)

    async with server(handler) as backend:
        with pytest.raises(errors.CapabilityMissing):
            await backend.embed({"input": "x"})


@pytest.mark.parametrize("answer", ["[]", "7", "not json", '{"error": {"message": "boom"}}'])
async def test_answers_that_are_none(answer: str) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(text=answer, content_type="application/json")

    async with server(handler) as backend:
        with pytest.raises(errors.BackendUnavailable):
            await backend.embed({"input": "x"})


async def test_the_servers_name_and_key_go_with_the_question() -> None:
    """drop-in 32: and nothing else of ours."""
    fake = FakeBackend("there", FakeSettings())
    async with FakeServer(fake, key="sk-upstream") as upstream:
        for backend in (
            OpenAIHTTPBackend("m", OpenAIHTTPSettings(upstream.base_url, model="there", api_key="sk-upstream")),
            VLLMBackend("m", VLLMSettings((upstream.base_url,), model="there", api_key="sk-upstream")),
        ):
            assert isinstance(backend, EmbeddingBackend)
            assert isinstance(backend, TokenizerBackend)
            found = await backend.embed({"input": ["x", "y"], "dimensions": 3})
            assert [len(item["embedding"]) for item in found["data"]] == [3, 3]
            ids = (await backend.tokenize({"prompt": "Hi 中国"}))["tokens"]
            assert await backend.detokenize({"tokens": ids}) == {"prompt": "Hi 中国"}
            assert backend.admitted == 0
            await backend.aclose()
        sent: list[Mapping[str, Any]] = [body for _, body in upstream.requests]
        assert {body["model"] for body in sent} == {"there"}
        assert sent[0] == {"model": "there", "input": ["x", "y"], "dimensions": 3}


async def test_another_server_answers_for_one_that_is_gone() -> None:
    async with FakeServer(FakeBackend("there")) as upstream:
        gone = "http://127.0.0.1:9/v1"
        backend = VLLMBackend("m", VLLMSettings((gone, upstream.base_url), model="there"))
        for _ in range(3):
            assert (await backend.embed({"input": "x"}))["data"]
        assert backend.loads == [0, 0]
        await backend.aclose()


async def test_only_one_that_is_gone_is_an_error() -> None:
    backend = VLLMBackend("m", VLLMSettings(("http://127.0.0.1:9/v1",), model="there"))
    with pytest.raises(errors.BackendUnavailable):
        await backend.embed({"input": "x"})
    assert backend.admitted == 0
    await backend.aclose()


# Handed on


def test_relayed_text_keeps_its_form() -> None:
    """drop-in 3, 4: no roles are put in, and what breaks off is no success."""
    relay = Relay("m", "shown", 2, "no")
    head = {"id": "x", "object": "text_completion", "created": 1, "model": "there"}

    def chunk(index: int, said: str, finish: str | None = None) -> bytes:
        choice = {"index": index, "text": said, "logprobs": None, "finish_reason": finish}
        return b"data: " + json.dumps({**head, "choices": [choice]}).encode() + b"\n\n"

    given = relay.feed(chunk(0, "One")) + relay.feed(chunk(1, "Two"))
    values = [json.loads(event.removeprefix(b"data: ")) for event in given.split(b"\n\n") if event]
    assert [value["choices"][0]["text"] for value in values] == ["One", "Two"]
    assert all(value["model"] == "shown" and "delta" not in value["choices"][0] for value in values)
    assert relay.wrote
    relay.feed(chunk(0, "", "stop"))
    assert relay.finish() == b""
    assert relay.failure is not None
