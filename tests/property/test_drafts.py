"""Reading ahead changes the number of passes and nothing else: whatever is guessed, whatever is asked for, whatever goes wrong."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import anyio
import pytest
from comparing import ASKED, JSON, TEXTS, WORDS, bare, catalog_of, events_of, last, told
from hypothesis import example, given, settings
from hypothesis import strategies as st

from backends.catalog import Catalog, Entry
from backends.errors import BackendError
from backends.fake import FakeBackend, FakeSettings, Fault
from backends.passtimes import PassTimes
from backends.types import Sampling
from backends.wrappers import Guard, Policy, Watcher, guarded
from strategies.engine.drafting import Pace
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
    for mode in ("off", "always"):
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
    for mode in ("off", "always"):
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
    for mode in ("off", "always"):
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
    for mode in ("off", "always"):
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
    left: list[int] = []
    monkeypatch.setattr("strategies.engine.drafting.Pace.left", lambda self, member: left.append(member))
    for failing in ("fail", "drop"):
        entries = {
            name: Entry(FakeBackend(name, FakeSettings(answer=text, faults=(fault,) if name == "b" else ())))
            for name in "abc"
        }
        run_it = events_of(Catalog(entries), "a|b|c", "always", on_member_failure=failing)
        if failing == "fail":
            with pytest.raises(BackendError, match="fails as scripted"):
                await run_it
            continue
        report = last(await run_it)
        assert [(gone.model, gone.piece) for gone in report.dropped] == [("b", 1)]
        assert left == [1]  # its passes are no more reckoned with
        assert report.drafts is not None
        assert report.drafts.accepted > 0
        plain = last(await events_of(Catalog({n: e for n, e in entries.items() if n != "b"}), "a|c", "off"))
        assert report.branches[0].usage == plain.branches[0].usage


async def test_a_member_that_fails_on_its_way_to_a_draft_leaves_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """It alone was to read it, and has a place to visit before: wherever it fails, the other one goes on."""
    words = ("The an", "answer is", " answer", " because ", "中国", " there", "h", "th", " th", "is ", "is t")
    text = "The answer is 12 because 中国 is the answer, and there are two of them."
    script = text[:60].encode()
    monkeypatch.setattr("strategies.engine.fused.Copier", lambda _: Guesser(script, frozenset()))
    for after in range(3, 40):
        fault = Fault(of="session", after=after)
        values = (
            FakeSettings(answer=text, seed=1, confidence=0.6, faults=(fault,)),
            FakeSettings(answer=text, seed=2, confidence=0.6, words=words),
        )
        entries = {name: Entry(FakeBackend(name, value)) for name, value in zip("ab", values, strict=True)}
        report = last(await events_of(Catalog(entries), "a|b", "always", on_member_failure="drop"))
        assert [gone.model for gone in report.dropped] in ([], ["a"])


@pytest.mark.parametrize(
    ("room", "times"), [*((room, 10) for room in range(56, 72)), *((room, 5) for room in range(53, 68))]
)
async def test_a_draft_that_does_not_fit_ends_nothing_early(
    room: int, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it asked for, so that nothing is counted as an error that is none. The shorter text just fits."""
    text = "the answer is 12. " * times
    monkeypatch.setattr("strategies.engine.fused.Copier", lambda _: Guesser(text.encode() * 2, frozenset()))
    found, ears = [], (Ear(), Ear())
    for mode, ear in zip(("off", "always"), ears, strict=True):
        backends = [FakeBackend(name, FakeSettings(answer=text, context=room)) for name in "ab"]
        entries = {one.name: Entry(guarded(one, Guard(one.name, Policy(), ear))) for one in backends}
        found.append(await events_of(Catalog(entries), "a|b", mode))
    assert last(found[0]).finish_reason == ("length" if times > 5 else "stop")
    assert list(map(bare, found[0])) == list(map(bare, found[1]))
    assert ears[0].failed_with == ears[1].failed_with  # that the text ends for want of room is one
    report = last(found[1]).drafts
    assert report is not None
    assert report.spared > 20  # up to the end


class Ear(Watcher):
    """Hears what counts as an error."""

    def __init__(self) -> None:
        self.failed_with: list[str] = []

    def failed(self, model: str, cause: str) -> None:
        self.failed_with.append(cause)


@pytest.mark.parametrize("after", [1, 2])
async def test_a_draft_that_hangs_is_not_waited_for_longer_than_a_step(
    after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for what its passes were seen to take longer."""
    text = "the answer is 12. " * 10
    monkeypatch.setattr("strategies.engine.fused.Copier", lambda _: Guesser(text.encode(), frozenset({3})))
    fault = Fault(of="session", after=after, action="hang")
    entries = {
        name: Entry(FakeBackend(name, FakeSettings(answer=text, faults=(fault,) if name == "b" else ())))
        for name in "abc"
    }
    for entry in entries.values():
        entry.times.took(1, 0.001)
        entry.times.took(17, 0.003)
    with anyio.fail_after(3):
        events = await events_of(Catalog(entries), "a|b|c", "always", member_seconds=0.3, on_member_failure="drop")
    (gone,) = last(events).dropped
    assert gone.late
    assert "longer than 0.30" in gone.reason


@pytest.mark.parametrize("recall", [True, False])
async def test_a_round_that_needed_a_pass_for_what_it_looked_up_is_not_spared(
    recall: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where earlier places of a draft can't be asked about, each one of these is stepped again."""
    text = TEXTS[0]
    monkeypatch.setattr("strategies.engine.fused.Copier", lambda _: Guesser(text.encode(), frozenset()))
    passes = []
    for mode in ("off", "always"):
        entries = {
            name: Entry(FakeBackend(name, FakeSettings(answer=text, seed=n, recall=recall)))
            for n, name in enumerate("ab")
        }
        report = last(await events_of(Catalog(entries), "a|b", mode, logprobs=5, top_k=20))
        assert report.meters is not None
        passes.append(report.meters.passes)
    assert report.drafts is not None
    assert (report.drafts.spared > 10) == recall
    assert 2 * report.drafts.spared <= max(0, passes[0] - passes[1])


async def test_whoever_takes_no_drafts_is_stepped() -> None:
    entries = {name: Entry(FakeBackend(name, FakeSettings(answer=TEXTS[0], draft_noise=None))) for name in "ab"}
    report = last(await events_of(Catalog(entries), "a|b", "always"))
    assert report.drafts is None


@pytest.mark.parametrize("mode", ["auto", "on", "always"])
@pytest.mark.parametrize("slower", [False, True])
async def test_drafts_that_take_a_pass_for_each_token_are_made_only_beside_slower_members(
    mode: str, slower: bool
) -> None:
    """They are made while the group waits anyway then; or because they are asked for."""
    singly = {"answer": "The answer is 12. " * 8, "reads_singly": True}
    settings = {"a": singly, "b": {**singly, "reads_singly": False, "delay": 0.01} if slower else singly}
    said: list[list[Event]] = []
    for drafts in ("off", mode):
        entries = {name: Entry(FakeBackend(name, FakeSettings(**its))) for name, its in settings.items()}  # type: ignore[arg-type]
        said.append(await events_of(Catalog(entries), "a|b", drafts))
    assert [bare(event) for event in said[0]] == [bare(event) for event in said[1]]
    report = last(said[1]).drafts
    assert report is not None
    assert (report.accepted > 0) == (slower or mode == "always")


async def test_nothing_is_told_of_a_noisy_draft() -> None:
    """Log-probabilities, draws and forms are of single steps: such an answer is written without drafts."""
    for asked in ({"logprobs": 1}, {"sampling": Sampling(temperature=1.0, seed=1)}, {"constraint": JSON}):
        entries = {name: Entry(FakeBackend(name, FakeSettings(answer=TEXTS[0], draft_noise=0.1))) for name in "ab"}
        assert last(await events_of(Catalog(entries), "a|b", "always", **asked)).drafts is None  # type: ignore[arg-type]


@pytest.mark.parametrize("noise", [0.0, 0.0005, 0.1])
@pytest.mark.parametrize("mode", ["auto", "on", "always"])
async def test_drafts_that_never_fit_are_given_up_unless_they_always_are_to_be_made(
    mode: str, noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise keeps `auto` from making any, unless it is negligible."""
    text = "The answer is 12. " * 8
    monkeypatch.setattr("strategies.engine.fused.Copier", lambda _: Guesser(text.encode(), frozenset(range(len(text)))))
    monkeypatch.setattr("strategies.engine.fused.Pace", Metronomic)
    entries = {name: Entry(FakeBackend(name, FakeSettings(answer=text, draft_noise=noise))) for name in "ab"}
    report = last(await events_of(Catalog(entries), "a|b", mode))
    if mode == "auto" and noise == 0.1:
        assert report.drafts is None
        return
    assert report.drafts is not None and report.meters is not None
    assert report.drafts.accepted == 0
    # In steps: what longer passes took longer, and the steps that were made again behind noisy ones.
    cost = report.drafts.proposed / 2 / 16 + (report.drafts.passes if noise == 0.1 else 0)
    most = (3 if noise == 0.1 else 1) + 0.02 * report.meters.pieces
    assert cost > 5 * most if mode == "always" else report.drafts.passes and cost <= most


class Metronomic(Pace):
    """One that is told of passes that take twice as long over 17 tokens as over one."""

    def __init__(self, times: Sequence[PassTimes], **settings: Any) -> None:
        even = [PassTimes() for _ in times]
        for each in even:
            for tokens in (1, 2, 17):
                each.took(tokens, self.took(tokens))
        super().__init__(even, **settings)

    def drafted(self, by: str, tokens: int, confirmed: int, spared: int, seconds: float) -> None:
        super().drafted(by, tokens, confirmed, spared, self.took(tokens + 1))

    @staticmethod
    def took(tokens: int) -> float:
        return 0.01 * (1 + (tokens - 1) / 16)


async def test_a_second_stage_copies_the_first() -> None:
    """The real proposer: what the first stage wrote is read ahead, and nearly all of it is said."""
    text = "The answer is 12 because 中国 is the answer, and that is it. " * 3
    plain, drafted = [
        await events_of(
            Catalog({name: Entry(FakeBackend(name, FakeSettings(answer=text))) for name in "ab"}), "a>a|b", mode
        )
        for mode in ("off", "always")
    ]
    assert told(plain) == told(drafted)
    before, after, report = last(plain).meters, last(drafted).meters, last(drafted).drafts
    assert before is not None
    assert after is not None
    assert report is not None
    assert report.accepted > 0.9 * report.proposed > 0
    assert after.passes < before.passes / 4
