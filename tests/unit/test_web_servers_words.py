"""What a model's server tells beside its text, in answers that are not handed on as they came."""

from __future__ import annotations

from typing import Any

import pytest
from edge import edge, fake
from responses_api import Scripted, ask, events_of, valid

from backends.types import TextDelta, TextEnd, TokenLogprob, Usage

pytestmark = pytest.mark.anyio

USAGE = {"stream_options": {"include_usage": True}}

NO = "I can't help. 不行"


def refuses(name: str) -> Scripted:
    """A server that thinks, and says no in two parts."""
    parts = [TextDelta("", reasoning="Hm."), *(TextDelta("", refusal=part) for part in (NO[:5], NO[5:]))]
    return Scripted(name, [*parts, TextEnd("stop", Usage(5, 2))])


# Refusals


@pytest.mark.parametrize("wiring", ["a", "b>a"])
async def test_a_refusal_is_no_content(wiring: str) -> None:
    """drop-in 7, 22: clients tell it from an answer by its field, streamed or not."""
    async with edge(refuses("a"), fake("b"), servers=("a",)) as e:
        message = (await e.chat(wiring)).json()["choices"][0]["message"]
        assert (message["content"], message["refusal"], message["reasoning_content"]) == (None, NO, "Hm.")
        reply = await e.chat(wiring, stream=True)
        deltas = [chunk["choices"][0]["delta"] for chunk in reply.chunks()]
        assert deltas[0] == {"role": "assistant", "content": "", "refusal": None}
        assert deltas[2:] == [{"refusal": NO[:5]}, {"refusal": NO[5:]}, {}]
        told = await e.call("POST", "/v1/completions", {"model": wiring, "prompt": "Why?"})
        assert told.json()["choices"][0]["text"] == NO  # there is no other place for it


async def test_an_earlier_stage_that_refuses_is_read_as_any_other() -> None:
    """What it said is the next stage's to judge; on request it is shown as what all stages say."""
    b = fake("b", "Yes.")
    async with edge(refuses("a"), b, servers=("a",)) as e:
        whole = (await e.chat("a>b", modelnet={"stages": True})).json()["choices"][0]["message"]
        assert (whole["content"], whole["refusal"], whole["reasoning_content"]) == ("Yes.", None, f"Hm.{NO}")
        assert any(NO in message.content for message in b.requests[0].messages)


@pytest.mark.parametrize("before", ["", "Well. "])
async def test_a_refusal_is_a_part_of_a_response(before: str) -> None:
    """Announced, written and done before anything else begins; of one message, also where text went before it."""
    a = Scripted("a", [*([TextDelta(before)] if before else []), *refuses("a").events[1:]])
    async with edge(a, servers=("a",)) as e:
        whole = valid((await ask(e)).json())
        events = events_of(await ask(e, stream=True))
        kinds = [event["type"].removeprefix("response.") for event in events[3:]]
        text = [*("content_part.added", "output_text.delta", "output_text.done", "content_part.done")]
        refusal = ["content_part.added", "refusal.delta", "refusal.delta", "refusal.done", "content_part.done"]
        assert kinds == [*(text if before else []), *refusal, "output_item.done", "completed"]
        told = [event for event in events if "refusal" in str(event.get("part", event["type"]))]
        assert {event["content_index"] for event in told} == {1 if before else 0}
        assert told[0]["part"] == {"type": "refusal", "refusal": ""}
        assert told[-1]["part"] == {"type": "refusal", "refusal": NO}
        assert told[-2]["refusal"] == NO
        for response in (whole, valid(events[-1]["response"])):
            (message,) = response.output
            assert message.type == "message"
            assert message.content[-1].to_dict() == {"type": "refusal", "refusal": NO}
            assert len(message.content) == 1 + bool(before)
            assert response.output_text == before


async def test_log_probabilities_of_a_refusal() -> None:
    """drop-in 17: beside the refusal, not as those of content that is not there."""
    no = TokenLogprob(b"No", -0.5)
    a = Scripted("a", [TextDelta("", refusal="No", refusal_tokens=(no,)), TextEnd("stop", Usage(5, 1))])
    async with edge(a, servers=("a",)) as e:
        entry = {"token": "No", "bytes": [78, 111], "logprob": -0.5, "top_logprobs": []}
        expected = {"content": None, "refusal": [entry]}
        assert (await e.chat(logprobs=True)).json()["choices"][0]["logprobs"] == expected
        chunks = (await e.chat(logprobs=True, stream=True)).chunks()
        assert [chunk["choices"][0]["logprobs"] for chunk in chunks] == [None, expected, None]


# Log-probabilities


@pytest.mark.parametrize("wiring", ["a", "b>a"])
async def test_log_probabilities_that_a_server_does_not_tell(wiring: str) -> None:
    """drop-in 17: null, in every API that knows it; an empty list would say that the text has no tokens."""
    a = Scripted("a", [TextDelta("A long "), TextDelta("text."), TextEnd("stop", Usage(5, 2))])
    async with edge(a, fake("b"), servers=("a",)) as e:
        (choice,) = (await e.chat(wiring, logprobs=True)).json()["choices"]
        assert choice["logprobs"] is None
        assert choice["message"]["content"] == "A long text."
        chunks = (await e.chat(wiring, logprobs=True, stream=True)).chunks()
        assert [chunk["choices"][0]["logprobs"] for chunk in chunks] == [None] * 4
        body = {"model": wiring, "prompt": "Why?", "logprobs": 1, "modelnet": {}}
        assert (await e.call("POST", "/v1/completions", body)).json()["choices"][0]["logprobs"] is None
        chunks = (await e.call("POST", "/v1/completions", {**body, "stream": True})).chunks()
        assert [chunk["choices"][0]["logprobs"] for chunk in chunks] == [None] * 3
        part = (await ask(e, wiring, top_logprobs=1)).json()["output"][0]["content"][0]
        assert (part["text"], part["logprobs"]) == ("A long text.", [])  # this API has no null there


async def test_log_probabilities_of_no_text() -> None:
    """drop-in 17: there are none, and that is known."""
    async with edge(Scripted("a", [TextEnd("stop", Usage(5, 0))]), servers=("a",)) as e:
        (choice,) = (await e.chat(logprobs=True)).json()["choices"]
        assert choice["logprobs"] == {"content": [], "refusal": None}


# Usage


@pytest.mark.parametrize("wiring", ["a", "b>a"])
async def test_details_of_usage(wiring: str) -> None:
    """drop-in 34: what servers tell of caches and reasoning, in both APIs; nothing is made up for models that tell none."""
    a = Scripted("a", [TextDelta("Yes."), TextEnd("stop", Usage(20, 9, 16, 7))])
    async with edge(a, fake("b"), servers=("a",)) as e:
        whole = (await e.chat(wiring)).json()
        assert whole["usage"]["prompt_tokens_details"] == {"cached_tokens": 16}
        assert whole["usage"]["completion_tokens_details"] == {"reasoning_tokens": 7}
        assert (await e.chat(wiring, stream=True, **USAGE)).chunks()[-1]["usage"] == whole["usage"]
        usage = valid((await ask(e, wiring)).json()).usage
        assert usage is not None
        assert (usage.input_tokens_details.cached_tokens, usage.output_tokens_details.reasoning_tokens) == (16, 7)
        assert events_of(await ask(e, wiring, stream=True))[-1]["response"]["usage"] == usage.to_dict()
        assert (await e.chat("b")).json()["usage"].keys() == {"prompt_tokens", "completion_tokens", "total_tokens"}


async def test_details_of_usage_of_several_stages_and_choices() -> None:
    """As the usage itself: all of them together."""
    a = Scripted("a", [TextDelta("One."), TextEnd("stop", Usage(20, 9, 16))])
    b = Scripted("b", [TextDelta("Two."), TextEnd("stop", Usage(30, 9, 4, 3))])
    async with edge(a, b, servers=("a", "b")) as e:
        usage: dict[str, Any] = (await e.chat("a>b", n=2)).json()["usage"]
        assert usage["prompt_tokens_details"] == {"cached_tokens": 40}
        assert usage["completion_tokens_details"] == {"reasoning_tokens": 6}
