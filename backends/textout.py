"""From bytes to text: incremental UTF-8, and stop strings that are never emitted."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextOut:
    """Turns the bytes of an answer into text as they come.

    Half a character is held back until it is whole; where the answer is cut within it, it is left out. Text that could still
    turn out to be the beginning of a stop string is held back too; once a stop string is complete, what stands before it is the
    end of the answer. Matching is on bytes, so it does not matter how a stop string is cut into tokens.
    """

    __slots__ = ("_cut", "_decoder", "_held", "_longest", "_stops", "stopped")

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = tuple(stop.encode() for stop in stops if stop)
        self._longest = max(map(len, self._stops), default=0)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = b""
        self._cut = 0
        self.stopped = False
        """True once a stop string was seen; `feed` then takes and gives nothing more."""

    def feed(self, data: bytes) -> str:
        """More bytes; returns the text that is certain now (may be empty)."""
        if self.stopped or not data:
            return ""
        if not self._stops:
            return self._decoder.decode(data)
        held = self._held + data
        found = [(at + len(stop), at) for stop in self._stops if (at := held.find(stop)) >= 0]
        if found:
            _, start = min(found)  # the one complete first: what it would be if the bytes came one by one
            self.stopped = True
            self._held, self._cut = b"", len(held) - start
            return self._decoder.decode(held[:start], final=True)
        keep = next((n for n in range(min(self._longest - 1, len(held)), 0, -1) if self._may_begin(held[-n:])), 0)
        cut = len(held) - keep
        self._held = held[cut:]
        return self._decoder.decode(held[:cut])

    def finish(self) -> str:
        """The answer is over: returns what was held back, but for a character that was begun only (`waiting` tells its bytes)."""
        if self.stopped:
            return ""
        held, self._held = self._held, b""
        return self._decoder.decode(held)

    @property
    def waiting(self) -> int:
        """How many of the bytes fed so far were not given out as text: held back or, once `stopped`, cut off for good."""
        return self._cut if self.stopped else len(self._held) + len(self._decoder.getstate()[0])

    def _may_begin(self, tail: bytes) -> bool:
        return any(stop.startswith(tail) for stop in self._stops)
