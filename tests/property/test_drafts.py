"""Reading ahead changes the number of passes and nothing else: whatever is guessed, whatever is asked for, whatever goes wrong."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from comparing import ASKED, JSON, TEXTS, WORDS, bare, catalog_of, events_of, last
from hypothesis import example, given, settings
from hypothesis import strategies as st

from backends.catalog import Catalog, Entry
from backends.errors import BackendError
from backends.fake import FakeBackend, FakeSettings, Fault
from backends.types import Sampling
from strategies.engine.events import Delta, Event
from strategies.fusion import FUSERS

pytestmark = pytest.mark.anyio


class Guesser:
    """Guesses what a script says, and is wrong at its own places: after `wrong_at` bytes of the text, a byte is another one."""

    def __init__(self, script: bytes, wrong_at: frozenset[int]) -> None:
        self.script = bytes(byte ^ 1 if at in wrong_at else byte for at, byte in enumerate(script))

    def guess(self, said: bytes, most: int) -> bytes:
        return self.script[len(said) : len(said) + most]


@pytest.mark.parametrize("fuser", sorted(FUSERS))
@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 10**9),
    members=st.integers(2, 3),
    asked=st.sampled_from(ASKED),
    wrong=st.frozensets(st.integers(0, 60), max_size=6),
    recall=st.booleans(),
)
@example(seed=62677172, members=3, asked=ASKED[5], wrong=frozenset(), recall=False)  # two ids are said before a draft
async def test_everything_is_told_as_without_drafts(
    fuser: str, seed: int, members: int, asked: dict[str, Any], wrong: frozenset[int], recall: bool
) -> None:
    rng = random.Random(seed)
    text = rng.choice(TEXTS)
    state = rng.getstate()
    found = []
    for mode in ("off", "on"):
        rng.setstate(state)
        catalog = catalog_of(rng, text, members, recall=recall)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("strategies.engine.fused.Copier", lambda _: Guesser(text.encode(), wrong))
            wiring = "|".join("abc"[:members])
            found.append(await events_of(catalog, wiring, mode, fuser=fuser, **asked))
    plain, drafted = found
    assert list(map(bare, plain)) == list(map(bare, drafted))
    assert last(plain).drafts is None
    report = last(drafted).drafts
    assert report is not None
    assert 0 <= report.accepted <= report.proposed


async def answers(seed: int, noise: float) -> list[list[Event]]:
    """Without drafts and with drafts of just what was said without, from members of two minds: ties are near."""
    found: list[list[Event]] = []
    for mode in ("off", "on"):
        rng = random.Random(seed)
        script = "".join(event.text for event in said(found[0])).encode() if found else b""
        entries = {}
        for number, name in enumerate("abc"):
            text = TEXTS[0] if number < 2 or rng.random() < 0.5 else TEXTS[0].replace("12", "10")
            words = tuple(rng.sample(WORDS, rng.randint(4, len(WORDS))))
            value = FakeSettings(
                answer=text,
                seed=rng.randint(0, 99),
                confidence=rng.choice((0.1, 0.3, 0.9)),
                words=words,
                draft_noise=noise,
            )
            entries[name] = Entry(FakeBackend(name, value))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("strategies.engine.fused.Copier", lambda _, script=script: Guesser(script, frozenset()))
            found.append(await events_of(Catalog(entries), "a|b|c", mode, sampling=Sampling(max_tokens=40)))
    return found


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**9), noise=st.sampled_from((0.1, 0.4, 1.0)))
async def test_noise_is_kept_out_of_the_text(seed: int, noise: float) -> None:
    """Where scored distributions are off, what is said comes from single steps, or from members that are sure beyond the noise."""
    plain, drafted = await answers(seed, noise)
    assert said(plain) == said(drafted)
    assert [b.usage for b in last(plain).branches] == [b.usage for b in last(drafted).branches]


def said(events: Sequence[Event]) -> list[Delta]:
    return [event for event in events if isinstance(event, Delta)]


async def test_noise_would_show_if_it_were_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: with every scored distribution trusted, some text changes."""
    monkeypatch.setattr("strategies.engine.drafting.drafts.usable", lambda every: [len(each.draft) for each in every])
    monkeypatch.setattr("strategies.engine.drafting.drafts.WHOLE", 0.0)
    for seed in range(40):
        plain, drafted = await answers(seed, 1.0)
        if said(plain) != said(drafted):
            return
    pytest.fail("no text changed")


async def test_drafts_under_noise_save_passes_where_members_are_sure() -> None:
    """And are stepped singly from where they are not."""
    text = "The answer is 12 because it is the answer, and that is it. " * 3
    passes = []
    for mode in ("off", "on"):
        entries = {
            name: Entry(
                FakeBackend(name, FakeSettings(answer=text, seed=n, confidence=0.97, words=(), draft_noise=0.1))
            )
            for n, name in enumerate("ab")
        }
        report = last(await events_of(Catalog(entries), "a>a|b", mode))
        assert report.meters is not None
        passes.append(report.meters.passes)
    assert report.drafts is not None
    assert report.drafts.accepted
    assert report.drafts.settled
    assert passes[1] < passes[0] / 2


@pytest.mark.parametrize("wrong", range(40))
async def test_a_draft_may_be_wrong_anywhere(wrong: int) -> None:
    """Then the group says what it would have said."""
    text = TEXTS[0]
    rng = random.Random(wrong)
    state, found = rng.getstate(), []
    for mode in ("off", "on"):
        rng.setstate(state)
        catalog = catalog_of(rng, text, 2)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("strategies.engine.fused.Copier", lambda _: Guesser(text.encode(), frozenset({wrong})))
            found.append(await events_of(catalog, "a|b", mode))
    plain, drafted = found
    assert list(map(bare, plain)) == list(map(bare, drafted))
    before, after = last(plain).meters, last(drafted).meters
    assert before is not None
    assert after is not None
    assert after.passes < before.passes


async def test_a_member_that_fails_in_a_draft_leaves_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    text = TEXTS[0]
    monkeypatch.setattr("strategies.engine.fused.Copier", lambda _: Guesser(text.encode(), frozenset()))
    fault = Fault(on="token", of="session", after=1)  # the first pass after the prompt is a draft
    for failing in ("fail", "drop"):
        entries = {
            name: Entry(FakeBackend(name, FakeSettings(answer=text, faults=(fault,) if name == "b" else ())))
            for name in "abc"
        }
        run_it = events_of(Catalog(entries), "a|b|c", "on", on_member_failure=failing)
        if failing == "fail":
            with pytest.raises(BackendError, match="fails as scripted"):
                await run_it
            continue
        report = last(await run_it)
        assert [(gone.model, gone.piece) for gone in report.dropped] == [("b", 1)]
        assert report.drafts is not None
        assert report.drafts.accepted > 0
        plain = last(await events_of(Catalog({n: e for n, e in entries.items() if n != "b"}), "a|c", "off"))
        assert report.branches[0].usage == plain.branches[0].usage


async def test_a_draft_that_does_not_fit_ends_nothing_early(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "the answer is 12. " * 10
    monkeypatch.setattr("strategies.engine.fused.Copier", lambda _: Guesser(text.encode(), frozenset()))
    found = []
    for mode in ("off", "on"):
        entries = {name: Entry(FakeBackend(name, FakeSettings(answer=text, context=60))) for name in "ab"}
        found.append(await events_of(Catalog(entries), "a|b", mode))
    assert last(found[0]).finish_reason == "length"
    assert list(map(bare, found[0])) == list(map(bare, found[1]))


async def test_whoever_takes_no_drafts_is_stepped() -> None:
    entries = {name: Entry(FakeBackend(name, FakeSettings(answer=TEXTS[0], draft_noise=None))) for name in "ab"}
    report = last(await events_of(Catalog(entries), "a|b", "on"))
    assert report.drafts is None


async def test_nothing_is_told_of_a_noisy_draft() -> None:
    """Log-probabilities, draws and forms are of single steps: such an answer is written without drafts."""
    for asked in ({"logprobs": 1}, {"sampling": Sampling(temperature=1.0, seed=1)}, {"constraint": JSON}):
        entries = {name: Entry(FakeBackend(name, FakeSettings(answer=TEXTS[0], draft_noise=0.1))) for name in "ab"}
        assert last(await events_of(Catalog(entries), "a|b", "on", **asked)).drafts is None  # type: ignore[arg-type]


async def test_a_second_stage_copies_the_first() -> None:
    """The real proposer: what the first stage wrote is read ahead, and nearly all of it is said."""
    text = "The answer is 12 because 中国 is the answer, and that is it. " * 3
    plain, drafted = [
        await events_of(
            Catalog({name: Entry(FakeBackend(name, FakeSettings(answer=text))) for name in "ab"}), "a>a|b", mode
        )
        for mode in ("off", "on")
    ]
    assert list(map(bare, plain)) == list(map(bare, drafted))
    before, after, report = last(plain).meters, last(drafted).meters, last(drafted).drafts
    assert before is not None
    assert after is not None
    assert report is not None
    assert report.accepted > 0.9 * report.proposed > 0
    assert after.passes < before.passes / 4
