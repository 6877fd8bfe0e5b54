"""The limits of every key in this process: exact, and synchronous, so that nothing can come between looking and taking."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from gateway.keys.key import Key, Rights
from gateway.limits.bucket import FREE_WAIT, Bucket, wait
from gateway.limits.verdict import Ask, Levels, Reason, Verdict, verdict

_MANY = 100_000
_IDLE = 3_600_000_000
"""Beyond so many keys, those that were idle for an hour (microseconds) are forgotten."""


@dataclass(slots=True)
class _State:
    requests: Bucket
    tokens: Bucket
    running: int = 0
    held_tokens: int = 0
    held_budget: int = 0

    def drain(self, rights: Rights, now: int) -> None:
        self.requests.drain(rights.requests_per_minute or 0, now)
        self.tokens.drain(rights.tokens_per_minute or 0, now)

    def levels(self) -> Levels:
        return Levels(self.requests.level, self.tokens.level, self.held_tokens)


class LocalLimits:
    """clock: microseconds, never going back."""

    def __init__(self, clock: Callable[[], int] = lambda: time.monotonic_ns() // 1000) -> None:
        self._clock = clock
        self._states: dict[str, _State] = {}

    def admit(self, key: Key, ask: Ask, spent: int, force: bool = False) -> Verdict:
        """Take what a request asks for, or say why not. spent: of the budget so far. force: take it whatever the limits say."""
        state, rights = self._state(key), key.rights
        state.drain(rights, self._clock())
        refused, micros = (None, 0) if force else decide(state, rights, ask, spent)
        if refused is None:
            state.requests.take(1)
            state.running += 1
            state.held_tokens += ask.tokens
            state.held_budget += ask.of(rights.budget.unit) if rights.budget else 0
        return verdict(rights, refused, micros, state.levels())

    def settle(self, key: Key, ask: Ask, tokens: int) -> None:
        """A request that was admitted has ended, and has spent so many tokens. key: as it was when it was admitted."""
        state, rights = self._state(key), key.rights
        state.drain(rights, self._clock())
        state.running -= 1
        state.held_tokens -= ask.tokens
        state.held_budget -= ask.of(rights.budget.unit) if rights.budget else 0
        state.tokens.take(tokens)

    def running(self, key: str) -> int:
        """Requests of a key that are under way here."""
        state = self._states.get(key)
        return state.running if state else 0

    def _state(self, key: Key) -> _State:
        state = self._states.get(key.id)
        if state is None:
            now = self._clock()
            if len(self._states) >= _MANY:
                states = self._states.items()
                self._states = {id: kept for id, kept in states if kept.running or kept.tokens.at > now - _IDLE}
            state = self._states[key.id] = _State(Bucket(0, now), Bucket(0, now))
        return state


def decide(state: _State, rights: Rights, ask: Ask, spent: int) -> tuple[Reason | None, int]:
    """Why not, and the microseconds after which to ask again. The order is that of the script, line for line."""
    requests, tokens, budget = rights.requests_per_minute, rights.tokens_per_minute, rights.budget
    if budget is not None and spent >= budget.amount:
        return "budget", 0
    if tokens is not None and ask.tokens > tokens:
        return "too_large", 0
    if requests is not None and (micros := wait(state.requests.level, 0, 1, requests)):
        return "requests", micros
    if tokens is not None and (micros := wait(state.tokens.level, state.held_tokens, ask.tokens, tokens)):
        return "tokens", micros
    if rights.concurrency is not None and state.running >= rights.concurrency:
        return "concurrency", FREE_WAIT
    if budget is not None and spent + state.held_budget >= budget.amount:
        return "budget_held", FREE_WAIT
    return None, 0
