"""When an engine waits for sessions that step together, by a clock of the test's own; and that vLLM's engine asks."""

from __future__ import annotations

from typing import Any

import pytest
from vllm_engines import extension

gather = extension("gather")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Engine:
    """Passes of 0.1 s: so a share is 10 ms, a gap 3 ms."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.gathering: Any = gather.Gathering(self.clock)

    def run(self, *sessions: str) -> None:
        self.gathering.scheduled(sessions)
        self.clock.now += 0.1
        self.gathering.answered(sessions)

    def came(self, session: str, after: float = 0.0) -> float:
        self.clock.now += after
        self.gathering.came(session)
        wait: float = self.gathering.wait()
        return wait


def test_sessions_that_come_back_one_by_one_make_one_pass() -> None:
    engine = Engine()
    engine.run("a", "b", "c")
    assert engine.gathering.wait() == 0  # nothing is ready: the engine sleeps as it always does
    assert engine.came("a", after=0.05) == pytest.approx(0.003)
    assert engine.came("b", after=0.002) == pytest.approx(0.003)
    assert engine.came("c", after=0.001) == 0  # all are back


def test_nobody_is_waited_for_longer_than_a_share_or_a_gap() -> None:
    engine = Engine()
    names = [f"s{n}" for n in range(9)]
    engine.run(*names)
    assert engine.came("s0", after=0.02) == pytest.approx(0.003)
    engine.clock.now += 0.0031
    assert engine.gathering.wait() == 0  # the gap is over
    engine.run("s0")
    for n in range(1, 5):
        assert engine.came(f"s{n}", after=0.0025) > 0
    assert engine.came("s5", after=0.0026) == 0  # the share is over, counted from the first


def test_those_who_wait_meanwhile_wait_for_the_answered_ones_if_those_are_prompt() -> None:
    engine = Engine()
    engine.run("a", "b")
    engine.came("a", after=0.001)
    engine.gathering.scheduled(["a"])
    engine.clock.now += 0.05
    engine.gathering.came("b")  # while a's pass runs
    engine.clock.now += 0.05
    engine.gathering.answered(["a"])
    assert engine.gathering.wait() == pytest.approx(0.01)  # a came back at once the last time
    assert engine.came("a", after=0.004) == 0
    engine.run("a", "b")
    engine.came("b", after=0.03)  # b came late
    engine.gathering.scheduled(["b"])
    engine.clock.now += 0.02
    engine.gathering.came("a")
    engine.clock.now += 0.08
    engine.gathering.answered(["b"])
    assert engine.gathering.wait() == 0  # so nobody waits for it


def test_a_long_pass_makes_no_long_wait() -> None:
    engine = Engine()
    engine.gathering.scheduled(["a", "b"])
    engine.clock.now += 30.0
    engine.gathering.answered(["a", "b"])
    assert engine.came("a", after=0.001) == pytest.approx(0.02)


def test_a_session_alone_and_one_long_away_cost_nothing() -> None:
    engine = Engine()
    engine.run("a")
    assert engine.came("a", after=0.001) == 0
    engine.run("a", "b")
    assert engine.came("a", after=5.0) == 0  # b's client thinks
    engine.run("a")
    engine.gathering.gone("b")
    assert engine.came("a", after=0.001) == 0
