"""Label values that stay few, whatever clients send."""

from __future__ import annotations

from collections.abc import Iterable

OTHER = "other"


class Bounded:
    """The first `most` values that come are themselves; every later one is "other". known: are always themselves, and not counted."""

    __slots__ = ("_known", "_most", "_seen")

    def __init__(self, most: int, known: Iterable[str] = ()) -> None:
        self._most = most
        self._known = frozenset(known)
        self._seen: set[str] = set()

    def know(self, known: Iterable[str]) -> None:
        """Further values that are always themselves."""
        self._known |= frozenset(known)

    def __call__(self, value: str) -> str:
        if value in self._known or value in self._seen:
            return value
        if len(self._seen) >= self._most:
            return OTHER
        self._seen.add(value)
        return value
