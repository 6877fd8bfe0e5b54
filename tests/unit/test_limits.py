"""Limits in one process: the arithmetic against a plain model, what is held and charged, and what clients are told."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.estimate import prompt_tokens
from backends.types import Message, Usage
from gateway.keys import Budget, Key, Rights
from gateway.keys.keyring import SpendBook
from gateway.keys.store import Spent
from gateway.ledger import Price, Prices
from gateway.ledger.meter import Meter
from gateway.limits import Ask, Limiter, Refused
from gateway.limits.bucket import UNIT, Bucket, wait
from gateway.limits.estimate import Budgets, estimate
from gateway.limits.headers import duration, rate_headers
from gateway.limits.local import LocalLimits
from gateway.limits.verdict import Reading, Verdict
from strategies.engine.events import BranchReport, Delta, StageFinished, StageReport, StageStarted
from strategies.planning import plan
from strategies.routing import resolve

pytestmark = pytest.mark.anyio

MINUTE = 60_000_000
NOTHING = Ask()


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000

    def __call__(self) -> int:
        return self.now


def key(**limits: object) -> Key:
    return Key("k", "k", bytes(32), Rights(**limits))  # type: ignore[arg-type]


def admitted(limits: LocalLimits, who: Key, ask: Ask = NOTHING, spent: int = 0) -> bool:
    return limits.admit(who, ask, spent).refused is None


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 60, 61, 999, 100_000_000])
def test_a_minute_holds_exactly_its_limit(limit: int) -> None:
    """Whatever the limit divides: no rounding takes one away or gives one more."""
    bucket = Bucket(0, 0)
    bucket.drain(limit, 5)
    assert wait(bucket.level, 0, limit, limit) == 0
    bucket.take(limit)
    pause = wait(bucket.level, 0, 1, limit)
    assert pause == -(-UNIT // limit)
    bucket.drain(limit, 5 + pause - 1)
    assert wait(bucket.level, 0, 1, limit) == 1
    bucket.drain(limit, 5 + pause)
    assert wait(bucket.level, 0, 1, limit) == 0
    bucket.drain(limit, 5 + MINUTE)
    assert bucket.level == 0


@settings(max_examples=200)
@given(
    st.integers(1, 50),
    st.lists(st.tuples(st.integers(0, 3 * MINUTE), st.integers(1, 20)), min_size=1, max_size=60),
)
def test_no_window_gets_more_than_was_said(limit: int, arrivals: list[tuple[int, int]]) -> None:
    """In any t seconds at most limit * (1 + t/60), against exact fractions."""
    clock, limits, who = Clock(), None, key(requests_per_minute=limit)
    limits = LocalLimits(clock)
    taken: list[int] = []
    for pause, count in arrivals:
        clock.now += pause
        for _ in range(count):
            if admitted(limits, who):
                taken.append(clock.now)
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            window = Fraction(taken[last] - taken[first], MINUTE)
            assert last - first + 1 <= limit * (1 + window)


@settings(max_examples=100)
@given(st.integers(1, 40), st.lists(st.integers(1, 60), min_size=1, max_size=80))
def test_a_refused_request_is_let_in_after_the_wait_it_was_told(limit: int, sizes: list[int]) -> None:
    clock, who = Clock(), key(tokens_per_minute=limit)
    limits = LocalLimits(clock)
    for size in sizes:
        found = limits.admit(who, Ask(size), 0)
        if size > limit:
            assert found.refused == "too_large"
            continue
        if found.refused is not None:
            clock.now += round(found.wait * 1e6) - 1
            assert limits.admit(who, Ask(size), 0).refused == "tokens"
            clock.now += 1
            assert admitted(limits, who, Ask(size))
        limits.settle(who, Ask(size), size)


def test_what_is_held_does_not_drain_and_is_no_gift() -> None:
    """A long request that gives most of its estimate back makes no more room than it had taken."""
    clock, who = Clock(), key(tokens_per_minute=100)
    limits = LocalLimits(clock)
    assert admitted(limits, who, Ask(100))
    clock.now += 10 * MINUTE
    assert limits.admit(who, Ask(1), 0).refused == "tokens"
    limits.settle(who, Ask(100), 10)
    assert admitted(limits, who, Ask(90))
    assert limits.admit(who, Ask(1), 0).refused == "tokens"


@settings(max_examples=200)
@given(
    st.integers(1, 60),
    st.lists(
        st.tuples(st.integers(0, 2 * MINUTE), st.integers(0, 40), st.floats(0, 1), st.booleans()),
        min_size=1,
        max_size=60,
    ),
)
def test_no_window_is_charged_more_tokens_than_was_said(limit: int, steps: list[tuple[int, int, float, bool]]) -> None:
    """Whatever is held for how long, and however little of it is spent in the end."""
    clock, who = Clock(), key(tokens_per_minute=limit)
    limits = LocalLimits(clock)
    running: list[tuple[Ask, int]] = []
    charged: list[tuple[int, int]] = []

    def end(ask: Ask, spent: int) -> None:
        limits.settle(who, ask, spent)
        charged.append((clock.now, spent))

    for pause, tokens, part, ends in steps:
        clock.now += pause
        if ends and running:
            end(*running.pop(0))
        elif admitted(limits, who, Ask(tokens)):
            running.append((Ask(tokens), int(tokens * part)))
    for one in running:
        end(*one)
    for first in range(len(charged)):
        total = 0
        for moment, spent in charged[first:]:
            total += spent
            assert total <= limit * (1 + Fraction(moment - charged[first][0], MINUTE))


def test_more_than_the_estimate_is_charged_in_full() -> None:
    clock, who = Clock(), key(tokens_per_minute=60)
    limits = LocalLimits(clock)
    assert admitted(limits, who, Ask(10))
    limits.settle(who, Ask(10), 180)
    found = limits.admit(who, Ask(10), 0)
    assert found.refused == "tokens"
    assert found.wait == pytest.approx(130.0)
    assert found.tokens == Reading(60, 0, 180.0)


def test_a_refused_request_costs_nothing() -> None:
    clock, who = Clock(), key(requests_per_minute=5, tokens_per_minute=10, concurrency=1)
    limits = LocalLimits(clock)
    for _ in range(20):
        assert limits.admit(who, Ask(11), 0).refused == "too_large"
    assert admitted(limits, who, Ask(10))
    for _ in range(20):
        assert limits.admit(who, Ask(5), 0).refused == "tokens"
    assert limits.admit(who, Ask(), 0).refused == "concurrency"
    limits.settle(who, Ask(10), 0)
    assert limits.admit(who, Ask(), 0).requests == Reading(5, 3, 24.0)


def test_concurrency_is_given_back() -> None:
    limits, who = LocalLimits(Clock()), key(concurrency=2)
    assert [admitted(limits, who) for _ in range(4)] == [True, True, False, False]
    limits.settle(who, Ask(), 0)
    assert [admitted(limits, who) for _ in range(2)] == [True, False]
    assert limits.running("k") == 2


def test_a_budget_is_exceeded_by_less_than_a_request() -> None:
    """Running requests hold what they may spend; only then there is a wait that helps."""
    limits, who = LocalLimits(Clock()), key(budget=Budget(100, "tokens"))
    asks = [limits.admit(who, Ask(40), 0).refused for _ in range(4)]
    assert asks == [None, None, None, "budget_held"]
    limits.settle(who, Ask(40), 40)
    assert limits.admit(who, Ask(40), 40).refused == "budget_held"
    assert limits.admit(who, Ask(40), 100).refused == "budget"
    money = replace(key(budget=Budget(100, "money")), id="other")
    assert limits.admit(money, Ask(0, 10), 99).refused is None
    assert limits.admit(money, Ask(0, 10), 100).refused == "budget"


def test_limits_that_come_later_know_no_debt_from_before() -> None:
    clock = Clock()
    limits = LocalLimits(clock)
    free = key(concurrency=1)
    for _ in range(50):
        assert admitted(limits, free, Ask(1000))
        limits.settle(free, Ask(1000), 1000)
    assert admitted(limits, key(requests_per_minute=1, tokens_per_minute=1000), Ask(0))


def test_a_clock_that_goes_back_stops_nothing() -> None:
    bucket = Bucket(5 * UNIT, 1000 * MINUTE)
    bucket.drain(5, 10)
    assert bucket == Bucket(5 * UNIT, 10)
    bucket.drain(5, 10 + MINUTE)
    assert bucket.level == 0


async def test_the_limiter_settles_once_and_books_what_was_spent() -> None:
    book = SpendBook()
    limiter = Limiter(book)
    who = key(concurrency=1, tokens_per_minute=100, budget=Budget(50, "tokens"))
    lease = await limiter.admit(who, Ask(20))
    with pytest.raises(Refused) as caught:
        await limiter.admit(who, Ask(20))
    assert caught.value.verdict.refused == "concurrency"
    await lease.settle(Spent(50, 7))
    await lease.settle(Spent(50, 7))
    assert book.known("k", "") == Spent(50, 7)
    with pytest.raises(Refused) as caught:
        await limiter.admit(who, Ask(1))
    assert caught.value.verdict.refused == "budget"
    assert limiter.refused == {"concurrency": 1, "budget": 1}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (0.0001, "1ms"), (0.12, "120ms"), (0.9995, "1s"), (1, "1s"), (8.64, "8.64s"), (59.85, "59.85s"),
        (60, "1m0s"), (360, "6m0s"), (72.5, "1m12.5s"), (3601.5, "1h0m1.5s"), (-3, "0s"), (59.9999, "1m0s"),
    ],
)  # fmt: skip
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_headers_are_those_of_openai() -> None:
    told = rate_headers(Verdict(requests=Reading(60, 59, 1.0), tokens=Reading(1000, 1, 59.94)))
    assert told == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "1",
        "x-ratelimit-reset-tokens": "59.94s",
    }
    assert rate_headers(Verdict()) == {}


def planned(wiring: str):  # type: ignore[no-untyped-def]
    from backends.catalog import Catalog, Entry
    from backends.fake import FakeBackend

    names = ["a", "b", "c"]
    return plan(resolve(wiring, {}, names), Catalog({name: Entry(FakeBackend(name)) for name in names}))


@pytest.mark.parametrize(
    ("wiring", "tokens"),
    [
        ("a", 10 + 100),
        ("a>b", (10 + 50) + (10 + 50 + 100)),
        ("a|b", 2 * (10 + 100)),
        ("a>b|c", (10 + 50) + 2 * (10 + 50 + 100)),
        ("a|b>c", 2 * (10 + 50) + (10 + 50 + 100)),
    ],
)
def test_fan_out_is_held_for_what_it_may_cost(wiring: str, tokens: int) -> None:
    """Every stage and every member reads and writes for itself, and so for each of n answers."""
    prices = Prices("EUR", {"b": Price(1.0, 2.0)})
    one = estimate(planned(wiring), 10, Budgets(stage=50, answer=100), 1, prices)
    assert one.tokens == tokens
    assert estimate(planned(wiring), 10, Budgets(50, 100), 3, prices) == Ask(3 * one.tokens, 3 * one.nano)
    assert (one.nano > 0) == ("b" in wiring)


def test_a_prompt_is_a_token_for_every_four_bytes() -> None:
    assert prompt_tokens([]) == 1
    assert prompt_tokens([Message("user", "12345678")]) == 6
    assert prompt_tokens([Message("user", "中文"), Message("user", "")]) == 10


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.sampled_from([0.0, 0.1, 0.15, 2.5, 1e-3, 75.0]))
def test_cost_is_exact_and_never_too_little(read: int, written: int, price: float) -> None:
    prices = Prices("USD", {"m": Price(price, 0.3)})
    exact = Fraction(repr(price)) * read * 1000 + Fraction("0.3") * written * 1000
    assert 0 <= prices.nano("m", read, written) - exact < 1
    assert prices.nano("other", read, written) == 0


def test_a_refusal_is_kept_as_what_was_answered() -> None:
    watch = Meter(Prices("USD", {})).run(planned("a"), keep=True)
    watch.saw(Delta(0, "Well. "))
    watch.saw(Delta(0, "", refusal="No."))
    assert "".join(watch.parts) == "Well. No."


def test_a_run_that_is_cut_short_is_charged_for_what_was_seen() -> None:
    meter = Meter(Prices("USD", {"a": Price(1000.0, 1000.0)}), prompt=10)
    watch = meter.run(planned("a>b|c"))
    watch.saw(StageStarted(0))
    report = StageReport(0, (BranchReport("a", "solver", Usage(7, 5)),), 0.1, 0.05, "stop")
    watch.saw(StageFinished(report))
    watch.saw(StageStarted(1))
    for _ in range(3):
        watch.saw(Delta(1, "x"))
    assert meter.usage == Usage(7, 5)
    watch.close()
    watch.close()
    assert meter.usage == Usage(7 + 2 * 10, 5 + 2 * 3)
    assert meter.spent.nano == 12 * 1_000_000
    assert meter.stages == [report]
