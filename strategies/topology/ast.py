"""A wiring as a value: `Topology = Model | Serial | Parallel`, always in normal form.

Normal form (held by the constructors, which raise ValueError): a `Serial` has two or more stages, none of them a `Serial`; a
`Parallel` has two or more members. So `(a>b)>c` and `a>b>c` are the same value, `(a)` is `a`, and a group of one is its member.
`serial` and `parallel` bring any parts into that form.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

Kind = Literal["si", "pi", "s2p", "p2s"]
Shape = Literal["single", "si", "pi", "s2p", "p2s", "mixed"]

NAME = re.compile(r"[A-Za-z0-9._/-]+")
"""ASCII only: names of other alphabets have look-alikes, and travel badly through headers, labels and URLs."""

WEIGHT_DIGITS = 9
"""Most digits of a weight before its decimal point, and most after it: nested weights multiply and must stay above zero."""


@dataclass(frozen=True, slots=True)
class Model:
    """One model, or an alias that routing has not expanded yet."""

    name: str

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"a name is made of ASCII letters, digits and . _ - /, not {self.name!r}")


@dataclass(frozen=True, slots=True)
class Member:
    """One voice of a group. `weight` as written (positive; 1 when absent), normalised within the group by planning."""

    topology: Topology
    weight: Decimal = Decimal(1)

    def __post_init__(self) -> None:
        weight = self.weight
        if not (weight.is_finite() and 0 < weight < 10**WEIGHT_DIGITS) or _fraction_digits(weight) > WEIGHT_DIGITS:
            raise ValueError(
                f"a weight is a positive decimal with at most {WEIGHT_DIGITS} digits on either side of its point, not {weight}"
            )


@dataclass(frozen=True, slots=True)
class Serial:
    """Stages, first to last."""

    stages: tuple[Model | Parallel, ...]

    def __post_init__(self) -> None:
        if len(self.stages) < 2:
            raise ValueError("a chain has two or more stages")
        if any(isinstance(stage, Serial) for stage in self.stages):
            raise ValueError("a stage of a chain is not a chain itself: use serial()")


@dataclass(frozen=True, slots=True)
class Parallel:
    """Members that write one text together, token by token. A member that is a `Serial` runs all but its last stage first."""

    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        if len(self.members) < 2:
            raise ValueError("a group has two or more members")


Topology = Model | Serial | Parallel


def serial(parts: Iterable[Topology]) -> Topology:
    """The parts one after another, in normal form: chains among them are joined, a single part is itself."""
    stages: list[Model | Parallel] = []
    for part in parts:
        if isinstance(part, Serial):
            stages.extend(part.stages)
        else:
            stages.append(part)
    return stages[0] if len(stages) == 1 else Serial(tuple(stages))


def parallel(members: Iterable[Member]) -> Topology:
    """The members as one group, in normal form: a group of one is its member, whose weight has nothing to be weighed against."""
    group = tuple(members)
    return group[0].topology if len(group) == 1 else Parallel(group)


def models(topology: Topology) -> Iterator[Model]:
    """Every model of the wiring as often as it is written, in the order of the text."""
    if isinstance(topology, Model):
        yield topology
    elif isinstance(topology, Serial):
        for stage in topology.stages:
            yield from models(stage)
    else:
        for member in topology.members:
            yield from models(member.topology)


def _fraction_digits(weight: Decimal) -> int:
    exponent = weight.as_tuple().exponent
    return -exponent if isinstance(exponent, int) else 0
