"""From bytes to text: incremental UTF-8, and stop strings that are never emitted."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextOut:
    """Turns the bytes of an answer into text as they come, token by token (or piece by piece).

    A token that ends inside a character is held back until one ends where a character does; where the answer is cut before that, it is
    left out, as servers do. Text that could still turn out to be the beginning of a stop string is held back too; once a stop string is
    complete, what stands before it is the end of the answer. Matching is on bytes, so it does not matter how a stop string is cut into
    tokens. Bytes that are no UTF-8 become U+FFFD.
    """

    __slots__ = ("_cut", "_ends", "_held", "_longest", "_stops", "stopped")

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = tuple(stop.encode() for stop in stops if stop)
        self._longest = max(map(len, self._stops), default=0)
        self._held = b""
        self._ends: list[int] = []  # where tokens end in what is held
        self._cut = 0
        self.stopped = False
        """True once a stop string was seen; `feed` then takes and gives nothing more."""

    def feed(self, data: bytes) -> str:
        """The next token's bytes; returns the text that is certain now (may be empty)."""
        if self.stopped or not data:
            return ""
        if not self._held and not self._stops:
            text, whole = codecs.utf_8_decode(data, "replace", False)
            if whole == len(data):  # nearly always
                return text
        held = self._held = self._held + data
        self._ends.append(len(held))
        found = [(at + len(stop), at) for stop in self._stops if (at := held.find(stop)) >= 0]
        if found:
            _, start = min(found)  # the one complete first: what it would be if the bytes came one by one
            self.stopped = True
            self._held, self._cut = b"", len(held) - start
            return held[:start].decode("utf-8", "replace")
        keep = next((n for n in range(min(self._longest - 1, len(held)), 0, -1) if self._may_begin(held[-n:])), 0)
        return self._give(len(held) - keep)

    def finish(self) -> str:
        """The answer is over: returns what was held back, but for tokens that end inside a character (`waiting` tells their bytes)."""
        return "" if self.stopped else self._give(len(self._held))

    @property
    def waiting(self) -> int:
        """How many of the bytes fed so far were not given out as text: held back or, once `stopped`, cut off for good."""
        return self._cut if self.stopped else len(self._held)

    def _give(self, cut: int) -> str:
        """The first so many held bytes as text; fewer where they would end inside a character."""
        held = self._held
        text, whole = codecs.utf_8_decode(held[:cut], "replace", False)
        while whole < cut:
            cut = max((end for end in self._ends if end <= whole), default=0)
            text, whole = codecs.utf_8_decode(held[:cut], "replace", False)
        self._held = held[cut:]
        self._ends = [end - cut for end in self._ends if end > cut]
        return text

    def _may_begin(self, tail: bytes) -> bool:
        return any(stop.startswith(tail) for stop in self._stops)
