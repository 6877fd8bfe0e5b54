"""A group that does not wait for members that can't change the next piece says the same, and says the same of itself."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from late import LateDriver, case, pair, steps

from strategies.fusion import FUSERS, Greedy, Sampler, Shaping, Tell
from strategies.fusion.quorum import QuorumPool
from strategies.fusion.testing import Driver, FuserContract, vocabulary


class TestContract(FuserContract):
    """Without lateness it is a fuser like any other; and what needs more than the likeliest piece is refused."""

    factory = QuorumPool

    def test_the_same_again_is_the_same(self) -> None:
        with pytest.raises(ValueError, match="likeliest"):
            self.group(0, chooser=Sampler(0.8, 0.9, 0))

    def test_a_guide_is_kept(self) -> None:
        with pytest.raises(ValueError, match="likeliest"):
            self.group(0, chooser=Greedy(Shaping(bias={1: 2.0})))

    def test_what_is_told_is_told_of_every_piece(self) -> None:
        with pytest.raises(ValueError, match="likeliest"):
            self.group(0, tell=Tell())


def same(plain: Driver, late: LateDriver) -> None:
    """Meters, to the last bit, and where every member stands."""
    late.level()
    assert late.fuser.meters == plain.fuser.meters
    at_end = [nodes[-1:] for nodes in late.fuser.due()]
    for member, nodes in enumerate(plain.fuser.due()):
        place, early = plain.places[member], late.places[member]
        assert place is not None
        if nodes:
            assert [node.depth for node in nodes] == [node.depth for node in late.fuser.due()[member]]
        else:  # the end was said, or the place needs no pass
            early = at_end[member][0] if at_end[member] else early
        assert early is not None
        assert early.depth == place.depth


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_everything_is_as_in_lock_step(seed: int) -> None:
    group, rng = case(seed), random.Random(seed)
    plain, late = pair(group, rng, most=rng.choice((1, 3, 16)))
    assert steps(plain, late, 25) is None
    same(plain, late)
    assert late.fuser.certain(10) == (late.fuser.certain(10)[1],) * 2
    assert late.fuser.lag <= late.most


def test_pieces_are_said_early_often_enough_to_be_tested() -> None:
    early = looked_up = 0
    for seed in range(60):
        plain, late = pair(case(seed), random.Random(seed))
        steps(plain, late, 25)
        late.level()
        early += late.fuser.early
        looked_up += late.fuser.early and late.fuser.meters.looked_up
    assert early > 150
    assert looked_up > 15


def test_a_wrong_bound_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """With half the weight of those who are missing, some text changes."""
    monkeypatch.setattr(QuorumPool, "_absent_weight", lambda self, weights: sum(weights) / 2)
    wrong = 0
    for seed in range(150):
        plain, late = pair(case(seed), random.Random(seed))
        wrong += steps(plain, late, 25) is not None
    assert wrong


def test_without_what_is_owed_the_meters_would_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison of meters can fail: look-ups that late members forget are missed."""
    monkeypatch.setattr(QuorumPool, "owed", lambda self, member: None)
    wrong = 0
    for seed in range(60):
        plain, late = pair(case(seed), random.Random(seed))
        if steps(plain, late, 25) is None:
            late.level()
            wrong += late.fuser.meters != plain.fuser.meters
        else:
            wrong += 1
    assert wrong


class Leaves(Exception):
    """A member fails in a pass."""


class Leaver(LateDriver):
    """Of these models one fails in its first pass after so many steps of anybody."""

    leaving, after = -1, 0

    def act(self, member: int) -> None:
        self.after -= 1
        if self.after < 0 and member == self.leaving and self.fuser.due()[member]:
            self.leaving = -1
            raise Leaves
        super().act(member)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**9), leaving=st.integers(0, 4), after=st.integers(0, 300))
@example(seed=6162210, leaving=3, after=0)  # when the end was said
def test_who_leaves_behind_the_others_has_left_before_what_it_missed(seed: int, leaving: int, after: int) -> None:
    """The text and the meters are those of a lock-step in which it left at the first piece that it did not say."""
    group, rng = case(seed), random.Random(seed)
    leaving %= len(group.models)
    late = Leaver(
        QuorumPool(group.tables, group.weights, Greedy()), group.models, group.k, lookups=group.lookups, rng=rng
    )
    late.leaving, late.after = leaving, after
    said: list[bytes] = []
    left_at = -1

    def leave() -> None:
        nonlocal left_at
        left_at = len([text for text in said if text]) - late.fuser.behind(leaving)
        late.fuser.drop(leaving)

    while len(said) < 20 and (not said or said[-1]):
        try:
            said.append(late.commit().text)
        except Leaves:
            leave()
    try:
        late.level()
    except Leaves:
        leave()
        late.level()
    plain, _ = pair(group, rng)
    for number, text in enumerate(said):
        if number == left_at:
            plain.fuser.drop(leaving)
        assert plain.commit().text == text
    assert late.fuser.meters == plain.fuser.meters


def test_two_of_equal_weight_wait_for_each_other() -> None:
    table = vocabulary(random.Random(1), 4)
    fuser = QuorumPool([table] * 2, [0.5, 0.5], Greedy())
    assert FUSERS["linear"] is not QuorumPool
    assert not fuser.sure()
    assert fuser.missing() == [0, 1]
