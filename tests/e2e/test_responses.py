"""The Responses API through the official client: answers, streams, a loop of tool calls and parsed answers, over every wiring."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel
from served import gateway, upstream

CALL = '<tool_call>\\n{\\"name\\": \\"weather\\", \\"arguments\\": {\\"city\\": \\"Köln 是\\"}}\\n</tool_call>'
RULES = f"""rules: [
      {{contains: "21 degrees", answer: "It is 21 degrees."}},
      {{contains: "weather", answer: "{CALL}"}},
      {{contains: "JSON", answer: '{{"x": 5, "name": "是"}}'}}]"""
CONFIG = f"""
models:
  a: {{backend: fake, answer: "Answer: 是的 😀.", {RULES}}}
  b: {{backend: fake, answer: "Answer: 是的 😀.", {RULES}}}
  c: {{backend: fake, answer: "Answer: 是的 😀.", {RULES}}}
  far: {{backend: openai, base_url: "FAR"}}
  slow: {{backend: fake, answer: "one two three four five six seven eight", delay: 0.1}}
  broken: {{backend: fake, answer: "one two three", faults: [{{on: token, after: 2}}]}}
aliases:
  duo: {{expression: "s2p:a>b|c"}}
"""
OURS = ["a", "si:a>b", "pi:a|b", "s2p:a>b|c", "p2s:a|b>c", "(a>b)|c", "duo"]
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "The weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


class Point(BaseModel):
    x: int
    name: str


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    folder = tmp_path_factory.mktemp("responses")
    with upstream(folder, "far", "--answer", "From afar: 是的 😀.") as far:
        with gateway(folder, CONFIG.replace("FAR", far)) as client:
            yield client


@pytest.mark.parametrize("model", [*OURS, "far", "a>far"])
def test_answers(client: openai.OpenAI, model: str) -> None:
    """drop-in 35, 36: the client's own shorthands work, and a stream puts together what a whole answer is."""
    whole = client.responses.create(model=model, input="Why?")
    assert whole.output_text.endswith("是的 😀.")
    assert (whole.model, whole.status) == (model, "completed")
    with client.responses.stream(model=model, input="Why?") as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(texts) == final.output_text == whole.output_text
    assert final.usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.output_tokens > 0


@pytest.mark.parametrize("model", OURS)
@pytest.mark.parametrize("stream", [True, False])
def test_a_loop_of_tool_calls(client: openai.OpenAI, model: str, stream: bool) -> None:
    """drop-in 19, 20, 21: the call comes, its result goes back with everything before it, the answer comes."""
    asked: list[Any] = [{"role": "user", "content": "What is the weather?"}]
    for _ in range(3):
        response = answered(client, stream, model=model, input=asked, tools=[WEATHER])
        calls = [item for item in response.output if item.type == "function_call"]
        if not calls:
            break
        (call,) = calls
        assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Köln 是"})
        asked += response.output
        asked.append({"type": "function_call_output", "call_id": call.call_id, "output": "21 degrees"})
    else:
        raise AssertionError("it goes on calling")
    assert len(asked) > 1
    assert response.output_text == "It is 21 degrees."


@pytest.mark.parametrize("model", OURS)
def test_parsed_answers(client: openai.OpenAI, model: str) -> None:
    """drop-in 22: `parse` gives the type that was asked for, streamed too."""
    parsed = client.responses.parse(model=model, input="JSON, please.", text_format=Point)
    assert parsed.output_parsed == Point(x=5, name="是")
    with client.responses.stream(model=model, input="JSON, please.", text_format=Point) as stream:
        assert stream.until_done().get_final_response().output_parsed == Point(x=5, name="是")


@pytest.mark.parametrize("model", ["a", "a|b"])
def test_logprobs(client: openai.OpenAI, model: str) -> None:
    """drop-in 17, 18."""
    response = client.responses.create(
        model=model, input="Why?", include=["message.output_text.logprobs"], top_logprobs=2
    )
    (item,) = response.output
    assert item.type == "message"
    (part,) = item.content
    assert part.type == "output_text"
    assert part.logprobs
    assert b"".join(bytes(token.bytes) for token in part.logprobs).decode() == part.text
    assert all(len(token.top_logprobs) == 2 for token in part.logprobs)


@pytest.mark.anyio
async def test_the_asynchronous_client(client: openai.OpenAI) -> None:
    """drop-in 36."""
    async with openai.AsyncOpenAI(base_url=client.base_url, api_key=client.api_key, max_retries=0) as other:
        stream = await other.responses.create(model="duo", input="Why?", stream=True, instructions="Be brief.")
        kinds = [event.type async for event in stream]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"


def test_a_cut_answer(client: openai.OpenAI) -> None:
    """drop-in 14."""
    response = client.responses.create(model="slow", input="Why?", max_output_tokens=2)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"


def test_what_needs_a_store_is_refused(client: openai.OpenAI) -> None:
    """drop-in 35: nothing is stored, and nothing pretends to be."""
    response = client.responses.create(model="a", input="Why?", store=True)
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model="a", input="And?", previous_response_id=response.id)
    assert refused.value.param == "previous_response_id"
    for call in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(openai.NotFoundError) as missing:
            call(response.id)
        assert missing.value.code == "response_not_found"
    with pytest.raises(openai.BadRequestError) as built_in:
        client.responses.create(model="a", input="Why?", tools=[{"type": "web_search"}])
    assert built_in.value.param == "tools[0].type"


def test_a_stream_that_breaks_is_a_failure(client: openai.OpenAI) -> None:
    """drop-in 10."""
    events = list(client.responses.create(model="broken", input="Why?", stream=True))
    assert events[-1].type == "response.failed"
    assert events[-1].response.error is not None


def answered(client: openai.OpenAI, stream: bool, **asked: Any) -> Any:
    if not stream:
        return client.responses.create(**asked)
    with client.responses.stream(**asked) as events:
        return events.until_done().get_final_response()
