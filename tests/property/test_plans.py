"""Properties of plans over random wirings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from backends.catalog import Catalog, Entry
from strategies.planning import Branch, FusedStage, Plan, branches, plan
from strategies.topology import Member, Model, Parallel, Serial, Topology, models, parallel, serial


class Silent:
    """Has the methods of a TokenBackend; planning calls none."""

    name = "silent"

    def never(self) -> None:
        raise AssertionError("planning calls no backend")

    stream = start = ready = aclose = vocabulary = open = never


CATALOG = Catalog(dict.fromkeys("abcd", Entry(Silent())))  # type: ignore[arg-type]
weights = st.decimals("0.1", "9", places=1)


def _wider(inner: st.SearchStrategy[Topology]) -> st.SearchStrategy[Topology]:
    members = st.builds(Member, inner, weights)
    return st.lists(inner, min_size=2, max_size=3).map(serial) | st.lists(members, min_size=2, max_size=4).map(parallel)


topologies: st.SearchStrategy[Topology] = st.recursive(st.sampled_from("abcd").map(Model), _wider, max_leaves=10)


def shuffled(topology: Topology, draw: Any) -> Topology:
    if isinstance(topology, Serial):
        return serial(shuffled(stage, draw) for stage in topology.stages)
    if isinstance(topology, Parallel):
        members = [Member(shuffled(m.topology, draw), m.weight) for m in topology.members]
        return Parallel(tuple(draw(st.permutations(members))))
    return topology


@given(topologies, st.data())
def test_the_order_of_members_never_shows(topology: Topology, data: st.DataObject) -> None:
    assert plan(shuffled(topology, data.draw), CATALOG).stages == plan(topology, CATALOG).stages


@given(topologies)
def test_plans_are_well_formed(topology: Topology) -> None:
    made = plan(topology, CATALOG)
    last = len(made.stages) - 1
    read = set()
    for index, stage in enumerate(made.stages):
        for branch in branches(stage):
            assert branch.reads is None or branch.reads < index
            assert branch.role == ("solver" if branch.reads is None else "verifier" if index == last else "reviewer")
            read.add(branch.reads)
        if isinstance(stage, FusedStage):
            assert len(stage.branches) == len(stage.weights) >= 2
            assert len(set(stage.branches)) == len(stage.branches)
            assert all(weight > 0 for weight in stage.weights)
            assert abs(sum(stage.weights) - 1) < 1e-12
    assert read - {None} == set(range(last)), "every stage but the last is read by some other"
    assert len(set(made.stages)) == len(made.stages), "nothing runs twice"
    assert set(made.models) == {model.name for model in models(topology)}


@given(topologies)
def test_a_plan_means_what_the_wiring_says(topology: Topology) -> None:
    """Both written out in full, as the tree of who reads what with which weight in the end, are the same."""
    made = plan(topology, CATALOG)
    assert _rounded(_of_plan(made, len(made.stages) - 1)) == _rounded(_of_wiring(topology, ()))


Tree = tuple[Any, ...]
"""An answer: a set of (model, the answer that it reads or (), weight), merged and in order."""


def _of_plan(made: Plan, index: int) -> Tree:
    stage = made.stages[index]
    shares = stage.weights if isinstance(stage, FusedStage) else (1.0,)

    def voice(branch: Branch, weight: float) -> Tree:
        return branch.model, () if branch.reads is None else _of_plan(made, branch.reads), weight

    return _merged(voice(branch, weight) for branch, weight in zip(branches(stage), shares, strict=True))


def _of_wiring(topology: Topology, reads: Tree) -> Tree:
    if isinstance(topology, Model):
        return ((topology.name, reads, 1.0),)
    if isinstance(topology, Serial):
        for stage in topology.stages:
            reads = _of_wiring(stage, reads)
        return reads
    total = sum(member.weight for member in topology.members)
    return _merged(
        (name, read, share * float(member.weight / total))
        for member in topology.members
        for name, read, share in _of_wiring(member.topology, reads)
    )


def _merged(voices: Iterator[Tree]) -> Tree:
    total: dict[Any, float] = {}
    for name, reads, weight in voices:
        key = name, _rounded(reads)
        total[key] = total.get(key, 0.0) + weight
    return tuple(sorted((name, reads, weight) for (name, reads), weight in total.items()))


def _rounded(tree: Tree) -> Tree:
    return tuple((name, _rounded(reads), round(weight, 9)) for name, reads, weight in tree)
