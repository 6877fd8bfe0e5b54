"""The body of POST /v1/completions → `CompletionRequest`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from dataclasses import fields as fields_of
from typing import Any

from backends.types import Message, Sampling
from gateway.wire.body import json_object
from gateway.wire.decode import ChatRequest, RequestLimits, chat_request, usage_options
from gateway.wire.errors import bad_request, unsupported
from gateway.wire.fields import Fields, boolean, integer, kind_of, string
from gateway.wire.sampling import decode_sampling

DEFAULT_MAX_TOKENS = 16
"""OpenAI's."""
MOST_LOGPROBS = 5

# Read here, or of chat only: never handed on as they came.
_CONSUMED = frozenset(
    {
        *("prompt", "suffix", "echo", "best_of", "logprobs", "max_tokens"),
        *("messages", "top_logprobs", "max_completion_tokens", "tools", "tool_choice", "parallel_tool_calls"),
        *("functions", "function_call", "modalities", "audio", "web_search_options"),
    }
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is to be continued, as text or as token ids.

    text: as it is echoed; None for ids whose text is not known yet. conversation: what stands for it where models read messages.
    """

    text: str | None
    ids: tuple[int, ...] | None = None
    conversation: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class CompletionRequest(ChatRequest):
    """n: of all prompts together: `each` for every prompt, in their order. echo: the prompt's text comes first."""

    prompts: tuple[Prompt, ...] = ()
    each: int = 1
    echo: bool = False

    @property
    def conversations(self) -> int:
        """Every prompt is one; a choice reads only its own."""
        return len(self.prompts)

    def prompt_of(self, choice: int) -> Prompt:
        """The prompt that a choice continues."""
        return self.prompts[choice // self.each]

    def messages_of(self, choice: int) -> tuple[Message, ...]:
        """See `ChatRequest`."""
        return self.prompt_of(choice).conversation

    def sampling_of(self, choice: int) -> Sampling:
        """Every prompt gets the same seeds."""
        return ChatRequest.sampling_of(self, choice % self.each)


def decode_completion(body: bytes, limits: RequestLimits) -> CompletionRequest:
    """Raises APIError (400)."""
    fields = json_object(body)
    prompts = _prompts(fields, limits.messages)
    _refuse(fields)
    each = integer(fields, "n", 1, limits.choices) or 1
    budget = integer(fields, "max_tokens", 0, limits.max_tokens)
    echo = boolean(fields, "echo") or False
    chat = {key: value for key, value in fields.items() if key not in _CONSUMED}
    chat["messages"] = [{"role": "user", "content": prompt.text or ""} for prompt in prompts]
    chat["max_tokens"] = DEFAULT_MAX_TOKENS if budget is None else max(1, budget)
    logprobs = integer(fields, "logprobs", 0, MOST_LOGPROBS)
    if logprobs is not None:
        chat |= {"logprobs": True, "top_logprobs": logprobs}
    request = chat_request(chat, limits)
    values = {each.name: getattr(request, each.name) for each in fields_of(request)}
    if budget == 0:
        values["sampling"] = replace(request.sampling, max_tokens=0)
    values["n"] = each * len(prompts)
    return CompletionRequest(**values, prompts=prompts, each=each, echo=echo)


def check_text_forwardable(fields: Fields, limits: RequestLimits) -> int:
    """What is checked of a request that goes to a model's own server as it came; how many prompts it has. Raises APIError (400)."""
    if not fields["model"]:
        raise bad_request("You must provide a model.", "model")
    prompts = _prompts(fields, limits.messages)
    _refuse(fields)
    boolean(fields, "stream")
    boolean(fields, "echo")
    if fields.get("stream"):
        usage_options(fields)
    integer(fields, "n", 1, limits.choices)
    integer(fields, "max_tokens", 0, limits.max_tokens)
    integer(fields, "logprobs", 0, MOST_LOGPROBS)
    decode_sampling({key: value for key, value in fields.items() if key != "max_tokens"}, limits.max_tokens)
    return len(prompts)


def _refuse(fields: Fields) -> None:
    if string(fields, "suffix"):
        raise unsupported("suffix", "suffix is not supported: text is only ever written behind the prompt.")
    if (integer(fields, "best_of", 0, 20) or 1) > 1:
        raise unsupported("best_of", "best_of can only be 1: every answer is shown.")


def _prompts(fields: Fields, most: int) -> tuple[Prompt, ...]:
    """None at all is the beginning of a new text, as at OpenAI."""
    value: Any = fields.get("prompt", "")
    if isinstance(value, str):
        return (Prompt(value),)
    if not isinstance(value, list):
        raise bad_request(f"prompt must be a string or an array, not {kind_of(value)}.", "prompt")
    if not value:
        raise bad_request("prompt must not be empty.", "prompt")
    if _are_ids(value):
        return (Prompt(None, tuple(value)),)
    if len(value) > most:
        raise bad_request(f"At most {most} prompts are possible.", "prompt")
    return tuple(_prompt(item, f"prompt[{index}]") for index, item in enumerate(value))


def _prompt(item: Any, name: str) -> Prompt:
    if isinstance(item, str):
        return Prompt(item)
    if not isinstance(item, list) or not item or not _are_ids(item):
        raise bad_request(f"{name} must be a string or an array of token ids, and not empty.", name)
    return Prompt(None, tuple(item))


def _are_ids(value: list[Any]) -> bool:
    return all(isinstance(id, int) and not isinstance(id, bool) for id in value)
