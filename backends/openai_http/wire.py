"""Chat completions, written and read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from backends.openai_http.calls import CallReader, Malformed
from backends.openai_http.failures import from_event, not_protocol
from backends.openai_http.settings import OpenAIHTTPSettings
from backends.openai_http.spent import read_usage
from backends.openai_http.sse import SSEEvent
from backends.types import Message, TextDelta, TextRequest, TokenLogprob, ToolCallDelta, Usage

_OURS = frozenset({"model", "messages", "stream", "n"})
"""Fields of a request that nobody but us sets: one choice is what a text stream can carry."""

_NOTHING = TextDelta("")


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
        "min_p": sampling.min_p,
        "logit_bias": {str(token): bias for token, bias in sampling.logit_bias.items()} or None,
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
    _calls: CallReader = field(default_factory=CallReader)

    def read(self, event: SSEEvent) -> TextDelta | None:
        """What is said in an event, if anything. Raises a BackendError for an error event or what is no chunk."""
        if event.data.strip() == "[DONE]":
            self.done = True
            return None
        try:
            chunk = orjson.loads(event.data)
        except orjson.JSONDecodeError:
            raise not_protocol(self.model, event.data) from None
        if not isinstance(chunk, dict):
            raise not_protocol(self.model, chunk)
        if chunk.get("error"):
            raise from_event(self.model, chunk)
        try:
            return self._chunk(chunk)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise not_protocol(self.model, event.data) from error

    def rest(self) -> TextDelta | None:
        """What is still to be said when the stream has ended. Raises BackendUnavailable for half a tool call."""
        try:
            calls = self._calls.finish()
        except Malformed as error:
            raise not_protocol(self.model, str(error)) from error
        return TextDelta("", tool_calls=calls) if calls else None

    @property
    def ended_by(self) -> str:
        """Why the answer ended. Servers that were told which tool to call say "stop" where it was called."""
        reason = self.finish_reason or "stop"
        return "tool_calls" if self._calls.calls and reason in ("stop", "function_call") else reason

    def _chunk(self, chunk: dict[str, Any]) -> TextDelta | None:
        self._read_usage(chunk)
        choice = next((each for each in chunk.get("choices") or () if each.get("index", 0) == 0), None)
        if choice is None:
            return None
        delta = choice.get("delta") or {}
        reasoning = _text(delta, "reasoning_content") or _text(delta, "reasoning")
        told = choice.get("logprobs") or {}
        calls: tuple[ToolCallDelta, ...] = ()
        if "tool_calls" in delta or "function_call" in delta:
            calls = self._calls.read(delta)
        if (reason := choice.get("finish_reason")) not in (None, ""):
            self._finish(str(reason), chunk)
        said = TextDelta(
            _text(delta, "content"),
            reasoning,
            _tokens(told.get("content")),
            calls,
            _text(delta, "refusal"),
            _tokens(told.get("refusal")),
        )
        return None if said == _NOTHING else said

    def _read_usage(self, chunk: dict[str, Any]) -> None:
        if isinstance(usage := chunk.get("usage"), dict):
            self.usage = read_usage(usage)

    def _finish(self, reason: str, chunk: Any) -> None:
        if reason in ("error", "abort"):  # given by routers and by engines that lost the request: no success
            raise from_event(self.model, {"error": {"message": chunk}})
        self.finish_reason = reason


def _text(delta: dict[str, Any], key: str) -> str:
    value = delta.get(key)
    return value if isinstance(value, str) else ""


def _tokens(told: Sequence[dict[str, Any]] | None) -> tuple[TokenLogprob, ...]:
    return tuple(_token(entry) for entry in told or ())


def _token(entry: dict[str, Any]) -> TokenLogprob:
    top = tuple((_bytes(other), float(other["logprob"])) for other in entry.get("top_logprobs") or ())
    return TokenLogprob(_bytes(entry), float(entry["logprob"]), top)


def _bytes(entry: dict[str, Any]) -> bytes:
    """The exact bytes where the server gives them: the text of a token that is part of a character says nothing."""
    given = entry.get("bytes")
    return bytes(given) if isinstance(given, list) else str(entry["token"]).encode()
