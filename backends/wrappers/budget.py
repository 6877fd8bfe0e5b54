"""How much may be asked twice: repetitions are paid from what requests have paid in, so that a failing backend is never asked much more
often than clients ask."""

from __future__ import annotations


class Budget:
    """A bucket of tokens: every request puts in `share` of one, every repetition takes one.

    share: repetitions per request in the long run. reserve: what is there at the beginning, and the most that is kept.
    """

    __slots__ = ("_left", "_most", "_share")

    def __init__(self, share: float, reserve: float) -> None:
        if share < 0 or reserve < 0:
            raise ValueError("a budget is not negative")
        self._share = share
        self._most = reserve if share == 0 else max(reserve, 1.0)
        self._left = reserve

    @property
    def left(self) -> float:
        """Repetitions that could be paid for now."""
        return self._left

    def deposit(self) -> None:
        """A request has come."""
        self._left = min(self._most, self._left + self._share)

    def take(self) -> bool:
        """Pay for a repetition; False where there is not enough."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
