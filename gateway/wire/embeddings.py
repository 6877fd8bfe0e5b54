"""POST /v1/embeddings: what is checked of the request, and the server's answer as OpenAI's clients expect it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from backends.estimate import ESTIMATED, believable, body_tokens
from backends.types import Usage
from gateway.wire.errors import APIError, bad_request
from gateway.wire.fields import Fields, integer, kind_of, string

MOST_INPUTS = 2048
"""Texts in one request, as at OpenAI."""
MOST_DIMENSIONS = 65_536


def checked(fields: Fields) -> dict[str, Any]:
    """The fields for the model's server: all but `model`, as they came. Raises APIError (400)."""
    _check_input(fields.get("input"), "messages" in fields)
    encoding = string(fields, "encoding_format")
    if encoding not in (None, "float", "base64"):
        raise bad_request("encoding_format must be float or base64.", "encoding_format")
    integer(fields, "dimensions", 1, MOST_DIMENSIONS)
    return {key: value for key, value in fields.items() if key != "model"}


def _check_input(value: Any, otherwise: bool) -> None:
    """otherwise: the texts stand in another field (vLLM takes messages too)."""
    if value is None:
        if not otherwise:
            raise bad_request("You must provide an input.", "input")
        return
    if not isinstance(value, str | list):
        raise bad_request(f"input must be a string or an array, not {kind_of(value)}.", "input")
    if not value:
        raise bad_request("input must not be empty.", "input")
    if isinstance(value, str) or _are_ids(value):
        return
    if len(value) > MOST_INPUTS:
        raise bad_request(f"At most {MOST_INPUTS} inputs are possible.", "input")
    for index, item in enumerate(value):
        if not (isinstance(item, str) or (isinstance(item, list) and _are_ids(item))) or not item:
            at = f"input[{index}]"
            raise bad_request(f"{at} must be a string or an array of token ids, and not empty.", at)


def _are_ids(value: list[Any]) -> bool:
    return all(isinstance(item, int) and not isinstance(item, bool) for item in value)


def normalised(answer: Mapping[str, Any], asked: Fields) -> dict[str, Any]:
    """The answer with `model` as the client wrote it and vectors in the form that it asked for: some servers know only one.

    Raises APIError (502) for what is no answer to this question.
    """
    data = answer.get("data")
    if not isinstance(data, list):
        raise not_embeddings()
    encoded = asked.get("encoding_format") == "base64"
    made = {
        **answer,
        "object": "list",
        "model": asked["model"],
        "data": [_entry(index, item, encoded) for index, item in enumerate(data)],
    }
    told = answer.get("usage")
    usage = told if isinstance(told, dict) else {}
    count = usage.get("prompt_tokens")
    if count and believable(count):
        return {**made, "usage": {**usage, "prompt_tokens": count, "total_tokens": usage.get("total_tokens") or count}}
    # It says nothing, or what can't be: what was read is charged all the same.
    count = body_tokens(len(orjson.dumps(asked)))
    return {**made, "usage": {"prompt_tokens": count, "total_tokens": count}, "modelnet": ESTIMATED}


def usage_of(answer: Mapping[str, Any]) -> Usage:
    """What an answer as `normalised` gives it says that was read."""
    return Usage(answer["usage"]["prompt_tokens"], 0, estimated=answer.get("modelnet") == ESTIMATED)


def not_embeddings() -> APIError:
    """A server that answers something else."""
    message = "The model's server answered something that is not its protocol."
    return APIError(502, message, type="server_error", code="backend_unavailable")


def _entry(index: int, item: Any, encoded: bool) -> dict[str, Any]:
    vector = item.get("embedding") if isinstance(item, dict) else None
    try:
        if encoded and isinstance(vector, list):
            vector = base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode("ascii")
        elif not encoded and isinstance(vector, str):
            vector = np.frombuffer(base64.b64decode(vector, validate=True), dtype="<f4").tolist()
    except (ValueError, TypeError, binascii.Error):
        vector = None
    if vector is None:
        raise not_embeddings()
    return {"index": index, **item, "object": "embedding", "embedding": vector}
