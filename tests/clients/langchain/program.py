"""langchain-openai, and an agent of LangGraph."""

from __future__ import annotations

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
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from pydantic import BaseModel

model = ChatOpenAI(model=WIRING, max_retries=0, timeout=60, max_tokens=200)
TOOLS = [tool(get_weather), tool(to_fahrenheit)]


class Person(BaseModel):
    """Somebody."""

    name: str
    age: int


@check
def chat() -> None:
    answer = model.invoke(HELLO)
    said(answer.content, HELLO_SAID)
    assert answer.usage_metadata and answer.usage_metadata["output_tokens"] > 0
    assert answer.response_metadata["model_name"] == WIRING


@check
def streaming() -> None:
    said("".join(str(chunk.content) for chunk in model.stream(HELLO)), HELLO_SAID)


@check
async def asynchronous() -> None:
    said((await model.ainvoke(HELLO)).content, HELLO_SAID)
    said("".join([str(chunk.content) async for chunk in model.astream(HELLO)]), HELLO_SAID)


@check
def over_responses() -> None:
    other = ChatOpenAI(model=WIRING, max_retries=0, timeout=60, use_responses_api=True)
    said(other.invoke(HELLO).text, HELLO_SAID)


@check
def structured() -> None:
    for method in ("json_schema", "function_calling"):
        found = model.with_structured_output(Person, method=method).invoke(
            PERSON if method == "json_schema" else "Describe Ada by the tool."
        )
        person(found.name, found.age)


@check
def tool_loop() -> None:
    needs_sense()
    bound = model.bind_tools(TOOLS)
    messages = [HumanMessage(WEATHER)]
    for _ in range(5):
        answer = bound.invoke(messages)
        messages.append(answer)
        if not answer.tool_calls:
            break
        for one in answer.tool_calls:
            result = {"get_weather": get_weather, "to_fahrenheit": to_fahrenheit}[one["name"]](**one["args"])
            messages.append(ToolMessage(result, tool_call_id=one["id"]))
    looped(messages[-1].content)


@check
def graph() -> None:
    """An agent of LangGraph, with several steps."""
    needs_sense()
    bound = model.bind_tools(TOOLS)
    steps = StateGraph(MessagesState)
    steps.add_node("model", lambda state: {"messages": [bound.invoke(state["messages"])]})
    steps.add_node("tools", ToolNode(TOOLS))
    steps.add_edge(START, "model")
    steps.add_conditional_edges("model", tools_condition)
    steps.add_edge("tools", "model")
    looped(steps.compile().invoke({"messages": [HumanMessage(WEATHER)]})["messages"][-1].content)


main()
