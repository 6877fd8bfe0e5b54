"""A wiring as a value: `Topology = Model | Serial | Parallel`, always in normal form.

Normal form (held by the constructors): a `Serial` has two or more stages, none of them a `Serial`; a `Parallel` has two
or more members. So `(a>b)>c` and `a>b>c` are the same value, `(a)` is `a`, and a group of one is its member.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

Kind = Literal["si", "pi", "s2p", "p2s"]
Shape = Literal["single", "si", "pi", "s2p", "p2s", "mixed"]


@dataclass(frozen=True, slots=True)
class Model:
    """One model, or an alias that routing has not expanded yet."""

    name: str


@dataclass(frozen=True, slots=True)
class Member:
    """One voice of a group. `weight` as written (positive; 1 when absent), normalised within the group by planning."""

    topology: Topology
    weight: Decimal = Decimal(1)


@dataclass(frozen=True, slots=True)
class Serial:
    """Stages, first to last."""

    stages: tuple[Model | Parallel, ...]


@dataclass(frozen=True, slots=True)
class Parallel:
    """Members that write one text together, token by token. A member that is a `Serial` runs all but its last stage first."""

    members: tuple[Member, ...]


Topology = Model | Serial | Parallel
