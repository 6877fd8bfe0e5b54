"""A conversation as models read it that do not know tools by themselves: what there is to call, and past calls and results, as text.

It stands in the form of `guiding.grammars`, so a model reads calls as it is to write them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from backends.types import Message
from strategies.engine.guiding.grammars import CALL_BEGIN, CALL_END
from strategies.engine.options import Tool, Tools
from strategies.prompting import Language, PromptSet, language_of

_RESULTS = frozenset({"tool", "function"})
_CALLS = frozenset({"tool_calls", "function_call"})


def told_of_tools(
    messages: Sequence[Message], tools: Tools | None, prompts: PromptSet, *, may_call: bool
) -> tuple[Message, ...]:
    """The conversation with everything about tools in its text.

    tools: what the client offers, told in the system message (one is made if there is none), in the language of the last user message.
    may_call: whether who reads this writes the answer; another is told that it can't call anything.
    """
    spoken = _language(messages)
    plain = _with_calls_as_text(messages)
    if tools is None or not tools.tools:
        return plain
    text = _about(tools, prompts, spoken, may_call=may_call)
    if plain and plain[0].role == "system":
        first = plain[0]
        joined = f"{first.content}\n\n{text}" if first.content else text
        return replace(first, content=joined, extra=_without(first.extra, ("content",))), *plain[1:]
    return Message("system", text), *plain


def _language(messages: Sequence[Message]) -> Language:
    asked = next((message.content for message in reversed(messages) if message.role == "user"), "")
    return language_of(asked)


def _about(tools: Tools, prompts: PromptSet, spoken: Language, *, may_call: bool) -> str:
    listed = "\n".join(map(_described, tools.tools))
    if not may_call or tools.choice == "none":
        return prompts.tool_text("closed", spoken, tools=listed)
    choice = prompts.tool_text(tools.choice, spoken, name=tools.named or "")
    parts = [prompts.tool_text("offer", spoken, tools=listed), choice]
    if not tools.parallel and tools.choice != "named":
        parts.append(prompts.tool_text("one", spoken))
    return "\n".join(part for part in parts if part)


def _described(tool: Tool) -> str:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    function["parameters"] = tool.parameters or {"type": "object", "properties": {}}
    return _json({"type": "function", "function": function})


def _with_calls_as_text(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Calls as the assistant wrote them, results as what the user says next."""
    if not any(message.role in _RESULTS or not _CALLS.isdisjoint(message.extra) for message in messages):
        return tuple(messages)
    plain: list[Message] = []
    results: list[Message] = []
    order: list[Any] = []
    for message in messages:
        if message.role in _RESULTS:
            results.append(message)
            continue
        told = _results(results, order)
        results = []
        if told and message.role == "user":
            text = f"{told}\n\n{message.content}" if message.content else told
            plain.append(replace(message, content=text, extra=_without(message.extra, ("content",))))
            continue
        if told:
            plain.append(Message("user", told))
        calls = _calls_of(message)
        if message.role == "assistant":
            order = [call.get("id") for call in calls]
        plain.append(_said(message, calls) if calls else message)
    if told := _results(results, order):
        plain.append(Message("user", told))
    return tuple(plain)


def _results(results: Sequence[Message], order: Sequence[Any]) -> str:
    """The results in the order of the calls that they answer: nothing else in their text says which is whose."""
    place = {id: index for index, id in enumerate(order) if id is not None}
    ordered = sorted(results, key=lambda result: place.get(result.extra.get("tool_call_id"), len(place)))
    return "\n".join(f"<tool_response>\n{result.content}\n</tool_response>" for result in ordered)


def _calls_of(message: Message) -> list[Mapping[str, Any]]:
    """The calls of a message, those of the older form too."""
    calls = message.extra.get("tool_calls")
    found = [call for call in calls if isinstance(call, Mapping)] if isinstance(calls, list | tuple) else []
    older = message.extra.get("function_call")
    return [*found, {"function": older}] if isinstance(older, Mapping) else found


def _said(message: Message, calls: Sequence[Mapping[str, Any]]) -> Message:
    blocks = [f"{CALL_BEGIN}\n{_call(call)}\n{CALL_END}" for call in calls]
    text = "\n".join([message.content, *blocks] if message.content else blocks)
    return replace(message, content=text, extra=_without(message.extra, (*_CALLS, "content")))


def _call(call: Mapping[str, Any]) -> str:
    function = call.get("function")
    if not isinstance(function, Mapping):
        function = {}
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        with suppress(ValueError):  # what the model wrote was no JSON: it is shown as the text that it was
            arguments = json.loads(arguments or "{}")
    return _json({"name": function.get("name", ""), "arguments": arguments})


def _without(extra: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: value for key, value in extra.items() if key not in keys}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
