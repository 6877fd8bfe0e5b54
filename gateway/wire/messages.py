"""The `messages` of a chat request → `Message`s.

The older way of calling tools (`function_call`, role `function`) is read as the newer one: chat templates and servers know only that.
"""

from __future__ import annotations

from typing import Any

from backends.types import Message
from gateway.wire.errors import bad_request
from gateway.wire.fields import kind_of

# `developer` is the newer name of `system`; chat templates know only the older one.
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "function",
}
_MEDIA = frozenset({"image_url", "input_audio", "file"})


def decode_messages(value: Any, limit: int) -> tuple[tuple[Message, ...], str | None]:
    """The messages, and the name of the first field in them that holds more than text (None: all is text)."""
    if value is None:
        raise bad_request("You must provide messages.", "messages")
    if not isinstance(value, list):
        raise bad_request(f"messages must be an array, not {kind_of(value)}.", "messages")
    if not value:
        raise bad_request("messages must not be empty.", "messages")
    if len(value) > limit:
        raise bad_request(f"At most {limit} messages are possible.", "messages")
    messages: list[Message] = []
    media: str | None = None
    for index, item in enumerate(value):
        message, more_than_text = _message(item, f"messages[{index}]", index)
        messages.append(message)
        if more_than_text and media is None:
            media = f"messages[{index}].content"
    return tuple(messages), media


def _message(item: Any, name: str, index: int) -> tuple[Message, bool]:
    if not isinstance(item, dict):
        raise bad_request(f"{name} must be an object, not {kind_of(item)}.", name)
    role = item.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise bad_request(f"{name}.role must be one of {', '.join(_ROLES)}.", f"{name}.role")
    content = item.get("content")
    extra = {key: value for key, value in item.items() if key not in ("role", "content") and value is not None}
    if not isinstance(answers := extra.get("tool_call_id", ""), str):
        raise bad_request(f"{name}.tool_call_id must be a string, not {kind_of(answers)}.", f"{name}.tool_call_id")
    if role == "assistant":
        _calls(extra, name, index)
        if content is None and isinstance(extra.get("refusal"), str):
            content = extra.pop("refusal")  # what it said then; models know no other place for it
    elif role == "function" and index:
        # In the older form a result follows its call at once.
        role, extra = "tool", {**extra, "tool_call_id": _legacy_id(index - 1)}
    if content is None:
        if role != "assistant":
            raise bad_request(f"{name}.content is missing.", f"{name}.content")
        if "tool_calls" in extra:
            extra["content"] = None  # a server of OpenAI's API wants to see the null again
        return Message(_ROLES[role], "", extra), False
    if isinstance(content, str):
        return Message(_ROLES[role], content, extra), False
    if not isinstance(content, list):
        raise bad_request(f"{name}.content must be a string or an array, not {kind_of(content)}.", f"{name}.content")
    text, more_than_text = _parts(content, f"{name}.content")
    if more_than_text:
        extra["content"] = content
    return Message(_ROLES[role], text, extra), more_than_text


def _calls(extra: dict[str, Any], name: str, index: int) -> None:
    """Check the tool calls of an assistant's message, and write an older call as a newer one."""
    if (call := extra.pop("function_call", None)) is not None:
        _function(call, f"{name}.function_call")
        extra.setdefault("tool_calls", [{"id": _legacy_id(index), "type": "function", "function": call}])
    calls = extra.get("tool_calls", [])
    if not isinstance(calls, list):
        raise bad_request(f"{name}.tool_calls must be an array, not {kind_of(calls)}.", f"{name}.tool_calls")
    if not calls:
        extra.pop("tool_calls", None)
    for number, call in enumerate(calls):
        at = f"{name}.tool_calls[{number}]"
        if not isinstance(call, dict):
            raise bad_request(f"{at} must be an object, not {kind_of(call)}.", at)
        if not isinstance(call.get("id"), str):
            raise bad_request(f"{at}.id must be a string, not {kind_of(call.get('id'))}.", f"{at}.id")
        if call.get("type", "function") == "function":
            _function(call.get("function"), f"{at}.function")


def _function(value: Any, name: str) -> None:
    if not isinstance(value, dict):
        raise bad_request(f"{name} must be an object, not {kind_of(value)}.", name)
    for key in ("name", "arguments"):
        if not isinstance(value.get(key), str):
            raise bad_request(f"{name}.{key} must be a string, not {kind_of(value.get(key))}.", f"{name}.{key}")


def _legacy_id(index: int) -> str:
    """The id of the call that the message at `index` holds: older calls had none."""
    return f"call_{index}"


def _parts(parts: list[Any], name: str) -> tuple[str, bool]:
    """The text parts joined, and whether there are others."""
    texts: list[str] = []
    more_than_text = False
    for index, part in enumerate(parts):
        at = f"{name}[{index}]"
        if not isinstance(part, dict):
            raise bad_request(f"{at} must be an object, not {kind_of(part)}.", at)
        kind = part.get("type")
        if kind in ("text", "refusal"):
            text = part.get(kind)
            if not isinstance(text, str):
                raise bad_request(f"{at}.{kind} must be a string, not {kind_of(text)}.", f"{at}.{kind}")
            texts.append(text)
        elif isinstance(kind, str) and kind in _MEDIA:
            more_than_text = True
        else:
            raise bad_request(f"{at}.type must be one of text, refusal, {', '.join(sorted(_MEDIA))}.", f"{at}.type")
    return "".join(texts), more_than_text
