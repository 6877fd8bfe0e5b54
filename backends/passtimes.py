"""How long a model's passes take, by how many tokens they read. Learned from those that were made; what it says never changes a text."""

from __future__ import annotations

RECENT = 0.2
"""How much the latest pass counts in a mean."""
OUTLIER = 4.0
"""A pass counts as at most so many times what was expected: one hiccup is no new speed."""
LESS = 0.9
"""A pass is padded only if it then takes less than this part of its time."""
LONGEST = 6
"""The longest passes told apart are those of 2**5 + 1 tokens and more."""


class PassTimes:
    """Seconds a pass, a running mean for each of the lengths 1, 2, 3-4, 5-8, 9-16, 17-32 and more."""

    __slots__ = ("_seconds", "_tokens")

    def __init__(self) -> None:
        self._seconds: list[float | None] = [None] * (LONGEST + 1)
        self._tokens = [0.0] * (LONGEST + 1)

    def took(self, tokens: int, seconds: float) -> None:
        """A pass over so many tokens (>= 1) was waited for so long."""
        at = _bucket(tokens)
        before = self._seconds[at]
        if before is None:
            self._seconds[at], self._tokens[at] = seconds, float(tokens)
        else:
            self._seconds[at] = before + RECENT * (min(seconds, OUTLIER * before) - before)
            self._tokens[at] += RECENT * (tokens - self._tokens[at])

    @property
    def step(self) -> float | None:
        """A pass over one token. None: none was made yet."""
        return self._seconds[0]

    @property
    def tried(self) -> bool:
        """Whether a pass over more than one token was ever made."""
        return any(seconds is not None for seconds in self._seconds[1:])

    def expected(self, tokens: int) -> float | None:
        """A pass over so many tokens, padded where that makes it shorter. Lengths not seen yet are reckoned from the longest that were,
        every further token at the price that those had; where only single tokens were seen, each costs as much as they do. None: nothing
        is known."""
        return self._reckoned(self.padded(tokens))

    def padded(self, tokens: int) -> int:
        """How many tokens a pass over so many should read: three for two where that was seen to take clearly less. Some kernels are slow
        for two rows (here, MKL's in single precision and bfloat16: 1.5 times as long as for one, or for three)."""
        two, three = self._seconds[1], self._seconds[2]
        return 3 if tokens == 2 and two is not None and three is not None and three < LESS * two else tokens

    def _reckoned(self, tokens: int) -> float | None:
        step = self._seconds[0]
        if step is None:
            return None
        low, price = (1.0, step), step
        for at in range(1, LONGEST + 1):
            seconds = self._seconds[at]
            if seconds is None or (at == 1 and self.padded(2) > 2):
                continue  # or such passes are not made
            here = self._tokens[at], max(seconds, low[1])
            if here[0] > low[0]:
                price = (here[1] - low[1]) / (here[0] - low[0])
                if tokens <= here[0]:
                    break
                low = here
        return low[1] + price * max(0.0, tokens - low[0])


def _bucket(tokens: int) -> int:
    return min(LONGEST, (tokens - 1).bit_length())
