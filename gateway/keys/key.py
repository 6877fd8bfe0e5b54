"""What a key is and may."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from gateway.keys.patterns import matches

NANO = 1_000_000_000
"""Money is counted in whole billionths of the configured currency: sums are exact, in every order."""

MOST_PER_MINUTE = 100_000_000
"""Largest rate: beyond it the arithmetic of a shared bucket would not be exact in doubles."""

LONGEST_NAME = 128
"""Characters in the name of a key that is made while the gateway runs."""


def named(name: str) -> str:
    """A name for a new key, on one line, for tables and logs show it. Raises ValueError, saying what a name is."""
    name = " ".join(name.split())
    if not (1 <= len(name) <= LONGEST_NAME and name.isprintable()):
        raise ValueError(f"a name has 1 to {LONGEST_NAME} characters, and no control characters")
    return name


Unit = Literal["money", "tokens"]
Period = Literal["total", "day", "month"]
State = Literal["active", "expired", "revoked"]


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent in all, or in each day or month (of UTC). amount: tokens, or billionths of the currency."""

    amount: int
    unit: Unit = "tokens"
    per: Period = "total"

    def shown(self) -> dict[str, Any]:
        """As a configuration writes it: `{"money": 5.0, "per": "month"}`."""
        return {self.unit: self.amount / NANO if self.unit == "money" else self.amount, "per": self.per}

    def period(self, now: float) -> str:
        """The name of the period that a moment (Unix seconds) is in: "", "2026-11-23", "2026-11"."""
        if self.per == "total":
            return ""
        return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d" if self.per == "day" else "%Y-%m")


@dataclass(frozen=True, slots=True)
class Rights:
    """What a key may. None is no limit.

    models: patterns; every model that takes part in a request must match one. wirings: patterns; the name asked for or the wiring
    that it stands for must match one. concurrency: requests at once.
    """

    models: tuple[str, ...] = ("*",)
    wirings: tuple[str, ...] = ("*",)
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    budget: Budget | None = None

    @property
    def limited(self) -> bool:
        """Whether anything has to be counted."""
        return (
            self.requests_per_minute is not None
            or self.tokens_per_minute is not None
            or self.concurrency is not None
            or self.budget is not None
        )

    def allow(self, asked: str, wiring: str, models: Iterable[str]) -> bool:
        """Whether a name may be asked for that stands for this wiring of these models."""
        if not (matches(self.wirings, asked) or matches(self.wirings, wiring)):
            return False
        return self.models == ("*",) or all(matches(self.models, name) for name in models)

    def value(self) -> dict[str, Any]:
        """As JSON; `of` reads it back."""
        return {**asdict(self), "models": list(self.models), "wirings": list(self.wirings)}

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Rights:
        """Raises ValueError for what is no such thing."""
        try:
            budget = value.get("budget")
            made = cls(
                models=tuple(str(pattern) for pattern in value.get("models", ("*",))),
                wirings=tuple(str(pattern) for pattern in value.get("wirings", ("*",))),
                requests_per_minute=_count(value.get("requests_per_minute"), MOST_PER_MINUTE),
                tokens_per_minute=_count(value.get("tokens_per_minute"), MOST_PER_MINUTE),
                concurrency=_count(value.get("concurrency"), 1_000_000),
                budget=None if budget is None else Budget(int(budget["amount"]), budget["unit"], budget["per"]),
            )
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError("not the rights of a key") from error
        if made.budget is not None and (
            made.budget.amount < 1
            or made.budget.unit not in ("money", "tokens")
            or made.budget.per not in ("total", "day", "month")
        ):
            raise ValueError(
                "a budget needs a positive amount, a unit (money, tokens) and a period (total, day, month)"
            )
        return made


def _count(value: Any, most: int) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise ValueError(f"a limit is a whole number from 1 to {most}")
    return value


@dataclass(frozen=True, slots=True)
class Key:
    """created, expires, revoked: Unix seconds. digest: SHA-256 of the whole key. stored: kept in a store, not in the configuration."""

    id: str
    name: str
    digest: bytes = field(repr=False)
    rights: Rights = Rights()
    created: float = 0.0
    expires: float | None = None
    revoked: float | None = None
    stored: bool = True

    def state(self, now: float | None = None) -> State:
        """Where it stands at a moment, by default now."""
        if self.revoked is not None:
            return "revoked"
        moment = time.time() if now is None else now
        return "expired" if self.expires is not None and self.expires <= moment else "active"

    def value(self) -> dict[str, Any]:
        """What may be shown of it, as JSON."""
        return {
            "id": self.id,
            "name": self.name,
            "state": self.state(),
            "created": self.created,
            "expires": self.expires,
            "revoked": self.revoked,
            "from": "store" if self.stored else "configuration",
            **self.rights.value(),
            "budget": None if self.rights.budget is None else self.rights.budget.shown(),
        }
