"""Streams that tell in every chunk what they have taken by then: vLLM's `continuous_usage_stats`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from edge import Reply, edge, fake

from gateway.wire.sse import ChunkWriter

pytestmark = pytest.mark.anyio

OPTIONS = {"include_usage": True, "continuous_usage_stats": True}
ALWAYS: dict[str, Any] = {"stream": True, "stream_options": OPTIONS}


def spent(reply: Reply, index: int = 0) -> list[int]:
    """What chunks of a choice say was written by then; the sums are right, and what is estimated is named so."""
    found = [chunk for chunk in reply.chunks() if any(choice["index"] == index for choice in chunk["choices"])]
    for chunk in found:
        usage = chunk["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        over = chunk["choices"][0]["finish_reason"] is not None
        assert ("usage_estimated" in chunk.get("modelnet", {})) == (not over)
    return [chunk["usage"]["completion_tokens"] for chunk in found]


@pytest.mark.parametrize("wiring", ["a", "a>b", "a|b", "a>b|c", "a|b>c"])
async def test_every_chunk_has_the_usage_so_far(wiring: str) -> None:
    """drop-in 5, 34: over every wiring; at the end it is what was counted, and the chunk without choices comes all the same."""
    models = [fake(name, "one two three four five") for name in "abc"]
    async with edge(*models) as e:
        reply = await e.chat(wiring, **ALWAYS)
        *chunks, finish, last = reply.chunks()
        written = spent(reply)
        assert written == sorted(written)
        assert written[-1] > written[1] > 0
        assert all(chunk["usage"]["prompt_tokens"] > 0 for chunk in chunks)
        assert last["choices"] == []
        assert finish["usage"] == last["usage"] == (await e.chat(wiring)).json()["usage"]
        assert "usage_estimated" not in last["modelnet"]


async def test_stages_that_are_shown_have_it_too() -> None:
    """drop-in 5, 8: beside the number of the stage."""
    async with edge(fake("a", "one two"), fake("b", "three four")) as e:
        reply = await e.chat("a>b", modelnet={"stages": True}, **ALWAYS)
        reasoning = [chunk for chunk in reply.chunks() if "reasoning" in str(chunk["choices"])]
        assert {chunk["modelnet"]["stage"] for chunk in reasoning} == {0}
        assert spent(reply)[:3] == [1, 1, 2]


async def test_each_choice_has_its_own() -> None:
    """drop-in 5, 12: as vLLM's; the last chunk adds them up."""
    async with edge(fake("a", "one two three"), fake("b")) as e:
        reply = await e.chat("a", n=2, **ALWAYS)
        last = reply.chunks()[-1]
        assert spent(reply, 0)[-1] + spent(reply, 1)[-1] == last["usage"]["completion_tokens"]


async def test_only_together_with_the_usage_at_the_end() -> None:
    """drop-in 5, 24, 25: as in vLLM; without a stream nobody reads it."""
    async with edge(fake("a")) as e:
        reply = await e.chat(stream=True, stream_options={"continuous_usage_stats": True})
        assert all("usage" not in chunk for chunk in reply.chunks())
        reply = await e.chat(stream=True, stream_options={**OPTIONS, "continuous_usage_stats": "yes"})
        assert (reply.status, reply.error["param"]) == (400, "stream_options.continuous_usage_stats")
        assert (await e.chat(stream_options={"continuous_usage_stats": "yes"})).status == 200


@pytest.mark.parametrize("wiring", ["a", "a>b", "a|b"])
@pytest.mark.parametrize("fields", [{}, {"echo": True}, {"prompt": ["x", "y z"]}, {"max_tokens": 0, "echo": True}])
async def test_text_completions(wiring: str, fields: dict[str, Any]) -> None:
    """drop-in 5, 16: an echo was written by nobody."""
    async with edge(fake("a", "one two three"), fake("b", "one two three")) as e:
        body = {"model": wiring, "prompt": "x", "max_tokens": 64, **fields}
        reply = await e.call("POST", "/v1/completions", {**body, **ALWAYS})
        whole = (await e.call("POST", "/v1/completions", body)).json()
        *chunks, last = reply.chunks()
        assert all("usage" in chunk and chunk["usage"]["total_tokens"] >= 0 for chunk in chunks)
        assert last["usage"] == whole["usage"]
        ends = [chunk for chunk in chunks if chunk["choices"][0]["finish_reason"]]
        assert sum(chunk["usage"]["total_tokens"] for chunk in ends) == whole["usage"]["total_tokens"]


async def test_what_was_spent_so_far_stands_in_every_chunk() -> None:
    """drop-in 5: vLLM's `continuous_usage_stats`; beside it what else is under `modelnet`."""
    writer = ChunkWriter(id="i", created=1, model="m", fingerprint="f", with_usage=True)
    writer.spent({"total_tokens": 3}, {"usage_estimated": True})
    chunks = [
        writer.role(0),
        writer.content(0, "a"),
        writer.content(0, "a", []),
        writer.reasoning(0, "a", 2),
        writer.finish(0, "stop", None),
    ]
    values = [json.loads(chunk[6:]) for chunk in chunks]
    assert [value["usage"] for value in values] == [{"total_tokens": 3}] * len(values)
    assert [value["modelnet"].pop("usage_estimated") for value in values] == [True] * len(values)
    assert values[3]["modelnet"] == {"stage": 2}
    writer.spent({"total_tokens": 2}, {})
    for chunk in (writer.content(0, "a"), writer.finish(0, "stop", None)):
        value = json.loads(chunk[6:])
        assert value["usage"] == {"total_tokens": 2}
        assert "modelnet" not in value
