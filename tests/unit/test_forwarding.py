"""Requests for one model with a server of its own, handed on as they came: the whole edge in front of servers on the loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from edge import CHAT, Edge, question
from forwarding_house import ANSWER, CLIENT_KEY, DONE, ROLE, SPENT, STOP, UPSTREAM_KEY, chunk, house, silent

from backends.catalog import Entry
from backends.errors import BackendUnavailable
from backends.fake import FakeBackend, FakeSettings
from backends.protocol import Forwarded
from backends.types import ForwardRequest
from backends.vllm import VLLMBackend
from gateway.app import Application
from gateway.runtime import open_runtime
from gateway.settings import Loaded, Settings
from gateway.settings.source import Source
from gateway.wire.completions import check_text_forwardable
from gateway.wire.decode import RequestLimits
from gateway.wire.errors import APIError

pytestmark = pytest.mark.anyio


# As it came


async def test_a_whole_answer(logged: list[dict[str, Any]]) -> None:
    """drop-in 3, 23, 29, 34: fields that nobody here knows pass in both directions; the facts are in a header, metrics and the log."""
    async with house() as h:
        sent = b'{ "model" :"a","messages":[{"role":"critic","content":"Why?","z":1}], "top_k":5,"odd": {"x": [null, 1.50]} }'
        reply = await h.call("POST", CHAT, sent)
        assert reply.status == 200
        assert reply.json() == {**ANSWER, "model": "a"}
        assert (reply.header("content-type"), reply.header("x-modelnet-wiring")) == ("application/json", "a")
        assert h.upstream.bodies == [sent.replace(b'"a"', b'"up"')]
        (line,) = [line for line in logged if line["event"] == "request"]
        assert (line["model"], line["shape"], line["kind"], line["status"]) == ("a", "single", "json", 200)
        assert (line["prompt_tokens"], line["completion_tokens"]) == (3, 2)
        assert line["request_id"] == reply.header("x-request-id")
        metrics = h.app.metrics.text().decode()
        assert 'modelnet_requests_total{kind="json",shape="single",status="200"} 1.0' in metrics
        assert 'modelnet_tokens_total{direction="completion",model="a"} 2.0' in metrics
        assert h.settled()


async def test_who_drafts_on_the_same_model_knows_that_it_is_shared() -> None:
    async with house() as h:
        times = h.runtime.catalog["a"].times
        usual, seen = h.upstream.behaviour, []

        async def looks(*asked: Any) -> Any:
            seen.append(times.sharing)
            return await usual(*asked)

        h.upstream.behaviour = looks
        for stream in (False, True):
            assert (await h.chat(stream=stream)).status == 200
        assert seen == [1, 1] and times.sharing == 0


@pytest.mark.parametrize("options", [None, {"include_usage": True}, {"include_usage": False, "z": 1}])
async def test_a_stream(options: Any, logged: list[dict[str, Any]]) -> None:
    """drop-in 1, 2, 3, 5: chunk by chunk as the server wrote them; usage is always asked for, and told only where it was asked for."""
    async with house() as h:
        reply = await h.chat(stream=True, stream_options=options)
        assert reply.status == 200
        assert reply.header("cache-control") == "no-cache"
        assert reply.header("x-accel-buffering") == "no"
        expected = [ROLE, chunk({"content": "h"}), chunk({"content": "i"}, token_ids=[7]), STOP]
        expected += [SPENT] * bool(options and options["include_usage"])
        assert reply.body == b"".join([*expected, DONE]).replace(b'"up"', b'"a"')
        assert h.upstream.body["stream_options"] == {**(options or {}), "include_usage": True}
        (line,) = [line for line in logged if line["event"] == "request"]
        assert (line["kind"], line["completion_tokens"]) == ("stream", 2)
        assert line["first_token_ms"] <= line["ms"]
        assert h.settled()


async def test_what_the_server_is_asked() -> None:
    """drop-in 14, 25, 32: the settings' own fields, one name for the budget, no `stream_options` without a stream, our key only."""
    async with house({"extra_body": {"top_k": 3, "seed": 1}}, keys=[CLIENT_KEY]) as h:
        headers = {"authorization": f"Bearer {CLIENT_KEY}", "x-request-id": "mine", "openai-organization": "o"}
        fields = {
            "stream_options": {"include_usage": True},
            "max_completion_tokens": 5,
            "max_tokens": 9,
            "seed": None,
            "top_k": 4,
        }
        reply = await h.call("POST", CHAT, question(user="u", **fields), headers)
        assert reply.status == 200
        asked = h.upstream.body
        assert asked == {**question("up"), "user": "u", "max_tokens": 5, "seed": 1, "top_k": 4}
        assert h.upstream.headers[0]["Authorization"] == f"Bearer {UPSTREAM_KEY}"
        assert CLIENT_KEY not in repr(h.upstream.headers)
        assert "mine" not in repr(h.upstream.headers)
        assert reply.header("x-request-id") == "mine"


@pytest.mark.parametrize("include", [True, False])
async def test_a_server_that_refuses_stream_options(include: bool) -> None:
    async with house({"include_usage": include}) as h:
        assert (await h.chat(stream=True, stream_options={"include_usage": True})).status == 200
        assert ("stream_options" in h.upstream.body) == include


async def test_tools_formats_and_choices_are_the_servers() -> None:
    """drop-in 12, 19, 20, 22: what a server of OpenAI's API honours is handed to it."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    async with house() as h:
        body = question(
            tools=tools, tool_choice="auto", response_format={"type": "json_object"}, n=2, logprobs=True, top_logprobs=2
        )
        assert (await h.call("POST", CHAT, body)).status == 200
        assert h.upstream.body == {**body, "model": "up"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b"", None),
        (question(model=...), "model"),
        (question(model=3), "model"),
        (question(messages=...), "messages"),
        (question(messages=None), "messages"),
        (question(messages=[]), "messages"),
        (question(messages="hi"), "messages"),
        (question(messages=[1]), "messages[0]"),
        (question(messages=[{"content": "x"}]), "messages[0].role"),
        (question(messages=[{"role": "user"}]), "messages[0].content"),
        (question(messages=[{"role": "user", "content": 1}]), "messages[0].content"),
        (question(messages=[{"role": "user", "content": [1]}]), "messages[0].content[0]"),
        (question(messages=[{"role": "user", "content": "a\x00b"}]), "messages[0].content"),
        (question(stream="yes"), "stream"),
        (question(stream=True, stream_options=[]), "stream_options"),
        (question(n=0), "n"),
        (question(n=10_000), "n"),
        (question(temperature=3), "temperature"),
        (question(temperature="hot"), "temperature"),
        (question(top_logprobs=21), "top_logprobs"),
        (question(max_tokens=0), "max_tokens"),
        (question(stop=[1]), "stop"),
        (question(logit_bias={"x": 1}), "logit_bias"),
    ],
)
async def test_what_is_wrong_goes_nowhere(body: Any, param: str | None) -> None:
    """drop-in 24: 400 with the field's name, before the server hears of it."""
    async with house() as h:
        reply = await h.call("POST", CHAT, body)
        assert (reply.status, reply.error["param"]) == (400, param)
        assert not h.upstream.bodies
        assert h.settled()


async def test_what_only_a_server_knows_goes_there() -> None:
    """drop-in 23: roles and parts that we do not know."""
    parts = [{"type": "video_url", "video_url": {"url": "x"}}, {"type": "text", "text": "see"}]
    messages = [{"role": "narrator", "content": parts}, {"role": "assistant", "content": None}]
    async with house() as h:
        assert (await h.chat(messages=messages)).status == 200
        assert h.upstream.body["messages"] == messages


# Which requests


ALIASES = {
    "short": {"expression": "a"},
    "bounded": {"expression": "a", "max_tokens": 7},
    "told": {"expression": "a", "prompts": "mine"},
    "twice": {"expression": "a>a"},
}


@pytest.mark.parametrize(
    ("model", "more", "raw"),
    [
        ("a", {}, True),
        (" a ", {}, True),
        ("short", {}, True),
        ("bounded", {}, True),
        ("told", {}, False),
        ("twice", {}, False),
        ("a", {"modelnet": {}}, False),
    ],
)
async def test_which_requests_are_handed_on(model: str, more: Any, raw: bool, tmp_path: Path) -> None:
    """All others take the way through the engine, which always streams from the server."""
    file = tmp_path / "prompts.yaml"
    file.write_text("single: {solver: 'Think. {question}'}", encoding="utf-8")
    async with house(aliases=ALIASES, prompts={"mine": str(file)}) as h:
        reply = await h.chat(model, **more)
        assert reply.status == 200
        assert reply.json()["model"] == model
        assert (reply.header("x-modelnet-wiring") == "a") == raw
        assert ("modelnet" in reply.json()) == (not raw)
        if raw:
            assert h.upstream.body.get("max_tokens") == (7 if model == "bounded" else None)
        if model == "told":
            assert h.upstream.body["messages"][0]["content"] == "Think. Why?"


class Both(FakeBackend):
    """Hands requests on, and opens token sessions too, as models on vLLM do."""

    @asynccontextmanager
    async def forward(self, request: ForwardRequest) -> AsyncIterator[Forwarded]:
        raise BackendUnavailable("a", "handed on")
        yield


@pytest.mark.parametrize(
    ("model", "limit", "more", "raw"),
    [
        ("ahead", "auto", {"temperature": 0}, False),
        ("ahead", "auto", {"temperature": 0, "stream": True}, False),
        ("ahead", "auto", {"temperature": 0.5}, True),
        ("ahead", "auto", {}, True),
        ("a", "auto", {"temperature": 0}, True),
        ("a", "on", {"temperature": 0}, False),
        ("a", "always", {"temperature": 0}, False),
        ("plain", "on", {"temperature": 0}, True),
        (
            "ahead",
            "auto",
            {"temperature": 0, "messages": [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}]},
            False,
        ),
        ("ahead", "auto", {"temperature": 0, "tools": [{"type": "custom", "custom": {"name": "x"}}]}, True),
        ("ahead", "auto", {"temperature": 0, "presence_penalty": 0, "logprobs": False}, False),
        ("ahead", "auto", {"temperature": 0, "presence_penalty": 0.5}, True),
        ("ahead", "auto", {"temperature": 0, "web_search_options": {}}, True),
        ("ahead", "auto", {"temperature": 0, "messages": [{"role": "critic", "content": "Why?"}]}, True),
        ("ahead", "auto", {"temperature": 0, "messages": [{"role": "user", "content": [{"type": "video_url"}]}]}, True),
        ("ahead", "auto", {"temperature": 0, "messages": [{"role": [], "content": "Why?"}]}, None),
    ],
)
async def test_who_is_to_read_ahead_writes_by_token_sessions(
    model: str, limit: str, more: Any, raw: bool | None
) -> None:
    """What only its server knows is handed on to it, whatever is asked for. raw: None where it is refused."""
    sections = {
        "models": {"a": {"backend": "fake"}},
        "aliases": {"ahead": {"expression": "a", "drafts": "on"}, "plain": {"expression": "a", "drafts": "off"}},
        "limits": {"drafts": limit},
    }

    async def build(name: str) -> Entry:
        return Entry(Both(name, FakeSettings(answer="one two one two one two")), native=True)

    settings = Loaded(Settings.model_validate(sections), Path("t.yaml"), Source(Path("t.yaml")))
    async with open_runtime(settings, build) as runtime:
        await runtime.wait_loaded()
        reply = await Edge(Application(runtime), runtime, {}).chat(model, **more)
        if raw is None:
            assert reply.status == 400
        elif raw:
            assert reply.error["message"] == "handed on"
        elif more.get("stream"):
            assert reply.content() == "one two one two one two"
        else:
            assert reply.json()["choices"][0]["message"]["content"] == "one two one two one two"
            assert reply.json()["modelnet"]["stages"][0]["fusion"]["drafts"]["accepted"] > 0


async def test_answers_that_are_to_be_kept_are_read() -> None:
    """Configuration `ledger.texts`: nothing is promised and then not kept."""
    for texts in (True, False):
        async with house(ledger={"texts": texts}) as h:
            reply = await h.chat()
            assert reply.status == 200
            assert (reply.header("x-modelnet-wiring") is None) == texts


async def test_names_of_clients_do_not_pile_up() -> None:
    async with house() as h:
        for number in range(30):
            assert (await h.chat(f"nobody-{number}")).status == 404
        assert (await h.chat(" " * 600 + "a")).status == 404


# vLLM, several servers of one model


async def test_another_server_is_asked() -> None:
    """A server that can't be reached is left out, streaming or not; loads are given back."""
    async with house({"urls": ("http://127.0.0.1:9/v1",), "connect_timeout": 1}, kind="vllm") as h:
        for streaming in (True, False):
            reply = await h.chat(stream=streaming)
            assert reply.status == 200
            assert (reply.content() if streaming else reply.json()["choices"][0]["message"]["content"]) == "hi"
        assert isinstance(h.backend, VLLMBackend)
        assert h.backend.loads == [0, 0]
        h.upstream.behaviour = silent
        exchange = h.exchange("POST", CHAT, question(stream=True))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.run)
            while not h.upstream.running:
                await anyio.sleep(0.001)
            assert sorted(h.backend.loads) == [0, 1]
            exchange.leave()
        assert h.backend.loads == [0, 0]
        assert h.settled()


@pytest.mark.parametrize("options", ["none", {"include_usage": "yes"}])
async def test_stream_options_mean_nothing_without_a_stream(options: Any) -> None:
    """drop-in 25: nobody reads what they hold, and the server does not get them; with a stream it is a mistake."""
    async with house() as h:
        assert (await h.chat(stream_options=options)).status == 200
        assert "stream_options" not in h.upstream.body
        reply = await h.chat(stream=True, stream_options=options)
        assert (reply.status, reply.error["param"].split(".")[0]) == (400, "stream_options")
    fields = {"model": "a", "stream_options": options}
    assert check_text_forwardable(fields, RequestLimits()) == 1
    with pytest.raises(APIError):
        check_text_forwardable({**fields, "stream": True}, RequestLimits())
