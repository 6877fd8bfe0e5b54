"""Guesses what comes next by copying what is already there: the last answer, the question, the text itself."""

from __future__ import annotations

from collections.abc import Sequence

LENGTHS = (48, 24, 12, 6)
"""Bytes of the end of the text that are looked for, the longest first."""
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
        for length in LENGTHS:
            if length > len(said):
                continue
            end = said[-length:]
            for number, source in enumerate(self._sources):
                begin = self._at if number == self._source else 0
                found = source.find(end, begin)
                if found < 0 and begin:
                    found = source.find(end)
                if 0 <= found < len(source) - length:
                    return number, found + length
            found = said.rfind(end, max(0, len(said) - FAR), len(said) - 1)
            if found >= 0:
                return len(self._sources), found + length
        return None
