"""What a wiring looks like as a whole: decides the prompts, and whether a kind is claimed rightly."""

from __future__ import annotations

from strategies.topology.ast import Model, Parallel, Serial, Shape, Topology


def shape(topology: Topology) -> Shape:
    """The shape of a wiring.

    single: one model. si: two or more single models. pi: one group. s2p: one or more single models, then one group last.
    p2s: one group first, then one or more single models. mixed: everything else.

    A *group* here is one that runs as one: groups nested in it are part of it (`(a|b)*2|c` is pi), but a chain in it brings
    further stages along and makes the wiring mixed (`(a>b)|c`).
    """
    if isinstance(topology, Model):
        return "single"
    if isinstance(topology, Parallel):
        return "pi" if _is_one_group(topology) else "mixed"
    first, last = topology.stages[0], topology.stages[-1]
    if all(isinstance(stage, Model) for stage in topology.stages):
        return "si"
    if _is_one_group(last) and all(isinstance(stage, Model) for stage in topology.stages[:-1]):
        return "s2p"
    if _is_one_group(first) and all(isinstance(stage, Model) for stage in topology.stages[1:]):
        return "p2s"
    return "mixed"


def _is_one_group(topology: Topology) -> bool:
    return isinstance(topology, Parallel) and all(_is_part_of_group(m.topology) for m in topology.members)


def _is_part_of_group(topology: Topology) -> bool:
    return not isinstance(topology, Serial) and (isinstance(topology, Model) or _is_one_group(topology))
