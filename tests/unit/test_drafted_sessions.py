"""A session that may have read further than its group has said: what it answers, whoever guesses, and when noise is let through."""

from __future__ import annotations

import itertools
from contextlib import nullcontext

import numpy as np
import pytest

from backends.errors import BackendUnavailable, CapabilityMissing
from backends.fake import FakeBackend, FakeSettings, Fault
from backends.passtimes import PassTimes
from backends.protocol import DraftingSession
from backends.types import Message, TopK
from strategies.engine.drafting import Ahead, Leader
from strategies.engine.drafting.ahead import NEGLIGIBLE
from strategies.engine.drafting.verdicts import LIKELY, Scored, at_least, usable
from strategies.vocabulary import inventory_of

ASK = (Message("user", "Hi"),)


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


def slow_for_two() -> PassTimes:
    """Times with which passes over two tokens are padded to three."""
    times = PassTimes()
    for tokens, seconds in ((1, 0.1), (2, 0.15), (3, 0.1)):
        times.took(tokens, seconds)
    return times


async def test_a_padded_pass_is_that_without() -> None:
    """Whether the group goes on along the draft, off it, or with the very id that it was padded with."""
    times = slow_for_two()
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


async def test_a_draft_that_fails_half_way_leaves_a_scripted_session_where_it_was() -> None:
    """As the real ones: whoever asked goes on from there."""
    backend = FakeBackend("a", FakeSettings(reads_singly=True, faults=(Fault(of="session", after=2, times=1),)))
    async with backend.open(ASK, k=5) as session:
        await session.step((70,))
        ids, found = session.ids, await session.lookup([5, 6])  # type: ignore[attr-defined]
        with pytest.raises(BackendUnavailable):
            await session.score((71, 72))
        assert session.ids == ids  # type: ignore[attr-defined]
        assert (await session.lookup([5, 6])).tolist() == found.tolist()


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


async def test_a_leader_also_guesses_what_it_has_not_read_yet() -> None:
    """What its last distribution has as the likeliest costs it no pass; whatever it has read, and the group has said."""
    backend = FakeBackend("a", FakeSettings(answer="one two three " * 30))
    vocabulary = await backend.vocabulary()
    text = vocabulary.tokens
    async with backend.open(ASK, k=5) as session, backend.open(ASK, k=5) as slow:
        times = [PassTimes(), PassTimes()]
        times[0].took(1, 0.1)
        times[1].took(1, 0.3)
        ahead = Ahead(session, times[0])
        leader = Leader([ahead, Ahead(slow, times[1])], [vocabulary, vocabulary])
        assert leader.chosen([0, 1]) and leader.member == 0
        assert ahead.tip is None and leader.guess(b"", 99) == b""
        said, place = b"", 0
        for number in range(5):
            top = await ahead.step([] if not number else [place])
            leader.stands(len(said))
            place = int(top.ids[0])
            assert ahead.tip is top
            assert leader.guess(said, 99) == text[place]
            said += text[place]
            assert leader.guess(said, 99) == b""  # the group says it, and nobody knows what follows
        passes = backend.counters.passes
        assert await ahead.run_on(text)
        following = ahead.tip
        assert following is not None and ahead.beyond == [place]
        assert leader.guess(said, 99) == text[int(following.ids[0])]
        assert leader.guess(said + b"\0", 99) == b""
        assert backend.counters.passes == passes + 1
        await ahead.rewind(2)
        assert ahead.tip is None


async def test_nobody_runs_ahead_where_the_model_has_other_sessions() -> None:
    backend = FakeBackend("a", FakeSettings(answer="one two three " * 30))
    vocabulary = await backend.vocabulary()
    async with backend.open(ASK, k=5) as session, backend.open(ASK, k=5) as slow:
        times = [PassTimes(), PassTimes()]
        times[0].took(1, 0.001)
        times[1].took(1, 30.0)
        ahead = Ahead(session, times[0])
        leader = Leader([ahead, Ahead(slow, times[1])], [vocabulary, vocabulary])
        assert leader.chosen([0, 1])
        await ahead.step()

        async def led() -> int:
            async def other() -> int:
                return await leader.run(3, nullcontext)

            return await leader.beside(other(), 30.0)

        with times[0].shared():
            with times[0].shared():
                assert await led() == 0
            assert await led() == 3


async def test_where_values_are_kept_of_the_last_place_only_passes_are_not_padded() -> None:
    """Or what is looked up behind a draft of one would take another pass."""
    times = slow_for_two()
    backend = FakeBackend("a", FakeSettings(answer="one two three", recall=False))
    async with backend.open(ASK, k=5) as real, backend.open(ASK, k=5) as session:
        ahead = Ahead(session, times)
        await ahead.step()
        await real.step()
        for number, padded in ((70, True), (72, False)):
            await ahead.read_ahead((number,), (number + 1,))
            for id in (number, number + 1):
                same(await real.step((id,)), await ahead.step((id,)))
            before = ahead.passes
            assert (await real.lookup([5, 6])).tolist() == (await ahead.lookup([5, 6])).tolist()
            assert (ahead.passes > before) == padded


async def test_other_spellings_count_with_the_noise_that_they_may_have() -> None:
    """A shorter reading of the same text: what it has, by the noise, against what the token has at least."""
    backend = FakeBackend("a", FakeSettings(words=("ab",)))
    vocabulary, other = await backend.vocabulary(), await FakeBackend("b", FakeSettings(words=())).vocabulary()
    whole, short = (list(vocabulary.tokens).index(text) for text in (b"ab", b"a"))
    speller = inventory_of((vocabulary, other)).spellers[0]  # "ab" is two pieces
    for share, noise, count in ((0.002, 0.0, 1), (0.002, 0.6, 0), (0.0007, 0.6, 1), (0.005, 0.0, 0)):
        row = TopK(np.array([whole, short], np.int32), np.log([0.9, share]), 0.1 - share)
        assert usable([Scored(speller, (whole,), [row], noise)]) == [count], (share, noise)
