"""Server-sent events as OpenAI writes them: one `data:` line of JSON each, then `data: [DONE]`.

Only what is said changes from chunk to chunk, so the rest of the JSON is written once per stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"

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

    with_usage: the client asked for usage, so every chunk but the last carries `"usage": null`.
    """

    __slots__ = ("_envelope", "_head", "_tail", "with_usage")

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
        usage = b',"usage":null' if with_usage else b""
        self._tail = b',"logprobs":null,"finish_reason":null}]' + usage

    def role(self, choice: int) -> bytes:
        """The first delta of a choice."""
        return self._delta(choice, b'{"role":"assistant","content":"","refusal":null}')

    def content(self, choice: int, text: str) -> bytes:
        """More of the answer."""
        return self._delta(choice, b'{"content":' + orjson.dumps(text) + b"}")

    def reasoning(self, choice: int, text: str, stage: int) -> bytes:
        """More of what led to the answer, under both names in use, and the stage of the plan that wrote it."""
        said = orjson.dumps(text)
        extension = b',"modelnet":{"stage":%d}' % stage
        return self._delta(choice, b'{"reasoning_content":' + said + b',"reasoning":' + said + b"}", extension)

    def finish(self, choice: int, reason: str, extension: Mapping[str, Any] | None) -> bytes:
        """The last chunk of a choice."""
        value: dict[str, Any] = {
            **self._envelope,
            "choices": [{"index": choice, "delta": {}, "logprobs": None, "finish_reason": reason}],
        }
        if self.with_usage:
            value["usage"] = None
        if extension is not None:
            value["modelnet"] = extension
        return event(value)

    def usage(self, usage: Mapping[str, Any], extension: Mapping[str, Any]) -> bytes:
        """The chunk after the last choice has finished: no choices, the usage of the whole request."""
        return event({**self._envelope, "choices": [], "usage": usage, "modelnet": extension})

    def _delta(self, choice: int, delta: bytes, extension: bytes = b"") -> bytes:
        return b"".join((self._head, b"%d" % choice, b',"delta":', delta, self._tail, extension, b"}\n\n"))
