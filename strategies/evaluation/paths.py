"""The paths of the source experiment: every structure over every order of the models.

For three models that are 6 orders × 4 structures = 24, and the single models. Since the order of a group's members never shows, only
13 of them differ: a *mirror* is a path that says the same as another one, its *twin*. Mirrors are not asked, unless to check that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations

from strategies.topology import Limits, Member, Model, Parallel, Serial, Topology, parallel, parse, serial, shape
from strategies.topology import format as write
from strategies.topology.ast import Shape

STRUCTURES: tuple[Shape, ...] = ("single", "si", "pi", "s2p", "p2s")


@dataclass(frozen=True, slots=True)
class Path:
    """wiring: canonical. order: its models as written. twin: the wiring that says the same and is asked in its place; None for
    itself."""

    wiring: str
    structure: Shape
    order: tuple[str, ...]
    twin: str | None = None


def paths(models: Sequence[str], structures: Iterable[Shape]) -> list[Path]:
    """All paths, mirrors included, structure by structure. Raises ValueError where a structure needs more models.

    S2P: the first model, then the others as a group; P2S: all but the last as a group, then the last.
    """
    if len(set(models)) != len(models):
        raise ValueError("every model is named once")
    found: list[Path] = []
    for structure in structures:
        need = {"single": 1, "si": 2, "pi": 2}.get(structure, 3)
        if structure not in STRUCTURES:
            raise ValueError(f"{structure!r} is none of {', '.join(STRUCTURES)}")
        if len(models) < need:
            raise ValueError(f"{structure} needs {need} models or more")
        orders = [(model,) for model in models] if structure == "single" else list(permutations(models))
        found += [_path(structure, order) for order in orders]
    return found


def _path(structure: Shape, order: tuple[str, ...]) -> Path:
    topology = _build(structure, [Model(name) for name in order])
    wiring, twin = write(topology), write(normal(topology))
    return Path(wiring, structure, order, None if twin == wiring else twin)


def _build(structure: Shape, models: Sequence[Model]) -> Topology:
    def group(members: Sequence[Model]) -> Topology:
        return parallel(Member(model) for model in members)

    if structure == "pi":
        return group(models)
    if structure == "s2p":
        return serial([models[0], group(models[1:])])
    if structure == "p2s":
        return serial([group(models[:-1]), models[-1]])
    return serial(models)


def normal(topology: Topology) -> Topology:
    """The one of all wirings that say the same whose groups list their members in alphabetical order."""
    if isinstance(topology, Serial):
        return serial(normal(stage) for stage in topology.stages)
    if isinstance(topology, Parallel):
        members = [Member(normal(member.topology), member.weight) for member in topology.members]
        return parallel(sorted(members, key=lambda member: (write(member.topology), member.weight)))
    return topology


def path_of(wiring: str, limits: Limits | None = None) -> Path:
    """A wiring's own path. Raises TopologyError."""
    topology = parse(wiring, limits or Limits()).topology
    names = tuple(model.name for model in _models(topology))
    return Path(write(topology), shape(topology), names)


def _models(topology: Topology) -> Iterable[Model]:
    if isinstance(topology, Model):
        return [topology]
    parts = topology.stages if isinstance(topology, Serial) else [member.topology for member in topology.members]
    return [model for part in parts for model in _models(part)]
