"""Not waiting for everybody changes the time that an answer takes, and nothing else: whoever is late, whatever goes wrong."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import anyio
import comparing
import pytest
from comparing import PROMPTS, TEXTS, WORDS, bare, last
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.catalog import Catalog, Entry
from backends.errors import BackendError
from backends.fake import FakeBackend, FakeSettings, Fault
from backends.types import Message, Sampling
from strategies.engine import Options, run
from strategies.engine.events import Delta, Event, QuorumReport
from strategies.engine.options import Constraint
from strategies.fusion import FUSERS
from strategies.fusion.quorum import QuorumPool
from strategies.planning.planner import plan
from strategies.topology import parse

pytestmark = pytest.mark.anyio

LATE = 0.003
"""Seconds that a late member's pass takes: long beside everything else here."""


@pytest.fixture(autouse=True)
def _no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is late is late: the tests need not wait longer for it than the group does."""
    monkeypatch.setattr("strategies.engine.quorum.LEAST", 0.0)


def catalog_of(rng: random.Random, text: str, members: int, late: Sequence[float], **fields: Any) -> Catalog:
    """Members that say nearly the same, with vocabularies of their own. late: seconds of a pass of each."""
    entries = {}
    for number in range(members):
        words = tuple(rng.sample(WORDS, rng.randint(4, len(WORDS))))
        value = FakeSettings(
            answer=text,
            seed=rng.randint(0, 99),
            confidence=rng.choice((0.5, 0.7, 0.9, 0.97)),
            words=words,
            delay=late[number],
        )
        name = "abcde"[number]
        entries[name] = Entry(FakeBackend(name, replace(value, **fields)))
    return Catalog(entries)


async def events_of(catalog: Catalog, wiring: str, quorum: str, *, drafts: str = "off", **options: Any) -> list[Event]:
    return await comparing.events_of(catalog, wiring, drafts, quorum=quorum, **options)


def text_of(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def quorum_of(events: Sequence[Event]) -> QuorumReport:
    report = last(events).quorum
    assert report is not None
    return report


async def both(rng: random.Random, make: Any, wiring: str, **options: Any) -> tuple[list[Event], list[Event]]:
    """The answer of the same group, with and without waiting for everybody."""
    state, found = rng.getstate(), []
    for mode in ("off", "auto"):
        rng.setstate(state)
        found.append(await events_of(make(rng), wiring, mode, **options))
    return found[0], found[1]


ASKED: tuple[dict[str, Any], ...] = (
    {},
    {"sampling": Sampling(stop=("answer is",))},
    {"sampling": Sampling(stop=("国 is t", "👍"))},
    {"sampling": Sampling(max_tokens=7)},
    {"top_k": 3},
    {"top_k": 2, "sampling": Sampling(max_tokens=60)},
    {"top_k": 1, "sampling": Sampling(max_tokens=60)},
    {"drafts": "auto"},
    {"drafts": "always"},
)
WEIGHTS = (
    "{0}|{1}|{2}",
    "{0}*2|{1}|{2}",
    "{0}|{1}*3|{2}*2",
    "{0}*5|{1}|{2}",
    "{0}*3|{1}",
    "{0}|{1}|{2}|{0}",
    "{2}*4|{1}*2|{0}|{0}",
)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**9),
    asked=st.sampled_from(ASKED),
    wiring=st.sampled_from(WEIGHTS),
    late=st.lists(st.sampled_from((0.0, LATE / 3, LATE)), min_size=3, max_size=3),
    fields=st.sampled_from(
        ({}, {"draft_noise": None}, {"draft_noise": 0.3}, {"lookup": False}, {"recall": False}, {"max_k": 4})
    ),
)
async def test_everything_is_told_as_in_lock_step(
    seed: int, asked: dict[str, Any], wiring: str, late: list[float], fields: dict[str, Any]
) -> None:
    rng = random.Random(seed)
    text = rng.choice(TEXTS)
    if asked.get("drafts") == "always" and fields.get("draft_noise"):
        asked = {**asked, "drafts": "auto"}  # what is scored with noise is no lock-step
    plain, early = await both(rng, lambda rng: catalog_of(rng, text, 3, late, **fields), wiring.format(*"abc"), **asked)
    assert list(map(bare, plain)) == list(map(bare, early))
    assert last(plain).quorum is None
    assert quorum_of(early).lag <= 16


async def slow(confidence: float = 0.97, **fields: Any) -> tuple[list[Event], list[Event]]:
    """A long answer of three that agree, of whom one is late."""

    def make(rng: random.Random) -> Catalog:
        return catalog_of(rng, "The answer is 12 because 中国 is the answer. " * 3, 3, (0.0, 0.0, LATE), **fields)

    return await both(random.Random(5), make, "a|b|c")


@pytest.mark.parametrize("noise", [0.0, None, 0.4])
async def test_the_group_does_not_wait(noise: float | None) -> None:
    """Most pieces are said without the late one, which reads what it missed at once where that gives the same digits."""
    plain, early = await slow(confidence=0.97, draft_noise=noise)
    report = quorum_of(early)
    assert report.pieces > 10
    assert 1 < report.lag <= 16
    before, after = last(plain).meters, last(early).meters
    assert before is not None
    assert after is not None
    if noise == 0.0:
        assert after.passes < before.passes - 10
    else:
        assert before.passes - 2 <= after.passes <= before.passes  # nobody need be asked for the end


async def test_a_wrong_bound_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison can fail: if nobody missing had a weight, some text would change."""
    monkeypatch.setattr(QuorumPool, "_absent_weight", lambda self, weights: 0.0)
    for seed in range(30):
        rng = random.Random(seed)
        text = rng.choice(TEXTS)

        def make(rng: random.Random, text: str = text) -> Catalog:
            catalog = catalog_of(rng, text, 3, (0.0, 0.0, LATE))
            other = FakeSettings(answer=text.replace("answer", "end"), confidence=0.97, delay=LATE)
            return Catalog({**catalog, "c": Entry(FakeBackend("c", other))})

        plain, early = await both(rng, make, "a|b|c*3", sampling=Sampling(max_tokens=40))
        if text_of(plain) != text_of(early):
            return
    pytest.fail("no text changed")


async def widened(monkeypatch: pytest.MonkeyPatch, *, careful: bool) -> tuple[int, int, int]:
    """Over some groups whose lists are short and soon become longer: answers that were not told as in lock-step, pieces said early, times
    that lists became longer."""
    for name, value in (("WATCHED", 4), ("UNCERTAIN", 0.1), ("WIDEST", 64)):
        monkeypatch.setattr(f"strategies.engine.group.{name}", value)
    if not careful:
        monkeypatch.setattr("strategies.engine.group.Group._may_widen", lambda self, quorum: False)
    differ = early = widened = 0
    for seed in range(8):
        rng, text = random.Random(seed), TEXTS[seed % 3]
        plain, other = await both(
            rng,
            lambda rng, text=text: catalog_of(rng, text, 3, (0.0, 0.0, LATE / 3), confidence=0.8),
            "a*3|b*3|c",
            top_k=1,
            sampling=Sampling(max_tokens=40),
        )
        differ += list(map(bare, plain)) != list(map(bare, other))
        early += quorum_of(other).pieces
        meters = last(plain).meters
        assert meters is not None
        widened += meters.widened
    return differ, early, widened


async def test_lists_become_longer_at_the_same_place_for_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    differ, early, times = await widened(monkeypatch, careful=True)
    assert not differ
    assert early > 10
    assert times > 10


async def test_lists_that_become_longer_somewhere_else_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    differ, _, _ = await widened(monkeypatch, careful=False)
    assert differ


@pytest.mark.parametrize(
    "asked",
    [
        {"sampling": Sampling(temperature=0.9, seed=7, max_tokens=10)},
        {"sampling": Sampling(frequency_penalty=0.3, max_tokens=10)},
        {"sampling": Sampling(logit_bias={70: 2.0}, max_tokens=10)},
        {"logprobs": 2, "sampling": Sampling(max_tokens=10)},
        {"record": True, "sampling": Sampling(max_tokens=10)},
        {"constraint": Constraint("regex", r"(12|the)"), "sampling": Sampling(max_tokens=10)},
        *({"fuser": name} for name in FUSERS if name != "linear"),
    ],
)
async def test_where_more_than_the_likeliest_piece_is_asked_for_all_are_waited_for(asked: dict[str, Any]) -> None:
    words = {"words": WORDS}
    plain, early = await both(
        random.Random(1), lambda rng: catalog_of(rng, TEXTS[0], 3, (0.0, 0.0, 0.001), **words), "a|b|c", **asked
    )
    assert list(map(bare, plain)) == list(map(bare, early))
    assert last(early).quorum is None


async def test_two_of_equal_weight_wait_for_each_other() -> None:
    rng = random.Random(1)
    for wiring, expected in (("a|b", None), ("a*2|b", QuorumReport)):
        events = await events_of(catalog_of(rng, TEXTS[0], 2, (0.0, LATE)), wiring, "auto")
        assert type(last(events).quorum) is (expected or type(None))


@pytest.mark.parametrize("room", [90, 260, 330, 400])
async def test_nobody_is_left_behind_whose_context_may_end(room: int) -> None:
    """Then the text ends where it would have."""
    text = "the answer is 12. " * 12

    def make(rng: random.Random) -> Catalog:
        catalog = catalog_of(rng, text, 3, (0.0, 0.0, LATE / 3), confidence=0.97, words=("the",))
        value = FakeSettings(answer=text, words=(" is",), delay=LATE / 3, context=room, confidence=0.97)
        return Catalog({**catalog, "c": Entry(FakeBackend("c", value))})

    plain, early = await both(random.Random(2), make, "a|b|c")
    assert list(map(bare, plain)) == list(map(bare, early))
    assert last(plain).finish_reason == ("length" if room < 250 else "stop")
    assert (quorum_of(early).pieces > 0) == (room >= 330)


async def test_a_member_that_does_not_say_what_it_can_read_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.fake.session.FakeSession.context", None)
    plain, early = await slow()
    assert list(map(bare, plain)) == list(map(bare, early))
    assert quorum_of(early) == QuorumReport()


def failing(*faults: Fault, late: float = LATE) -> Catalog:
    """Three that agree; the last one is late, and fails."""
    text = "The answer is 12 because 中国 is the answer. " * 2
    entries = {}
    for n, name in enumerate("abc"):
        mine = n == 2
        value = FakeSettings(
            answer=text, seed=n, confidence=0.97, delay=late if mine else 0.0, faults=faults if mine else ()
        )
        entries[name] = Entry(FakeBackend(name, value))
    return Catalog(entries)


@pytest.mark.parametrize("after", [0, 1, 2, 5, 20])
async def test_who_fails_while_it_is_behind_has_left_where_it_would_have(after: int) -> None:
    """Fails before it has anything to catch up with, and step by step later: at the same piece, with the same text and meters."""
    fault = Fault(on="token", of="session", after=after)
    found = []
    for mode in ("off", "auto"):
        catalog = failing(fault)
        for entry in catalog.values():
            assert isinstance(entry.backend, FakeBackend)
            entry.backend.settings = replace(entry.backend.settings, draft_noise=None)
        found.append(await events_of(catalog, "a|b|c", mode, on_member_failure="drop"))
    plain, early = found
    assert text_of(plain) == text_of(early)
    assert bare(plain[-1]) == bare(early[-1])
    assert [gone.model for gone in last(early).dropped] == ["c"]


@pytest.mark.parametrize("action", ["raise", "hang"])
async def test_a_member_that_fails_behind_the_others_fails_the_request(action: Any) -> None:
    fault = Fault(on="token", of="session", after=3, action=action)
    with pytest.raises(BackendError, match=r"fails as scripted|took longer"):
        await events_of(failing(fault), "a|b|c", "auto", member_seconds=0.1)


@pytest.mark.parametrize("after", [1, 3, 6])
async def test_a_member_that_hangs_behind_the_others_is_late(after: int) -> None:
    fault = Fault(on="token", of="session", after=after, action="hang")
    with anyio.fail_after(20):
        events = await events_of(failing(fault), "a|b|c", "auto", member_seconds=0.05, on_member_failure="drop")
    (gone,) = last(events).dropped
    assert gone.late
    assert gone.piece <= 17 * after  # each pass before reads what was missed: as far as it may be behind, and one
    assert text_of(events) == text_of(await events_of(failing(), "a|b", "off"))


async def test_what_the_engine_gets_wrong_in_a_task_of_its_own_is_no_members_failure() -> None:
    def broken(_: str) -> Exception:
        return RuntimeError("a bug")

    for after in (0, 3):
        with pytest.raises(RuntimeError, match="a bug"):
            await events_of(failing(Fault(after=after, error=broken)), "a|b|c", "auto", on_member_failure="drop")


@pytest.mark.parametrize("deltas", [0, 1, 4])
async def test_a_client_that_leaves_leaves_nothing_running(deltas: int) -> None:
    """While somebody is behind, in the middle of a pass."""
    catalog = failing(late=30.0)
    made = plan(parse("a|b|c").topology, catalog)
    backend = catalog["c"].backend
    assert isinstance(backend, FakeBackend)
    with anyio.fail_after(10):
        async with run(made, [Message("user", "Say it")], Options(prompts=PROMPTS, quorum="auto"), catalog) as events:
            seen = 0
            async for event in events:
                seen += isinstance(event, Delta)
                if seen > deltas:
                    break
    for entry in catalog.values():
        assert isinstance(entry.backend, FakeBackend)
        assert entry.backend.counters.sessions == 0


async def test_late_members_are_waited_for_when_they_are_too_far_behind() -> None:
    """A member that never answers is behind by the limit, not more."""
    catalog = failing(late=30.0)
    made = plan(parse("a|b|c").topology, catalog)
    seen: list[Event] = []
    with anyio.move_on_after(1.0):
        async with run(made, [Message("user", "Say it")], Options(prompts=PROMPTS, quorum="auto"), catalog) as events:
            async for event in events:
                seen.append(event)
    backend = catalog["a"].backend
    assert isinstance(backend, FakeBackend)
    assert 10 < backend.counters.passes <= 18
    assert text_of(seen)


async def test_drafts_are_read_by_all_and_nobody_waits_between_them() -> None:
    """Both at once: what repeats is read ahead by everybody, what is new is said without the late one."""
    text = "One of them is new. The answer is 12 because 中国 is the answer, and that is it. " * 2

    def make(rng: random.Random) -> Catalog:
        return Catalog(
            {
                name: Entry(
                    FakeBackend(name, FakeSettings(answer=text, confidence=0.97, delay=0.002 if n < 2 else 0.01))
                )
                for n, name in enumerate("abc")
            }
        )

    plain, early = await both(random.Random(1), make, "a|b|c", drafts="always")
    assert list(map(bare, plain)) == list(map(bare, early))
    drafts = last(early).drafts
    assert drafts is not None
    assert drafts.spared > 10  # the second half is the first one again
    assert quorum_of(early).pieces > 5
    assert (last(early).waited or 0.0) < last(early).seconds  # no moment twice


class NeverFits:
    """Guesses what nobody says."""

    def guess(self, said: bytes, most: int) -> bytes:
        return (b" zq" * most)[:most]


async def test_drafts_do_not_cost_what_not_waiting_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    """That a draft costs the late one no more than a step does not make it cheap for a group that waits for no step of it."""
    monkeypatch.setattr("strategies.engine.fused.Copier", lambda _: NeverFits())
    text = "The answer is 12 because 中国 is the answer, and there are two of them. " * 4

    def make(rng: random.Random) -> Catalog:
        values = [
            FakeSettings(answer=text, seed=n, confidence=0.9, delay=d) for n, d in enumerate((0.004, 0.004, 0.012))
        ]
        return Catalog({name: Entry(FakeBackend(name, value)) for name, value in zip("abc", values, strict=True)})

    _, early = await both(random.Random(1), make, "a|b|c", drafts="auto", sampling=Sampling(max_tokens=60))
    drafts = last(early).drafts
    assert drafts is not None
    assert drafts.passes < 10
    assert quorum_of(early).pieces > 30
