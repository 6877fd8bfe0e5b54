"""The body of POST /v1/chat/completions → `ChatRequest`.

null equals absent. Wrong types and ranges, malformed JSON and NUL characters are 400s that name the field. Fields this gateway
does not know are kept for a server that writes the answer. Fields it knows but can't honour for every wiring are kept with the
reason (`Asked`), so that they are refused where they would be dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, get_args

from backends.types import Message, Sampling
from gateway.abilities import NOTHING, Asked
from gateway.wire import formats
from gateway.wire.body import json_object
from gateway.wire.errors import APIError, bad_request, unsupported
from gateway.wire.fields import Fields, boolean, integer, mapping, number, string
from gateway.wire.formats import Format, decode_format
from gateway.wire.messages import decode_messages
from gateway.wire.sampling import decode_sampling, foreign_sampling
from gateway.wire.tools import AskedTools, decode_tools
from strategies.engine import Drafting, EarlyPrefilling, Waiting

T = TypeVar("T", bound=str)

MAX_TOP_LOGPROBS = 20

# Read here, or of no meaning to a backend: never handed on as they came, unless put back by `_native`.
_CONSUMED = formats.FIELDS | {
    *("model", "messages", "stream", "stream_options", "n", "modelnet"),
    *("temperature", "top_p", "seed", "stop", "max_tokens", "max_completion_tokens"),
    *("frequency_penalty", "presence_penalty", "min_p", "logit_bias", "logprobs", "top_logprobs"),
    *("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"),
    *("modalities", "audio", "web_search_options"),
}

_OWN_FIELD = "The last model's own server writes the answer: ask it in a field of its own, like response_format."

SHORTEST, LONGEST = 0.001, 86_400.0
"""Seconds that a client may give a request; what it may take is the configuration's."""

_EXTENSION = (
    "stages", "fuser", "record", "constraint", "arm", "prompts", "stage_max_tokens", "drafts", "early_prefill", "quorum", "timeout",
)  # fmt: skip
"""What a request may say under `modelnet`."""


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What decoding checks against."""

    messages: int = 1024
    choices: int = 8
    max_tokens: int = 32_768


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request as the client meant it.

    model: exactly as sent. show_stages: intermediate text is wanted, as reasoning. extra: fields that we do not know, for the
    server that writes the answer. asked: what else is asked of whoever writes it. legacy: tools came as `functions`, so a call
    is answered as a `function_call`. arm: of a route, where the request chooses one. continuous_usage: what was spent so far is wanted
    in every chunk.
    """

    model: str
    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    show_stages: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)
    asked: Asked = NOTHING
    legacy: bool = False
    arm: str | None = None
    timeout: float | None = None

    @property
    def conversations(self) -> int:
        """How many `messages` hold: of a chat one, which every choice reads."""
        return 1

    def messages_of(self, choice: int) -> tuple[Message, ...]:
        """What a choice reads."""
        return self.messages

    def sampling_of(self, choice: int) -> Sampling:
        """Choice 0 gets the seed as sent; the others seeds derived from it, so that the whole answer can be repeated."""
        seed = self.sampling.seed
        return self.sampling if seed is None or choice == 0 else replace(self.sampling, seed=seed + choice)


def decode_chat(body: bytes, limits: RequestLimits) -> ChatRequest:
    """Raises APIError (400)."""
    return chat_request(json_object(body), limits)


def chat_request(fields: Fields, limits: RequestLimits) -> ChatRequest:
    """A chat request from its fields, as `json_object` gives them. Raises APIError (400)."""
    model = string(fields, "model")
    if not model:
        raise bad_request("You must provide a model.", "model")
    messages, media = decode_messages(fields.get("messages"), limits.messages)
    stream = boolean(fields, "stream") or False
    include_usage, continuous_usage = usage_options(fields) if stream else (False, False)
    extension = _extension(fields)
    tools = decode_tools(fields)
    _refuse(fields, tools)
    foreign = foreign_sampling(fields)
    sampling = decode_sampling(fields, limits.max_tokens)
    asked = _asked(fields, extension, tools, decode_format(fields, extension))
    prompts = string(extension, "prompts", "modelnet.prompts")
    stage_max_tokens = integer(extension, "stage_max_tokens", 1, limits.max_tokens, "modelnet.stage_max_tokens")
    drafts: Drafting | None = _one_of(extension, "drafts", get_args(Drafting))
    early: EarlyPrefilling | None = _one_of(extension, "early_prefill", get_args(EarlyPrefilling))
    quorum: Waiting | None = _one_of(extension, "quorum", get_args(Waiting))
    if prompts or stage_max_tokens or drafts or early or quorum:
        asked = replace(
            asked, prompts=prompts, stage_max_tokens=stage_max_tokens, drafts=drafts, early_prefill=early, quorum=quorum
        )
    if media or foreign:
        only_single = {media: "Only text can be read by this wiring."} if media else {}
        asked = replace(asked, only_single=only_single, only_native={**asked.only_native, **foreign})
    return ChatRequest(
        model=model,
        messages=messages,
        sampling=sampling,
        n=integer(fields, "n", 1, limits.choices) or 1,
        stream=stream,
        include_usage=include_usage,
        continuous_usage=continuous_usage,
        show_stages=boolean(extension, "stages", "modelnet.stages") or False,
        extra={key: value for key, value in fields.items() if key not in _CONSUMED},
        asked=asked,
        legacy=tools.legacy,
        arm=string(extension, "arm", "modelnet.arm"),
        timeout=number(extension, "timeout", SHORTEST, LONGEST, "modelnet.timeout"),
    )


def _one_of(extension: Fields, key: str, known: tuple[T, ...]) -> T | None:
    """One of a few words, if it is there."""
    asked = string(extension, key, f"modelnet.{key}")
    if asked is None:
        return None
    for word in known:
        if asked == word:
            return word
    raise bad_request(f"modelnet.{key} can be {', '.join(map(str, known))}.", f"modelnet.{key}")


def usage_options(fields: Fields) -> tuple[bool, bool]:
    """Whether a stream tells its usage at the end, and so far in every chunk (vLLM's `continuous_usage_stats`). Raises APIError (400)."""
    options = mapping(fields, "stream_options") or {}
    include, continuous = (
        boolean(options, key, f"stream_options.{key}") or False for key in ("include_usage", "continuous_usage_stats")
    )
    return include, include and continuous


def _extension(fields: Fields) -> Fields:
    extension = mapping(fields, "modelnet") or {}
    for key in extension:
        if key not in _EXTENSION:
            raise bad_request(f"modelnet can't hold {key!r}; it can hold {', '.join(_EXTENSION)}.", f"modelnet.{key}")
    return extension


def _asked(fields: Fields, extension: Fields, tools: AskedTools, shape: Format) -> Asked:
    logprobs = _logprobs(fields)
    fuser = string(extension, "fuser", "modelnet.fuser")
    record = boolean(extension, "record", "modelnet.record") or False
    native = {**tools.native, **shape.native}
    if logprobs is not None:
        native |= {key: fields[key] for key in ("logprobs", "top_logprobs") if key in fields}
    if not (native or shape.constraint or fuser or record):
        return NOTHING
    return Asked(
        native=native,
        logprobs=logprobs,
        constraint=shape.constraint,
        constraint_param=shape.param,
        tools=tools.tools,
        fuser=fuser,
        record=record,
        only_native={shape.param: shape.foreign} if shape.foreign else {},
        only_ours={shape.param: _OWN_FIELD} if shape.constraint and not shape.native else {},
    )


def _logprobs(fields: Fields) -> int | None:
    """How many alternatives are to be told beside each token; None: no log-probabilities at all."""
    top = integer(fields, "top_logprobs", 0, MAX_TOP_LOGPROBS)
    if boolean(fields, "logprobs"):
        return top or 0
    if top:
        raise bad_request("top_logprobs needs logprobs to be true.", "top_logprobs")
    return None


def _refuse(fields: Fields, tools: AskedTools) -> None:
    """What would be lost on the way back. Only values that ask for something are refused."""
    modalities = fields.get("modalities", ["text"])
    if modalities != ["text"] or "audio" in fields:
        raise unsupported("modalities" if modalities != ["text"] else "audio", "Only text can be answered.")
    if "web_search_options" in fields:
        raise unsupported("web_search_options", "Web search is not supported.")
    if tools.foreign is not None:
        param, kind = tools.foreign
        raise unsupported(param, f"Tools of type {kind} are not supported; only functions are.")


__all__ = ["APIError", "ChatRequest", "RequestLimits", "chat_request", "decode_chat", "usage_options"]
