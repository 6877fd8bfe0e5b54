"""Servers that do not tell what an answer took: who asked is told an estimate, and keys are charged for one."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from aiohttp import web
from edge import CHAT, question
from forwarding_house import ANSWER, CLIENT_KEY, DONE, ROLE, STOP, Behaviour, Upstream, chunk, house, stream

pytestmark = pytest.mark.anyio

KEY = {"authorization": f"Bearer {CLIENT_KEY}"}
USAGE = {"stream_options": {"include_usage": True}}
WORDS = ["A long answer, ", "of forty bytes ", "in three parts."]


async def silent_on_usage(upstream: Upstream, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """A server that ignores `stream_options`, and has no `usage` in its answers."""
    if body.get("stream"):
        return await stream(request, ROLE, *(chunk({"content": word}) for word in WORDS), STOP, DONE)
    answer: dict[str, Any] = {key: value for key, value in ANSWER.items() if key != "usage"}
    answer["choices"] = [
        {"index": 0, "message": {"role": "assistant", "content": "".join(WORDS)}, "finish_reason": "stop"}
    ]
    return web.json_response(answer)


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("more", [{}, {"modelnet": {}}])
async def test_who_asks_for_usage_is_told_some(include: bool, more: Any) -> None:
    """drop-in 5: one chunk before [DONE], with the estimate named as one, handed on or not; none unasked."""
    async with house({"include_usage": include}) as h:
        h.upstream.behaviour = silent_on_usage
        reply = await h.chat(stream=True, **USAGE, **more)
        last = reply.chunks()[-1]
        assert reply.events()[-1] == "[DONE]"
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == 12  # 45 bytes
        assert 0 < last["usage"]["prompt_tokens"] < 40
        assert last["usage"]["total_tokens"] == 12 + last["usage"]["prompt_tokens"]
        assert last["modelnet"]["usage_estimated"] is True
        assert all(chunk.get("usage") is None for chunk in (await h.chat(stream=True, **more)).chunks())


async def test_what_a_server_counts_is_no_estimate() -> None:
    async with house() as h:
        assert "usage_estimated" not in str((await h.chat(modelnet={})).json())
        assert "modelnet" not in (await h.chat(stream=True, **USAGE)).chunks()[-1]


async def test_the_models_of_a_wiring_that_are_estimated_are_named() -> None:
    """drop-in 34: of several stages, choices and models; in /v1/responses too."""
    async with house() as h:
        h.upstream.behaviour = silent_on_usage
        whole = (await h.chat("a>a")).json()
        assert whole["modelnet"]["usage_estimated"] is True
        assert [model["usage_estimated"] for stage in whole["modelnet"]["stages"] for model in stage["models"]] == [
            True
        ] * 2
        assert whole["usage"]["completion_tokens"] == 24
        response = (await h.call("POST", "/v1/responses", {"model": "a", "input": "Why?"})).json()
        assert response["usage"]["output_tokens"] == 12
        assert response["modelnet"]["usage_estimated"] is True


@pytest.mark.parametrize("count", [-1000, 2**63, True, 1e9])
@pytest.mark.parametrize("which", ["prompt_tokens", "completion_tokens"])
@pytest.mark.parametrize("more", [{}, {"stream": True}, {"modelnet": {}}, {"modelnet": {}, "stream": True}])
async def test_a_count_that_can_not_be_is_none(more: Any, which: str, count: Any) -> None:
    """A number below zero would give a key its budget back, and a huge one would fit no database."""

    async def lies(upstream: Upstream, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        usage = {"prompt_tokens": 1, "completion_tokens": 1, which: count}
        if not body.get("stream"):
            return web.json_response({**ANSWER, "usage": usage})
        return await stream(request, ROLE, chunk({"content": "hi"}), STOP, chunk({}, usage=usage), DONE)

    key = {"key": CLIENT_KEY, "name": "team", "budget": {"tokens": 30, "per": "total"}}
    async with house(keys=[key]) as h:
        h.upstream.behaviour = lies
        body = question(max_tokens=1, **more)
        statuses = [(await h.call("POST", CHAT, body, KEY)).status for _ in range(8)]
        assert (statuses[0], statuses[-1]) == (200, 429)


@pytest.mark.parametrize("more", [{}, {"stream": True}, {"modelnet": {}}, {"modelnet": {}, "stream": True}])
async def test_keys_are_charged_all_the_same(more: Any, logged: list[dict[str, Any]]) -> None:
    """A budget of tokens ends with a server that counts none, streamed or not, handed on or not."""
    key = {"key": CLIENT_KEY, "name": "team", "budget": {"tokens": 60, "per": "total"}}
    async with house({"include_usage": False}, keys=[key]) as h:
        h.upstream.behaviour = silent_on_usage
        body = question(max_tokens=1, **more)
        statuses = [(await h.call("POST", CHAT, body, KEY)).status for _ in range(6)]
        assert statuses[0] == 200
        assert statuses[-1] == 429
        lines = [line for line in logged if line["event"] == "request"]
        assert {line["completion_tokens"] for line in lines[: statuses.count(200)]} == {12}
        counted = h.app.metrics.text().decode()
        assert f'modelnet_tokens_total{{direction="completion",model="a"}} {12.0 * statuses.count(200)}' in counted


async def test_a_client_that_leaves_is_charged_for_what_came() -> None:
    """Of an answer that is handed on, as of all others: not of its prompt only."""

    async def endless(upstream: Upstream, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return await stream(
            request, ROLE, chunk({"content": "x" * 400}), chunk({"content": "y"}), pause=0.01, broken=True
        )

    key = {"key": CLIENT_KEY, "name": "team", "budget": {"tokens": 120, "per": "total"}}
    behaviour: Behaviour = endless
    async with house(keys=[key]) as h:
        h.upstream.behaviour = behaviour
        running = h.exchange("POST", CHAT, question(stream=True, max_tokens=1), KEY)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(running.run)
            await running.until(lambda reply: b"xxxx" in reply.body)
            running.leave()
        refused = await h.call("POST", CHAT, question(max_tokens=1), KEY)
        assert (refused.status, refused.error["code"]) == (429, "insufficient_quota")
