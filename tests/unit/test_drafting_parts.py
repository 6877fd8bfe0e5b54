"""The parts of reading ahead: what is guessed, how far it goes, what a session keeps, and when noise is let through."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest

from backends.errors import BackendUnavailable, CapabilityMissing
from backends.fake import FakeBackend, FakeSettings, Fault
from backends.passtimes import PassTimes
from backends.protocol import DraftingSession
from backends.types import Message, TopK
from strategies.engine.drafting import Ahead, Copier, Pace
from strategies.engine.drafting.ahead import NEGLIGIBLE
from strategies.engine.drafting.verdicts import LIKELY, Scored, at_least, usable
from strategies.vocabulary import inventory_of

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
    assert times.padded(2) == 2  # nothing longer was seen
    assert times.expected(3) == pytest.approx(0.20)
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


pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("recall", [True, False])
async def test_a_session_that_is_ahead_says_what_the_real_one_would(recall: bool) -> None:
    """Along its draft, off it, back, and with look-ups everywhere."""
    backend = FakeBackend("a", FakeSettings(answer="one two three", recall=recall))
    paths = [(70, 71, 72), (70, 71, 80), (70, 90), (70, 71, 72, 73, 74)]
    for draft, path in itertools.product(((71, 72), (71, 80, 81), (99,)), paths):
        async with backend.open(ASK, k=5) as real, backend.open(ASK, k=5) as session:
            ahead = Ahead(session, PassTimes())
            same(await real.step(), await ahead.step())
            await ahead.read_ahead((70,), draft)
            for id in path:
                same(await real.step((id,)), await ahead.step((id,)))
                assert (await real.lookup([5, 6])).tolist() == (await ahead.lookup([5, 6])).tolist()
            for drop in (1, len(path) - 1):
                await real.rewind(drop)
                await ahead.rewind(drop)
                same(await real.step((75, 76)), await ahead.step((75, 76)))
                await real.rewind(2)
                await ahead.rewind(2)
                for id in path[len(path) - drop :]:
                    same(await real.step((id,)), await ahead.step((id,)))
            await ahead.settle_down()
            held: tuple[int, ...] = session.ids  # type: ignore[attr-defined]
            assert held == real.ids[: len(held)]  # type: ignore[attr-defined]


async def test_places_that_were_scored_take_no_pass() -> None:
    backend = FakeBackend("a")
    async with backend.open(ASK, k=5) as session:
        ahead = Ahead(session, PassTimes())
        await ahead.step()
        await ahead.read_ahead((70,), (71, 72))
        passes = backend.counters.passes
        for id in (70, 71, 72):
            assert ahead.knows((id,))
            await ahead.step((id,))
        assert backend.counters.passes == passes
        assert (ahead.passes, ahead.drafted, ahead.confirmed) == (2, 2, 2)
        assert not ahead.knows((73,))


async def test_a_padded_pass_is_that_without() -> None:
    """Whether the group goes on along the draft, off it, or with the very id that it was padded with."""
    times = PassTimes()
    for tokens, seconds in ((1, 0.1), (2, 0.15), (3, 0.1)):
        times.took(tokens, seconds)
    backend = FakeBackend("a", FakeSettings(answer="one two three"))
    for path in ((70, 71, 72), (70, 71, 71, 71, 73), (70, 80), (71, 71, 71)):
        async with backend.open(ASK, k=5) as real, backend.open(ASK, k=5) as session:
            ahead = Ahead(session, times)
            same(await real.step(), await ahead.step())
            rows = await ahead.read_ahead((70,), (71,))
            assert rows is not None and len(rows) == 2
            assert session.ids[-3:] == (70, 71, 71)  # type: ignore[attr-defined]
            assert ahead.drafted == 1
            for id in path:
                same(await real.step((id,)), await ahead.step((id,)))
                assert (await real.lookup([5, 6])).tolist() == (await ahead.lookup([5, 6])).tolist()
            await ahead.settle_down()
            assert session.ids == real.ids[: len(session.ids)]  # type: ignore[attr-defined]
    backend.settings = FakeSettings(context=40)
    async with backend.open(ASK, k=5) as session:
        ahead = Ahead(session, times)
        await ahead.step()
        while (ahead.room((70,)) or 0) > 1:
            await ahead.step((70,))
        assert await ahead.read_ahead((70,), (71,)) is not None
        assert session.ids[-2:] == (70, 71)  # type: ignore[attr-defined]  # there is no room for more


@pytest.mark.parametrize(("said", "taken"), [(0.0, 0.0), (NEGLIGIBLE, 0.0), (0.0011, 0.0011), (None, None)])
async def test_negligible_noise_counts_as_none(said: float | None, taken: float | None) -> None:
    backend = FakeBackend("a", FakeSettings(draft_noise=said))
    async with backend.open(ASK, k=5) as session:
        assert Ahead(session, PassTimes()).noise == taken


async def test_what_is_not_trusted_is_stepped_singly() -> None:
    backend = FakeBackend("a", FakeSettings(draft_noise=0.5))
    async with backend.open(ASK, k=5) as real, backend.open(ASK, k=5) as session:
        ahead = Ahead(session, PassTimes())
        await real.step()
        await ahead.step()
        await ahead.read_ahead((70,), (71, 72, 73))
        ahead.trust(1)
        noisy = await ahead.step((70,))
        assert noisy.logprobs.tolist() != (await real.step((70,))).logprobs.tolist()
        for id in (71, 72, 73):
            same(await real.step((id,)), await ahead.step((id,)))
        assert ahead.settled == 1


async def test_a_longer_list_is_asked_for_anew() -> None:
    backend = FakeBackend("a")
    async with backend.open(ASK, k=3) as session:
        ahead = Ahead(session, PassTimes())
        await ahead.step()
        await ahead.read_ahead((70,), (71, 72))
        await ahead.step((70,))
        assert ahead.widen(6)
        assert len((await ahead.step((71,))).ids) == 6


async def test_recall_is_for_the_draft_just_scored() -> None:
    backend = FakeBackend("a")
    async with backend.open(ASK, k=5) as real, backend.open(ASK, k=5) as session:
        assert isinstance(session, DraftingSession)
        for step in ((), (70,), (71,)):
            await real.step(step)
        await session.score((70, 71, 72))
        assert (await session.recall(1, [9])).tolist() == (await real.lookup([9])).tolist()
        for back in (0, 3):
            with pytest.raises(RuntimeError, match="draft"):
                await session.recall(back, [9])
        await session.step((73,))
        with pytest.raises(RuntimeError, match="draft"):
            await session.recall(1, [9])
    closed = FakeBackend("a", FakeSettings(recall=False))
    async with closed.open(ASK, k=5) as session:
        assert isinstance(session, DraftingSession)
        await session.score((70, 71))
        with pytest.raises(CapabilityMissing):
            await session.recall(1, [9])


async def test_a_failing_pass_ahead_fails_as_a_step_does() -> None:
    backend = FakeBackend("a", FakeSettings(faults=(Fault(of="session", after=1),)))
    async with backend.open(ASK, k=5) as session:
        ahead = Ahead(session, PassTimes())
        await ahead.step()
        with pytest.raises(Exception, match="as scripted"):
            await ahead.read_ahead((70,), (71,))


async def test_a_draft_has_only_the_room_that_there_is() -> None:
    """Nobody is asked to read more than fits; what is not known has no bounds."""
    backend = FakeBackend("a", FakeSettings(context=40))
    async with backend.open(ASK, k=5) as session:
        ahead = Ahead(session, PassTimes())
        top = await ahead.step()
        room = ahead.room((70,))
        assert room is not None
        assert 40 - 3 <= ahead.prompt_tokens + room + 1 <= 40
        text = [b"x"] * len(await vocabulary_of(backend))
        passes = 0
        while await ahead.run_on(text):
            passes += 1
        assert passes == room + 1
        assert not ahead.full
        assert ahead.room([*ahead.beyond, 70]) == -1
        assert int(top.ids[0]) == ahead.beyond[0]
    backend.settings = FakeSettings(context=4096)
    async with backend.open(ASK, k=5) as session:
        session.__class__ = type("Unknown", (type(session),), {"context": None})
        assert Ahead(session, PassTimes()).room((70,)) is None


async def vocabulary_of(backend: FakeBackend) -> tuple[bytes, ...]:
    return tuple((await backend.vocabulary()).tokens)


async def test_a_line_that_is_followed_for_long_is_not_kept_for_long() -> None:
    """What a leader says has no end as long as the group says it, too; of what lies behind only the last ids are wanted again."""
    backend = FakeBackend("a", FakeSettings(answer="one two three " * 40))
    text = [b"x"] * len(await vocabulary_of(backend))
    async with backend.open(ASK, k=5) as real, backend.open(ASK, k=5) as session:
        ahead = Ahead(session, PassTimes())
        top = await real.step()
        same(top, await ahead.step())
        said: list[int] = []
        for number in range(300):
            while len(ahead.beyond) < 10:
                assert await ahead.run_on(text)
            said.append(int(top.ids[0]))
            back = said[-1:]
            if number % 7 == 6:  # another reading of the last ids
                await real.rewind(5)
                await ahead.rewind(5)
                back = said[-6:]
            top = await real.step(back)
            same(top, await ahead.step(back))
            assert len(ahead._rows) < 100
        assert ahead.served == 300


async def test_a_failure_ahead_of_the_group_is_raised_where_the_session_is_needed() -> None:
    """What was read before it is there; after that it has failed, whatever is asked of it."""
    backend = FakeBackend("a", FakeSettings(answer="one two three"))
    async with backend.open(ASK, k=5) as session:
        ahead = Ahead(session, PassTimes())
        top = await ahead.step()
        assert await ahead.run_on([b"x"] * len(await vocabulary_of(backend)))
        ahead.fail(BackendUnavailable("a", "Away."))
        served = await ahead.step([int(top.ids[0])])
        with pytest.raises(BackendUnavailable):
            await ahead.step((70,))
        with pytest.raises(BackendUnavailable):
            await ahead.lookup([5])
        with pytest.raises(BackendUnavailable):
            await ahead.read_ahead((70,), (71,))
        assert len(served.ids) == 5


async def scored(backend: FakeBackend, draft: tuple[int, ...], firsts: list[list[float]], noise: float) -> Scored:
    """firsts: for each token of the draft, its probability and those of the byte-wise next ids."""
    vocabulary = await backend.vocabulary()
    rows = []
    for token, probs in zip(draft, firsts, strict=True):
        ids = np.array([token, *(i for i in range(65, 99) if i != token)][: len(probs)], np.int32)
        rows.append(TopK(ids, np.log(np.array(probs)), max(0.0, 1 - sum(probs))))
    return Scored(inventory_of((vocabulary,)).spellers[0], draft, rows, noise)


async def test_noise_is_let_through_only_where_everybody_is_sure() -> None:
    backend = FakeBackend("a", FakeSettings(words=()))
    sure, unsure = [0.95, 0.02], [0.6, 0.3]
    one = await scored(backend, (70, 71, 72), [sure, sure, sure], 0.4)
    other = await scored(backend, (70, 71, 72), [sure, unsure, sure], 0.4)
    assert usable([one]) == [3]
    assert usable([one, other]) == [1, 1]
    assert usable([await scored(backend, (70, 71), [unsure, sure], 0.0)]) == [
        2
    ]  # 0.6 is above one half, and there is no noise
    apart = await scored(backend, (70, 99, 72), [sure, sure, sure], 0.4)
    assert usable([one, apart]) == [1, 1]
    assert usable([await scored(backend, (70,), [[0.8, 0.19]], 0.6)]) == [1]  # the others have 0.38 at most
    assert usable([await scored(backend, (70,), [[0.8, 0.19]], 0.9)]) == [0]
    assert usable([await scored(backend, (70,), [[0.8, 0.009]], 0.6)]) == [0]  # tokens that seldom come are off by more


def test_what_a_single_step_gives_is_not_less_than_is_reckoned() -> None:
    """Whatever the noise does to each log-probability, within its bounds."""
    rng = np.random.default_rng(5)
    close = 0
    for _ in range(2000):
        noise, size = rng.uniform(0.0, 1.0), int(rng.integers(2, 40))
        scored = rng.dirichlet(np.full(size, rng.choice((0.05, 0.3, 1.0))))
        off = np.where(scored >= LIKELY, noise, 2 * noise)
        single = scored * np.exp(rng.choice((-1.0, 1.0), size) * off)
        at = int(np.argmax(scored))
        # The token's own is what the others leave: keep those where that is within its bounds, too.
        single[at] = 1.0 - (single.sum() - single[at])
        if single[at] > 0 and abs(np.log(single[at] / scored[at])) <= noise:
            least = at_least(scored[: int(rng.integers(at + 1, size + 1))], at, noise)
            assert least <= single[at] + 1e-12
            close += least > 0.9 * single[at]
    assert close > 300


def same(one: TopK, other: TopK) -> None:
    assert one.ids.tolist() == other.ids.tolist()
    assert one.logprobs.tolist() == other.logprobs.tolist()
    assert one.outside == other.outside
