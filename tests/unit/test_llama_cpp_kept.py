"""Which free sequence a prompt gets, and how much of it is there already."""

from __future__ import annotations

from backends.llama_cpp.kept import Kept

PROMPT = list(range(100))


def test_whole_chunks_before_the_last_token_are_worth_keeping() -> None:
    kept = Kept(2, 10)
    assert [kept.worth(PROMPT[:n]) for n in (1, 10, 11, 20, 25, 100)] == [0, 0, 10, 10, 20, 90]
    assert Kept(2, 10, keep=False).worth(PROMPT) == 0


def test_a_prompt_gets_the_sequence_that_holds_most_of_it() -> None:
    kept = Kept(3, 10)
    taken = [kept.take(prompt) for prompt in (PROMPT, PROMPT[:40], [*PROMPT[:25], 7])]
    assert taken == [(0, 0), (1, 0), (2, 0)]  # the lowest first: they are computed side by side
    kept.give(0, PROMPT[:20])
    kept.give(1, PROMPT[:60])
    kept.give(2, [*PROMPT[:20], *range(7, 17)])
    assert kept.take([*PROMPT[:55], 3]) == (1, 50)  # whole chunks only
    assert kept.take([*PROMPT[:20], *range(7, 17), 1]) == (2, 30)
    assert kept.take(PROMPT[:20]) == (0, 10)  # never all of it: there must be something to compute


def test_what_is_kept_is_given_up_last_and_the_oldest_first() -> None:
    kept = Kept(3, 10)
    taken = [kept.take(PROMPT)[0], kept.take(PROMPT)[0]]
    for sequence in reversed(taken):
        kept.give(sequence, [sequence] * 10)
    assert [kept.take([90 + n] * 30) for n in range(3)] == [(2, 0), (1, 0), (0, 0)]


def test_a_switch_off_keeps_nothing() -> None:
    kept = Kept(1, 10, keep=False)
    kept.take(PROMPT)
    kept.give(0, PROMPT[: kept.worth(PROMPT)])
    assert kept.take(PROMPT) == (0, 0)
