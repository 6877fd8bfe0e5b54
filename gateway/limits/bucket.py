"""Token buckets in whole numbers.

A level counts what was taken and has not drained yet, in units of 1/60,000,000 of a token: so a limit of L per minute drains L units
every microsecond, and nothing is ever rounded. Levels stay below 2^53 (`gateway.keys.key.MOST_PER_MINUTE` holds that), so that doubles,
which is all that Lua has, hold them exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

UNIT = 60_000_000
"""Units of one token or request, and microseconds of a minute."""

FULL = 9_000_000_000_000_000
"""A level is never counted higher: debts beyond it are forgiven."""

FREE_WAIT = 1_000_000
"""Microseconds to wait for what only the end of other requests can make free."""


@dataclass(slots=True)
class Bucket:
    """level: in units. at: the moment (microseconds) of which that is true."""

    level: int = 0
    at: int = 0

    def drain(self, limit: int, now: int) -> None:
        """Let pass the time since it was last looked at. A clock that went back lets none pass. limit: 0 is none: nothing counts."""
        self.level = max(0, self.level - limit * max(0, now - self.at)) if limit else 0
        self.at = now

    def take(self, amount: int) -> None:
        """Charge so many tokens or requests."""
        self.level = min(FULL, self.level + amount * UNIT)


def wait(level: int, held: int, amount: int, limit: int) -> int:
    """Microseconds until `amount` more fit beside a level and so much held, 0 if they do now.

    Draining makes room by itself; where what is held stands in the way, at least FREE_WAIT.
    """
    over = level + (held + amount - limit) * UNIT
    if over <= 0:
        return 0
    drained = -(-min(over, level) // limit)
    return drained if over <= level else max(FREE_WAIT, drained)
