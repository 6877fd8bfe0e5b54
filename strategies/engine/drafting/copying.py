"""Guesses what comes next by copying what is already there: the last answer, the question, the text itself."""

from __future__ import annotations

from collections.abc import Sequence

LENGTHS = (6, 12, 24, 48)
"""Bytes of the end of the text that are looked for, the shortest first: where that is nowhere, none that is longer is."""
FAR = 16_384
"""Bytes of the text itself that are looked through, from its end."""


class Copier:
    """See the module. sources: what may be repeated, the likeliest first."""

    __slots__ = ("_at", "_length", "_own", "_source", "_sources")

    def __init__(self, sources: Sequence[bytes]) -> None:
        self._sources = [source for source in sources if source]
        self._source = 0  # where the last guess came from; as many as there are sources: the text itself
        self._at = 0
        self._length = 0  # of the text then

    def guess(self, said: bytes, most: int) -> bytes:
        """What may follow `said` (which only grows), at most so many bytes; nothing where it is like nothing before."""
        went_on = said[self._length :]
        source = self._sources[self._source] if self._source < len(self._sources) else said
        at = self._at + len(went_on)
        known = self._length or self._sources  # before the first piece: the beginning of what is repeated most
        if not (known and source[self._at : at] == went_on and at < len(source)):
            found = self._find(said)
            if found is None:
                return b""
            self._source, at = found
            source = self._sources[self._source] if self._source < len(self._sources) else said
        self._at, self._length = at, len(said)
        return source[at : at + most]

    def _find(self, said: bytes) -> tuple[int, int] | None:
        """Source and place behind the longest end of the text that has been there before."""
        longest = None
        for length in LENGTHS:
            if length > len(said) or (found := self._behind(said, said[-length:])) is None:
                break
            longest = found
        return longest

    def _behind(self, said: bytes, end: bytes) -> tuple[int, int] | None:
        """Source and place behind this end of the text, where it has been there before and something follows it."""
        for number, source in enumerate(self._sources):
            last = len(source) - 1
            begin = self._at if number == self._source else 0
            found = source.find(end, begin, last)
            if found < 0 and begin:
                found = source.find(end, 0, last)
            if found >= 0:
                return number, found + len(end)
        found = said.rfind(end, max(0, len(said) - FAR), len(said) - 1)
        return None if found < 0 else (len(self._sources), found + len(end))
