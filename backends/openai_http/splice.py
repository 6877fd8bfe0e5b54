"""Changing a few fields of a JSON object in its bytes, without writing all of it anew. Pure.

A string of JSON holds no bare quotation marks, so `"model"` in the bytes is always a whole string of its own: a key or a value.
Where it occurs once, and the object has that key, it is the key. Whatever is less clear than that is not spliced.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

_MODEL = re.compile(rb'"model"\s*:\s*("(?:[^"\\]|\\.)*")')


def with_model(body: bytes, model: bytes) -> bytes | None:
    """The bytes with another value of the top-level key `model`, or None where that takes parsing.

    body: a JSON object that has this key, with a string. model: the new value as JSON.
    """
    if body.count(b'"model"') != 1 or b"\\u006" in body:  # a letter of a key may be written as an escape
        return None
    found = _MODEL.search(body)
    if found is None:
        return None
    start, end = found.span(1)
    return body[:start] + model + body[end:]


def with_fields(body: bytes, fields: Mapping[str, Any]) -> bytes | None:
    """The bytes with more top-level fields, or None where that takes parsing. body: a JSON object that is not empty."""
    if b"\\u00" in body or any(b'"%b"' % name.encode() in body for name in fields):
        return None
    start = body.index(b"{") + 1
    return body[:start] + orjson.dumps(fields)[1:-1] + b"," + body[start:]
