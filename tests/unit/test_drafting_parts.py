"""The parts of reading ahead: what is copied, what passes take, and how far it goes."""

from __future__ import annotations

import random
from typing import Any

import pytest

from backends.passtimes import PassTimes
from backends.types import Message
from strategies.engine.drafting import Copier, Pace

ASK = (Message("user", "Hi"),)


def test_a_copier_begins_with_the_last_answer_and_follows_it() -> None:
    copier = Copier([b"The answer is 12, because six times two is twelve.", b"What is six times two?"])
    assert copier.guess(b"", 10) == b"The answer"
    assert copier.guess(b"The answer", 6) == b" is 12"
    said = b"The answer is 13, because"
    assert copier.guess(said, 10) == b" six times"
    assert copier.guess(said + b" nothing like it", 10) == b""
    assert copier.guess(said + b" nothing like it; six times two", 10) == b" is twelve"


def test_a_copier_finds_what_the_text_said_itself() -> None:
    copier = Copier([])
    assert copier.guess(b"", 10) == b""
    assert copier.guess(b"one two three; one two", 7) == b" three;"
    assert Copier([]).guess(b"abcdefgh", 7) == b""


def test_a_copier_looks_for_the_longest_end_and_no_longer_where_there_is_none() -> None:
    """Whatever it has been asked before: a source is looked through from where the last guess came from, then from its beginning."""
    rng = random.Random(1)
    for _ in range(300):
        words = ["alpha ", "beta ", "gamma ", "de ", "epsilon "]
        sources = ["".join(rng.choices(words, k=rng.randint(0, 30))).encode() for _ in range(rng.randint(0, 2))]
        said, copier = b"", Copier(sources)
        for _ in range(40):
            said += rng.choice(words).encode()
            copier.guess(said, 10)
            places = [
                max((length for length in (6, 12, 24, 48) if end_of(said, length) in text), default=0)
                for text in (*(source[:-1] for source in sources if source), said[:-1])
            ]
            found = copier._find(said)
            assert (found is not None) == any(places)
            if found is not None:
                source, at = found
                text = [*(source for source in sources if source), said][source]
                assert text[:at].endswith(end_of(said, max(places)))


def end_of(said: bytes, length: int) -> bytes:
    """One that is nowhere where there is not so much text."""
    return said[-length:] if length <= len(said) else b"#"


def test_a_copier_searches_a_long_source_once_where_there_is_nothing_to_copy() -> None:
    class Source(bytes):
        searched = 0

        def find(self, *args: Any) -> int:
            Source.searched += 1
            return super().find(*args)

    copier = Copier([Source(b"one two three " * 1000)])
    said = b"The quick brown fox jumps over the lazy dog, and it does so every day of the week"
    assert copier.guess(said, 10) == b""
    assert Source.searched == 1


def test_a_copier_follows_a_source_to_its_end_only() -> None:
    copier = Copier([b"short"])
    assert copier.guess(b"sho", 10) == b"rt"
    assert copier.guess(b"short", 10) == b""


def test_pass_times_are_reckoned_from_those_that_were_seen() -> None:
    times = PassTimes()
    assert times.step is None
    assert times.expected(4) is None
    times.took(1, 0.02)
    assert times.expected(5) == pytest.approx(0.1)  # nothing else is known: as so many steps
    times.took(17, 0.036)
    assert times.expected(17) == pytest.approx(0.036)
    assert times.expected(9) == pytest.approx(0.028)
    assert times.expected(33) == pytest.approx(0.052)
    for _ in range(60):
        times.took(1, 0.01)
    assert times.step == pytest.approx(0.01, rel=0.01)
    times.took(1, 100.0)
    assert (times.step or 1.0) < 0.02  # one hiccup


def test_a_pass_over_two_is_padded_where_three_take_less() -> None:
    times = PassTimes()
    times.took(1, 0.10)
    times.took(2, 0.15)
    assert times.padded(2) == 3  # nothing longer was seen: it is found out, and hoped to take no longer
    assert times.expected(2) == pytest.approx(0.15)
    assert times.expected(3) == pytest.approx(0.20)
    cheap = PassTimes()
    cheap.took(1, 0.10)
    cheap.took(2, 0.12)
    assert cheap.padded(2) == 2  # there is little to be found out
    times.took(3, 0.11)
    assert [times.padded(tokens) for tokens in (1, 2, 3, 4)] == [1, 3, 3, 4]
    assert times.expected(2) == times.expected(3) == pytest.approx(0.11)
    slow = PassTimes()
    for tokens, seconds in ((1, 0.10), (2, 0.11), (3, 0.105), (17, 0.2)):
        slow.took(tokens, seconds)
    assert slow.padded(2) == 2  # hardly less is not worth it
    assert (
        slow.expected(2) == slow.expected(3) == pytest.approx(0.11)
    )  # nor are longer passes shorter than shorter ones


def test_passes_that_are_many_over_one_token_are_known_to_take_as_long() -> None:
    """Whatever single ones of them took."""
    times = PassTimes()
    assert not times.tried
    times.singly = True
    assert times.tried
    times.took(1, 0.1)
    times.took(8, 0.2)
    assert times.expected(8) == pytest.approx(0.8)
    assert times.expected(2) == pytest.approx(0.2)


def test_what_longer_passes_cost_follows_the_load() -> None:
    """It is kept as what they took longer than steps of the same time, and believed less and less."""
    times = PassTimes()
    times.took(5, 9.0)  # nobody knows what of that is the step
    assert times.expected(5) is None
    times.took(1, 0.8)
    times.took(5, 0.84)
    for _ in range(40):
        times.took(1, 0.1)
    assert times.expected(5) == pytest.approx(0.1 + 0.99**40 * 0.04, rel=0.02)
    for _ in range(400):
        times.took(1, 0.1)
    assert times.expected(5) == pytest.approx(0.1, rel=0.01)


def test_what_others_wait_is_counted_by_who_shares_the_passes() -> None:
    times = PassTimes()
    times.took(1, 0.1)
    for _ in range(200):
        times.took(5, 0.12)
    assert times.company(5) == 0.0
    with times.shared():
        assert times.company(5) == 0.0
        with times.shared(), times.shared():
            assert times.sharing == 3
            assert times.company(1) == 0.0
            # Two others wait as long as whoever has it read them.
            assert times.company(5) == pytest.approx(2 * 0.02, rel=0.01)
            assert times.company(9) == pytest.approx(2 * times.company(5))
            before = times.company(5)
            times.took(5, 4.0)  # one that came at a bad time
            assert before < times.company(5) < 5 * before
            for _ in range(400):
                times.took(1, 0.1)
            assert times.company(5) < 0.1 * before
    assert times.sharing == 0
    quick = PassTimes()
    quick.took(1, 0.1)
    quick.took(5, 0.05)  # a longer pass that was shorter keeps nobody waiting
    quick.sharing = 9
    assert quick.company(5) == 0.0


def test_drafts_become_shorter_with_every_request_beside_them() -> None:
    widths = []
    for sharing in (1, 4, 16, 64):
        times = PassTimes()
        times.took(1, 0.02)
        for tokens in (2, 3, 5, 9, 17):
            for _ in range(20):
                times.took(tokens, 0.02 + 0.0005 * (tokens - 1))
        times.sharing = sharing
        pace = Pace([times], always=False, exact=True)
        for _ in range(60):
            if width := pace.offer("copied").width:
                pace.drafted("copied", width, width, width, 0.02 + 0.0005 * width)
            else:
                pace.stepped()
        widths.append(pace.offer("copied").width)
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == 16 > widths[-1]


@pytest.mark.parametrize(("sharing", "longest"), [(1, 8), (2, 4), (3, 1), (16, 0), (200, 0)])
def test_what_a_first_draft_may_cost_is_shared_by_those_under_way(sharing: int, longest: int) -> None:
    """A pass over 17 takes twice as long as one over one, so a trial of half a step allows a draft of 8; with two that share it 4. Of three
    each may have two thirds of that, and all three wait for it."""
    times = PassTimes()
    times.took(1, 0.016)
    for tokens in (2, 3, 5, 9, 17):
        times.took(tokens, 0.016 + 0.001 * (tokens - 1))
    times.sharing = sharing
    pace = Pace([times], always=False, exact=True)
    assert pace.offer("copied").width <= longest
    assert (pace.offer("copied").width > 0) == (longest > 0)


def paced(step: float, wide: float, *, exact: bool = True) -> Pace:
    """wide: seconds of a pass over 17 tokens."""
    times = PassTimes()
    times.took(1, step)
    times.took(2, step + (wide - step) / 16)
    times.took(17, wide)
    return Pace([times], always=False, exact=exact)


def test_cheap_drafts_that_fit_grow_and_dear_ones_are_left() -> None:
    cheap, dear = paced(0.018, 0.031), paced(0.006, 0.1)
    for pace in (cheap, dear):
        for _ in range(100):
            width = pace.offer("copied").width
            if width:
                pace.drafted("copied", width, width, width, 0.018 if pace is cheap else 0.006 * (1 + width))
            else:
                pace.stepped()
    assert cheap.offer("copied").width >= 12
    assert dear.offer("copied").width <= 1


def test_drafts_that_never_fit_cost_a_few_percent_at_most() -> None:
    """Whatever the price of a pass; the promise of `auto`."""
    for wide in (0.019, 0.03, 0.1, 0.3):
        for exact in (True, False):
            pace, spent, lost, steps = paced(0.018, wide, exact=exact), 0.0, 0.0, 0
            while steps < 2000:
                width = pace.offer("copied").width
                cost = 0.018 + (wide - 0.018) * width / 16
                if width:
                    spared = 0 if exact else -1
                    pace.drafted("copied", width, 0, spared, cost)
                    lost += cost - (1 + spared) * 0.018
                    steps += 1 + spared
                else:
                    pace.stepped()
                    steps += 1
                spent += cost
            assert lost <= 0.025 * steps * 0.018 + 2 * 0.018


def test_where_passes_are_known_a_short_answer_loses_little_too() -> None:
    """32 pieces, of guesses that never fit: half a step and the income, and no draft is wider than what is there pays for."""
    pace, lost = paced(0.018, 0.03), 0.0
    for _ in range(32):
        width = pace.offer("copied").width
        if width:
            pace.drafted("copied", width, 0, 0, 0.018 + 0.012 * width / 16)
            lost += 0.012 * width / 16
        else:
            pace.stepped()
    assert 0.2 * 0.018 < lost <= 0.5 * 0.018 + 0.02 * 32 * 0.018


def test_who_has_left_a_group_sets_no_price() -> None:
    """Its passes were slow, and cost the same however long: for it any draft was free. For who is left none is."""
    gone, left = PassTimes(), PassTimes()
    for tokens, slow, quick in ((1, 1.0, 0.01), (2, 1.0, 0.015), (17, 1.0, 0.09)):
        gone.took(tokens, slow)
        left.took(tokens, quick)
    pace, spent = Pace([left, gone], always=False, exact=True), 0.0
    pace.offer("copied")
    pace.left(1)
    for _ in range(500):
        width = pace.offer("copied").width
        spent += 0.01 + 0.005 * width
        if width:
            pace.drafted("copied", width, 0, 0, 0.01 + 0.005 * width)
        else:
            pace.stepped()
    assert spent <= 1.025 * 500 * 0.01 + 2 * 0.01


def test_what_a_group_that_does_not_wait_pays_for_a_step_is_the_price_of_drafts() -> None:
    """The slowest member's passes cost nothing more with a draft in them, but the group does not wait for them, nor for who is behind."""
    times = PassTimes()
    for tokens in (1, 2, 17):
        times.took(tokens, 0.012)
    pace, spent, rounds = Pace([times], always=False, exact=True, waits=False), 0.0, 0
    for number in range(2000):
        late = 0.024 if number % 3 else 0.0
        if width := pace.offer("copied", late).width:
            pace.waited(late)
            pace.drafted("copied", width, 0, 0, 0.012)
            spent += late + 0.012
        else:
            pace.stepped(0.004)
            rounds += 1
            spent += 0.004
    assert rounds < 2000  # it is tried
    assert spent <= 1.025 * 2000 * 0.004 + 3 * 0.012
    for _ in range(3):
        pace.drafted("copied", 16, 16, 16, 0.012)
    assert pace.offer("copied").width > 8


def test_a_pace_that_did_not_pay_is_tried_again_and_picks_up() -> None:
    pace = paced(0.018, 0.031)
    for _ in range(30):
        if width := pace.offer("copied").width:
            pace.drafted("copied", width, 0, 0, 0.018 + 0.0008 * width)
        else:
            pace.stepped()
    widths = []
    for _ in range(900):
        width = pace.offer("copied").width
        widths.append(width)
        if width:
            pace.drafted("copied", width, width, width, 0.018 + 0.0008 * width)
        else:
            pace.stepped()
    assert max(widths[-50:]) >= 8


def test_what_longer_passes_cost_is_found_out_by_a_draft_that_is_paid_for() -> None:
    """With all that is known of a new model: its single steps."""
    times = PassTimes()
    times.took(1, 0.02)
    pace = Pace([times], always=False, exact=True)
    first = pace.offer("copied").width
    assert first == 1  # twice a step at the worst
    times.took(1 + first, 0.021)
    pace.drafted("copied", first, first, first, 0.021)
    assert pace.offer("copied").width > 2


def test_always_means_always() -> None:
    assert Pace([PassTimes()], always=True, exact=True).offer("copied").width > 0
    assert (
        Pace([PassTimes()], always=False, exact=True).offer("copied").width == 0
    )  # nothing is known of their speed yet
