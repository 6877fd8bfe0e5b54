"""What a server says that an answer took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backends.types import Usage


def read_usage(usage: Mapping[str, Any]) -> Usage:
    """From the API's `usage`. Zeros where the server does not say; of details, None."""
    return Usage(
        _count(usage, "prompt_tokens") or 0,
        _count(usage, "completion_tokens") or 0,
        _count(usage.get("prompt_tokens_details"), "cached_tokens"),
        _count(usage.get("completion_tokens_details"), "reasoning_tokens"),
    )


def _count(counts: Any, key: str) -> int | None:
    value = counts.get(key) if isinstance(counts, Mapping) else None
    return value if isinstance(value, int) else None
