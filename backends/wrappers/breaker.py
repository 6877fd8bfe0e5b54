"""A circuit breaker: a backend that keeps failing is left alone for a while, so that nobody waits for it and it can recover.

    closed     requests pass; their ends are counted over a sliding window
    open       none passes, for `pause` seconds; twice as long every time it opens anew, up to `pause_most`
    half open  the pause is over: a few requests pass as trials, and one more whenever the last has said nothing for `pause` seconds.
               One that succeeds closes it, one that fails opens it again

It opens where, of at least `least` ends in the window, the share of failures reaches `share`. Pure but for the clock, which is given.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from backends.wrappers.window import Window

State = Literal["closed", "half_open", "open"]


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """
    window: seconds over which ends are counted. least: ends in it before anything is concluded. share: of failures that opens, (0, 1].
    pause, pause_most: seconds. trials: requests at once while half open, as long as they say something.
    """

    window: float = 30.0
    least: int = 10
    share: float = 0.5
    pause: float = 5.0
    pause_most: float = 60.0
    trials: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.least < 1 or self.trials < 1 or not 0 < self.pause <= self.pause_most:
            raise ValueError(
                "a breaker needs 0 < share <= 1, least and trials of at least 1, and 0 < pause <= pause_most"
            )


class Breaker:
    """`admit`, then tell how it ended: exactly one of `succeeded`, `failed` and `withdrew` for a trial.

    clock: seconds. turned: told every new state.
    """

    __slots__ = (
        "_clock",
        "_next_pause",
        "_settings",
        "_shut_until",
        "_trials",
        "_tried",
        "_tried_at",
        "_turned",
        "_window",
        "opened",
    )

    def __init__(
        self,
        settings: BreakerSettings,
        clock: Callable[[], float] = time.monotonic,
        turned: Callable[[State], None] = lambda _: None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._turned = turned
        self._window = Window(settings.window)
        self._shut_until: float | None = None  # None: closed
        self._next_pause = settings.pause
        self._trials = 0
        self._tried = False  # that it is half open was told
        self._tried_at = 0.0  # when the last trial began
        self.opened = 0
        """How often it has opened so far."""

    @property
    def state(self) -> State:
        """As of now."""
        if self._shut_until is None:
            return "closed"
        return "open" if self._clock() < self._shut_until else "half_open"

    @property
    def wait(self) -> float:
        """Seconds until a trial may pass."""
        return 0.0 if self._shut_until is None else max(0.0, self._shut_until - self._clock())

    def admit(self) -> bool | None:
        """Whether a request may pass: False, as any other; True, as a trial; None, it may not."""
        if self._shut_until is None:
            return False
        now = self._clock()
        if now < self._shut_until:
            return None
        # A trial that says nothing for long (a whole answer has its status when it is written to its end) does not keep all others out.
        if self._trials >= self._settings.trials and now - self._tried_at < self._settings.pause:
            return None
        self._tried_at = now
        if not self._tried:
            self._tried = True
            self._turned("half_open")
        self._trials += 1
        return True

    def succeeded(self, trial: bool) -> None:
        """The backend did its part, or refused for a reason that is no fault of it."""
        if trial:
            self._trials -= 1
            if self.state == "half_open":  # a slower trial may have failed meanwhile
                self._close()
        elif self._shut_until is None:
            self._window.add(self._clock(), good=True)

    def failed(self, trial: bool) -> None:
        """The backend failed."""
        if trial:
            self._trials -= 1
            if self.state == "half_open":
                self._open()
        elif self._shut_until is None:
            now = self._clock()
            self._window.add(now, good=False)
            good, bad = self._window.counts(now)
            if good + bad >= self._settings.least and bad >= self._settings.share * (good + bad):
                self._open()

    def withdrew(self, trial: bool) -> None:
        """It ended in a way that says nothing about the backend: the client left, or another model failed."""
        if trial:
            self._trials -= 1

    def _open(self) -> None:
        self._shut_until = self._clock() + self._next_pause
        self._next_pause = min(2 * self._next_pause, self._settings.pause_most)
        self._tried = False
        self.opened += 1
        self._window.clear()
        self._turned("open")

    def _close(self) -> None:
        self._shut_until = None
        self._next_pause = self._settings.pause
        self._tried = False
        self._turned("closed")
