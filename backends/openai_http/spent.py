"""What an answer took: as its server says, or as far as can be seen from what it says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backends.estimate import believable
from backends.types import Usage

_TEXTS = frozenset({"content", "text", "refusal", "reasoning_content"})


def read_usage(usage: Mapping[str, Any]) -> Usage:
    """From the API's `usage`. Zeros where the server does not say, or says what can't be; of details, None."""
    read, written = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    if not (believable(read) and believable(written)):
        return Usage()
    return Usage(
        read,
        written,
        _count(usage.get("prompt_tokens_details"), "cached_tokens"),
        _count(usage.get("completion_tokens_details"), "reasoning_tokens"),
    )


def usage_value(usage: Usage) -> dict[str, int]:
    """The other way round, without details."""
    read, written = usage.prompt_tokens, usage.completion_tokens
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def texts_of(choice: Any) -> list[str]:
    """All that a choice says, or a part of one in a chunk. What has another form than the API's says nothing."""
    if not isinstance(choice, dict):
        return []
    said = choice.get("delta") or choice.get("message") or choice
    texts: list[str] = []
    for key, value in said.items() if isinstance(said, dict) else ():
        if key in _TEXTS and isinstance(value, str):
            texts.append(value)
        elif key == "reasoning" and isinstance(value, str) and not said.get("reasoning_content"):
            texts.append(value)  # else it is the same under two names
        elif key == "tool_calls" and isinstance(value, list):
            texts += [arguments for call in value if (arguments := _arguments(call, "function"))]
        elif key == "function_call":
            texts.append(_arguments(said, key))
    return texts


def _arguments(holder: Any, key: str) -> str:
    call = holder.get(key) if isinstance(holder, dict) else None
    arguments = call.get("arguments") if isinstance(call, dict) else None
    return arguments if isinstance(arguments, str) else ""


def _count(counts: Any, key: str) -> int | None:
    value = counts.get(key) if isinstance(counts, Mapping) else None
    return value if believable(value) else None
