"""Log-probabilities in the form that completions have had since before chat: parallel lists."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Any

from backends.types import TokenLogprob
from gateway.wire.logprobs import LEAST

Value = dict[str, list[Any]]


class LegacyLogprobs:
    """Of one choice. top: how many of the likeliest tokens are told beside each; the token itself is always among them.

    `text_offset` counts characters from the beginning of what is shown, the echoed prompt included. A token that is part of a
    character stands where that character does, and is written `bytes:\\xNN…`, as at OpenAI.
    """

    __slots__ = ("_at", "_decoder", "_top")

    def __init__(self, top: int) -> None:
        self._top = top
        self._at = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def skip(self, text: str) -> None:
        """Text that is shown without its tokens."""
        self._at += len(text)

    def values(self, tokens: Iterable[TokenLogprob], *, first_unknown: bool = False) -> Value:
        """Further tokens. first_unknown: nothing is known of the first one's probability, as at the beginning of a prompt."""
        value: Value = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for number, token in enumerate(tokens):
            unknown = first_unknown and number == 0
            text, logprob = _text(token.text), max(float(token.logprob), LEAST)
            tops = {_text(other): max(float(nats), LEAST) for other, nats in token.top[: self._top]}
            value["tokens"].append(text)
            value["token_logprobs"].append(None if unknown else logprob)
            value["top_logprobs"].append(None if unknown else {**tops, text: logprob})
            value["text_offset"].append(self._at + _given_up(self._decoder.getstate()[0], token.text))
            self._at += len(self._decoder.decode(token.text))
        return value


def joined(values: Sequence[Value]) -> Value:
    """The parts of a choice as one."""
    keys = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    return {key: [item for value in values for item in value[key]] for key in keys}


def _given_up(begun: bytes, token: bytes) -> int:
    """Characters that bytes of one that was begun become (U+FFFD) where the next token does not go on with it: they stand before it."""
    if not begun or not token:
        return 0
    more = codecs.getincrementaldecoder("utf-8")("replace").decode(begun + token[:1])
    return len(begun.decode(errors="replace")) if "\ufffd" in more else 0


def _text(token: bytes) -> str:
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)
