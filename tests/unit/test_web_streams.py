"""Streams, message by message."""

from __future__ import annotations

import json

import anyio
import pytest
from edge import CHAT, edge, fake, question

from backends.fake import Fault

pytestmark = pytest.mark.anyio

WIRINGS = ["a", "si:a>b", "pi:a|b", "s2p:a>b|c", "p2s:a|b>c", "(a>b)|c", "duo"]
ALIASES = {"duo": {"expression": "s2p:a>a|b"}}
USAGE = {"stream_options": {"include_usage": True}}


@pytest.mark.parametrize("wiring", WIRINGS)
async def test_a_stream_has_the_form_that_clients_rely_on(wiring: str) -> None:
    """drop-in 1, 2, 3, 4, 6: events, roles, identity, finish; the same for every wiring."""
    async with edge(fake("a"), fake("b"), fake("c"), aliases=ALIASES) as e:
        reply = await e.chat(wiring, stream=True)
        assert reply.status == 200
        assert reply.complete
        assert reply.header("content-type") == "text/event-stream; charset=utf-8"
        assert reply.events()[-1] == "[DONE]"
        assert reply.body.endswith(b"\n\ndata: [DONE]\n\n")
        chunks = reply.chunks()
        assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
        assert chunks[0]["id"].startswith("chatcmpl-")
        assert {chunk["created"] for chunk in chunks} == {chunks[0]["created"]}
        assert {(chunk["model"], chunk["object"]) for chunk in chunks} == {(wiring, "chat.completion.chunk")}
        assert all(len(chunk["choices"]) == 1 for chunk in chunks)
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        assert (deltas[0]["role"], deltas[0]["content"]) == ("assistant", "")
        assert all("role" not in delta for delta in deltas[1:])
        reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
        assert reasons == [None] * (len(chunks) - 1) + ["stop"]
        assert deltas[-1] == {}
        assert all(chunk.get("usage") is None for chunk in chunks)
        assert e.idle()


@pytest.mark.parametrize("wiring", WIRINGS)
async def test_joined_deltas_equal_the_whole_answer(wiring: str) -> None:
    """drop-in 7, 8, 11: byte for byte, with Chinese and emoji, and nothing of the stages before."""
    async with edge(fake("a"), fake("b"), fake("c"), aliases=ALIASES) as e:
        streamed = await e.chat(wiring, stream=True)
        whole = await e.chat(wiring)
        message = whole.json()["choices"][0]["message"]
        assert streamed.content() == message["content"] != ""
        assert streamed.reasoning() == ""
        assert "reasoning_content" not in message
        assert "reasoning" not in message


async def test_every_split_of_a_character_arrives_whole() -> None:
    """drop-in 11: one character a delta."""
    text = "日本語 👩‍💻 é 🇨🇳 \u2028 end"
    async with edge(fake("a", text, split="character")) as e:
        assert (await e.chat(stream=True)).content() == text


async def test_tokens_are_sent_as_they_are_written() -> None:
    """drop-in 11: the first delta is out while the model still writes."""
    async with edge(fake("a", "one two three four", delay=0.05)) as e, anyio.create_task_group() as tasks:
        exchange = e.exchange("POST", CHAT, question(stream=True))
        tasks.start_soon(exchange.run)
        await exchange.until(lambda reply: b'"content":"one"' in reply.body or len(reply.sent) >= 1)
        assert not exchange.finished.is_set()
        assert e.backends["a"].counters.streams == 1
        await exchange.finished.wait()


async def test_usage_comes_only_when_asked_for() -> None:
    """drop-in 5, 6: one extra chunk without choices, after the finish and before [DONE]; null elsewhere."""
    async with edge(fake("a"), fake("b")) as e:
        chunks = (await e.chat("a>b", stream=True, **USAGE)).chunks()
        assert chunks[-1]["choices"] == []
        assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
        assert all(chunk["usage"] is None for chunk in chunks[:-1])
        usage = chunks[-1]["usage"]
        whole = (await e.chat("a>b")).json()
        assert usage == whole["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0
        plain = (await e.chat("a>b", stream=True)).chunks()
        assert all("usage" not in chunk for chunk in plain)


async def test_stream_options_mean_nothing_without_stream() -> None:
    """drop-in 25: OpenAI's own SDK tests send it."""
    async with edge(fake("a")) as e:
        assert (await e.chat(**USAGE)).status == 200


@pytest.mark.parametrize("wiring", ["a", "a>b", "a|b", "a>b|c"])
async def test_usage_adds_up_stages_and_members(wiring: str) -> None:
    """drop-in 34: the parts are under the extension key, in the body and in the last chunk of a stream."""
    async with edge(fake("a"), fake("b"), fake("c")) as e:
        whole = (await e.chat(wiring)).json()
        for total in ("prompt_tokens", "completion_tokens"):
            parts = [m["usage"][total] for stage in whole["modelnet"]["stages"] for m in stage["models"]]
            assert sum(parts) == whole["usage"][total] > 0
        assert whole["modelnet"]["wiring"] == wiring
        named = [m["model"] for stage in whole["modelnet"]["stages"] for m in stage["models"]]
        assert sorted(named) == sorted(set("abc") & set(wiring))
        for stage in whole["modelnet"]["stages"]:
            assert ("fusion" in stage) == (len(stage["models"]) > 1)
        finish = (await e.chat(wiring, stream=True)).chunks()[-1]
        last = (await e.chat(wiring, stream=True, **USAGE)).chunks()[-1]
        for chunk in (finish, last):
            assert [s["usage"] for s in chunk["modelnet"]["stages"]] == [
                s["usage"] for s in whole["modelnet"]["stages"]
            ]


@pytest.mark.parametrize("wiring", ["a>b", "a>b|c", "a|b>c", "(a>b)|c", "(a>b)|(c>b)"])
async def test_stages_on_request_come_as_reasoning_before_the_answer(wiring: str) -> None:
    """drop-in 8: `reasoning_content` and `reasoning`, both; none after content has begun; stages never mixed."""
    # c is slower than a: what runs side by side is still shown one after another.
    async with edge(fake("a", "first"), fake("b", "last"), fake("c", "other words", first_delay=0.02)) as e:
        reply = await e.chat(wiring, stream=True, modelnet={"stages": True})
        deltas = [choice["delta"] for chunk in reply.chunks() for choice in chunk["choices"]]
        kinds = ["reasoning" if "reasoning" in delta else "content" for delta in deltas[1:-1]]
        assert kinds == sorted(kinds, reverse=True)
        assert "reasoning" in kinds
        assert all(delta.get("reasoning") == delta.get("reasoning_content") for delta in deltas)
        stages = [chunk["modelnet"]["stage"] for chunk in reply.chunks() if "reasoning" in str(chunk["choices"])]
        assert stages == sorted(stages)
        plain = await e.chat(wiring, stream=True)
        assert reply.content() == plain.content()
        message = (await e.chat(wiring, modelnet={"stages": True})).json()["choices"][0]["message"]
        assert message["reasoning_content"] == message["reasoning"] == reply.reasoning()
        assert message["content"] == plain.content()


async def test_parallel_stages_are_shown_one_after_another() -> None:
    """drop-in 8: the texts of stages that run at the same time do not interleave."""
    slow, quick = fake("a", "slow words here", delay=0.01), fake("b", "quick words there", delay=0.004)
    async with edge(slow, quick, fake("c", "end")) as e:
        reply = await e.chat("(a>c)|(b>c)", stream=True, modelnet={"stages": True})
        assert sorted(reply.reasoning().split("\n\n")) == ["quick words there", "slow words here"]


async def test_a_models_own_reasoning_passes() -> None:
    """drop-in 8: what the server itself marks as reasoning is no content."""
    async with edge(fake("a", "So.", reasoning="let me think")) as e:
        reply = await e.chat(stream=True)
        assert (reply.reasoning(), reply.content()) == ("let me think", "So.")


async def test_choices_are_introduced_in_order() -> None:
    """drop-in 2: openai-python's `.stream()` fails over a choice that comes before its place."""
    late = Fault(on="enter", action="slow", seconds=0.1, times=1)
    async with edge(fake("a", faults=(late,))) as e:
        chunks = (await e.chat(stream=True, n=3)).chunks()
        written = [chunk["choices"][0] for chunk in chunks]
        assert [choice["index"] for choice in written if "role" in choice["delta"]] == [0, 1, 2]


async def test_several_choices_interleave() -> None:
    """drop-in 2, 4, 12: n answers, each with its own role and finish, side by side."""
    async with edge(fake("a", "one two three", delay=0.01)) as e:
        reply = await e.chat(stream=True, n=3, **USAGE)
        order = [choice["index"] for chunk in reply.chunks() for choice in chunk["choices"]]
        assert set(order) == {0, 1, 2}
        assert order != sorted(order)
        for index in range(3):
            own = [c for chunk in reply.chunks() for c in chunk["choices"] if c["index"] == index]
            assert (own[0]["delta"]["role"], own[0]["delta"]["content"]) == ("assistant", "")
            assert sum("role" in choice["delta"] for choice in own) == 1
            assert [choice["finish_reason"] for choice in own] == [None] * (len(own) - 1) + ["stop"]
            assert reply.content(index) == "one two three"
        whole = (await e.chat(n=3)).json()
        assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
        assert whole["usage"] == reply.chunks()[-1]["usage"]
        assert sorted(stage["choice"] for stage in whole["modelnet"]["stages"]) == [0, 1, 2]


async def test_choices_get_seeds_of_their_own() -> None:
    """drop-in 12, 15: derived from the request's, so that the whole can be repeated."""
    backend = fake("a")
    async with edge(backend) as e:
        await e.chat(n=3, seed=7)
        assert sorted(request.sampling.seed for request in backend.requests) == [7, 8, 9]


async def test_stop_is_matched_across_deltas_and_never_sent() -> None:
    """drop-in 13: string, list, empty list and null."""
    async with edge(fake("a", "one two three", split="character")) as e:
        assert (await e.chat(stream=True, stop="wo th")).content() == "one t"
        assert (await e.chat(stream=True, stop=["zzz", " three"])).content() == "one two"
        for neutral in ([], None, "", [""]):
            assert (await e.chat(stream=True, stop=neutral)).content() == "one two three"


async def test_cut_answers_end_with_length() -> None:
    """drop-in 14: the newer name wins."""
    async with edge(fake("a", "one two three four five six")) as e:
        for fields in ({"max_tokens": 2}, {"max_completion_tokens": 2}, {"max_tokens": 99, "max_completion_tokens": 2}):
            reply = await e.chat(stream=True, **fields)
            assert reply.chunks()[-1]["choices"][0]["finish_reason"] == "length"
            whole = (await e.chat(**fields)).json()
            assert whole["choices"][0]["finish_reason"] == "length"
            assert whole["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("wiring", ["a", "a>b", "a|b"])
async def test_the_answer_has_a_budget_of_its_own(wiring: str) -> None:
    """drop-in 14: budgets of the answer and of the stages before it come from limits and aliases."""
    long = "one two three four five six seven eight nine ten " * 4
    aliases = {"own": {"expression": wiring, "max_tokens": 3, "stage_max_tokens": 2}}
    limits = {"answer_max_tokens": 5, "stage_max_tokens": 4}
    async with edge(fake("a", long), fake("b", long), aliases=aliases, limits=limits) as e:
        for model, last, earlier in ((wiring, 5, 4), ("own", 3, 2)):
            stages = (await e.chat(model)).json()["modelnet"]["stages"]
            # A group's budget is in pieces; its members need not have read the last one when it is cut.
            spent = [
                stage["fusion"]["pieces"] if "fusion" in stage else stage["usage"]["completion_tokens"]
                for stage in stages
            ]
            assert spent == [*(earlier for _ in stages[:-1]), last]
            assert stages[-1]["finish_reason"] == "length"


async def test_silence_is_filled_with_comments() -> None:
    """drop-in 9: before the first token and between tokens, never inside an event."""
    backend = fake("a", "one two three", first_delay=0.25, delay=0.12)
    async with edge(backend, server={"keepalive_seconds": 0.05}) as e:
        reply = await e.chat(stream=True)
        events = reply.events()
        before = events.index(next(event for event in events if event.startswith("{")))
        assert events[:before] == [": keep-alive"] * before
        assert before >= 3
        assert events[before + 2 : -3].count(": keep-alive") >= 1
        assert reply.content() == "one two three"
        assert all(part.endswith(b"\n\n") for part in reply.sent)


async def test_no_comment_without_silence() -> None:
    """drop-in 9: a lively stream has none."""
    async with edge(fake("a")) as e:
        assert ": keep-alive" not in (await e.chat(stream=True)).events()


@pytest.mark.parametrize("wiring", ["a", "b>a", "a|b", "b>a|b"])
@pytest.mark.parametrize("stream", [True, False])
async def test_failure_before_the_first_byte_is_a_real_status(wiring: str, stream: bool) -> None:
    """drop-in 10: also where an earlier stage had run already."""
    async with edge(fake("a", faults=(Fault(on="enter"),)), fake("b")) as e:
        reply = await e.chat(wiring, stream=stream)
        assert reply.status == 502
        assert reply.error["code"] == "backend_unavailable"
        assert e.idle()


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("wiring", ["a", "b>a", "a|b"])
async def test_failure_after_the_first_byte_never_looks_like_success(wiring: str, n: int) -> None:
    """drop-in 10: an error event, then the end; no finish, no [DONE]."""
    async with edge(fake("a", "one two three four", faults=(Fault(after=3),)), fake("b", "one two three four")) as e:
        reply = await e.chat(wiring, stream=True, n=n, **USAGE)
        assert reply.status == 200
        assert reply.complete
        *before, last = reply.events()
        assert json.loads(last)["error"]["code"] == "backend_unavailable"
        assert set(json.loads(last)["error"]) == {"message", "type", "param", "code"}
        assert "[DONE]" not in before
        assert all(choice["finish_reason"] is None for chunk in reply.chunks()[:-1] for choice in chunk["choices"])
        assert e.idle()
        whole = await e.chat(wiring, n=n)
        assert whole.status == 502
        assert whole.error["code"] == "backend_unavailable"


async def test_failure_after_a_keep_alive_is_an_error_event() -> None:
    """drop-in 9, 10: the first comment already sent the headers."""
    async with edge(fake("a", first_delay=0.2, faults=(Fault(on="token"),)), server={"keepalive_seconds": 0.05}) as e:
        reply = await e.chat(stream=True)
        assert reply.status == 200
        assert json.loads(reply.events()[-1])["error"]["code"] == "backend_unavailable"


async def test_nothing_on_the_way_may_buffer() -> None:
    """drop-in 11: headers for proxies; no compression even when the client offers it."""
    async with edge(fake("a")) as e:
        reply = await e.call("POST", CHAT, question(stream=True), {"accept-encoding": "gzip"})
        assert reply.header("cache-control") == "no-cache"
        assert reply.header("x-accel-buffering") == "no"
        assert reply.header("content-encoding") is None
        assert reply.header("content-length") is None
