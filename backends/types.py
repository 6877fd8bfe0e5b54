"""What crosses the border between a backend and those who use it. Frozen, slotted, and free of behaviour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
SomeIds = Sequence[int] | Ids
"""Token ids to look up: there may be thousands."""
"""Token ids, int32."""
LogProbs = NDArray[np.float64]
"""Natural-log probabilities (nats), float64: exact differences of float32 logits survive in it."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    `content` is the turn's text (text parts joined). `extra` holds every other field of the turn as the client sent it
    (`name`, `tool_calls`, …), and `content` again where it was more than text: a backend that speaks the OpenAI API
    lays it over `{"role", "content"}`, others ignore it.
    """

    role: str
    content: str
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw tokens. `None` leaves a setting to the backend's own default."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    min_p: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TextRequest:
    """A request for text. `extra` holds request fields that are passed to an OpenAI-compatible server as they are."""

    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ForwardRequest:
    """A request for text to a server of OpenAI's API, as a client sent it.

    body: a JSON object with a `model`. fields: the same, decoded, without those that are null. shown: the model's name in the answer.
    stream: whether it asks for one. seconds: for a whole answer that is not streamed. max_tokens: where the request has no budget.
    kind: which of the API's two ways to ask. prompts: how many a text completion has; each is answered `n` times.
    """

    body: bytes
    fields: Mapping[str, Any]
    shown: str
    stream: bool
    seconds: float
    max_tokens: int | None = None
    kind: Literal["chat", "text"] = "chat"
    prompts: int = 1


FINISH_REASONS = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})
"""Those of OpenAI's API; some servers have words of their own for an ordinary end."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens read and written by one model, in that model's own tokens.

    cached_tokens: of those read, how many came from a cache. reasoning_tokens: of those written, how many were reasoning. None: nobody
    says; a sum is of those that do. estimated: its server told nothing (of a sum: of a part of it), see `backends.estimate`.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    estimated: bool = False

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            _told(self.cached_tokens, other.cached_tokens),
            _told(self.reasoning_tokens, other.reasoning_tokens),
            self.estimated or other.estimated,
        )


def _told(one: int | None, other: int | None) -> int | None:
    return one if other is None else other if one is None else one + other


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token (of a group: piece) of an answer: its bytes, its log-probability in nats, and the likeliest ones at its place.

    top: (bytes, nats), likeliest first; empty where none were asked for.
    """

    text: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A part of a tool call. `index`: which call of the answer; `id` and `name` on its first part only; `arguments`: more of the
    JSON text of its arguments."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More text, or more of a tool call. `reasoning` is text that the server itself marked as reasoning, `refusal` one that it gives in
    place of an answer; never all empty.

    tokens: where log-probabilities were asked for, those that make up `text`; refusal_tokens: `refusal`.
    """

    text: str
    reasoning: str = ""
    tokens: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCallDelta, ...] = ()
    refusal: str = ""
    refusal_tokens: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class TextEnd:
    """The last event of a text stream. `finish_reason` as in the OpenAI API: "stop", "length", …"""

    finish_reason: str
    usage: Usage


TextEvent = TextDelta | TextEnd


@dataclass(frozen=True, slots=True, eq=False)
class TopK:
    """A next-token distribution, cut to its k likeliest tokens.

    ids: int32 [k], likeliest first (ties: smaller id first).
    logprobs: float64 [k], nats, descending, of the distribution over the *whole* vocabulary.
    outside: probability mass of all other tokens, in [0, 1]; 0.0 exactly when k is the whole vocabulary.
    An unlisted token has at most probability `min(exp(logprobs[-1]), outside)`.
    """

    ids: Ids
    logprobs: LogProbs
    outside: float


@dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """A model's vocabulary as bytes.

    tokens: id → bytes, for every id. Added text tokens carry their text; control, padding, reserved and end ids carry
        `b""`. SentencePiece's `▁` is 0x20, its `<0xNN>` that byte; byte-level BPE is mapped back to bytes.
    end_ids: ids that end the turn. Never empty.
    fingerprint: hex digest of all that makes two tokenizers the same (table, ends, kind, merges, pre-tokenizer).
        Equal fingerprints mean that ids can be compared.
    """

    tokens: tuple[bytes, ...]
    end_ids: frozenset[int]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.tokens)
