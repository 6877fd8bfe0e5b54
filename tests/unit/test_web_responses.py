"""The Responses API over every wiring: what is answered."""

from __future__ import annotations

import json

import anyio
import pytest
from edge import edge, fake
from responses_api import PATH, WEATHER, WIRINGS, Scripted, ask, calls, events_of, valid

from backends.fake import Fault
from backends.types import ToolCallDelta

pytestmark = pytest.mark.anyio


# Answers


@pytest.mark.parametrize("wiring", WIRINGS)
async def test_whole_and_streamed_answers_agree(wiring: str) -> None:
    """drop-in 7, 35: over every kind of wiring, and in the words of its own API."""
    async with edge(fake("a"), fake("b"), fake("c")) as e:
        whole = await ask(e, wiring)
        assert whole.status == 200
        response = valid(whole.json())
        assert (response.object, response.status, response.model) == ("response", "completed", wiring)
        assert response.output_text
        streamed = events_of(await ask(e, wiring, stream=True))
        assert streamed[-1]["type"] == "response.completed"
        last = valid(streamed[-1]["response"])
        assert last.output_text == response.output_text
        assert "".join(x["delta"] for x in streamed if x["type"] == "response.output_text.delta") == last.output_text
        assert last.usage == response.usage
        assert response.usage is not None
        assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens > 0
        assert e.idle()


async def test_the_order_of_events_of_a_text() -> None:
    async with edge(fake("a", "one two")) as e:
        reply = await ask(e, stream=True)
        assert reply.header("content-type") == "text/event-stream; charset=utf-8"
        assert not reply.body.endswith(b"[DONE]\n\n")
        events = events_of(reply)
        kinds = [event["type"].removeprefix("response.") for event in events]
        deltas = kinds.count("output_text.delta")
        assert kinds == [
            *("created", "in_progress", "output_item.added", "content_part.added"),
            *["output_text.delta"] * deltas,
            *("output_text.done", "content_part.done", "output_item.done", "completed"),
        ]
        ids = {event["response"]["id"] for event in events if "response" in event}
        assert len(ids) == 1
        items = {event["item_id"] for event in events if "item_id" in event}
        assert items == {events[2]["item"]["id"]} == {events[-1]["response"]["output"][0]["id"]}
        assert events[0]["response"]["status"] == "in_progress"
        assert events[0]["response"]["output"] == []


async def test_what_stages_wrote_is_reasoning_of_its_own_item() -> None:
    """drop-in 8: on request only, told as done before the answer begins."""
    async with edge(fake("a", "thought"), fake("b", "said")) as e:
        plain = await ask(e, "a>b")
        assert [item["type"] for item in plain.json()["output"]] == ["message"]
        whole = await ask(e, "a>b", modelnet={"stages": True})
        response = valid(whole.json())
        assert [item.type for item in response.output] == ["reasoning", "message"]
        assert response.output_text == "said"
        events = events_of(await ask(e, "a>b", modelnet={"stages": True}, stream=True))
        kinds = [event["type"] for event in events]
        done = kinds.index("response.output_item.done")
        assert kinds.index("response.reasoning_text.done") < done < kinds.index("response.output_text.delta")
        assert events[done]["item"]["content"] == [{"type": "reasoning_text", "text": "thought"}]
        assert events[done]["item"]["summary"] == []


async def test_a_cut_answer_is_incomplete() -> None:
    """drop-in 14."""
    async with edge(fake("a", "one two three four five")) as e:
        response = valid((await ask(e, max_output_tokens=2)).json())
        assert response.status == "incomplete"
        assert response.incomplete_details is not None
        assert response.incomplete_details.reason == "max_output_tokens"
        assert response.max_output_tokens == 2
        events = events_of(await ask(e, max_output_tokens=2, stream=True))
        assert events[-1]["type"] == "response.incomplete"
        assert events[-1]["response"]["output"][0]["status"] == "incomplete"


async def test_an_empty_answer_is_a_message_too() -> None:
    async with edge(fake("a", "")) as e:
        response = valid((await ask(e)).json())
        assert [item.type for item in response.output] == ["message"]
        assert response.output_text == ""


async def test_the_answer_repeats_its_request() -> None:
    async with edge(fake("a")) as e:
        asked = {
            "instructions": "Be brief.",
            "metadata": {"k": "v"},
            "temperature": 0.5,
            "top_p": 0.9,
            "user": "u",
            "store": True,
            "include": ["reasoning.encrypted_content"],
            "service_tier": "auto",
            "stream_options": {"include_obfuscation": False},
        }
        response = valid((await ask(e, **asked)).json())
        assert response.instructions == "Be brief."
        assert response.metadata == {"k": "v"}
        assert (response.temperature, response.top_p, response.user) == (0.5, 0.9, "u")
        assert response.to_dict()["store"] is False


# Tools


@pytest.mark.parametrize("stream", [True, False])
async def test_tool_calls_are_items(stream: bool) -> None:
    """drop-in 19, 21: text and two calls, each announced, written and done before the next."""
    parts = [
        ToolCallDelta(0, "c1", "weather", '{"city"'),
        ToolCallDelta(0, arguments=': "柏林"}'),
        ToolCallDelta(1, "c2", "now"),
        ToolCallDelta(1, arguments="{}"),
    ]
    async with edge(Scripted("a", calls(*parts, text="Let me see.")), servers=("a",)) as e:
        reply = await ask(e, tools=[WEATHER], stream=stream)
        if stream:
            events = events_of(reply)
            kinds = [event["type"].removeprefix("response.") for event in events]
            assert kinds[-8:] == [
                *("function_call_arguments.delta", "function_call_arguments.done", "output_item.done"),
                *("output_item.added", "function_call_arguments.delta", "function_call_arguments.done"),
                *("output_item.done", "completed"),
            ]
            response = valid(events[-1]["response"])
        else:
            response = valid(reply.json())
        assert [item.type for item in response.output] == ["message", "function_call", "function_call"]
        made = response.output[1]
        assert made.type == "function_call"
        assert (made.call_id, made.name, json.loads(made.arguments)) == ("c1", "weather", {"city": "柏林"})
        assert response.output[2].to_dict()["arguments"] == "{}"
        assert response.status == "completed"


async def test_only_calls_make_no_message() -> None:
    """drop-in 21."""
    async with edge(Scripted("a", calls(ToolCallDelta(0, "c1", "weather", "{}"))), servers=("a",)) as e:
        response = valid((await ask(e, tools=[WEATHER])).json())
        assert [item.type for item in response.output] == ["function_call"]


async def test_calls_that_are_mixed_up_are_an_error() -> None:
    """drop-in 10: never a torn call that looks whole."""
    parts = [ToolCallDelta(0, "c1", "a", "{"), ToolCallDelta(1, "c2", "b", "{}"), ToolCallDelta(0, arguments="}")]
    async with edge(Scripted("a", calls(*parts)), servers=("a",)) as e:
        assert (await ask(e, tools=[WEATHER])).status == 502
        events = events_of(await ask(e, tools=[WEATHER], stream=True))
        assert events[-1]["type"] == "response.failed"


# Failures


async def test_failures_before_and_after_the_first_event() -> None:
    """drop-in 10: a real status, then an event that says failed; nothing looks whole."""
    broken = fake("broken", "one two three", faults=(Fault(on="token", after=2),))
    async with edge(fake("gone", faults=(Fault(on="enter"),)), broken) as e:
        reply = await ask(e, "gone", stream=True)
        assert (reply.status, reply.error["code"]) == (502, "backend_unavailable")
        events = events_of(await ask(e, "broken", stream=True))
        assert events[-1]["type"] == "response.failed"
        response = valid(events[-1]["response"])
        assert response.status == "failed"
        assert response.error is not None
        assert "fails as scripted" in response.error.message
        assert e.idle()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_everything(stream: bool) -> None:
    """drop-in 30."""
    backend = fake("a", faults=(Fault(on="token", after=1, action="hang"),))
    async with edge(backend) as e:
        exchange = e.exchange("POST", PATH, {"model": "a", "input": "Why?", "stream": stream})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.run)
            with anyio.fail_after(5):
                while backend.counters.deltas < 1:
                    await anyio.sleep(0.005)
            exchange.leave()
            with anyio.fail_after(0.5):
                await exchange.finished.wait()
        assert e.idle()


async def test_silent_streams_are_kept_alive() -> None:
    """drop-in 9: comments before the first event, which is still the first."""
    backend = fake("a", "x", first_delay=0.3)
    async with edge(backend, server={"keepalive_seconds": 0.05}) as e:
        reply = await ask(e, stream=True)
        blocks = reply.body.decode().removesuffix("\n\n").split("\n\n")
        assert blocks[0] == ": keep-alive"
        first = next(block for block in blocks if not block.startswith(":"))
        assert first.startswith("event: response.created\n")
