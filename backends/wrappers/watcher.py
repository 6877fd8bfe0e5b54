"""Whoever wants to know how backends fare: told by the wrappers, in plain calls that must not wait and must not raise."""

from __future__ import annotations

from typing import Literal

from backends.types import Usage
from backends.wrappers.breaker import State

Use = Literal["stream", "session", "forward", "ask"]
"""How a backend is used: text, a token session, a request handed on as it came, or one question with one answer."""


class Call:
    """One use of a backend under watch, from before it is entered. Told `ended` once, last."""

    __slots__ = ()

    def resumed(self) -> None:
        """What is sent from here on, in this task, is sent for this use."""

    def first(self) -> None:
        """It has given something: text, or a distribution."""

    def ended(self, error: BaseException | None, usage: Usage | None) -> None:
        """It is over. error: what it ended with. usage: what it spent, as far as that is known."""


class Watcher:
    """Hears nothing; a subclass overrides what it wants to hear. Causes are those of `backends.wrappers.causes`."""

    __slots__ = ()

    def call(self, model: str, use: Use, attempt: int) -> Call | None:
        """A backend is about to be entered, for the first time (attempt 0) or again. None: this one need not be watched."""
        return None

    def failed(self, model: str, cause: str) -> None:
        """It failed, or refused."""

    def retried(self, model: str, cause: str) -> None:
        """It will be asked again."""

    def unaffordable(self, model: str) -> None:
        """It would have been asked again, but there was no budget for it."""

    def rerun(self, model: str) -> None:
        """A stage of it that nobody has seen is run again."""

    def hedged(self, model: str) -> None:
        """A second attempt begins beside the first, which is slow."""

    def hedge_won(self, model: str) -> None:
        """The second attempt was quicker."""

    def turned(self, model: str, state: State) -> None:
        """Its circuit breaker has a new state."""

    def stepped(self, model: str, steps: int, seconds: float) -> None:
        """A session is over: how many steps it made, and how long its caller waited for them in all."""
