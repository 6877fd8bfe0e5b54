"""The body of POST /v1/chat/completions → `ChatRequest`.

null equals absent. Wrong types and ranges, malformed JSON and NUL characters are 400s that name the field. Fields this gateway
does not know are kept for the backend of a single model. Fields it knows but can't honour for every wiring are kept with the
reason in `needs_server`, so that they are refused where they would be dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from backends.types import Message, Sampling
from gateway.wire.errors import APIError, bad_request, unsupported
from gateway.wire.fields import boolean, deeper_than, integer, mapping, no_nul, number, string, strings
from gateway.wire.messages import decode_messages

MAX_DEPTH = 128
"""Levels of a body. The library that writes JSON to other servers allows about 250, and what walks the body recurses."""
MAX_STOPS = 4
MAX_TOP_LOGPROBS = 20

# Read here, or of no meaning to a backend: never handed on as they came.
_CONSUMED = frozenset(
    {
        *("model", "messages", "stream", "stream_options", "n", "modelnet"),
        *("temperature", "top_p", "seed", "stop", "max_tokens", "max_completion_tokens"),
        *("frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "top_logprobs"),
        *("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"),
        *("response_format", "modalities", "audio", "web_search_options"),
    }
)


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What decoding checks against."""

    messages: int = 1024
    choices: int = 8
    max_tokens: int = 32_768


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request as the client meant it.

    model: exactly as sent. extra: fields for the server of a single model. needs_server: field → why only such a server can
    honour it. needs_sampler: field → why only a single writer's own sampler can. show_stages: intermediate text is wanted,
    as reasoning.
    """

    model: str
    messages: tuple[Message, ...]
    sampling: Sampling
    n: int
    stream: bool
    include_usage: bool
    show_stages: bool
    extra: Mapping[str, Any]
    needs_server: Mapping[str, str]
    needs_sampler: Mapping[str, str]

    def sampling_of(self, choice: int) -> Sampling:
        """Choice 0 gets the seed as sent; the others seeds derived from it, so that the whole answer can be repeated."""
        seed = self.sampling.seed
        return self.sampling if seed is None or choice == 0 else replace(self.sampling, seed=seed + choice)


def decode_chat(body: bytes, limits: RequestLimits) -> ChatRequest:
    """Raises APIError (400)."""
    try:
        raw = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad_request(f"The body is not valid JSON: {error}") from None
    if not isinstance(raw, dict):
        raise bad_request("The body must be a JSON object.")
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and deeper_than(raw, MAX_DEPTH):
        raise bad_request(f"The body nests in more than {MAX_DEPTH} levels.")
    if b"\\u0000" in body:  # raw NULs are not JSON; this is the one other way to write one
        no_nul(raw, "")
    fields = {key: value for key, value in raw.items() if value is not None}
    model = string(fields, "model")
    if not model:
        raise bad_request("You must provide a model.", "model")
    messages, media = decode_messages(fields.get("messages"), limits.messages)
    stream = boolean(fields, "stream") or False
    extension = mapping(fields, "modelnet") or {}
    needs = dict.fromkeys([media], "Only text can be read by this wiring.") if media else {}
    extra = {key: value for key, value in fields.items() if key not in _CONSUMED}
    _keep_for_server(fields, extra, needs)
    _refuse(fields)
    return ChatRequest(
        model=model,
        messages=messages,
        sampling=_sampling(fields, limits),
        n=integer(fields, "n", 1, limits.choices) or 1,
        stream=stream,
        include_usage=stream and _include_usage(fields),
        show_stages=boolean(extension, "stages", "modelnet.stages") or False,
        extra=extra,
        needs_server=needs,
        needs_sampler={
            name: f"{name} is not supported by this wiring: a single model must write its answer."
            for name in ("frequency_penalty", "presence_penalty")
            if fields.get(name)
        },
    )


def _include_usage(fields: Mapping[str, Any]) -> bool:
    options = mapping(fields, "stream_options") or {}
    return boolean(options, "include_usage", "stream_options.include_usage") or False


def _sampling(fields: Mapping[str, Any], limits: RequestLimits) -> Sampling:
    stop = strings(fields, "stop")
    if len(stop) > MAX_STOPS:
        raise bad_request(f"At most {MAX_STOPS} stop sequences are possible.", "stop")
    max_tokens = integer(fields, "max_tokens", 1, limits.max_tokens)
    temperature, top_p = number(fields, "temperature", 0, 2), number(fields, "top_p", 0, 1)
    if top_p == 0:  # nothing but the likeliest token: greedy, by its plain name
        temperature, top_p = 0.0, None
    max_completion_tokens = integer(fields, "max_completion_tokens", 1, limits.max_tokens)
    return Sampling(
        max_tokens=max_completion_tokens if max_completion_tokens is not None else max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=integer(fields, "seed", -(2**63), 2**63 - 1),
        stop=tuple(text for text in stop if text),
        frequency_penalty=number(fields, "frequency_penalty", -2, 2) or None,
        presence_penalty=number(fields, "presence_penalty", -2, 2) or None,
    )


def _keep_for_server(fields: Mapping[str, Any], extra: dict[str, Any], needs: dict[str, str]) -> None:
    """Fields that a single model's own server can honour; neutral values are dropped."""
    bias = mapping(fields, "logit_bias")
    if bias:
        extra["logit_bias"] = bias
        needs["logit_bias"] = "logit_bias is not supported by this wiring."
    shape = mapping(fields, "response_format")
    if shape is None:
        return
    kind = shape.get("type")
    if kind not in ("text", "json_object", "json_schema"):
        raise bad_request("response_format.type must be text, json_object or json_schema.", "response_format")
    if kind != "text":
        extra["response_format"] = shape
        needs["response_format"] = f"response_format {kind} is not supported by this wiring."


def _refuse(fields: Mapping[str, Any]) -> None:
    """What no wiring can answer yet. Only values that ask for something are refused."""
    top = integer(fields, "top_logprobs", 0, MAX_TOP_LOGPROBS)
    if boolean(fields, "logprobs"):
        raise unsupported("logprobs", "logprobs are not supported yet.")
    if top:
        raise bad_request("top_logprobs needs logprobs to be true.", "top_logprobs")
    _refuse_tools(fields)
    modalities = fields.get("modalities", ["text"])
    if modalities != ["text"] or "audio" in fields:
        raise unsupported("modalities" if modalities != ["text"] else "audio", "Only text can be answered.")
    if "web_search_options" in fields:
        raise unsupported("web_search_options", "Web search is not supported.")


def _refuse_tools(fields: Mapping[str, Any]) -> None:
    boolean(fields, "parallel_tool_calls")
    for tools, choice in (("tools", "tool_choice"), ("functions", "function_call")):
        listed, chosen = fields.get(tools, []), fields.get(choice)
        if not isinstance(listed, list):
            raise bad_request(f"{tools} must be a list.", tools)
        if chosen is not None and not isinstance(chosen, str | dict):
            raise bad_request(f"{choice} must be a string or an object.", choice)
        if listed and chosen != "none":
            raise unsupported(tools, f"{tools} are not supported yet.")
        if not listed and chosen not in (None, "none", "auto"):
            raise bad_request(f"{choice} needs {tools}.", choice)


__all__ = ["APIError", "ChatRequest", "RequestLimits", "decode_chat"]
