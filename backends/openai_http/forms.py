"""Chunks that differ in one string only: once their form is known, runs of them are handed on without being parsed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from backends.openai_http.splice import with_model


@dataclass(frozen=True, slots=True)
class Form:
    """What chunks of one kind have around the one string that differs: as the server writes them, and as the client gets them. size: bytes
    of it in each, as the server writes them."""

    before: bytes
    behind: bytes
    new_before: bytes
    new_behind: bytes
    size: int

    def run(self, data: bytes, at: int) -> tuple[int, int]:
        """The end of the chunks of this form that follow each other from `at` on (`at` where there is none), and how many they are."""
        before, behind = self.before, self.behind
        skip, size, found = len(before), self.size - len(before), 0
        while data.startswith(before, at):
            quote = data.find(b'"', at + skip)
            if quote < 0 or not data.startswith(behind, quote):
                break
            at = quote + size
            found += 1
        return at, found

    def written(self, run: bytes) -> bytes:
        """A run as the client gets it."""
        if self.before != self.new_before:
            run = run.replace(self.before, self.new_before)
        if self.behind != self.new_behind:
            run = run.replace(self.behind, self.new_behind)
        return run


def form_of(data: bytes, chunk: dict[str, Any]) -> Form | None:
    """The form of a chunk, if it has one: all of it stays but a string, the only field of its only choice's delta.

    data: as it came. chunk: as it is to be, decoded.
    """
    choices = chunk["choices"]
    delta = choices[0].get("delta")
    if len(choices) != 1 or not isinstance(delta, dict) or len(delta) != 1:
        return None
    ((key, text),) = delta.items()
    named = data.find(orjson.dumps(key), data.find(b'"delta"'))
    start = data.find(b'"', named + len(orjson.dumps(key))) + 1  # behind the string's opening mark
    said = orjson.dumps(text)[1:-1] if isinstance(text, str) else b""
    if named < 0 or start == 0 or not said or not data.startswith(said, start):
        return None
    before, behind = data[:start], data[start + len(said) :]
    name = orjson.dumps(chunk["model"])
    new = with_model(before + behind, name)
    if new is None or orjson.loads(new) != {**chunk, "choices": [{**choices[0], "delta": {key: ""}}]}:
        return None
    if data.find(b'"model"') < start:
        new_before, new_behind = new[: len(new) - len(behind)], behind
    else:
        new_before, new_behind = before, new[len(before) :]
    before, behind = b"data: " + before, behind + b"\n\n"
    return Form(before, behind, b"data: " + new_before, new_behind + b"\n\n", len(before) + len(behind))
