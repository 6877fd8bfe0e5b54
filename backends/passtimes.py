"""How long a model's passes take, by how many tokens they read. Learned from those that were made; what it says never changes a text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

RECENT = 0.2
"""How much the latest pass counts in a mean."""
OUTLIER = 4.0
"""A pass counts as at most so many times what was expected: one hiccup is no new speed."""
STALE = 0.99
"""What longer passes took longer is believed less with every step: it may have been seen under another load."""
FADING = 0.97
"""How much every earlier pass over several tokens counts in the price of a token, per such pass since."""
FREE = 64.0
"""So many tokens are taken to have cost nothing, at first: one draft that came at a bad time does not set the price."""
LESS = 0.9
"""A pass is padded only if it then takes less than this part of its time."""
DEAR = 0.25
"""Of a step: where a second token takes longer than that, it is found out whether a third one takes less."""
LONGEST = 6
"""The longest passes told apart are those of 2**5 + 1 tokens and more."""


class PassTimes:
    """Seconds a pass: a running mean of those over one token, and of what others took longer than these did at the time, for each of the
    lengths 2, 3-4, 5-8, 9-16, 17-32 and more.

    sharing: sessions and answers that the model has open now, and that may share its passes. singly: what counts as a pass over several
    tokens is as many over one, and reckoned to take as long.
    """

    __slots__ = ("_longer", "_price", "_read", "_tokens", "sharing", "singly", "step")

    step: float | None
    """A pass over one token. None: none was made yet."""

    def __init__(self) -> None:
        self.step = None
        self._longer: list[float | None] = [None] * LONGEST
        self._tokens = [0.0] * LONGEST
        self._price = 0.0  # seconds that all tokens beyond the first took …
        self._read = 0.0  # … and how many there were
        self.sharing = 0
        self.singly = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """While a session is open, or the model writes by itself."""
        self.sharing += 1
        try:
            yield
        finally:
            self.sharing -= 1

    def took(self, tokens: int, seconds: float) -> None:
        """A pass over so many tokens (>= 1) was waited for so long."""
        if (expected := self.expected(tokens)) is not None:
            seconds = min(seconds, OUTLIER * expected)
        if tokens == 1:
            self.step = seconds if self.step is None else self.step + RECENT * (seconds - self.step)
            self._longer = [None if longer is None else STALE * longer for longer in self._longer]
            self._price, self._read = STALE * self._price, STALE * self._read
        elif self.step is not None and not self.singly:
            at, longer = _bucket(tokens), seconds - self.step
            before = self._longer[at]
            if before is None:
                self._longer[at], self._tokens[at] = longer, float(tokens)
            else:
                self._longer[at] = before + RECENT * (longer - before)
                self._tokens[at] += RECENT * (tokens - self._tokens[at])
            self._price = FADING * self._price + longer
            self._read = FADING * self._read + tokens - 1

    @property
    def tried(self) -> bool:
        """Whether it is known what a pass over more than one token takes, as far as it can be."""
        return self.singly or any(longer is not None for longer in self._longer)

    def expected(self, tokens: int) -> float | None:
        """A pass over so many tokens, padded where that makes it shorter. Lengths not seen yet are reckoned from the longest that were,
        every further token at the price that those had; where only single tokens were seen, each costs as much as they do. None: nothing
        is known."""
        if self.step is None:
            return None
        padded = self._longer[1] is not None and self.padded(2) > 2  # known to be: passes over two are not made
        tokens = 3 if padded and tokens == 2 else tokens
        low, price = (1.0, 0.0), self.step
        for at, longer in enumerate(self._longer):
            if longer is None or (padded and at == 0):
                continue
            here = self._tokens[at], max(longer, low[1])
            if here[0] > low[0]:
                price = (here[1] - low[1]) / (here[0] - low[0])
                if tokens <= here[0]:
                    break
                low = here
        return self.step + low[1] + price * max(0.0, tokens - low[0])

    def padded(self, tokens: int) -> int:
        """How many tokens a pass over so many should read: three for two where that was seen to take clearly less, or is to be found out.
        Some kernels are slow for two rows (here, MKL's in single precision and bfloat16: 1.5 times as long as for one, or for three)."""
        two, three = self._longer[0], self._longer[1]
        if tokens != 2 or self.step is None or two is None:
            return tokens
        if three is None:
            return 3 if two > DEAR * self.step else 2
        return 3 if self.step + three < LESS * (self.step + two) else 2

    def company(self, tokens: int) -> float:
        """Seconds that all others together wait longer if a pass that they share reads so many tokens in place of one: as much as it takes
        longer for whoever has it read them, or what the price of a token says, if that is more."""
        if self.sharing < 2:
            return 0.0
        longer = (self.padded(tokens) - 1) * max(0.0, self._price) / (self._read + FREE)
        if self.step is not None and self.tried:
            longer = max(longer, (self.expected(tokens) or 0.0) - self.step)
        return (self.sharing - 1) * longer


def _bucket(tokens: int) -> int:
    return min(LONGEST, (tokens - 1).bit_length()) - 1
