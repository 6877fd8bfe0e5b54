"""What a route is. The values of a configuration, checked and ready to use."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gateway.experiments.assign import shares

Cause = Literal["error", "overload", "timeout", "context"]
"""Why an attempt failed: a model's fault, no room, too slow, or more text than fits."""


@dataclass(frozen=True, slots=True)
class Ramp:
    """A weight that changes with time: from each moment (Unix seconds, rising) on, so much.

    smooth: between two moments it changes evenly; else it jumps. Before the first moment the first weight holds.
    """

    moments: tuple[float, ...]
    weights: tuple[float, ...]
    smooth: bool = False

    def at(self, now: float) -> float:
        """The weight at a moment."""
        index = bisect_right(self.moments, now) - 1
        if index < 0:
            return self.weights[0]
        if not self.smooth or index + 1 == len(self.moments):
            return self.weights[index]
        begin, end = self.moments[index], self.moments[index + 1]
        part = (now - begin) / (end - begin)
        return self.weights[index] + part * (self.weights[index + 1] - self.weights[index])


@dataclass(frozen=True, slots=True)
class Arm:
    """model: any model name: a model, an alias, a wiring. Its ramp, if it has one, goes before its weight."""

    model: str
    weight: float = 1.0
    ramp: Ramp | None = None

    def weight_at(self, now: float) -> float:
        """At a moment (Unix seconds)."""
        return self.weight if self.ramp is None else self.ramp.at(now)


@dataclass(frozen=True, slots=True)
class Fallback:
    """What is tried next where an attempt failed for one of these causes."""

    on: frozenset[Cause]
    model: str


@dataclass(frozen=True, slots=True)
class Shadow:
    """A second wiring that gets a copy of a share of the requests. texts: its answers are kept."""

    model: str
    share: float = 1.0
    texts: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """A public model name.

    sticky: what makes a subject, the first that a request has: user, key, conversation, header:NAME. salt: part of every hash: a
    route with another salt deals its subjects anew. override: the header by which a request may name its arm, None where it may not.
    fallbacks: in the order in which they are tried. patience: seconds until the first text of an attempt, then it counts as timed out.
    """

    name: str
    arms: Mapping[str, Arm]
    sticky: tuple[str, ...] = ("user", "key")
    salt: str = ""
    override: bool = False
    shadow: Shadow | None = None
    fallbacks: tuple[Fallback, ...] = ()
    patience: float | None = None
    description: str = ""

    def weights(self, now: float) -> dict[str, float]:
        """Arm → weight at a moment (Unix seconds). If all are zero, all get the same: somebody has to answer."""
        found = {name: arm.weight_at(now) for name, arm in self.arms.items()}
        return found if any(found.values()) else dict.fromkeys(found, 1.0)

    def shares(self, now: float) -> dict[str, float]:
        """Arm → part of the subjects at a moment."""
        return shares(self.weights(now))

    def models(self) -> tuple[str, ...]:
        """Every model name that a request to it may end up with."""
        names = [arm.model for arm in self.arms.values()] + [fallback.model for fallback in self.fallbacks]
        return tuple(dict.fromkeys([*names, *([self.shadow.model] if self.shadow else [])]))
