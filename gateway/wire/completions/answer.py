"""Answers to completions, whole and as chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from gateway.wire import sse


def text_choice(index: int, text: str, logprobs: Any, finish_reason: str | None) -> dict[str, Any]:
    """A choice, or its part in a chunk. logprobs: from `LegacyLogprobs`, None where none were asked for."""
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def completion_value(
    *,
    id: str,
    created: int,
    model: str,
    fingerprint: str,
    choices: Sequence[Mapping[str, Any]],
    usage: Mapping[str, Any],
    extension: Mapping[str, Any],
) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    return {
        "id": id,
        "object": "text_completion",
        "created": created,
        "model": model,
        "system_fingerprint": fingerprint,
        "choices": list(choices),
        "usage": usage,
        "modelnet": extension,
    }


class TextChunkWriter:
    """Writes the chunks of one stream: same id, created, model and object in all of them.

    with_usage: the client asked for usage, so every chunk but the last carries `"usage": null`, or what `spent` was told.
    """

    __slots__ = ("_envelope", "_extension", "_head", "_tail", "with_usage")

    def __init__(self, *, id: str, created: int, model: str, fingerprint: str, with_usage: bool) -> None:
        self._envelope = {
            "id": id,
            "object": "text_completion",
            "created": created,
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self.with_usage = with_usage
        self._head = b"data: " + orjson.dumps(self._envelope)[:-1] + b',"choices":['
        self._tail = b"]" + (b',"usage":null' if with_usage else b"")
        self._extension: Mapping[str, Any] = {}

    def spent(self, usage: Mapping[str, Any], extension: Mapping[str, Any]) -> None:
        """As in `gateway.wire.sse.ChunkWriter`."""
        self._tail, self._extension = b'],"usage":' + orjson.dumps(usage), extension

    def text(self, choice: int, text: str, logprobs: Any) -> bytes:
        """More of a choice."""
        return self._chunk(text_choice(choice, text, logprobs, None), self._extension)

    def finish(self, choice: int, reason: str, extension: Mapping[str, Any] | None) -> bytes:
        """The last chunk of a choice."""
        return self._chunk(text_choice(choice, "", None, reason), {**(extension or {}), **self._extension})

    def usage(self, usage: Mapping[str, Any], extension: Mapping[str, Any]) -> bytes:
        """The chunk after the last choice has finished: no choices, the usage of the whole request."""
        return sse.event({**self._envelope, "choices": [], "usage": usage, "modelnet": extension})

    def _chunk(self, choice: Mapping[str, Any], extension: Mapping[str, Any]) -> bytes:
        more = b',"modelnet":' + orjson.dumps(extension) if extension else b""
        return b"".join((self._head, orjson.dumps(choice), self._tail, more, b"}\n\n"))
