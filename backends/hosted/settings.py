"""Which hosted model, and how to ask for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class HostedSettings:
    """
    model: litellm's name for it, with the provider ("anthropic/claude-…", "gemini/…", "openai/…").
    api_key: never shows in `repr`; None: what the provider's own environment variable says. api_base: instead of the
        provider's address.
    timeout: for a connection, and between two reads of an answer, seconds.
    seats: streams at once (None: no limit); queue: how many more may wait.
    extra_body: arguments for every call. What a request says itself wins.
    """

    model: str
    api_key: str | None = field(default=None, repr=False)
    api_base: str | None = None
    timeout: float = 120.0
    seats: int | None = 64
    queue: int = 64
    extra_body: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("model must name a model, with its provider")
        if self.timeout <= 0:
            raise ValueError("timeout must be positive")
