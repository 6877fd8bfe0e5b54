"""Successes and failures of the last seconds, in constant memory."""

from __future__ import annotations

_SLICES = 10


class Window:
    """Counts of about the last `seconds`: they are forgotten a tenth of that at a time. Times are given, none is asked for."""

    __slots__ = ("_bad", "_good", "_slice", "_width")

    def __init__(self, seconds: float) -> None:
        if seconds <= 0:
            raise ValueError("a window is longer than nothing")
        self._width = seconds / _SLICES
        self._slice = 0  # number of the newest slice
        self._good = [0] * _SLICES
        self._bad = [0] * _SLICES

    def add(self, now: float, *, good: bool) -> None:
        """One more. now: seconds of any clock that never goes back."""
        self._turn(now)
        (self._good if good else self._bad)[self._slice % _SLICES] += 1

    def counts(self, now: float) -> tuple[int, int]:
        """How many were good, and how many bad."""
        self._turn(now)
        return sum(self._good), sum(self._bad)

    def clear(self) -> None:
        """Forget everything."""
        self._good = [0] * _SLICES
        self._bad = [0] * _SLICES

    def _turn(self, now: float) -> None:
        newest = int(now / self._width)
        passed = newest - self._slice
        if passed <= 0:
            return
        for number in range(self._slice + 1, self._slice + 1 + min(passed, _SLICES)):
            self._good[number % _SLICES] = self._bad[number % _SLICES] = 0
        if passed > _SLICES:
            self.clear()
        self._slice = newest
