"""What servers of OpenAI's API leave out or write otherwise in chat answers, as clients are used to it.

An answer that is handed on keeps all else. Left alone is what is not wrong but a matter of taste, such as "stop" at the end of a call.
"""

from __future__ import annotations

import uuid
from typing import Any

import orjson

_REASONS = frozenset({None, "stop", "length", "tool_calls", "content_filter", "function_call"})


def mend_choice(choice: Any) -> bool:
    """A choice of an answer that is not streamed. Whether anything was to be done."""
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        return False
    before = orjson.dumps(choice)
    for holder, key in ((choice, "logprobs"), (message, "content"), (message, "refusal")):
        holder.setdefault(key, None)
    if choice.get("finish_reason") not in _REASONS:
        choice["finish_reason"] = "stop"
    if "tool_calls" in message:
        mend_calls(message, set(), indexed=False)
        if message.get("tool_calls") and message["content"] == "":
            message["content"] = None
    return orjson.dumps(choice) != before


def mend_calls(holder: dict[str, Any], begun: set[int], *, indexed: bool = True) -> None:
    """The tool calls of a message, or (indexed) parts of them in a delta. begun: indices of the calls whose first part has come."""
    calls = holder.get("tool_calls")
    if not calls:
        del holder["tool_calls"]
        return
    for place, call in enumerate(calls if isinstance(calls, list) else ()):
        if not isinstance(call, dict):
            continue
        index = call.setdefault("index", place) if indexed else place
        if index not in begun:
            begun.add(index)
            call["id"] = call.get("id") or f"call_{uuid.uuid4().hex[:24]}"
            call["type"] = call.get("type") or "function"
        function = call.get("function")
        if isinstance(function, dict) and isinstance(function.get("arguments"), dict | list):
            function["arguments"] = orjson.dumps(function["arguments"]).decode()
