"""The limits of keys, wherever they are kept.

While the server that processes share does not answer, each decides as configured: `local` keeps every limit in this process alone,
`closed` refuses what is limited, `open` admits it. This process's own state is charged all the time, so that `local` goes on from
what was used and not from nothing.

So N processes together exceed a limit only while the server is away: with `local` by at most N - 1 times what one may use in that
time, and by one minute's amount more if the server comes back without its data.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import anyio

from gateway.keys.key import Key
from gateway.keys.keyring import SpendBook
from gateway.keys.store import Spent
from gateway.limits.local import LocalLimits
from gateway.limits.shared import SharedDown, SharedLimits
from gateway.limits.verdict import Ask, Verdict

WhenDown = Literal["local", "closed", "open"]

GRACE_SECONDS = 0.03
"""A client whose answer has just ended may ask again before that end has reached the server: too many at once is asked twice."""
SETTLE_SECONDS = 1.0


class Refused(Exception):
    """Not now, or not at all. `verdict.refused` says why."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.refused)
        self.verdict = verdict


class LimitsUnknown(Exception):
    """The limits can't be looked at, and the configuration wants nothing admitted then."""


@dataclass(slots=True)
class Lease:
    """What an admitted request holds until `settle`."""

    key: Key
    ask: Ask
    verdict: Verdict
    limiter: Limiter
    shared: str | None
    period: str | None
    settled: bool = False

    async def settle(self, spent: Spent) -> None:
        """The request has ended, however that was, and has spent this. The first call counts."""
        if not self.settled:
            self.settled = True
            await self.limiter.settle(self, spent)


class Limiter:
    """shared: None keeps everything in this process."""

    def __init__(self, book: SpendBook, shared: SharedLimits | None = None, when_down: WhenDown = "local") -> None:
        self.shared = shared
        self.lost_settlements = 0
        self.refused: Counter[str] = Counter()
        self._book = book
        self._when_down = when_down
        self._local = LocalLimits()

    async def admit(self, key: Key, ask: Ask) -> Lease:
        """Raises Refused, LimitsUnknown."""
        budget = key.rights.budget
        period = budget.period(time.time()) if budget else None
        spent = self._book.known(key.id, period).of(budget.unit) if budget and period is not None else 0
        if self.shared is None or not key.rights.limited:
            return self._lease(key, ask, self._local.admit(key, ask, spent), None, period)
        try:
            taken = await self.shared.admit(key, ask, spent, period)
            if taken.verdict.refused == "concurrency":
                await anyio.sleep(GRACE_SECONDS)
                taken = await self.shared.admit(key, ask, spent, period)
        except SharedDown:
            if self._when_down == "closed":
                raise LimitsUnknown from None
            found = self._local.admit(key, ask, spent, force=self._when_down == "open")
            return self._lease(key, ask, found, None, period)
        if taken.verdict.refused is None:
            self._local.admit(key, ask, spent, force=True)
        return self._lease(key, ask, taken.verdict, taken.lease, period)

    async def settle(self, lease: Lease, spent: Spent) -> None:
        """As `Lease.settle`. A cancelled request settles too: what it spent is spent."""
        key, budget = lease.key, lease.key.rights.budget
        self._local.settle(key, lease.ask, spent.tokens)
        self._book.add(key.id, spent)
        if self.shared is None or not key.rights.limited:
            return
        amount = spent.of(budget.unit) if budget else 0
        try:
            with anyio.CancelScope(shield=True), anyio.move_on_after(SETTLE_SECONDS):
                await self.shared.settle(key, lease.shared or "-", spent.tokens, amount, lease.period)
        except SharedDown:
            self.lost_settlements += 1

    def _lease(self, key: Key, ask: Ask, found: Verdict, shared: str | None, period: str | None) -> Lease:
        if found.refused is not None:
            self.refused[found.refused] += 1
            raise Refused(found)
        return Lease(key, ask, found, self, shared, period)
