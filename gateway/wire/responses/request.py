"""The body of POST /v1/responses → a `ChatRequest`.

null equals absent. What needs a store (earlier responses, conversations, background runs) or tools of OpenAI's own is refused with
the reason. Fields this gateway does not know are kept, as in chat, for a server that writes the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from dataclasses import fields as fields_of
from typing import Any

from gateway.wire.body import json_object
from gateway.wire.decode import ChatRequest, RequestLimits, chat_request
from gateway.wire.errors import APIError, bad_request, unsupported
from gateway.wire.fields import Fields, array, boolean, integer, kind_of, mapping, number, string
from gateway.wire.responses.items import messages_of
from gateway.wire.responses.names import in_responses_words

LOGPROBS = "message.output_text.logprobs"

_STORED = {
    "previous_response_id": "Nothing is stored here: send the whole conversation as input.",
    "conversation": "Nothing is stored here: send the whole conversation as input.",
    "prompt": "Prompt templates are not stored here: send instructions and input.",
}
# Chat's own names of what stands under other names here, or of what a response can't show.
_CHAT_ONLY = frozenset(
    {
        *("messages", "n", "max_tokens", "max_completion_tokens", "response_format", "logprobs"),
        *("functions", "function_call", "modalities", "audio", "web_search_options"),
    }
)
_OWN = frozenset(
    {
        *_STORED,
        *(
            "model",
            "input",
            "instructions",
            "max_output_tokens",
            "max_tool_calls",
            "tools",
            "tool_choice",
            "text",
            "store",
        ),
        *("parallel_tool_calls", "background", "include", "reasoning", "truncation", "top_logprobs", "stream_options"),
        "metadata",  # of the response, which is ours
    }
)


@dataclass(frozen=True, slots=True)
class ResponsesRequest(ChatRequest):
    """The same request to chat. terms: what the answer repeats of it, as fields of the response object."""

    terms: Mapping[str, Any] = field(default_factory=dict)


def decode_responses(body: bytes, limits: RequestLimits) -> ResponsesRequest:
    """Raises APIError (400)."""
    fields = json_object(body)
    _refuse(fields)
    terms = _terms(fields)
    translated = _chat_fields(fields)
    try:
        chat = chat_request(translated, limits)
    except APIError as error:
        raise in_responses_words(error) from None
    return ResponsesRequest(**{each.name: getattr(chat, each.name) for each in fields_of(chat)}, terms=terms)


def _chat_fields(fields: Fields) -> dict[str, Any]:
    chat = {key: value for key, value in fields.items() if key not in _OWN and key not in _CHAT_ONLY}
    chat["messages"] = messages_of(string(fields, "instructions"), fields.get("input"))
    _text(fields, chat)
    _tools(fields, chat)
    if (effort := (mapping(fields, "reasoning") or {}).get("effort")) is not None:
        chat["reasoning_effort"] = effort
    if (most := integer(fields, "max_output_tokens", 1, 2**31)) is not None:
        chat["max_completion_tokens"] = most
    top = integer(fields, "top_logprobs", 0, 20)
    if top or LOGPROBS in _include(fields):
        chat |= {"logprobs": True, "top_logprobs": top or 0}
    for key in ("model", "parallel_tool_calls"):
        if key in fields:
            chat[key] = fields[key]
    return chat


def _text(fields: Fields, chat: dict[str, Any]) -> None:
    text = mapping(fields, "text") or {}
    if text.get("verbosity") is not None:
        chat["verbosity"] = text["verbosity"]
    shape = mapping(text, "format", "text.format") or {}
    kind = shape.get("type", "text")
    if kind == "json_schema":
        schema = {key: value for key, value in shape.items() if key != "type"}
        chat["response_format"] = {"type": kind, "json_schema": schema}
    elif kind != "text":
        chat["response_format"] = dict(shape)


def _tools(fields: Fields, chat: dict[str, Any]) -> None:
    tools = []
    for index, tool in enumerate(array(fields, "tools") or []):
        name = f"tools[{index}]"
        if not isinstance(tool, dict):
            raise bad_request(f"{name} must be an object, not {kind_of(tool)}.", name)
        if tool.get("type") != "function":
            raise unsupported(
                f"{name}.type", f"Tools of type {tool.get('type')} are not supported; only functions are."
            )
        function = {key: value for key, value in tool.items() if key != "type" and value is not None}
        tools.append({"type": "function", "function": function})
    if tools:
        chat["tools"] = tools
    chosen = fields.get("tool_choice")
    if chosen is not None:
        chat["tool_choice"] = _choice(chosen) if isinstance(chosen, dict) else chosen


def _choice(chosen: dict[str, Any]) -> dict[str, Any]:
    kind = chosen.get("type")
    if kind == "function":
        return {"type": "function", "function": {"name": chosen.get("name")}}
    if kind == "allowed_tools":
        allowed = array(chosen, "tools", "tool_choice.tools") or []
        named = [
            {"type": "function", "function": {"name": tool.get("name") if isinstance(tool, dict) else None}}
            for tool in allowed
        ]
        return {"type": kind, "allowed_tools": {"mode": chosen.get("mode"), "tools": named}}
    raise unsupported("tool_choice", f"tool_choice of type {kind} is not supported.")


def _include(fields: Fields) -> list[Any]:
    return array(fields, "include") or []


def _refuse(fields: Fields) -> None:
    """What would be lost. What can be ignored without being missed (`include`, `store`, cache keys) is accepted."""
    for key, reason in _STORED.items():
        if key in fields:
            raise unsupported(key, reason)
    if boolean(fields, "background"):
        raise unsupported("background", "Nothing is stored here: a response can't be fetched later.")
    truncation = string(fields, "truncation")
    if truncation not in (None, "disabled", "auto"):
        raise bad_request("truncation must be auto or disabled.", "truncation")
    if truncation == "auto":
        raise unsupported("truncation", "The conversation is never cut here: truncation can only be disabled.")
    boolean(fields, "store")


def _terms(fields: Fields) -> dict[str, Any]:
    """Values as asked, or what holds without."""
    text = mapping(fields, "text") or {}
    shape = text.get("format") or {"type": "text"}
    reasoning = mapping(fields, "reasoning") or {}
    return {
        "background": False,
        "instructions": string(fields, "instructions"),
        "max_output_tokens": fields.get("max_output_tokens"),
        "max_tool_calls": integer(fields, "max_tool_calls", 1, 2**31),
        "metadata": mapping(fields, "metadata") or {},
        "parallel_tool_calls": boolean(fields, "parallel_tool_calls") is not False,
        "previous_response_id": None,
        "prompt_cache_key": fields.get("prompt_cache_key"),
        "reasoning": {"effort": reasoning.get("effort"), "summary": None},
        "safety_identifier": fields.get("safety_identifier"),
        "service_tier": "default",
        "store": False,
        "temperature": number(fields, "temperature", 0, 2),
        "text": {"format": _shown_format(shape), **({"verbosity": v} if (v := text.get("verbosity")) else {})},
        "tool_choice": fields.get("tool_choice", "auto"),
        "tools": [_shown_tool(tool) for tool in array(fields, "tools") or []],
        "top_logprobs": integer(fields, "top_logprobs", 0, 20) or 0,
        "top_p": number(fields, "top_p", 0, 1),
        "truncation": "disabled",
        "user": fields.get("user"),
    }


def _shown_format(shape: Any) -> Any:
    if isinstance(shape, dict) and shape.get("type") == "json_schema":
        return {"description": None, "strict": False, **shape}
    return shape


def _shown_tool(tool: Any) -> Any:
    if isinstance(tool, dict) and tool.get("type") == "function":
        return {"description": None, "parameters": None, "strict": None, **tool}
    return tool
