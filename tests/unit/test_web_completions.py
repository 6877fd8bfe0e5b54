"""Text completions at the edge: raw prompts for single models, messages for wirings, the older form of log-probabilities."""

from __future__ import annotations

import math
from typing import Any

import anyio
import pytest
from edge import Edge, Reply, edge, fake
from openai.types import Completion

from backends.fake import FakeBackend, Fault
from backends.raw import raw_ids

pytestmark = pytest.mark.anyio

PATH = "/v1/completions"
WIRINGS = ["a", "a>b", "a|b", "s2p:a>b|c", "p2s:a|b>c", "(a>b)|c"]
MODEL = FakeBackend("any").model


async def ask(e: Edge, model: str = "a", prompt: Any = "Once", **fields: Any) -> Reply:
    body = {"model": model, "prompt": prompt, **fields}
    return await e.call("POST", PATH, {key: value for key, value in body.items() if value is not ...})


def valid(reply: Reply) -> Completion:
    assert reply.status == 200, reply.json()
    return Completion.model_validate(reply.json())


def texts(reply: Reply) -> dict[int, str]:
    """A stream's joined text by choice, each chunk checked against the official client's type."""
    assert reply.events()[-1] == "[DONE]"
    found: dict[int, str] = {}
    finished: set[int] = set()
    for chunk in reply.chunks():
        Completion.model_validate({**chunk, "choices": [{**c, "finish_reason": "stop"} for c in chunk["choices"]]})
        for choice in chunk["choices"]:
            assert choice["index"] not in finished
            found[choice["index"]] = found.get(choice["index"], "") + choice["text"]
            if choice["finish_reason"] is not None:
                finished.add(choice["index"])
    assert finished == set(found)
    return found


# Answers


@pytest.mark.parametrize("wiring", WIRINGS)
async def test_whole_and_streamed_answers_agree(wiring: str) -> None:
    """drop-in 3, 4, 5, 7, 16: over every kind of wiring."""
    async with edge(fake("a"), fake("b"), fake("c")) as e:
        whole = valid(await ask(e, wiring, max_tokens=64))
        assert (whole.object, whole.model) == ("text_completion", wiring)
        assert whole.id.startswith("cmpl-")
        streamed = await ask(e, wiring, max_tokens=64, stream=True, stream_options={"include_usage": True})
        assert texts(streamed) == {0: whole.choices[0].text}
        assert whole.choices[0].text
        chunks = streamed.chunks()
        assert len({(c["id"], c["created"], c["model"], c["object"]) for c in chunks}) == 1
        assert chunks[-1]["choices"] == []
        assert whole.usage is not None
        assert chunks[-1]["usage"] == whole.usage.model_dump(exclude_none=True)
        assert all(c["usage"] is None for c in chunks[:-1])
        assert e.idle()


async def test_a_single_model_reads_the_prompt_as_it_is() -> None:
    """drop-in 16: no template around it; every other wiring reads it as a user's message."""
    a, b = fake("a", "{last}!"), fake("b", "{last}?")
    async with edge(a, b) as e:
        assert valid(await ask(e, "a", "Once")).choices[0].text == "Once!"
        assert raw_ids(a.requests[0].messages) == tuple(MODEL.encode(b"Once"))
        valid(await ask(e, "a>b", "Once"))
        assert a.requests[1].messages[-1].role == "user"
        assert "Once" in a.requests[1].messages[-1].content


async def test_lists_of_prompts_and_n() -> None:
    """drop-in 16, 12: n answers for every prompt, in the order of the prompts."""
    async with edge(fake("a", "{last}!")) as e:
        whole = valid(await ask(e, prompt=["one", "two", "three"], n=2))
        assert [(c.index, c.text) for c in whole.choices] == list(
            enumerate(["one!", "one!", "two!", "two!", "three!", "three!"])
        )
        streamed = await ask(e, prompt=["one", "two", "three"], n=2, stream=True)
        assert texts(streamed) == {c.index: c.text for c in whole.choices}
        one = valid(await ask(e, prompt=["one"]))
        assert whole.usage is not None
        assert one.usage is not None
        assert whole.usage.prompt_tokens > one.usage.prompt_tokens


async def test_more_prompts_than_run_at_once() -> None:
    """A long list takes its turns: no more at once than a request may have choices."""
    a = fake("a", "{last}!", delay=0.001)
    async with edge(a, limits={"choices": 3}) as e:
        whole = valid(await ask(e, prompt=[f"p{n}" for n in range(20)]))
        assert [c.text for c in whole.choices] == [f"p{n}!" for n in range(20)]
        assert a.counters.most <= 3


@pytest.mark.parametrize("prompt", [MODEL.encode("Once 中国".encode()), [MODEL.encode("Once 中国".encode())]])
@pytest.mark.parametrize("wiring", ["a", "a|b", "a>b"])
async def test_token_ids_are_prompts(wiring: str, prompt: Any) -> None:
    """drop-in 16: of the one tokenizer that is meant, also where a prompt is a message."""
    async with edge(fake("a", "{last}!"), fake("b", "{last}!")) as e:
        by_ids = valid(await ask(e, wiring, prompt, echo=True, max_tokens=64))
        by_text = valid(await ask(e, wiring, "Once 中国", echo=True, max_tokens=64))
        assert by_ids.choices[0].text == by_text.choices[0].text
        assert by_ids.choices[0].text.startswith("Once 中国")


async def test_token_ids_of_several_tokenizers_mean_nothing() -> None:
    """drop-in 16: a clear 400."""
    async with edge(fake("a"), fake("b", words=(" other",)), fake("text", sessions=False)) as e:
        for wiring in ("a>b", "a|b"):
            reply = await ask(e, wiring, [1, 2])
            assert (reply.status, reply.error["param"]) == (400, "prompt")
            assert "different tokenizers" in reply.error["message"]
        reply = await ask(e, "text>text", [1, 2])
        assert (reply.status, reply.error["param"]) == (400, "prompt")
        reply = await ask(e, "a", [1, 10**6])
        assert (reply.status, reply.error["param"]) == (400, "prompt[0]")


@pytest.mark.parametrize("stream", [True, False])
async def test_echo(stream: bool) -> None:
    """drop-in 16: the prompt comes first, streamed too, over every wiring."""
    async with edge(fake("a", "said"), fake("b", "said")) as e:
        for wiring in ("a", "a>b", "a|b"):
            reply = await ask(e, wiring, ["One 😀 ", "Two "], echo=True, stream=stream)
            found = texts(reply) if stream else {c.index: c.text for c in valid(reply).choices}
            assert found == {0: "One 😀 said", 1: "Two said"}


async def test_a_budget_of_nothing_writes_nothing() -> None:
    """drop-in 14: OpenAI allows 0, to have a prompt scored or counted."""
    a = fake("a")
    async with edge(a) as e:
        whole = valid(await ask(e, max_tokens=0, echo=True))
        assert (whole.choices[0].text, whole.choices[0].finish_reason) == ("Once", "length")
        assert whole.usage is not None
        assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (len(MODEL.encode(b"Once")), 0)
        assert not a.requests


async def test_the_budget_is_16_unless_said() -> None:
    """drop-in 14."""
    async with edge(fake("a", "x" * 40)) as e:
        whole = valid(await ask(e))
        assert (whole.choices[0].text, whole.choices[0].finish_reason) == ("x" * 16, "length")
        assert valid(await ask(e, max_tokens=64)).choices[0].finish_reason == "stop"


async def test_stop() -> None:
    """drop-in 13."""
    async with edge(fake("a", "one two three")) as e:
        assert valid(await ask(e, stop="two")).choices[0].text == "one "
        for neutral in ([], None, ""):
            assert valid(await ask(e, stop=neutral)).choices[0].text == "one two three"


@pytest.mark.parametrize("prompt", ["", ..., None])
async def test_no_prompt_is_the_beginning_of_a_text(prompt: Any) -> None:
    """drop-in 16, 23."""
    a = fake("a", "said")
    async with edge(a) as e:
        assert valid(await ask(e, prompt=prompt)).choices[0].text == "said"
        assert raw_ids(a.requests[0].messages) == (min(MODEL.vocabulary.end_ids),)


# Log-probabilities


@pytest.mark.parametrize("wiring", ["a", "a|b"])
async def test_logprobs_in_the_older_form(wiring: str) -> None:
    """drop-in 16, 17: parallel lists whose tokens join to the text; streamed the same."""
    async with edge(fake("a", "one two 中国"), fake("b", "one two 中国")) as e:
        whole = valid(await ask(e, wiring, logprobs=2, max_tokens=64))
        told = whole.choices[0].logprobs
        assert told is not None
        assert told.tokens is not None and told.token_logprobs is not None
        assert told.top_logprobs is not None and told.text_offset is not None
        assert "".join(told.tokens) == whole.choices[0].text == "one two 中国"
        assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset)
        text = whole.choices[0].text
        for token, logprob, top, offset in zip(
            told.tokens, told.token_logprobs, told.top_logprobs, told.text_offset, strict=True
        ):
            assert text[offset : offset + len(token)] == token
            assert top[token] == logprob < 0
            assert 2 <= len(top) <= 3
        reply = await ask(e, wiring, logprobs=2, max_tokens=64, stream=True)
        parts = [c["logprobs"] for chunk in reply.chunks() for c in chunk["choices"] if c["logprobs"]]
        for key in ("tokens", "token_logprobs", "text_offset"):
            assert [item for part in parts for item in part[key]] == getattr(told, key)


async def test_zero_logprobs_tell_the_token_alone() -> None:
    """drop-in 17."""
    async with edge(fake("a", "one two")) as e:
        told = valid(await ask(e, logprobs=0)).choices[0].logprobs
        assert told is not None and told.top_logprobs is not None and told.tokens is not None
        assert [set(top) for top in told.top_logprobs] == [{token} for token in told.tokens]
        assert valid(await ask(e)).choices[0].logprobs is None


async def test_tokens_that_are_parts_of_a_character() -> None:
    """drop-in 11, 17: they stand where their character does, and are told as bytes."""
    async with edge(fake("a", "a龘b")) as e:
        whole = valid(await ask(e, logprobs=1, max_tokens=64))
        told = whole.choices[0].logprobs
        assert whole.choices[0].text == "a龘b"
        assert told is not None
        assert told.tokens == ["a", *(f"bytes:\\x{byte:02x}" for byte in "龘".encode()), "b"]
        assert told.text_offset == [0, 1, 1, 1, 2]


async def test_an_echoed_prompt_has_its_own_logprobs() -> None:
    """drop-in 16: what evaluation harnesses score answers with; the numbers are the model's."""
    backend = fake("a", "said")
    async with edge(backend, fake("mute", "")) as e:
        # The first one's null is OpenAI's, though the client's type does not know it.
        (choice,) = (await ask(e, prompt="Once upon", echo=True, logprobs=1, max_tokens=1)).json()["choices"]
        told = choice["logprobs"]
        assert "".join(told["tokens"]) == choice["text"]
        assert choice["text"].startswith("Once upon")
        ids = MODEL.encode(b"Once upon")
        assert told["token_logprobs"][0] is told["top_logprobs"][0] is None
        history = [ids[0], backend.model.separator]
        for number, id in enumerate(ids[1:], start=1):
            expected = math.log(backend.model.distribution(history)[id])
            assert told["token_logprobs"][number] == pytest.approx(expected)
            history.append(id)
        (ended,) = (await ask(e, "mute", prompt=ids, echo=True, logprobs=1, max_tokens=1)).json()["choices"]
        assert ended["text"] == "Once upon"
        assert ended["finish_reason"] == "stop"
        assert len(ended["logprobs"]["tokens"]) == len(ids) + 1
        assert ended["logprobs"]["tokens"][-1] == ""
        assert -1 < ended["logprobs"]["token_logprobs"][-1] < 0
        (only,) = (await ask(e, prompt=ids, echo=True, logprobs=1, max_tokens=0)).json()["choices"]
        assert only["text"] == "Once upon"
        assert only["logprobs"]["token_logprobs"] == told["token_logprobs"][: len(ids)]
        assert e.idle()


async def test_only_single_models_score_prompts() -> None:
    """drop-in 18."""
    async with edge(fake("a"), fake("b")) as e:
        reply = await ask(e, "a|b", echo=True, logprobs=1)
        assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "unsupported_parameter", "echo")


# What is refused


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ...}, "model"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": [1, "x"]}, "prompt[0]"),
        ({"prompt": ["x", 1]}, "prompt[1]"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"prompt": "a\x00b"}, "prompt"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "x"}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"echo": "yes"}, "echo"),
        ({"stream": 1}, "stream"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"prompt": ["x"] * 1025}, "prompt"),
    ],
)
async def test_what_is_refused(fields: dict[str, Any], param: str) -> None:
    """drop-in 12, 16, 24."""
    async with edge(fake("a")) as e:
        reply = await ask(e, **fields)
        assert (reply.status, reply.error["param"]) == (400, param)


async def test_harmless_values_are_accepted() -> None:
    """drop-in 23, 25."""
    async with edge(fake("a", "said")) as e:
        fields = {"suffix": "", "best_of": 1, "user": "u", "logit_bias": {}, "frequency_penalty": 0, "seed": 1}
        more = {"stream_options": {"include_usage": True}, "n": None, "echo": None, "unknown": {"x": 1}}
        assert valid(await ask(e, **fields, **more)).choices[0].text == "said"


async def test_nobody_and_bad_grammar_are_404s() -> None:
    """drop-in 27, 31."""
    async with edge(fake("a")) as e:
        for model in ("nobody", "a>"):
            reply = await ask(e, model)
            assert (reply.status, reply.error["code"]) == (404, "model_not_found")
        assert (await e.call("GET", PATH)).status == 405


# Failures


async def test_failures_before_and_after_the_first_text() -> None:
    """drop-in 10."""
    broken = fake("broken", "one two three", faults=(Fault(on="token", after=2),))
    async with edge(fake("gone", faults=(Fault(on="enter"),)), broken) as e:
        reply = await ask(e, "gone", stream=True)
        assert (reply.status, reply.error["code"]) == (502, "backend_unavailable")
        reply = await ask(e, "broken", stream=True)
        assert reply.status == 200
        assert "error" in reply.chunks()[-1]
        assert "[DONE]" not in reply.events()
        assert e.idle()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("fields", [{}, {"echo": True, "logprobs": 1}])
async def test_a_client_that_leaves_frees_everything(stream: bool, fields: dict[str, Any]) -> None:
    """drop-in 30: while it writes, and while a prompt is scored."""
    backend = fake("a", faults=(Fault(on="token", after=1, action="hang"),))
    async with edge(backend) as e:
        exchange = e.exchange("POST", PATH, {"model": "a", "prompt": "Once", "stream": stream, **fields})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.run)
            with anyio.fail_after(5):
                while backend.counters.deltas + backend.counters.passes < 1:
                    await anyio.sleep(0.005)
            exchange.leave()
            with anyio.fail_after(0.5):
                await exchange.finished.wait()
        assert e.idle()
