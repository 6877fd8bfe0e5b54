"""Log-probabilities of tokens, as the chat API writes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from backends.types import TokenLogprob

LEAST = -9999.0
"""Nats. Stands for minus infinity, which JSON can't say; vLLM and OpenAI use the same number."""


@dataclass(frozen=True, slots=True)
class Logprobs:
    """top: how many alternatives are told beside each token."""

    top: int

    def values(self, tokens: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
        """One entry per token. Their bytes joined are the bytes of the text; a token that is part of a character shows U+FFFD."""
        return [
            {
                **_value(token.text, token.logprob),
                "top_logprobs": [_value(text, logprob) for text, logprob in token.top[: self.top]],
            }
            for token in tokens
        ]


def logprobs_value(content: Sequence[Any], refusal: Sequence[Any] | None = None) -> dict[str, Any]:
    """What stands under `logprobs` of a choice. content, refusal: entries for their tokens."""
    return {"content": None if refusal and not content else content, "refusal": refusal or None}


def _value(text: bytes, logprob: float) -> dict[str, Any]:
    return {"token": text.decode(errors="replace"), "bytes": list(text), "logprob": max(float(logprob), LEAST)}
