"""`instructions` and `input` of a Responses request → chat messages.

One answer of an assistant comes back as several items (reasoning, message, function calls); in chat it is one message, since
that is how chat templates and servers know it. Reasoning is left out: models do not get their own back.
"""

from __future__ import annotations

from typing import Any

from gateway.wire.errors import bad_request, unsupported
from gateway.wire.fields import Fields, kind_of, string

_ROLES = ("user", "assistant", "system", "developer")
_TEXTS = frozenset({"input_text", "output_text", "text"})


def messages_of(instructions: str | None, value: Any) -> list[dict[str, Any]]:
    """Chat messages as JSON. Raises APIError (400)."""
    messages: list[dict[str, Any]] = []
    if instructions is not None:
        messages.append({"role": "system", "content": instructions})
    if value is None:
        raise bad_request("You must provide an input.", "input")
    if isinstance(value, str):
        return [*messages, {"role": "user", "content": value}]
    if not isinstance(value, list):
        raise bad_request(f"input must be a string or an array, not {kind_of(value)}.", "input")
    if not value:
        raise bad_request("input must not be empty.", "input")
    for index, item in enumerate(value):
        name = f"input[{index}]"
        if not isinstance(item, dict):
            raise bad_request(f"{name} must be an object, not {kind_of(item)}.", name)
        _add(messages, item, name)
    return messages


def _add(messages: list[dict[str, Any]], item: dict[str, Any], name: str) -> None:
    kind = string(item, "type", f"{name}.type") or ("message" if "role" in item else None)
    if kind == "message":
        messages.append(_message(item, name))
    elif kind == "function_call":
        _call(messages, item, name)
    elif kind == "function_call_output":
        output = _content(item.get("output"), f"{name}.output", "tool")
        messages.append({"role": "tool", "tool_call_id": _text(item, "call_id", name), "content": output})
    elif kind == "item_reference":
        raise unsupported(name, "Nothing is stored here: send the item itself instead of a reference to it.")
    elif kind is None:
        raise bad_request(f"{name}.type is missing.", f"{name}.type")
    elif kind != "reasoning":
        raise unsupported(f"{name}.type", f"Items of type {kind} are not supported.")


def _message(item: Fields, name: str) -> dict[str, Any]:
    role = item.get("role")
    if role not in _ROLES:
        raise bad_request(f"{name}.role must be one of {', '.join(_ROLES)}.", f"{name}.role")
    return {"role": role, "content": _content(item.get("content"), f"{name}.content", role)}


def _call(messages: list[dict[str, Any]], item: Fields, name: str) -> None:
    """Calls belong to the assistant's message before them, if there is one."""
    function = {"name": _text(item, "name", name), "arguments": _text(item, "arguments", name)}
    call = {"id": _text(item, "call_id", name), "type": "function", "function": function}
    if messages and messages[-1]["role"] == "assistant":
        messages[-1].setdefault("tool_calls", []).append(call)
    else:
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})


def _text(item: Fields, key: str, name: str) -> str:
    value = string(item, key, f"{name}.{key}")
    if value is None:
        raise bad_request(f"{name}.{key} is missing.", f"{name}.{key}")
    return value


def _content(value: Any, name: str, role: str) -> str | list[dict[str, Any]]:
    """Text parts joined if there are no others, else parts as chat knows them."""
    if isinstance(value, str):
        return value
    if value is None:
        raise bad_request(f"{name} is missing.", name)
    if not isinstance(value, list):
        raise bad_request(f"{name} must be a string or an array, not {kind_of(value)}.", name)
    parts = [_part(part, f"{name}[{index}]", role) for index, part in enumerate(value)]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: Any, name: str, role: str) -> dict[str, Any]:
    if not isinstance(part, dict):
        raise bad_request(f"{name} must be an object, not {kind_of(part)}.", name)
    kind = string(part, "type", f"{name}.type")
    if kind in _TEXTS:
        return {"type": "text", "text": _text(part, "text", name)}
    if kind == "refusal":
        return {"type": "text", "text": _text(part, "refusal", name)}
    if kind == "input_image" and role != "assistant":
        if not isinstance(part.get("image_url"), str):
            raise unsupported(name, "Files are not stored here: an image is sent as its image_url.")
        detail = {"detail": part["detail"]} if isinstance(part.get("detail"), str) else {}
        return {"type": "image_url", "image_url": {"url": part["image_url"], **detail}}
    if kind == "input_file" and role != "assistant":
        if not isinstance(part.get("file_data"), str):
            raise unsupported(name, "Files are not stored or fetched here: a file is sent as its file_data.")
        return {"type": "file", "file": {k: part[k] for k in ("file_data", "filename") if k in part}}
    if kind == "input_audio" and role != "assistant":
        return {"type": "input_audio", "input_audio": part.get("input_audio")}
    raise bad_request(f"{name}.type {kind!r} can't stand here.", f"{name}.type")
