"""What a report says of arms, and when it names none."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import numpy as np
import orjson
import pytest

from gateway.experiments.page import page
from gateway.experiments.report import report
from gateway.experiments.statistics import DRAWS, MANY, PerSubject, best, interval, posterior, quantiles
from gateway.ledger.tables import Observation

EVEN = orjson.dumps({"a": 0.5, "b": 0.5}).decode()


def seen(arm: str, subject: str, **fields: object) -> Observation:
    values: dict[str, object] = {
        "at": 10.0, "arm_by": "user", "shares": EVEN, "shadow_of": None, "outcome": "ok", "tokens": 10, "nano": 1000,
        "seconds": 1.0, "first_token": 0.1, "attempts": None, "score": None,
    } | fields  # fmt: skip
    return Observation(arm=arm, subject=subject, **values)  # type: ignore[arg-type]


def experiment(
    rate_a: float, rate_b: float, subjects: int, generator: np.random.Generator, per_subject: int = 1
) -> list[Observation]:
    rows = []
    for index in range(subjects):
        arm, rate = ("a", rate_a) if generator.random() < 0.5 else ("b", rate_b)
        for _ in range(per_subject):
            score = float(generator.random() < rate)
            rows.append(seen(arm, f"s{index}", score=score, seconds=float(generator.lognormal())))
    return rows


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coarser draws, for what needs hundreds of reports."""
    monkeypatch.setattr("gateway.experiments.statistics.DRAWS", 1000)
    monkeypatch.setattr("gateway.experiments.report.QUANTILES", ())
    monkeypatch.setattr("gateway.experiments.report.quantiles", lambda *_: [])


def test_the_posterior_of_yes_and_no_is_beta() -> None:
    generator = np.random.default_rng(1)
    sample = PerSubject.of([(str(n), float(n < 30)) for n in range(40)])
    draws = posterior(sample, True, generator)
    exact = generator.beta(31, 11, 200_000)
    assert draws.shape == (DRAWS,)
    assert draws.mean() == pytest.approx(31 / 42, abs=0.005)
    assert draws.std() == pytest.approx(exact.std(), rel=0.06)
    assert interval(draws) == pytest.approx(tuple(np.quantile(exact, [0.025, 0.975])), abs=0.015)


def test_many_subjects_are_the_same_distribution_sooner() -> None:
    """The normal one begins where the bootstrap has become it."""
    generator = np.random.default_rng(2)
    values = [(str(n), float(generator.random() < 0.2)) for n in range(MANY + 10)]
    many = posterior(PerSubject.of(values), True, generator)
    few = posterior(PerSubject.of(values[: MANY - 10]), True, generator)
    assert many.std() == pytest.approx(few.std(), rel=0.08)
    assert many.mean() == pytest.approx(few.mean(), abs=0.003)


def test_a_handful_of_equal_answers_is_no_certainty() -> None:
    generator = np.random.default_rng(3)
    three = posterior(PerSubject.of([(str(n), 1.0) for n in range(3)]), True, generator)
    none = posterior(PerSubject.of([(str(n), 0.0) for n in range(3)]), True, generator)
    low, high = interval(three)
    assert low < 0.5
    assert high > 0.98
    chances = best({"x": three, "y": none}, higher=True)
    assert 0.9 < chances["x"] < 0.999


def test_subjects_count_and_not_their_requests() -> None:
    """A hundred answers of one user are one opinion."""
    generator = np.random.default_rng(4)
    loud = PerSubject.of([(str(n % 5), float(n % 5 < 3)) for n in range(500)])
    low, high = interval(posterior(loud, True, generator))
    assert high - low > 0.4


def test_quantiles_cover_what_they_estimate() -> None:
    """95 % intervals of the median hold it in about 95 of 100 samples."""
    generator = np.random.default_rng(5)
    held = 0
    for _ in range(200):
        pairs = [(str(n), float(value)) for n, value in enumerate(generator.lognormal(size=80))]
        (median,) = quantiles(pairs, [0.5], generator)
        assert median.low <= median.value <= median.high
        held += median.low <= 1.0 <= median.high
    assert 0.89 <= held / 200 <= 0.99


def test_a_winner_that_is_there_is_named() -> None:
    made = report("r", experiment(0.5, 0.8, 600, np.random.default_rng(6)), 0, 100, arms=("a", "b"))
    assert made.winner == "b"
    assert made.mismatch > 0.001
    assert [arm.requests for arm in made.arms] == [arm.scored for arm in made.arms]


@pytest.mark.parametrize("score", [0.0, 1.0])
@pytest.mark.parametrize("subjects", [1, 2, 5])
def test_a_mean_lies_in_its_interval(score: float, subjects: int) -> None:
    """Also where few subjects are all of one mind."""
    rows = [seen(arm, f"{arm}{n}", score=score) for arm in "ab" for n in range(subjects)]
    for arm in report("r", rows, 0, 100, arms=("a", "b")).arms:
        for estimate in arm.estimates.values():
            if estimate.interval is not None and estimate.mean is not None:
                assert estimate.interval[0] <= estimate.mean <= estimate.interval[1]


def test_equal_arms_seldom_have_a_winner(quick: None) -> None:
    """Of 400 experiments between two equal arms about one in twenty names one: what level 0.95 says."""
    generator = np.random.default_rng(7)
    for per_subject in (1, 4):
        named = sum(
            report("r", experiment(0.6, 0.6, 200, generator, per_subject), 0, 100, arms=("a", "b")).winner is not None
            for _ in range(200)
        )
        assert named <= 20  # 10 are expected; 20 or more come in one of 500 runs


def test_three_equal_arms_seldom_have_one_either(quick: None) -> None:
    generator = np.random.default_rng(8)
    named = 0
    for _ in range(120):
        rows = [
            seen(str(generator.choice(["a", "b", "c"])), f"s{n}", score=float(generator.random() < 0.5), shares=None)
            for n in range(240)
        ]
        named += report("r", rows, 0, 100, arms=("a", "b", "c")).winner is not None
    assert named <= 14


@pytest.mark.parametrize("metric", ["errors", "seconds", "cost"])
def test_less_is_better_for_some_metrics(metric: str) -> None:
    generator = np.random.default_rng(9)
    rows = [
        seen(
            arm,
            f"{arm}{n}",
            outcome="error" if generator.random() < rate else "ok",
            seconds=float(generator.lognormal()) + rate,
            nano=int(1e6 * (rate + generator.random())),
        )
        for arm, rate in (("a", 0.1), ("b", 0.6))
        for n in range(300)
    ]
    made = report("r", rows, 0, 100, arms=("a", "b"), metric=metric)  # type: ignore[arg-type]
    assert made.winner == "a"


def test_too_little_is_no_winner() -> None:
    made = report("r", experiment(0.0, 1.0, 40, np.random.default_rng(10)), 0, 100, arms=("a", "b"))
    assert made.winner is None
    assert "too few subjects" in made.why
    empty = report("r", [], 0, 100, arms=("a", "b"))
    assert empty.winner is None
    assert "a 0, b 0" in empty.why
    assert report("r", [], 0, 100, arms=("a",)).why == "there is only one arm"
    near = report("r", experiment(0.60, 0.62, 400, np.random.default_rng(11)), 0, 100, arms=("a", "b"))
    assert near.winner is None
    assert "does not carry a winner" in near.why


def test_arms_that_lost_requests_can_not_be_compared() -> None:
    """A large difference, but a part of b's subjects is missing: those that it drove away, perhaps."""
    rows = experiment(0.2, 0.9, 1000, np.random.default_rng(12))
    kept = [row for index, row in enumerate(rows) if row.arm == "a" or index % 3]
    made = report("r", kept, 0, 100, arms=("a", "b"))
    assert made.winner is None
    assert "shares" in made.why
    assert made.mismatch < 0.001


def test_overrides_shadows_and_refusals_are_counted_but_not_compared() -> None:
    rows = [
        seen("a", "s1", arm_by="override", score=1.0),
        seen("shadow", "s1", shadow_of="c1", seconds=9.0),
        seen("a", "s2", outcome="refused", seconds=0.001, score=0.0),
        seen("a", "s3", outcome="abandoned"),
        seen("a", "s4", outcome="error", attempts='[["m","error: x"]]'),
        seen("a", "s5", score=1.0),
        seen("b", "s5"),
    ]
    made = report("r", rows, 0, 100, arms=("a", "b"))
    a, b = made.arms
    assert (a.requests, a.overrides, a.refused, a.abandoned, a.errors, a.fell_back) == (4, 1, 1, 1, 1, 1)
    assert [quantile.value for quantile in a.seconds] == [1.0, 1.0, 1.0]
    assert a.estimates["feedback"].mean == 1.0
    assert a.estimates["errors"].mean == 0.5
    assert b.requests == 1
    assert made.crossed == 1
    assert [shadow.arm for shadow in made.shadows] == ["shadow"]
    assert made.shadows[0].requests == 1


def test_the_same_data_says_the_same_twice() -> None:
    rows = experiment(0.5, 0.6, 300, np.random.default_rng(13))
    one, two = (report("r", rows, 0, 100, arms=("a", "b")).value() for _ in range(2))
    assert json.dumps(one) == json.dumps(two)


def test_the_page_stands_alone_and_escapes() -> None:
    rows = [
        seen(arm, f"s{n}", score=float(n % 2), shares=None)
        for n in range(80)
        for arm in ("<script>alert(1)</script>", "b&b")
    ]
    html = page(report("r<x", rows, 0, 100))

    class Reader(HTMLParser):
        tags: list[str] = []  # noqa: RUF012
        outside: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.tags.append(tag)
            self.outside += [value or "" for name, value in attrs if name in ("src", "href")]

    reader = Reader()
    reader.feed(html)
    assert "script" not in reader.tags
    assert not reader.outside
    assert reader.tags.count("svg") >= 4
    assert "&lt;script&gt;" in html
    assert page(report("r", [], 0, 100, arms=("a", "b"))).endswith("</html>")
