"""Routes: who gets which arm, what moves when weights change, what may follow a failure."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import backends.errors
from backends.errors import BackendError, BackendOverloaded, BackendTimeout, BackendUnavailable, ContextTooLong
from backends.types import Message
from gateway.experiments import Arm, Choice, Facts, Route, choose
from gateway.experiments.assign import assign, draw, pseudonym, shares
from gateway.experiments.choose import OverrideForbidden, UnknownArm, shadowed
from gateway.experiments.fallback import _TABLE, TooSlow, cause_of, next_fallback
from gateway.experiments.route import Fallback, Ramp, Shadow
from gateway.experiments.statistics import chi_square_tail, share_mismatch

GOLDEN = "ccctcctcctcttcctcccctccttctttctccttccctt"
GOLDEN_DRAW = 0.38743514175176424
GOLDEN_PSEUDONYM = "19819b1e5879c292"
USERS = [f"user-{number}" for number in range(100_000)]


def arms_of(weights: dict[str, float], salt: str = "r", users: list[str] = USERS) -> list[str]:
    return [assign(salt, user, weights) for user in users]


def facts(user: str | None = None, key: str | None = None, **fields: object) -> Facts:
    values: dict[str, object] = {"headers": {}, "messages": (), "arm": None, "chance": "c"} | fields
    return Facts(user, key, **values)  # type: ignore[arg-type]


def route(**fields: object) -> Route:
    values: dict[str, object] = {"name": "r", "arms": {"a": Arm("m", 90.0), "b": Arm("n", 10.0)}} | fields
    return Route(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "weights",
    [
        {"a": 50.0, "b": 50.0},
        {"a": 99.0, "b": 1.0},
        {"a": 0.2, "b": 0.3, "c": 0.5},
        {"a": 1.0, "b": 2.0, "c": 3.0, "e": 0.0},
    ],
)
def test_shares_of_100_000_users_are_the_weights(weights: dict[str, float]) -> None:
    """χ²: a right assignment is this far off in one of 10,000 sets of users; this set is always the same."""
    found = Counter(arms_of(weights))
    due = shares(weights)
    p = share_mismatch([found[arm] for arm in weights], [due[arm] * len(USERS) for arm in weights])
    assert p > 1e-4, (found, p)
    assert found.get("e", 0) == 0 or weights["e"] > 0


def test_only_the_moved_share_moves() -> None:
    """One weight grows: that share goes to its arm, from each other arm alike, and nobody else moves."""
    before = arms_of({"a": 90.0, "b": 10.0})
    after = arms_of({"a": 80.0, "b": 20.0})
    moved = Counter((old, new) for old, new in zip(before, after, strict=True) if old != new)
    assert set(moved) == {("a", "b")}
    assert moved["a", "b"] / len(USERS) == pytest.approx(0.10, abs=0.004)

    before = arms_of({"a": 1.0, "b": 1.0, "c": 1.0})
    after = arms_of({"a": 2.0, "b": 1.0, "c": 1.0})
    moved = Counter((old, new) for old, new in zip(before, after, strict=True) if old != new)
    assert set(moved) == {("b", "a"), ("c", "a")}
    for count in moved.values():
        assert count / len(USERS) == pytest.approx(1 / 3 - 1 / 4, abs=0.004)


def test_a_new_arm_takes_from_all_and_an_ended_one_gives_to_all() -> None:
    some = USERS[:20_000]
    two = arms_of({"a": 1.0, "b": 1.0}, users=some)
    three = arms_of({"a": 1.0, "b": 1.0, "c": 1.0}, users=some)
    for old, new in zip(two, three, strict=True):
        assert new in (old, "c")


@given(
    st.dictionaries(st.sampled_from("abcd"), st.floats(0.01, 100), min_size=2),
    st.floats(0.01, 100),
    st.text(max_size=12),
)
def test_scaling_all_weights_moves_nobody(weights: dict[str, float], factor: float, subject: str) -> None:
    scaled = {arm: weight * factor for arm, weight in weights.items()}
    assert assign("s", subject, weights) == assign("s", subject, scaled)
    assert assign("s", subject, dict(reversed(weights.items()))) == assign("s", subject, weights)


def test_another_salt_deals_anew_and_independently() -> None:
    weights = {"a": 1.0, "b": 1.0}
    some = USERS[:20_000]
    one, other = arms_of(weights, "first", some), arms_of(weights, "second", some)
    same = sum(x == y for x, y in zip(one, other, strict=True)) / len(some)
    assert same == pytest.approx(0.5, abs=0.015)


def test_assignments_of_a_release_stay_as_they_are() -> None:
    """These are promises to running experiments: a change here deals every subject anew."""
    weights = {"control": 70.0, "trial": 30.0}
    found = "".join(assign("support", f"user=u{n}", weights)[0] for n in range(40))
    assert found == GOLDEN
    assert draw("r", "u", "a") == pytest.approx(GOLDEN_DRAW, abs=1e-15)
    assert pseudonym("r", "user=somebody") == GOLDEN_PSEUDONYM
    assert draw("ab", "c", "d") != draw("a", "bc", "d")


def test_another_process_assigns_the_same() -> None:
    """Hashing that is salted per process would not."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "from gateway.experiments.assign import assign\n"
        "print(''.join(assign('r', f'user-{n}', {'a': 2.0, 'b': 1.0}) for n in range(2000)))"
    )
    done = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": str(seed)}
        ).stdout.strip()
        for seed in (1, 2)
    ]
    mine = "".join(arms_of({"a": 2.0, "b": 1.0}, users=USERS[:2000]))
    assert done == [mine, mine]


def test_ramps_change_weights_with_time() -> None:
    jump = Ramp((100.0, 200.0), (0.0, 50.0))
    assert [jump.at(now) for now in (0, 100, 199, 200, 1e9)] == [0, 0, 0, 50, 50]
    even = Ramp((100.0, 200.0), (0.0, 50.0), smooth=True)
    assert [even.at(now) for now in (0, 100, 150, 200, 300)] == [0, 0, 25, 50, 50]
    ramped = route(arms={"a": Arm("m", 50.0), "b": Arm("n", 1.0, even)})
    assert ramped.shares(150) == {"a": 50 / 75, "b": 25 / 75}
    arms = {now: [choose(ramped, facts(user), now).arm for user in USERS[:2000]] for now in (0, 120, 160, 300)}
    assert set(arms[0]) == {"a"}
    for early, late in ((0, 120), (120, 160), (160, 300)):  # who has moved in stays
        assert not [1 for x, y in zip(arms[early], arms[late], strict=True) if (x, y) == ("b", "a")]
    nobody = route(arms={"a": Arm("m", 0.0, Ramp((0.0,), (0.0,)))})
    assert nobody.weights(5) == {"a": 1.0}


@pytest.mark.parametrize(
    ("sticky", "one", "other", "same"),
    [
        (("user",), facts("u", "k"), facts("u", "l", chance="d"), True),
        (("key", "user"), facts("u", "k"), facts("v", "k", chance="d"), True),
        (("header:x-team",), facts(headers={"x-team": "t"}), facts("v", headers={"x-team": "t"}, chance="d"), True),
        (("user", "key"), facts(None, "k"), facts("", "k", chance="d"), True),
        (("user",), facts("k"), facts(None, "k"), False),
        (("user",), facts(), facts(chance="d"), False),
    ],
)
def test_subjects(sticky: tuple[str, ...], one: Facts, other: Facts, same: bool) -> None:
    found = [choose(route(sticky=sticky), each, 0).subject for each in (one, other)]
    assert (found[0] == found[1]) == same


def test_a_conversation_stays_while_it_grows() -> None:
    talk = (Message("system", "s"), Message("user", "hello"))
    more = (*talk, Message("assistant", "x"), Message("user", "and?"))
    r = route(sticky=("conversation",))
    one, other = (choose(r, facts(messages=messages), 0) for messages in (talk, more))
    assert one.subject == other.subject
    assert one.by == "conversation"
    assert choose(r, facts(messages=(Message("user", "hello"),)), 0).subject != one.subject
    assert choose(r, facts(messages=(Message("system", "s"),)), 0).by == "chance"


def test_overrides_only_where_allowed() -> None:
    with pytest.raises(OverrideForbidden):
        choose(route(), facts("u", arm="b"), 0)
    allowed = route(override=True)
    for asked in (facts("u", arm="b"), facts("u", headers={"x-modelnet-arm": "b"})):
        choice = choose(allowed, asked, 0)
        assert (choice.arm, choice.by, choice.model) == ("b", "override", "n")
    with pytest.raises(UnknownArm, match="a, b"):
        choose(allowed, facts("u", arm="z"), 0)


def test_shadows_get_their_share() -> None:
    r = route(shadow=Shadow("m", 0.25))
    choice = Choice(r, "a", "user", "s", {})
    assert sum(shadowed(choice, f"request-{n}") for n in range(20_000)) / 20_000 == pytest.approx(0.25, abs=0.015)
    assert not shadowed(Choice(route(), "a", "user", "s", {}), "x")
    assert all(shadowed(Choice(route(shadow=Shadow("m")), "a", "user", "s", {}), str(n)) for n in range(1000))


def test_every_backend_error_has_a_cause_or_a_reason_for_none() -> None:
    kinds = [
        kind for kind in vars(backends.errors).values() if isinstance(kind, type) and issubclass(kind, BackendError)
    ]
    assert set(kinds) == set(_TABLE)


def test_fallbacks_go_by_cause_in_order_and_never_twice() -> None:
    r = route(
        fallbacks=(
            Fallback(frozenset({"error", "timeout"}), "x"),
            Fallback(frozenset({"context"}), "long"),
            Fallback(frozenset({"error"}), "y"),
        )
    )
    assert cause_of(BackendUnavailable("m", "")) == "error"
    assert cause_of(BackendTimeout("m", "")) == cause_of(TooSlow()) == "timeout"
    assert cause_of(BackendOverloaded("m", "")) == "overload"
    assert cause_of(ContextTooLong("m", "")) == "context"
    assert cause_of(ValueError()) is None

    def following(cause: str, *tried: str) -> str | None:
        found = next_fallback(r, cause, tried)  # type: ignore[arg-type]
        return found.model if found else None

    assert following("error") == "x"
    assert following("error", "x") == "y"
    assert following("error", "x", "y") is None
    assert following("context", "x") == "long"
    assert following("overload") is None


@pytest.mark.parametrize(
    ("statistic", "freedom", "p"),
    [(3.841, 1, 0.05), (5.991, 2, 0.05), (7.815, 3, 0.05), (18.307, 10, 0.05), (10.828, 1, 0.001), (0, 4, 1.0)],
)
def test_chi_square_against_the_tables(statistic: float, freedom: int, p: float) -> None:
    assert chi_square_tail(statistic, freedom) == pytest.approx(p, rel=1e-3)
