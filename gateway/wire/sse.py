"""Server-sent events as OpenAI writes them: one `data:` line of JSON each, then `data: [DONE]`.

Only what is said changes from chunk to chunk, so the rest of the JSON is written once per stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from backends.types import ToolCallDelta
from gateway.wire.logprobs import logprobs_value

KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"
_END = b',"finish_reason":null}]'

HEADERS: Mapping[str, str] = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}


def event(value: Any) -> bytes:
    """One event. JSON has no raw line breaks, so its data is one line."""
    return b"data: " + orjson.dumps(value) + b"\n\n"


class ChunkWriter:
    """Writes the chunks of one stream: same id, created, model and object in all of them.

    with_usage: the client asked for usage, so every chunk but the last carries `"usage": null`, or what `spent` was told.
    """

    __slots__ = ("_end", "_envelope", "_extension", "_head", "_more", "_tail", "_usage", "with_usage")

    def __init__(self, *, id: str, created: int, model: str, fingerprint: str, with_usage: bool) -> None:
        self._envelope = {
            "id": id,
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self.with_usage = with_usage
        self._head = b"data: " + orjson.dumps(self._envelope)[:-1] + b',"choices":[{"index":'
        self._usage: Mapping[str, Any] | None = None
        self._more: Mapping[str, Any] = {}  # in every chunk, under `modelnet`
        self._extension = b""
        self._end = _END + (b',"usage":null' if with_usage else b"")
        self._tail = b',"logprobs":null' + self._end

    def spent(self, usage: Mapping[str, Any], extension: Mapping[str, Any]) -> None:
        """What the next chunks say was used by then. extension: what stands beside it under `modelnet`."""
        self._usage, self._more = usage, extension
        self._extension = _extension(extension) if extension else b""
        self._end = _END + b',"usage":' + orjson.dumps(usage)
        self._tail = b',"logprobs":null' + self._end

    def role(self, choice: int) -> bytes:
        """The first delta of a choice."""
        return self._delta(choice, b'{"role":"assistant","content":"","refusal":null}')

    def content(self, choice: int, text: str, logprobs: Sequence[Mapping[str, Any]] | None = None) -> bytes:
        """More of the answer. logprobs: of its tokens, where they were asked for."""
        delta = b'{"content":' + orjson.dumps(text) + b"}"
        return self._told(choice, delta, None if logprobs is None else logprobs_value(logprobs))

    def refusal(self, choice: int, text: str, logprobs: Sequence[Mapping[str, Any]] | None = None) -> bytes:
        """More of what is said in place of an answer."""
        delta = b'{"refusal":' + orjson.dumps(text) + b"}"
        return self._told(choice, delta, None if logprobs is None else logprobs_value((), logprobs))

    def _told(self, choice: int, delta: bytes, logprobs: Mapping[str, Any] | None) -> bytes:
        if logprobs is None:
            return self._delta(choice, delta)
        told = orjson.dumps(logprobs)
        parts = (self._head, b"%d" % choice, b',"delta":', delta, b',"logprobs":', told, self._end, self._extension)
        return b"".join(parts) + b"}\n\n"

    def tool_calls(self, choice: int, calls: Iterable[ToolCallDelta], legacy: bool = False) -> bytes:
        """More of the answer's tool calls. legacy: of its `function_call`, of which there is one.

        One fragment for each chunk, as OpenAI sends them: clients read the first entry only, or let a second one for the same
        call take its place (LlamaIndex, instructor, the official client before 3).
        """
        if not legacy:
            return b"".join(self._delta(choice, orjson.dumps({"tool_calls": [_call(call)]})) for call in calls)
        first = [call for call in calls if call.index == 0]
        return b"".join(self._delta(choice, orjson.dumps({"function_call": _function(call)})) for call in first)

    def reasoning(self, choice: int, text: str, stage: int) -> bytes:
        """More of what led to the answer, under both names in use, and the stage of the plan that wrote it."""
        said = orjson.dumps(text)
        delta = b'{"reasoning_content":' + said + b',"reasoning":' + said + b"}"
        return self._delta(choice, delta, _extension({"stage": stage, **self._more}))

    def finish(self, choice: int, reason: str, extension: Mapping[str, Any] | None) -> bytes:
        """The last chunk of a choice."""
        value: dict[str, Any] = {
            **self._envelope,
            "choices": [{"index": choice, "delta": {}, "logprobs": None, "finish_reason": reason}],
        }
        if self.with_usage:
            value["usage"] = self._usage
        if extension is not None or self._more:
            value["modelnet"] = {**(extension or {}), **self._more}
        return event(value)

    def usage(self, usage: Mapping[str, Any], extension: Mapping[str, Any]) -> bytes:
        """The chunk after the last choice has finished: no choices, the usage of the whole request."""
        return event({**self._envelope, "choices": [], "usage": usage, "modelnet": extension})

    def _delta(self, choice: int, delta: bytes, extension: bytes = b"") -> bytes:
        return b"".join(
            (self._head, b"%d" % choice, b',"delta":', delta, self._tail, extension or self._extension, b"}\n\n")
        )


def _extension(value: Mapping[str, Any]) -> bytes:
    return b',"modelnet":' + orjson.dumps(value)


def _call(call: ToolCallDelta) -> dict[str, Any]:
    """id, type and name stand in the first fragment only; the index in every one."""
    if call.id is None:
        return {"index": call.index, "function": _function(call)}
    return {"index": call.index, "id": call.id, "type": "function", "function": _function(call)}


def _function(call: ToolCallDelta) -> dict[str, Any]:
    name = {} if call.name is None else {"name": call.name}
    return {**name, "arguments": call.arguments}
