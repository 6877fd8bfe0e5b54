"""How large a wiring may be."""

from __future__ import annotations

from dataclasses import dataclass

from strategies.topology.ast import Model, Serial, Topology

DEEPEST = 12
"""No limit on depth may exceed this: it bounds the recursion over wirings, and keeps products of nested weights above zero."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Largest wiring taken.

    length: characters of the text. depth: parentheses open at once. stages: one more than there are `>`. members: models, every
    mention counted. Raises ValueError unless all are positive and depth is at most 12.
    """

    length: int = 512
    depth: int = 8
    stages: int = 16
    members: int = 32

    def __post_init__(self) -> None:
        if min(self.length, self.depth, self.stages, self.members) < 1:
            raise ValueError("limits are positive")
        if self.depth > DEEPEST:
            raise ValueError(f"the limit on depth is at most {DEEPEST}")


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Size:
    """A wiring's size in the units of `Limits`: of its canonical text, so needless parentheses do not count."""

    depth: int
    stages: int
    members: int


def measure(topology: Topology) -> Size:
    """The size of a wiring."""
    if isinstance(topology, Model):
        return Size(depth=0, stages=1, members=1)
    if isinstance(topology, Serial):
        parts = [measure(stage) for stage in topology.stages]
        return Size(max(p.depth for p in parts), sum(p.stages for p in parts), sum(p.members for p in parts))
    depth, stages, count = 0, 1, 0
    for member in topology.members:
        part = measure(member.topology)
        depth = max(depth, part.depth + (not isinstance(member.topology, Model)))
        stages += part.stages - 1
        count += part.members
    return Size(depth, stages, count)
