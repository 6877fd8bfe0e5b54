"""A server's chunks, and the relay that they go through."""

from __future__ import annotations

import json
from typing import Any

from backends.openai_http.relay import Relay, UsageWanted

HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "up"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, "prompt_tokens_details": {"cached_tokens": 1}}
DONE = b"data: [DONE]\n\n"


def chunk(delta: Any, finish: str | None = None, index: int = 0, **more: Any) -> bytes:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
    return event({**HEAD, "choices": [choice], **more})


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


ROLE = chunk({"role": "assistant", "content": ""})
STOP = chunk({}, "stop")
SPENT = event({**HEAD, "choices": [], "usage": USAGE})


def relay(choices: int = 1, usage: UsageWanted = "no", shown: str = "mine") -> Relay:
    return Relay("m", shown, choices, usage)


def through(r: Relay, *parts: bytes, ended: bool = True) -> bytes:
    """What a client gets. Raises what the relay says is wrong."""
    given = b""
    for part in parts:
        given += r.feed(part)
        if r.failure is not None:
            raise r.failure
    if ended:
        given += r.finish()
        if r.failure is not None:
            raise r.failure
    return given


def chunks(data: bytes) -> list[Any]:
    assert data.endswith(b"\n\n")
    return [json.loads(part[6:]) for part in data.split(b"\n\n")[:-1] if part.startswith(b"data: {")]


def renamed(*parts: bytes) -> bytes:
    return b"".join(parts).replace(b'"model":"up"', b'"model":"mine"')
