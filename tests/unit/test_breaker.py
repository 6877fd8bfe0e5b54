"""The circuit breaker, its window and the budget of repetitions: pure, with a clock of the test's own."""

from __future__ import annotations

import random

import pytest

from backends.wrappers.breaker import Breaker, BreakerSettings, State
from backends.wrappers.budget import Budget
from backends.wrappers.window import Window


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def breaker(**settings: float) -> tuple[Breaker, Clock, list[State]]:
    clock, heard = Clock(), []
    values = {"window": 30.0, "least": 4, "share": 0.5, "pause": 5.0, "pause_most": 15.0, "trials": 1, **settings}
    return Breaker(BreakerSettings(**values), clock, heard.append), clock, heard  # type: ignore[arg-type]


def opened(made: Breaker) -> None:
    for _ in range(4):
        assert made.admit() is False
        made.failed(False)
    assert made.state == "open"


def test_it_opens_at_its_share_and_not_before_there_are_enough() -> None:
    made, _, heard = breaker()
    for _ in range(3):
        made.failed(False)
    assert made.state == "closed"  # three of three, but four are needed
    made.failed(False)
    assert made.state == "open" and heard == ["open"]
    assert made.admit() is None


def test_successes_keep_it_closed() -> None:
    made, _, heard = breaker()
    for _ in range(100):
        made.succeeded(False)
        made.succeeded(False)
        made.failed(False)
    assert made.state == "closed" and not heard


def test_what_was_long_ago_is_forgotten() -> None:
    made, clock, _ = breaker()
    for _ in range(3):
        made.failed(False)
    clock.now += 31
    made.failed(False)
    assert made.state == "closed"


def test_after_the_pause_one_trial_decides() -> None:
    made, clock, heard = breaker()
    opened(made)
    assert 4.9 < made.wait <= 5
    clock.now += 5
    assert made.state == "half_open"
    assert made.admit() is True
    assert made.admit() is None, "only one trial at once"
    made.succeeded(True)
    assert made.state == "closed"
    assert heard == ["open", "half_open", "closed"]


def test_a_failed_trial_doubles_the_pause_up_to_the_most() -> None:
    made, clock, _ = breaker()
    opened(made)
    pauses = []
    for _ in range(4):
        pauses.append(made.wait)
        clock.now += made.wait
        assert made.admit() is True
        made.failed(True)
    assert pauses == [5, 10, 15, 15]
    clock.now += 15
    assert made.admit() is True
    made.succeeded(True)
    opened(made)
    assert made.wait == 5, "a recovery begins anew"


def test_a_trial_that_says_nothing_gives_its_place_back() -> None:
    made, clock, _ = breaker()
    opened(made)
    clock.now += 5
    assert made.admit() is True
    made.withdrew(True)
    assert made.state == "half_open"
    assert made.admit() is True


def test_requests_from_before_do_not_count_while_it_is_open() -> None:
    made, clock, _ = breaker()
    opened(made)
    made.succeeded(False)
    made.failed(False)
    assert made.state == "open" and made.wait == 5
    clock.now += 5
    made.failed(False)
    assert made.state == "half_open"


def test_a_trial_that_is_silent_for_long_keeps_others_out_for_a_pause_only() -> None:
    """A whole answer of five minutes says nothing before its end."""
    made, clock, heard = breaker()
    opened(made)
    clock.now += 5
    assert made.admit() is True
    clock.now += 4.9
    assert made.admit() is None
    clock.now += 0.2
    assert made.admit() is True
    assert made.admit() is None
    made.succeeded(True)
    assert made.state == "closed" and heard == ["open", "half_open", "closed"]
    made.failed(True)  # the first one, at last
    assert made.state == "closed" and made.admit() is False


def test_a_late_success_of_a_trial_does_not_close_what_another_one_opened() -> None:
    made, clock, _ = breaker(trials=2)
    opened(made)
    clock.now += 5
    assert made.admit() is True and made.admit() is True and made.admit() is None
    made.failed(True)
    made.succeeded(True)
    assert made.state == "open"
    clock.now += 10
    assert made.admit() is True and made.admit() is True, "both places are free again"


@pytest.mark.parametrize("wrong", [{"share": 0}, {"share": 1.5}, {"least": 0}, {"pause": 20}, {"trials": 0}])
def test_nonsense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="a breaker needs"):
        breaker(**wrong)


def test_the_window_counts_what_a_list_of_all_events_counts() -> None:
    """Against the definition: an event counts for 0.9 to 1.0 windows."""
    chance = random.Random(3)
    window, events, now = Window(10.0), [], 500.0
    for _ in range(2000):
        now += chance.choice([0.0, 0.01, 0.3, 0.9, 2.0, 11.0, 40.0])
        good = chance.random() < 0.5
        window.add(now, good=good)
        events.append((now, good))
        counts = window.counts(now)
        for index, kind in enumerate((True, False)):
            least = sum(1 for at, good in events if good is kind and at > now - 9.0)
            most = sum(1 for at, good in events if good is kind and at > now - 10.0 - 1e-9)
            assert least <= counts[index] <= most


def test_the_budget_pays_a_share_of_the_requests_in_the_long_run() -> None:
    budget = Budget(0.2, 5)
    repeated = 0
    for _ in range(10_000):
        budget.deposit()
        while budget.take():
            repeated += 1
    assert 1999 <= repeated <= 2005


def test_a_quiet_time_saves_no_more_than_the_reserve() -> None:
    budget = Budget(0.2, 5)
    for _ in range(10_000):
        budget.deposit()
    assert sum(budget.take() for _ in range(100)) == 5


def test_a_share_of_nothing_is_the_reserve_alone() -> None:
    budget = Budget(0, 0)
    budget.deposit()
    assert not budget.take()
