"""Text completions, written and read."""

from __future__ import annotations

from typing import Any

from backends.openai_http.settings import OpenAIHTTPSettings
from backends.openai_http.wire import ChatReader, chat_body
from backends.raw import raw_ids
from backends.types import TextDelta, TextRequest, TokenLogprob

_BYTES = "bytes:"
"""How a token that is part of a character is written: `bytes:\\xe6\\x98`."""


def text_body(model: str, settings: OpenAIHTTPSettings, request: TextRequest) -> dict[str, Any]:
    """The body of a streaming request to continue a raw prompt. Fields of chat that mean the same are said as completions do."""
    body = chat_body(model, settings, request)
    for key in settings.extra_body:  # those are for chat
        if key not in request.extra:
            body.pop(key, None)
    ids = raw_ids(request.messages)
    del body["messages"]
    body["prompt"] = request.messages[0].content if ids is None else list(ids)
    if settings.max_tokens_field != "max_tokens" and (most := body.pop(settings.max_tokens_field, None)) is not None:
        body["max_tokens"] = most
    top = body.pop("top_logprobs", 0)
    if body.get("logprobs") is True:
        body["logprobs"] = top
    return body


class TextReader(ChatReader):
    """Reads one stream of text."""

    def _chunk(self, chunk: dict[str, Any]) -> TextDelta | None:
        self._read_usage(chunk)
        choice = next((each for each in chunk.get("choices") or () if each.get("index", 0) == 0), None)
        if choice is None:
            return None
        text = choice.get("text") or ""
        told = choice.get("logprobs")
        tokens = _tokens(told) if told else ()
        if (reason := choice.get("finish_reason")) not in (None, ""):
            self._finish(str(reason), chunk)
        return TextDelta(text, tokens=tokens) if text or tokens else None


def _tokens(told: dict[str, Any]) -> tuple[TokenLogprob, ...]:
    """Of the first token of an echoed prompt nothing is known; its log-probability stands as 0."""
    tops = told.get("top_logprobs") or [None] * len(told["tokens"])
    return tuple(
        TokenLogprob(_bytes(token), float(logprob or 0.0), _listed(top))
        for token, logprob, top in zip(told["tokens"], told["token_logprobs"], tops, strict=True)
    )


def _listed(top: dict[str, float] | None) -> tuple[tuple[bytes, float], ...]:
    pairs = [(_bytes(token), float(logprob)) for token, logprob in (top or {}).items()]
    return tuple(sorted(pairs, key=lambda pair: -pair[1]))


def _bytes(token: str) -> bytes:
    if token.startswith(_BYTES):
        try:
            return bytes.fromhex(token.removeprefix(_BYTES).replace("\\x", ""))
        except ValueError:
            pass
    return token.encode()
