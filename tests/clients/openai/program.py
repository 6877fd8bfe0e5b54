"""The official client for Python: synchronous, asynchronous, over aiohttp; chat, completions, embeddings, responses."""

from __future__ import annotations

import json

import openai
from checks import (
    HELLO,
    HELLO_SAID,
    PERSON,
    SCRIPTED,
    TOOLS,
    WEATHER,
    WIRING,
    call,
    check,
    looped,
    main,
    needs_sense,
    person,
    said,
)
from openai import AsyncOpenAI, DefaultAioHttpClient, OpenAI
from pydantic import BaseModel

ASK = [{"role": "user", "content": HELLO}]
client = OpenAI(max_retries=0, timeout=60)


class Person(BaseModel):
    name: str
    age: int


@check
def chat() -> None:
    answer = client.chat.completions.create(model=WIRING, messages=ASK, max_tokens=40)
    said(answer.choices[0].message.content, HELLO_SAID)
    assert answer.model == WIRING
    assert answer.usage and answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer._request_id


@check
def streaming() -> None:
    options = {"include_usage": True}
    with client.chat.completions.create(
        model=WIRING, messages=ASK, max_tokens=40, stream=True, stream_options=options
    ) as chunks:
        got = list(chunks)
    said("".join(chunk.choices[0].delta.content or "" for chunk in got if chunk.choices), HELLO_SAID)
    assert got[-1].usage and not got[-1].choices
    assert len({chunk.id for chunk in got}) == 1
    assert sum(bool(chunk.choices and chunk.choices[0].finish_reason) for chunk in got) == 1


@check
def stream_helper() -> None:
    with client.chat.completions.stream(model=WIRING, messages=ASK, max_tokens=40) as events:
        kinds = {event.type for event in events}
        try:
            final = events.get_final_completion()
        except openai.LengthFinishReasonError as error:  # how the SDK says it; a real model may have more to say
            assert not SCRIPTED
            final = error.completion
    said(final.choices[0].message.content, HELLO_SAID)
    assert {"chunk", "content.delta", "content.done"} <= kinds, kinds


@check
def several_choices() -> None:
    answer = client.chat.completions.create(model=WIRING, messages=ASK, n=2, max_tokens=40)
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        said(choice.message.content, HELLO_SAID)


@check
def tool_loop() -> None:
    needs_sense()
    messages = [{"role": "user", "content": WEATHER}]
    for _ in range(5):
        choice = client.chat.completions.create(model=WIRING, messages=messages, tools=TOOLS).choices[0]
        messages.append(choice.message)
        if not choice.message.tool_calls:
            break
        assert choice.finish_reason == "tool_calls"
        for one in choice.message.tool_calls:
            result = call(one.function.name, one.function.arguments)
            messages.append({"role": "tool", "tool_call_id": one.id, "content": result})
    looped(messages[-1].content)


@check
def streamed_tool_loop() -> None:
    needs_sense()
    messages = [{"role": "user", "content": WEATHER}]
    for _ in range(5):
        with client.chat.completions.stream(model=WIRING, messages=messages, tools=TOOLS) as events:
            for _event in events:
                pass
            choice = events.get_final_completion().choices[0]
        messages.append(choice.message.model_dump(exclude_none=True))
        if not choice.message.tool_calls:
            break
        for one in choice.message.tool_calls:
            result = call(one.function.name, one.function.arguments)
            messages.append({"role": "tool", "tool_call_id": one.id, "content": result})
    looped(messages[-1]["content"])


@check
def required_tool() -> None:
    answer = client.chat.completions.create(
        model=WIRING,
        messages=[{"role": "user", "content": WEATHER}],
        tools=TOOLS[:1],
        tool_choice="required",
        parallel_tool_calls=False,
    )
    (one,) = answer.choices[0].message.tool_calls or []
    assert one.function.name == "get_weather"
    assert isinstance(json.loads(one.function.arguments)["city"], str)


@check
def parse() -> None:
    ask = [{"role": "user", "content": PERSON}]
    answer = client.chat.completions.parse(model=WIRING, messages=ask, response_format=Person, max_tokens=200)
    found = answer.choices[0].message.parsed
    assert found is not None
    person(found.name, found.age)


@check
def log_probabilities() -> None:
    answer = client.chat.completions.create(model=WIRING, messages=ASK, max_tokens=20, logprobs=True, top_logprobs=2)
    told = answer.choices[0].logprobs
    assert told is not None and told.content
    text = b"".join(bytes(each.bytes or []) for each in told.content).decode()
    assert text == answer.choices[0].message.content
    assert all(each.logprob <= 0 for each in told.content)


@check
def completions() -> None:
    answer = client.completions.create(model=WIRING, prompt=HELLO, max_tokens=40)
    assert answer.choices[0].text
    chunks = list(client.completions.create(model=WIRING, prompt=HELLO, max_tokens=40, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == answer.choices[0].text


@check
def responses() -> None:
    answer = client.responses.create(model=WIRING, input=HELLO, max_output_tokens=40)
    said(answer.output_text, HELLO_SAID)
    with client.responses.stream(model=WIRING, input=HELLO, max_output_tokens=40) as events:
        got = list(events)
        text = "".join(event.delta for event in got if event.type == "response.output_text.delta")
        if SCRIPTED:  # a real model may have more to say, and the SDK takes only what is complete
            assert events.get_final_response().output_text == text
    assert got[-1].type in {"response.completed", "response.incomplete"}
    assert got[-1].response.output_text == text
    said(text, HELLO_SAID)


@check
def responses_parse() -> None:
    answer = client.responses.parse(model=WIRING, input=PERSON, text_format=Person)
    assert answer.output_parsed is not None
    person(answer.output_parsed.name, answer.output_parsed.age)


@check
def models() -> None:
    assert any(model.id == "a" for model in client.models.list()) or not SCRIPTED
    assert client.models.retrieve(WIRING).id == WIRING


@check
def errors() -> None:
    for model, kind in (("nobody", openai.NotFoundError), ("a>>b", openai.NotFoundError)):
        try:
            client.chat.completions.create(model=model, messages=ASK)
        except kind as error:
            assert error.code == "model_not_found", error.code
        else:
            raise AssertionError(f"{model} was answered")
    try:
        client.chat.completions.create(model=WIRING, messages=ASK, temperature=9)
    except openai.BadRequestError as error:
        assert error.param == "temperature", error.param
    try:
        OpenAI(api_key="sk-wrong", max_retries=0).models.list()
    except openai.AuthenticationError as error:
        assert error.code == "invalid_api_key", error.code
    else:
        raise AssertionError("a wrong key was let in")


@check
async def asynchronous() -> None:
    async with AsyncOpenAI(max_retries=0, timeout=60) as other:
        await _asked(other)


@check
async def over_aiohttp() -> None:
    async with AsyncOpenAI(max_retries=0, timeout=60, http_client=DefaultAioHttpClient()) as other:
        await _asked(other)


async def _asked(other: AsyncOpenAI) -> None:
    answer = await other.chat.completions.create(model=WIRING, messages=ASK, max_tokens=40)
    said(answer.choices[0].message.content, HELLO_SAID)
    text = ""
    async for chunk in await other.chat.completions.create(model=WIRING, messages=ASK, max_tokens=40, stream=True):
        text += chunk.choices[0].delta.content or ""
    said(text, HELLO_SAID)
    ask = [{"role": "user", "content": PERSON}]
    async with other.chat.completions.stream(
        model=WIRING, messages=ask, response_format=Person, max_tokens=200
    ) as events:
        found = (await events.get_final_completion()).choices[0].message.parsed
    assert found is not None
    person(found.name, found.age)


main()
