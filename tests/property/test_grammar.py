"""Properties of the grammar: reading and writing are inverses, and any text either is a wiring or gets a TopologyError."""

from __future__ import annotations

import time
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.topology import (
    Limits,
    Member,
    Model,
    Parallel,
    Serial,
    Topology,
    TopologyError,
    format,
    measure,
    models,
    parallel,
    parse,
    serial,
    shape,
)

ROOMY = Limits(length=100_000, depth=12, stages=10_000, members=10_000)

names = st.text("abzAZ019._-/", min_size=1, max_size=8) | st.sampled_from(["si", "pi", "s2p", "p2s", "pi-model", "..."])
weights = st.decimals("0.000000001", "999999999", places=9) | st.decimals("0.1", "99", places=1) | st.just(Decimal(1))


def _wider(inner: st.SearchStrategy[Topology]) -> st.SearchStrategy[Topology]:
    members = st.builds(Member, inner, weights)
    return st.lists(inner, min_size=2, max_size=4).map(serial) | st.lists(members, min_size=2, max_size=4).map(parallel)


topologies: st.SearchStrategy[Topology] = st.recursive(st.builds(Model, names), _wider, max_leaves=12)
# Mostly the grammar's own characters, so that many texts come close to being a wiring.
near_texts = st.text("ab1.:>|()* ,-e\t｜中", max_size=40) | st.lists(
    st.sampled_from(["a", "qwen", ">", "|", "(", ")", "*", "2", ".5", "s2p", ":", " ", "1e9"]), max_size=20
).map("".join)


@given(topologies)
def test_reading_what_was_written_gives_the_same_wiring(topology: Topology) -> None:
    read = parse(format(topology), ROOMY)
    assert read.topology == topology
    assert format(read.topology) == format(topology), "weights keep their digits"


@given(topologies)
def test_the_shape_as_claim_is_accepted_and_every_other_claim_refused(topology: Topology) -> None:
    for kind in ("si", "pi", "s2p", "p2s"):
        if kind == shape(topology):
            assert parse(format(topology, kind), ROOMY).kind == kind
        else:
            with pytest.raises(TopologyError) as caught:
                parse(format(topology, kind), ROOMY)
            assert caught.value.column == 0


@given(topologies)
def test_names_are_the_models_of_the_wiring_in_order(topology: Topology) -> None:
    read = parse(format(topology), ROOMY)
    assert [name for name, _ in read.names] == [model.name for model in models(topology)]
    assert all(read.text[column:].startswith(name) for name, column in read.names)


@given(topologies, st.data())
def test_white_space_around_symbols_and_needless_parentheses_change_nothing(
    topology: Topology, data: st.DataObject
) -> None:
    text = format(topology)
    spaces = st.sampled_from(["", " ", "\t", "\n "])
    spread = "".join(data.draw(spaces) + c + data.draw(spaces) if c in ">|()*" else c for c in text)
    assert (
        parse(f" ( {spread} ) ", Limits(100_000, min(12, measure(topology).depth + 1), 10_000, 10_000)).topology
        == topology
    )


@given(near_texts)
@settings(max_examples=500)
def test_any_text_is_a_wiring_or_a_topology_error(text: str) -> None:
    try:
        read = parse(text)
    except TopologyError as error:
        assert error.text == text
        assert 0 <= error.column <= len(text)
        _shown, caret = error.caret().split("\n")
        assert caret.strip(" ") == "^"
        assert error.message
        assert str(error).isprintable()
    else:
        canonical = format(read.topology, read.kind)
        assert parse(canonical).topology == read.topology
        assert format(parse(canonical).topology, read.kind) == canonical


@given(st.text(st.characters(), max_size=60))
def test_texts_of_any_characters_raise_nothing_else(text: str) -> None:
    """Surrogates and control characters among them."""
    try:
        parse(text)
    except TopologyError as error:
        assert error.caret().count("\n") == 1


@pytest.mark.parametrize("unit", ["(", ")", "a>", "a|", "(a|", "*", "a*", "((a)", "a*1", "9", "a", " ", "中", "a*.1|"])
@pytest.mark.parametrize("limits", [Limits(), Limits(length=1_000_000, depth=12, stages=1_000_000, members=1_000_000)])
def test_long_texts_take_bounded_time_and_stack(unit: str, limits: Limits) -> None:
    text = (unit * 10_000)[:10_000]
    started = time.process_time()
    try:
        parse(text, limits)
    except TopologyError as error:
        error.caret()
    assert time.process_time() - started < 2.0


@given(topologies)
def test_measure_agrees_with_the_parser(topology: Topology) -> None:
    """The canonical text passes under exactly the measured limits, and under none that is smaller."""
    text, size = format(topology), measure(topology)
    exact = {"length": len(text), "depth": max(size.depth, 1), "stages": size.stages, "members": size.members}
    parse(text, Limits(**exact))
    for unit, value in exact.items():
        if value > 1 and (unit != "depth" or size.depth > 1):
            with pytest.raises(TopologyError):
                parse(text, Limits(**{**exact, unit: value - 1}))


@given(topologies)
def test_the_normal_form_holds_everywhere(topology: Topology) -> None:
    read = parse(format(topology), ROOMY).topology
    if isinstance(read, Serial):
        assert len(read.stages) >= 2
        assert not any(isinstance(stage, Serial) for stage in read.stages)
    if isinstance(read, Parallel):
        assert len(read.members) >= 2
