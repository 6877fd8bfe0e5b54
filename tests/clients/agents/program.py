"""OpenAI's Agents SDK, over chat completions and over responses."""

from __future__ import annotations

from agents import (
    Agent,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from checks import (
    HELLO,
    HELLO_SAID,
    PERSON,
    WEATHER,
    WIRING,
    check,
    get_weather,
    looped,
    main,
    needs_sense,
    person,
    said,
    to_fahrenheit,
)
from openai import AsyncOpenAI
from pydantic import BaseModel

set_tracing_disabled(True)


class Person(BaseModel):
    name: str
    age: int


def agent(kind: type, **more: object) -> Agent:
    client = AsyncOpenAI(max_retries=0, timeout=60)
    return Agent(name="one", instructions="Be brief.", model=kind(model=WIRING, openai_client=client), **more)


KINDS = (OpenAIChatCompletionsModel, OpenAIResponsesModel)


@check
async def chat() -> None:
    for kind in KINDS:
        said((await Runner.run(agent(kind), HELLO)).final_output, HELLO_SAID)


@check
async def streaming() -> None:
    for kind in KINDS:
        result, text = Runner.run_streamed(agent(kind), HELLO), ""
        async for event in result.stream_events():
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                text += event.data.delta
        said(text, HELLO_SAID)
        said(result.final_output, HELLO_SAID)


async def _loop(kind: type, streamed: bool) -> None:
    needs_sense()
    tools = [function_tool(get_weather), function_tool(to_fahrenheit)]
    if streamed:
        result = Runner.run_streamed(agent(kind, tools=tools), WEATHER)
        async for _ in result.stream_events():
            pass
    else:
        result = await Runner.run(agent(kind, tools=tools), WEATHER)
    looped(result.final_output)


@check
async def tool_loop() -> None:
    await _loop(OpenAIChatCompletionsModel, streamed=False)


@check
async def streamed_tool_loop() -> None:
    await _loop(OpenAIChatCompletionsModel, streamed=True)


@check
async def tool_loop_over_responses() -> None:
    await _loop(OpenAIResponsesModel, streamed=False)


@check
async def streamed_tool_loop_over_responses() -> None:
    await _loop(OpenAIResponsesModel, streamed=True)


@check
async def structured() -> None:
    for kind in KINDS:
        found = (await Runner.run(agent(kind, output_type=Person), PERSON)).final_output
        person(found.name, found.age)


main()
