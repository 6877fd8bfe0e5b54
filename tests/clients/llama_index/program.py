"""LlamaIndex, by its class for servers like OpenAI's."""

from __future__ import annotations

from checks import (
    BASE_URL,
    HELLO,
    HELLO_SAID,
    KEY,
    PERSON_BY_TOOL,
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
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

model = OpenAILike(
    model=WIRING,
    api_base=BASE_URL,
    api_key=KEY,
    is_chat_model=True,
    is_function_calling_model=True,
    max_tokens=200,
    max_retries=0,
    timeout=60,
)
ASK = [ChatMessage(role="user", content=HELLO)]


class Person(BaseModel):
    """Somebody."""

    name: str
    age: int


@check
def chat() -> None:
    said(model.chat(ASK).message.content, HELLO_SAID)


@check
def streaming() -> None:
    said("".join(part.delta or "" for part in model.stream_chat(ASK)), HELLO_SAID)


@check
def text() -> None:
    said(model.complete(HELLO).text, HELLO_SAID)


@check
async def asynchronous() -> None:
    said((await model.achat(ASK)).message.content, HELLO_SAID)
    said("".join([part.delta or "" async for part in await model.astream_chat(ASK)]), HELLO_SAID)


@check
async def tool_loop() -> None:
    needs_sense()
    tools = [FunctionTool.from_defaults(get_weather), FunctionTool.from_defaults(to_fahrenheit)]
    looped(str(await FunctionAgent(tools=tools, llm=model).run(WEATHER)))


@check
def structured() -> None:
    found = model.as_structured_llm(Person).chat([ChatMessage(role="user", content=PERSON_BY_TOOL)]).raw
    person(found.name, found.age)


main()
