"""All keys that are valid here, and what was spent on each.

Read on the event loop, replaced by the keeper's thread: a new mapping takes the place of the old one in one assignment, and nothing
in a mapping changes after that.
"""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal

from gateway.keys.key import Key, Period
from gateway.keys.secrets import digest, id_of
from gateway.keys.store import Spending, Spent

Why = Literal["missing", "wrong", "expired", "revoked"]

_NOBODY = bytes(32)
"""Compared with where no key has the id, so that this takes as long as where one has."""


class KeyRefused(Exception):
    """A key that does not open anything. expired and revoked are said only of a key whose secret was right."""

    def __init__(self, why: Why) -> None:
        super().__init__(why)
        self.why = why


class Keyring:
    """static: the configuration's keys. required: ask for one even while there is none."""

    def __init__(self, static: Sequence[Key] = (), required: bool = False) -> None:
        self._static = tuple(static)
        self._stored: Mapping[str, Key] = {}
        self._required = required or bool(static)
        self.spending = SpendBook()

    @property
    def required(self) -> bool:
        """Whether callers need a key. Once true it stays so: the last key's end must not open the door to everyone."""
        return self._required

    @property
    def has_stored(self) -> bool:
        """Whether a key was ever made, whatever became of it."""
        return bool(self._stored)

    def set_static(self, keys: Sequence[Key]) -> None:
        """The configuration has other keys now."""
        self._static = tuple(keys)
        self._required = self._required or bool(keys)

    def set_stored(self, keys: Iterable[Key]) -> None:
        """What the store holds now, whatever state each key is in."""
        self._stored = {key.id: key for key in keys}
        self._required = self._required or bool(self._stored)

    def all(self) -> list[Key]:
        """Those of the configuration, then those of the store."""
        return [*self._static, *self._stored.values()]

    def authenticate(self, text: str) -> Key:
        """The key with this text, active now. Raises KeyRefused.

        How long this takes does not tell how near a wrong secret was: digests are compared whole, and all of the configuration's.
        """
        if not text:
            raise KeyRefused("missing")
        given = digest(text)
        stored = self._stored.get(id_of(text) or "")
        found = stored if hmac.compare_digest(given, stored.digest if stored else _NOBODY) else None
        for key in self._static:
            if hmac.compare_digest(given, key.digest):
                found = found or key
        if found is None:
            raise KeyRefused("wrong")
        state = found.state()
        if state != "active":
            raise KeyRefused(state)
        return found


class SpendBook:
    """What was spent on each key: as the store had it last, and what it has not been told yet. Safe to use from two threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stored: Spending = {}
        self._pending: Spending = {}
        self._told: Spending = {}

    def add(self, key: str, spent: Spent, now: float | None = None) -> None:
        """Count for the day, the month and for all time."""
        moment = time.time() if now is None else now
        with self._lock:
            for period in periods(moment):
                at = (key, period)
                before = self._pending.get(at)
                self._pending[at] = spent if before is None else before + spent

    def known(self, key: str, period: str) -> Spent:
        """All that is known here to have been spent in a period."""
        at, nothing = (key, period), Spent()
        with self._lock:
            return self._stored.get(at, nothing) + self._told.get(at, nothing) + self._pending.get(at, nothing)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to tell a store."""
        return not self._pending

    def exchange(self, tell: Callable[[Spending], None], ask: Callable[[tuple[str, ...]], Spending]) -> None:
        """Tell a store what is new, ask what it has now. What either raises is raised; nothing is lost then."""
        with self._lock:
            self._told, self._pending = self._pending, {}
        try:
            if self._told:
                tell(self._told)
        except BaseException:
            with self._lock:
                for at, spent in self._told.items():
                    self._pending[at] = self._pending.get(at, Spent()) + spent
                self._told = {}
            raise
        with self._lock:  # told: it counts as stored until the store itself has been asked
            for at, spent in self._told.items():
                self._stored[at] = self._stored.get(at, Spent()) + spent
            self._told = {}
        found = ask(periods(time.time()))
        with self._lock:
            self._stored = found


PERIODS: tuple[Period, ...] = ("total", "day", "month")


def periods(now: float) -> tuple[str, ...]:
    """The names of the periods that a moment (Unix seconds) is in, in the order of PERIODS."""
    return _periods(int(now // 86_400))


@lru_cache(maxsize=8)
def _periods(days: int) -> tuple[str, ...]:
    """The same, by days since 1970: every request asks."""
    day = datetime.fromtimestamp(days * 86_400, UTC).strftime("%Y-%m-%d")
    return "", day, day[:7]
