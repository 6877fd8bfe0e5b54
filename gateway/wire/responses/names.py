"""Errors that speak of chat's fields, in the words of the Responses API."""

from __future__ import annotations

import re

from gateway.wire.errors import APIError

_NAMES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\bmessages\[\d+\](\.\w+(\[\d+\])?)*|\bmessages\b", "input"),
        (r"\bmax_(completion_)?tokens\b", "max_output_tokens"),
        (r"\bresponse_format\.json_schema\b|\bresponse_format\b", "text.format"),
        (r"\b(tools\[\d+\])\.function\b", r"\1"),
        (r"\btool_choice\.function\b", "tool_choice"),
        (r"\btool_choice\.allowed_tools\b", "tool_choice"),
    )
)


def in_responses_words(error: APIError) -> APIError:
    """The same error, its `param` and message with this API's names of the fields."""
    error.message = _renamed(error.message)
    if error.param is not None:
        error.param = _renamed(error.param)
    return error


def _renamed(text: str) -> str:
    for pattern, replacement in _NAMES:
        text = pattern.sub(replacement, text)
    return text
