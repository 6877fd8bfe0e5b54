"""pydantic-ai, over chat completions and over responses."""

from __future__ import annotations

from checks import (
    BASE_URL,
    HELLO,
    HELLO_SAID,
    KEY,
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
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

KINDS = (OpenAIChatModel, OpenAIResponsesModel)


def agent(kind: type, **more: object) -> Agent:
    return Agent(kind(WIRING, provider=OpenAIProvider(base_url=BASE_URL, api_key=KEY)), **more)


class Person(BaseModel):
    name: str
    age: int


@check
async def chat() -> None:
    for kind in KINDS:
        result = await agent(kind).run(HELLO)
        said(result.output, HELLO_SAID)
        assert result.usage.output_tokens > 0


@check
async def streaming() -> None:
    for kind in KINDS:
        async with agent(kind).run_stream(HELLO) as result:
            said("".join([part async for part in result.stream_text(delta=True)]), HELLO_SAID)


@check
async def tool_loop() -> None:
    needs_sense()
    looped((await agent(OpenAIChatModel, tools=[get_weather, to_fahrenheit]).run(WEATHER)).output)


@check
async def tool_loop_over_responses() -> None:
    needs_sense()
    looped((await agent(OpenAIResponsesModel, tools=[get_weather, to_fahrenheit]).run(WEATHER)).output)


@check
async def streamed_tool_loop() -> None:
    needs_sense()
    async with agent(OpenAIChatModel, tools=[get_weather, to_fahrenheit]).run_stream(WEATHER) as result:
        looped(await result.get_output())


@check
async def structured_by_tool() -> None:
    found = (await agent(OpenAIChatModel, output_type=Person).run("Describe Ada by final_result.")).output
    person(found.name, found.age)


@check
async def structured_by_format() -> None:
    for kind in KINDS:
        found = (await agent(kind, output_type=NativeOutput(Person)).run(PERSON)).output
        person(found.name, found.age)


main()
