"""Intervals and tests against published and hand-worked values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.evaluation.statistics import (
    bootstrap,
    cochran,
    detectable,
    holm,
    mcnemar,
    newcombe,
    newcombe_paired,
    paired,
    proportional,
    wilson,
)
from strategies.evaluation.summary import held_out, sd


def test_newcombe_is_the_published_one() -> None:
    """Newcombe 1998, method 10, his first example: 56 of 70 against 48 of 80."""
    low, high = newcombe(56, 70, 48, 80)
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)


def test_seventy_nine_against_seventy_six_of_a_hundred_is_no_win() -> None:
    low, high = newcombe(79, 100, 76, 100)
    assert low < 0 < high


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"), [(0, 0, 1.0), (1, 7, 18 / 256), (7, 1, 18 / 256), (5, 5, 1.0), (0, 6, 2 / 64)]
)
def test_mcnemar_is_exact(only_a: int, only_b: int, p: float) -> None:
    assert mcnemar(only_a, only_b) == pytest.approx(p)


def test_mcnemar_of_many_questions() -> None:
    assert 0 < mcnemar(900, 1100) < 1e-4


def test_paired_counts_and_interval() -> None:
    a, b = [True] * 30 + [False] * 10 + [True] * 5, [True] * 20 + [False] * 10 + [True] * 3 + [False] * 12
    found = paired(a, b)
    assert (found.both, found.only_a, found.only_b, found.neither, found.asked) == (20, 15, 3, 7, 45)
    assert found.difference == pytest.approx((35 - 23) / 45)
    assert found.low < found.difference < found.high
    assert (found.low, found.high) == newcombe_paired(20, 15, 3, 7)


def test_the_paired_interval_by_hand() -> None:
    """Shares of 0.7 and 0.5 whose correlation is nil: Wilson's intervals are (0.4810, 0.8545) and (0.2993, 0.7007)."""
    low, high = newcombe_paired(7, 7, 3, 3)
    assert low == pytest.approx(0.2 - math.hypot(0.7 - 0.4810, 0.7007 - 0.5), abs=1e-4)
    assert high == pytest.approx(0.2 + math.hypot(0.8545 - 0.7, 0.5 - 0.2993), abs=1e-4)
    assert newcombe_paired(7, 3, 7, 3) == pytest.approx((-high, -low))
    assert math.isnan(newcombe_paired(0, 0, 0, 0)[0])


def test_a_few_questions_without_a_difference_show_nothing() -> None:
    low, high = newcombe_paired(2, 0, 0, 5)
    assert low < -0.2 and high > 0.2
    low, high = newcombe_paired(20, 0, 0, 40)
    assert -0.05 < low < -0.02 and 0.02 < high < 0.05  # no more than three of sixty differ, the rule of three says
    for corner in [(7, 0, 0, 0), (0, 7, 0, 0), (0, 0, 7, 0), (0, 0, 0, 7)]:
        low, high = newcombe_paired(*corner)
        assert -1 <= low < high <= 1


@pytest.mark.parametrize("asked", [20, 60])
@pytest.mark.parametrize(
    "shares", [(0.2, 0.1, 0.05, 0.65), (0.4, 0.1, 0.1, 0.4), (0.05, 0.03, 0.02, 0.9), (0.6, 0.25, 0.05, 0.1)]
)
def test_the_paired_interval_covers_what_it_promises(asked: int, shares: tuple[float, ...]) -> None:
    """Of 2,000 runs of known shares at least 93 % have the true difference inside."""
    counts = np.random.default_rng(3).multinomial(asked, shares, 2000)
    true = shares[1] - shares[2]
    held = [low <= true <= high for low, high in (newcombe_paired(*map(int, row)) for row in counts)]
    assert 0.93 <= np.mean(held) <= 1.0


@pytest.mark.parametrize(("asked", "differing", "alpha"), [(60, 0.3, 0.05), (60, 0.3, 0.05 / 15), (20, 0.2, 0.05)])
def test_what_is_detectable_is_found_in_four_of_five_runs(asked: int, differing: float, alpha: float) -> None:
    """By drawing runs of just that difference, and testing them."""
    difference = detectable(asked, differing, alpha)
    share = max(differing, difference)
    drawn = np.random.default_rng(5).multinomial(
        asked, [(share + difference) / 2, (share - difference) / 2, 1 - share], 1500
    )
    power = np.mean([mcnemar(int(a), int(b)) < alpha for a, b, _ in drawn])
    assert 0.76 < power < 0.86


def test_too_few_questions_detect_nothing() -> None:
    assert detectable(5, 0.3, 0.05) == math.inf  # 2 * 0.5 ** 5 is over 5 %
    assert detectable(7, 0.3, 0.05 / 10) == math.inf
    assert detectable(0, 0.3, 0.05) == math.inf
    assert detectable(1000, 0.2, 0.05) < 0.05


def test_bootstrap_agrees_with_the_normal_approximation() -> None:
    values = np.random.default_rng(1).normal(3, 2, 400)
    low, high = bootstrap(values)
    assert low == pytest.approx(values.mean() - 1.96 * values.std() / 20, abs=0.03)
    assert high == pytest.approx(values.mean() + 1.96 * values.std() / 20, abs=0.03)
    assert math.isnan(bootstrap([])[0])


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_never_shrinks_a_p_value_and_keeps_their_order(ps: list[float]) -> None:
    adjusted = holm(ps)
    assert all(p <= q <= 1 for p, q in zip(ps, adjusted, strict=True))
    ranked = [q for _, q in sorted(zip(ps, adjusted, strict=True))]
    assert ranked == sorted(ranked)


def test_cochran_of_two_is_mcnemars_chi_square() -> None:
    table = np.array([[1, 0]] * 9 + [[0, 1]] * 3 + [[1, 1]] * 5 + [[0, 0]] * 4, dtype=bool)
    found = cochran(table)
    assert found.q == pytest.approx((9 - 3) ** 2 / 12)
    assert found.p == pytest.approx(mcnemar(9, 3), abs=0.03)  # the permutation test of two is the exact one


def test_cochran_finds_a_difference_and_none() -> None:
    rng = np.random.default_rng(2)
    different = np.column_stack([rng.random(80) < share for share in (0.8, 0.5, 0.4)])
    assert cochran(different).p < 0.01
    ps = [cochran(rng.random((40, 4)) < 0.5, seed=i, permutations=400).p for i in range(60)]
    assert 0.3 < float(np.mean(ps)) < 0.7  # under "no difference" p-values are spread evenly
    assert cochran(np.ones((5, 3), dtype=bool)).p == 1.0


def test_a_line_through_the_origin() -> None:
    found = proportional([1.0, 2.0, 3.0, 4.0], [2.1, 3.9, 6.0, 8.1])
    assert found is not None
    assert found.slope == pytest.approx(2.01, abs=0.02)
    assert found.low <= found.slope <= found.high
    assert found.r2 > 0.99
    assert proportional([1.0], [1.0]) is None


def test_choosing_the_best_of_equals_is_worth_nothing() -> None:
    """Twenty coins of one half: the best on a table looks better than any of them is."""
    table = np.random.default_rng(0).random((60, 20)) < 0.5
    best = table.mean(axis=0).max()
    assert best > 0.58
    assert held_out(table) == pytest.approx(table.mean(), abs=0.06)
    assert math.isnan(held_out(table[:3]))
    assert held_out(table[:, :1]) == pytest.approx(table[:, 0].mean())


def test_spread_is_of_a_sample() -> None:
    assert sd([1.0, 2.0, 3.0]) == 1.0
    assert math.isnan(sd([1.0]))


@given(st.integers(0, 50), st.integers(1, 50))
def test_wilson_holds_the_share(right: int, asked: int) -> None:
    right = min(right, asked)
    low, high = wilson(right, asked)
    assert 0 <= low <= right / asked <= high <= 1
