"""The body of a POST as a JSON object."""

from __future__ import annotations

from typing import Any

import orjson

from gateway.wire.errors import bad_request
from gateway.wire.fields import deeper_than, no_nul

MAX_DEPTH = 128
"""Levels of a body. The library that writes JSON to other servers allows about 250, and what walks the body recurses."""


def json_object(body: bytes) -> dict[str, Any]:
    """Its fields, without those that are null: null equals absent. Raises APIError (400)."""
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
    return {key: value for key, value in raw.items() if value is not None}
