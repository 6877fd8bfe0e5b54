"""What is checked of a chat request that is handed to a model's own server as it came.

Everything else is for the server to judge: it may know fields, roles and parts that we do not. The checks are the decoder's own
(`gateway.wire.decode`), so the errors are too; what is plainly right passes without them.
"""

from __future__ import annotations

from typing import Any

from gateway.wire.decode import MAX_TOP_LOGPROBS, RequestLimits, usage_options
from gateway.wire.errors import bad_request
from gateway.wire.fields import Fields, boolean, integer
from gateway.wire.messages import decode_messages
from gateway.wire.sampling import decode_sampling

_PLAIN = frozenset({"model", "messages", "stream"})
_GREEDY = _PLAIN | {
    "stream_options",
    "n",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "max_tokens",
    "max_completion_tokens",
}
_OFF = frozenset({"frequency_penalty", "presence_penalty", "min_p", "logit_bias", "logprobs"})
_SPEAKERS = frozenset({"system", "developer", "user", "assistant"})


def check_forwardable(fields: Fields, limits: RequestLimits) -> None:
    """Raises APIError (400). fields: without those that are null; `model` is a string."""
    if not fields["model"]:
        raise bad_request("You must provide a model.", "model")
    messages = fields.get("messages")
    if type(messages) is not list or not 0 < len(messages) <= limits.messages or not all(map(_plain, messages)):
        _check_messages(messages, limits.messages)
    boolean(fields, "stream")
    if fields.keys() <= _PLAIN:
        return
    if fields.get("stream"):
        usage_options(fields)
    integer(fields, "n", 1, limits.choices)
    decode_sampling(fields, limits.max_tokens)
    boolean(fields, "logprobs")
    integer(fields, "top_logprobs", 0, MAX_TOP_LOGPROBS)


def only_text(fields: Fields) -> bool:
    """Whether a greedy answer to it needs nothing that only the model's own server knows, so that token sessions can write it too."""
    if fields.get("temperature") != 0 or not fields.keys() <= _GREEDY | _OFF or any(map(fields.get, _OFF)):
        return False
    messages = fields.get("messages")
    return isinstance(messages, list) and all(map(_said, messages))


def _said(message: Any) -> bool:
    """Whether it is text that somebody said, and no more."""
    if not isinstance(message, dict) or not message.keys() <= {"role", "content"}:
        return False
    role = message.get("role")
    if not isinstance(role, str) or role not in _SPEAKERS:
        return False
    content = message.get("content")
    if isinstance(content, list):
        return all(isinstance(part, dict) and part.get("type") == "text" for part in content)
    return isinstance(content, str)


def _plain(message: Any) -> bool:
    return type(message) is dict and type(message.get("role")) is str and type(message.get("content")) is str


def _check_messages(messages: Any, limit: int) -> None:
    if isinstance(messages, list) and 0 < len(messages) <= limit and all(map(_sound, messages)):
        return
    decode_messages(messages, limit)


def _sound(message: Any) -> bool:
    """Whether it has the form of a message, of whatever role, with whatever parts."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        return False
    content = message.get("content")
    if isinstance(content, list):
        return all(isinstance(part, dict) and isinstance(part.get("text", ""), str) for part in content)
    return isinstance(content, str) or (content is None and message["role"] == "assistant")
