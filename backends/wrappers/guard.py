"""What is kept of one backend between requests: its breaker, its budget of repetitions, and the rules for both."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio

from backends.errors import BackendError, BackendOverloaded, CircuitOpen
from backends.wrappers.breaker import Breaker, BreakerSettings, State
from backends.wrappers.budget import Budget
from backends.wrappers.causes import cause, verdict
from backends.wrappers.watcher import Watcher

_TRIAL_RUNS = 1.0
"""Seconds after which to come again where the trial of a half-open breaker is still running."""


@dataclass(frozen=True, slots=True)
class Policy:
    """
    retries: times that a request is asked again at most. pause: seconds before the first repetition; doubles, and a random part of it is
        left out. longest: the longest Retry-After (seconds) that is waited for.
    share, reserve: of the budget (`Budget`) that pays for repetitions of every kind.
    breaker: None: no breaker. hedge_after: seconds without an event after which a stream is asked for a second time; None: never.
    """

    retries: int = 2
    pause: float = 0.1
    longest: float = 2.0
    share: float = 0.2
    reserve: float = 5.0
    breaker: BreakerSettings | None = field(default_factory=BreakerSettings)
    hedge_after: float | None = None


class Guard:
    """Of one model. budget: may be shared with others who repeat what this model failed at."""

    __slots__ = ("_breaker", "_chance", "budget", "name", "policy", "watcher")

    def __init__(
        self,
        name: str,
        policy: Policy,
        watcher: Watcher | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self.policy = policy
        self.watcher = watcher = watcher or Watcher()
        self.budget = Budget(policy.share, policy.reserve)
        self._chance = chance
        self._breaker: Breaker | None = None
        if policy.breaker is not None:
            self._breaker = Breaker(policy.breaker, clock, lambda state: watcher.turned(name, state))

    @property
    def state(self) -> State:
        """Of the breaker; always "closed" without one."""
        return "closed" if self._breaker is None else self._breaker.state

    def admit(self, failure: BaseException | None = None) -> bool:
        """Whether this use is a trial of a half-open breaker. failure: what is to be repeated. Raises CircuitOpen, or the failure."""
        if self._breaker is None:
            return False
        admitted = self._breaker.admit()
        if admitted is None:
            if failure is not None:
                raise failure
            error = self.open_error()
            self.watcher.failed(self.name, cause(error))
            raise error
        return admitted

    def open_error(self) -> CircuitOpen:
        """Says that the backend is left alone, and for how long."""
        wait = (self._breaker.wait if self._breaker is not None else 0.0) or _TRIAL_RUNS
        return CircuitOpen(self.name, f"Model {self.name!r} keeps failing; it is tried again in a moment.", wait)

    def settle(self, trial: bool, error: BaseException | None) -> None:
        """A use is over. error: raised by the backend itself, None where it did its part."""
        breaker = self._breaker
        if error is None:
            if breaker is not None:
                breaker.succeeded(trial)
            return
        if not isinstance(error, Exception):  # cancelled
            self.withdraw(trial)
            return
        self.watcher.failed(self.name, cause(error))
        if breaker is None:
            return
        match verdict(error):
            case "fault":
                breaker.failed(trial)
            case "fine":
                breaker.succeeded(trial)
            case "nothing":
                breaker.withdrew(trial)

    def withdraw(self, trial: bool) -> None:
        """A use is over for reasons that are none of the backend's."""
        if self._breaker is not None:
            self._breaker.withdrew(trial)

    def again_in(self, error: BaseException, attempt: int) -> float | None:
        """Seconds after which to repeat what failed so on entering, None where it is not to be repeated.

        Only where the server had not begun (`BackendError.repeatable`), within the time that is left, and within the budget.
        """
        policy = self.policy
        if attempt >= policy.retries or not (isinstance(error, BackendError) and error.repeatable):
            return None
        wait = policy.pause * 2.0**attempt * (0.5 + 0.5 * self._chance())
        if isinstance(error, BackendOverloaded) and error.retry_after is not None:
            if error.retry_after > policy.longest:
                return None
            wait += error.retry_after
        if anyio.current_time() + wait >= anyio.current_effective_deadline():
            return None
        if not self.budget.take():
            self.watcher.unaffordable(self.name)
            return None
        self.watcher.retried(self.name, cause(error))
        return wait
