"""Chat completions, written and read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from backends.openai_http.failures import from_event, not_protocol
from backends.openai_http.settings import OpenAIHTTPSettings
from backends.openai_http.sse import SSEEvent
from backends.types import Message, TextDelta, TextRequest, Usage

_OURS = frozenset({"model", "messages", "stream", "n"})
"""Fields of a request that nobody but us sets: one choice is what a text stream can carry."""


def messages(turns: Sequence[Message]) -> list[dict[str, Any]]:
    """As the API wants them: what the client sent beside role and text is laid over."""
    return [{"role": turn.role, "content": turn.content, **turn.extra} for turn in turns]


def chat_body(model: str, settings: OpenAIHTTPSettings, request: TextRequest) -> dict[str, Any]:
    """The body of a streaming chat request."""
    sampling = request.sampling
    body: dict[str, Any] = {**settings.extra_body, **request.extra}
    body = {key: value for key, value in body.items() if key not in _OURS}
    said = {
        settings.max_tokens_field: sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        "stop": list(sampling.stop) or None,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
    }
    body |= {key: value for key, value in said.items() if value is not None}
    options = body.pop("stream_options", None)
    if settings.include_usage:
        body["stream_options"] = {**(options if isinstance(options, Mapping) else {}), "include_usage": True}
    return {**body, "model": model, "messages": messages(request.messages), "stream": True}


@dataclass(slots=True)
class ChatReader:
    """Reads one stream. finish_reason: None until the server gave one. usage: zeros where the server does not say."""

    model: str
    finish_reason: str | None = None
    usage: Usage = field(default_factory=Usage)
    done: bool = False

    def read(self, event: SSEEvent) -> TextDelta | None:
        """The text in an event, if any. Raises a BackendError for an error event or what is no chunk."""
        if event.data.strip() == "[DONE]":
            self.done = True
            return None
        try:
            chunk = orjson.loads(event.data)
        except orjson.JSONDecodeError:
            raise not_protocol(self.model, event.data) from None
        return self._chunk(chunk)

    def _chunk(self, chunk: Any) -> TextDelta | None:
        if not isinstance(chunk, dict):
            raise not_protocol(self.model, str(chunk))
        if chunk.get("error"):
            raise from_event(self.model, chunk)
        if isinstance(usage := chunk.get("usage"), dict):
            self.usage = Usage(_count(usage, "prompt_tokens"), _count(usage, "completion_tokens"))
        text = reasoning = ""
        for choice in chunk.get("choices") or ():
            if not isinstance(choice, dict) or choice.get("index", 0) != 0:
                continue
            delta = choice.get("delta") or {}
            text += _text(delta, "content") or _text(delta, "refusal")
            reasoning += _text(delta, "reasoning_content") or _text(delta, "reasoning")
            if (reason := choice.get("finish_reason")) is not None:
                self._finish(str(reason), chunk)
        return TextDelta(text, reasoning) if text or reasoning else None

    def _finish(self, reason: str, chunk: Any) -> None:
        if reason in ("error", "abort"):  # given by routers and by engines that lost the request: no success
            raise from_event(self.model, {"error": {"message": str(chunk)}})
        self.finish_reason = reason


def _text(delta: Any, key: str) -> str:
    value = delta.get(key) if isinstance(delta, dict) else None
    return value if isinstance(value, str) else ""


def _count(usage: Mapping[str, Any], key: str) -> int:
    value = usage.get(key)
    return value if isinstance(value, int) else 0
