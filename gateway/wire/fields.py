"""Typed reading of one field out of a decoded JSON object; every mistake is a 400 that names it. null equals absent."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

from gateway.wire.errors import bad_request

Fields = Mapping[str, Any]


def kind_of(value: Any) -> str:
    """JSON's name for the type of a value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list) else "an object"


def _wrong(name: str, wanted: str, value: Any) -> Exception:
    return bad_request(f"{name} must be {wanted}, not {kind_of(value)}.", name)


def string(fields: Fields, key: str, name: str | None = None) -> str | None:
    """A string."""
    value = fields.get(key)
    if value is None or isinstance(value, str):
        return value
    raise _wrong(name or key, "a string", value)


def boolean(fields: Fields, key: str, name: str | None = None) -> bool | None:
    """True or false."""
    value = fields.get(key)
    if value is None or isinstance(value, bool):
        return value
    raise _wrong(name or key, "a boolean", value)


def integer(fields: Fields, key: str, low: int, high: int, name: str | None = None) -> int | None:
    """A whole number in [low, high]. 16.0 is one: JSON does not tell it from 16."""
    value = fields.get(key)
    if value is None:
        return None
    name = name or key
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, float):
        raise bad_request(f"{name} must be an integer.", name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(name, "an integer", value)
    if not low <= value <= high:
        raise bad_request(f"{name} must be between {low} and {high}.", name)
    return value


def number(fields: Fields, key: str, low: float, high: float, name: str | None = None) -> float | None:
    """A number in [low, high]."""
    value = fields.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(name or key, "a number", value)
    if not low <= value <= high:
        raise bad_request(f"{name or key} must be between {low} and {high}.", name or key)
    return float(value)


def mapping(fields: Fields, key: str, name: str | None = None) -> Fields | None:
    """An object."""
    value = fields.get(key)
    if value is None or isinstance(value, dict):
        return value
    raise _wrong(name or key, "an object", value)


def array(fields: Fields, key: str, name: str | None = None) -> list[Any] | None:
    """A list."""
    value = fields.get(key)
    if value is None or isinstance(value, list):
        return value
    raise _wrong(name or key, "an array", value)


def strings(fields: Fields, key: str) -> list[str]:
    """A string, or a list of strings."""
    value = fields.get(key)
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise _wrong(key, "a string or a list of strings", value)
    for item in value:
        if not isinstance(item, str):
            raise bad_request(f"{key} must hold strings only, not {kind_of(item)}.", key)
    return value


def deeper_than(value: Any, most: int) -> bool:
    """Whether arrays and objects nest in more than `most` levels."""
    holders = [value] if isinstance(value, list | dict) else []
    for _ in range(most):
        inside = chain.from_iterable(holder.values() if isinstance(holder, dict) else holder for holder in holders)
        holders = [item for item in inside if isinstance(item, list | dict)]
    return bool(holders)


def no_nul(value: Any, name: str) -> None:
    """Refuse NUL characters anywhere: tokenizers written in C stop reading at them."""
    if isinstance(value, str):
        if "\x00" in value:
            raise bad_request("Text must not contain NUL characters.", name or None)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            no_nul(item, f"{name}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            no_nul(key, name or "body")
            no_nul(item, f"{name}.{key}" if name else key)
