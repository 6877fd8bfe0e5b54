"""autogen: its client of OpenAI's API, and an assistant with tools."""

from __future__ import annotations

from autogen_agentchat.agents import AssistantAgent
from autogen_core.models import UserMessage
from autogen_ext.models.openai import OpenAIChatCompletionClient
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

ASK = [UserMessage(content=HELLO, source="user")]
ABLE = {"vision": False, "function_calling": True, "json_output": True, "structured_output": True, "family": "unknown"}


class Person(BaseModel):
    name: str
    age: int


def client() -> OpenAIChatCompletionClient:
    return OpenAIChatCompletionClient(
        model=WIRING, base_url=BASE_URL, api_key=KEY, model_info=ABLE, max_retries=0, timeout=60, max_tokens=200
    )


@check
async def chat() -> None:
    result = await client().create(ASK)
    said(result.content, HELLO_SAID)
    assert result.usage.completion_tokens > 0


@check
async def streaming() -> None:
    parts = [part async for part in client().create_stream(ASK)]
    said("".join(part for part in parts if isinstance(part, str)), HELLO_SAID)
    said(parts[-1].content, HELLO_SAID)


@check
async def tool_loop() -> None:
    needs_sense()
    agent = AssistantAgent(
        "one", client(), tools=[get_weather, to_fahrenheit], reflect_on_tool_use=False, max_tool_iterations=5
    )
    looped((await agent.run(task=WEATHER)).messages[-1].content)


@check
async def streamed_tool_loop() -> None:
    needs_sense()
    agent = AssistantAgent(
        "one", client(), tools=[get_weather, to_fahrenheit], max_tool_iterations=5, model_client_stream=True
    )
    async for event in agent.run_stream(task=WEATHER):
        last = event
    looped(last.messages[-1].content)


@check
async def structured() -> None:
    result = await client().create([UserMessage(content=PERSON, source="user")], json_output=Person)
    found = Person.model_validate_json(result.content)
    person(found.name, found.age)


main()
