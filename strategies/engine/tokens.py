"""Text and the tokens that make it up, given out together."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from backends.textout import TextOut
from backends.types import TokenLogprob

Said = tuple[str, tuple[TokenLogprob, ...]]
"""Text, and the tokens whose bytes are just that text."""


class TokensOut:
    """`TextOut` for bytes that come with what is known of them.

    Text is held back until the tokens that it is made of are certain too, so what one call gives always belongs together: joined
    and decoded, the bytes of the tokens are the text. Of a token that a stop string or the answer's end cuts, what stands before the cut is
    left.
    """

    __slots__ = ("_fed", "_held", "_out", "_tokens")

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._out = TextOut(stops)
        self._tokens: deque[tuple[int, TokenLogprob]] = deque()  # where each begins, in bytes of the answer
        self._fed = 0
        self._held: list[str] = []

    @property
    def stopped(self) -> bool:
        """As `TextOut.stopped`."""
        return self._out.stopped

    def feed(self, token: TokenLogprob) -> Said:
        """One more token; returns what is certain now (may be empty)."""
        if not self._out.stopped and token.text:
            self._tokens.append((self._fed, token))
            self._fed += len(token.text)
            self._held.append(self._out.feed(token.text))
        return self._give()

    def finish(self) -> Said:
        """The answer is over: returns what was held back."""
        self._held.append(self._out.finish())
        return self._give(over=True)

    def _give(self, *, over: bool = False) -> Said:
        certain = self._fed - self._out.waiting
        over = over or self._out.stopped
        if not over and certain != self._fed and all(start != certain for start, _ in self._tokens):
            return "", ()  # the text ends inside a token
        text, tokens = "".join(self._held), []
        self._held = []
        while self._tokens and self._tokens[0][0] < certain:
            start, token = self._tokens.popleft()
            tokens.append(replace(token, text=token.text[: certain - start]))
        if over:
            self._tokens.clear()
        return text, tuple(tokens)
