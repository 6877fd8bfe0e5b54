"""The fastest member runs ahead: the others read what it says several tokens at a time, and the text is the same."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import anyio
import pytest
from comparing import ASKED, TEXTS, bare, catalog_of, events_of, last

from backends.catalog import Catalog, Entry
from backends.errors import BackendError
from backends.fake import FakeBackend, FakeSettings, Fault
from backends.types import Sampling
from strategies.engine.drafting import Ahead, Leader
from strategies.fusion import FUSERS

pytestmark = pytest.mark.anyio

SLOW = 0.002
"""Seconds of a slow member's pass; the fast one's takes none."""


class NoGuess:
    """Copies nothing."""

    def guess(self, said: bytes, most: int) -> bytes:
        return b""


@pytest.fixture(autouse=True)
def only_leading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strategies.engine.fused.Copier", lambda _: NoGuess())


def slowed(catalog: Catalog, *quick: str, **fields: Any) -> Catalog:
    """The same members, all but some of them slow."""
    entries = {}
    for name, entry in catalog.items():
        assert isinstance(entry.backend, FakeBackend)
        delay = 0.0 if name in quick else SLOW
        entries[name] = Entry(
            FakeBackend(name, replace(entry.backend.settings, delay=delay, first_delay=delay, **fields))
        )
    return Catalog(entries)


CASES = [("linear", asked) for asked in ASKED]
CASES += [(fuser, asked) for fuser in sorted(FUSERS) if fuser != "linear" for asked in (ASKED[0], ASKED[7])]


@pytest.mark.parametrize(("fuser", "asked"), CASES)
async def test_everything_is_told_as_without_a_leader(fuser: str, asked: dict[str, Any]) -> None:
    led = 0
    for seed in range(2):
        rng = random.Random(seed)
        text, members = rng.choice(TEXTS), rng.choice((2, 3))
        wiring, state, found = "|".join("abc"[:members]), rng.getstate(), []
        for mode in ("off", "always"):
            rng.setstate(state)
            catalog = slowed(catalog_of(rng, text, members, recall=bool(seed), kept_steps=2 * seed), "ab"[seed])
            found.append(await events_of(catalog, wiring, mode, fuser=fuser, **asked))
        plain, drafted = found
        assert list(map(bare, plain)) == list(map(bare, drafted))
        report = last(drafted).drafts
        assert report is not None
        assert 0 <= report.accepted <= report.proposed
        led += report.led
    assert (
        led or asked or fuser == "gated"
    )  # a gated group may ask nobody but the first, and a form leave nothing to guess


async def test_a_leader_spares_the_others_passes() -> None:
    text = "The answer is 12 because it is the answer, and that is it. " * 2
    found = []
    for mode in ("off", "always", "auto"):
        entries = {
            name: Entry(FakeBackend(name, FakeSettings(answer=text, seed=n, confidence=0.9, delay=n * SLOW)))
            for n, name in enumerate("ab")
        }
        found.append(await events_of(Catalog(entries), "a|b", mode))
    plain, always, auto = found
    assert list(map(bare, plain)) == list(map(bare, always)) == list(map(bare, auto))
    for each in (always, auto):
        report = last(each).drafts
        assert report is not None
        # How often it is far enough ahead is the machine's affair, too.
        assert report.led > 0
        assert report.accepted > report.proposed / 2
        assert report.spared > report.passes


async def test_members_that_are_equally_fast_run_ahead_of_nobody() -> None:
    entries = {name: Entry(FakeBackend(name, FakeSettings(answer=TEXTS[0], delay=SLOW))) for name in "ab"}
    report = last(await events_of(Catalog(entries), "a|b", "always")).drafts
    assert report is not None
    assert report.proposed == report.led == 0


async def test_a_noisy_group_has_no_leader() -> None:
    entries = {
        name: Entry(FakeBackend(name, FakeSettings(answer=TEXTS[0], delay=n * SLOW, draft_noise=0.1)))
        for n, name in enumerate("ab")
    }
    report = last(await events_of(Catalog(entries), "a|b", "always")).drafts
    assert report is not None
    assert report.proposed == 0


@pytest.mark.parametrize("failing", ["fail", "drop"])
async def test_a_leader_that_fails_leaves_as_ever(failing: str) -> None:
    """Its own passes are single ones; one that fails ahead of the group is its failure."""
    fault = Fault(on="token", of="session", after=9)
    entries = {
        name: Entry(FakeBackend(name, FakeSettings(answer=TEXTS[0], delay=n * SLOW, faults=() if n else (fault,))))
        for n, name in enumerate("abc")
    }
    answer = events_of(Catalog(entries), "a|b|c", "always", on_member_failure=failing)
    if failing == "fail":
        with pytest.raises(BackendError, match="fails as scripted"):
            await answer
        return
    report = last(await answer)
    assert [gone.model for gone in report.dropped] == ["a"]
    assert report.finish_reason == "stop"


@pytest.mark.parametrize("after", range(20, 26))
async def test_a_leader_reads_nothing_behind_the_last_piece(after: int) -> None:
    """What is not going to be said can't fail."""
    fault = Fault(of="session", after=after)
    entries = {
        name: Entry(
            FakeBackend(
                name,
                FakeSettings(
                    answer=TEXTS[0] * 3, seed=n, confidence=0.95, delay=n * SLOW, faults=() if n else (fault,)
                ),
            )
        )
        for n, name in enumerate("ab")
    }
    for n, name in enumerate("ab"):
        for tokens in (1, 2, 17):
            entries[name].times.took(tokens, SLOW * n + SLOW / 20)
    report = last(await events_of(Catalog(entries), "a|b", "always", sampling=Sampling(max_tokens=20)))
    assert report.drafts is not None
    assert report.drafts.led


async def test_a_leader_that_hangs_ahead_of_the_others_is_late_soon() -> None:
    """Each of its steps has as long as any other."""
    fault = Fault(of="session", after=5, action="hang")
    entries = {
        name: Entry(FakeBackend(name, FakeSettings(answer=TEXTS[0], delay=n * SLOW, faults=() if n else (fault,))))
        for n, name in enumerate("ab")
    }
    with anyio.fail_after(3):
        events = await events_of(Catalog(entries), "a|b", "always", member_seconds=0.3, on_member_failure="drop")
    assert [(gone.model, gone.late) for gone in last(events).dropped] == [("a", True)]


async def test_a_leader_without_room_ends_nothing_early() -> None:
    text = "the answer is 12. " * 10
    found = []
    for mode in ("off", "always"):
        entries = {
            name: Entry(FakeBackend(name, FakeSettings(answer=text, delay=n * SLOW, context=60)))
            for n, name in enumerate("ab")
        }
        found.append(await events_of(Catalog(entries), "a|b", mode))
    assert last(found[0]).finish_reason == "length"
    assert list(map(bare, found[0])) == list(map(bare, found[1]))


async def test_what_a_leader_says_is_not_taken_for_another_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above can fail: with rows served whatever was said before, some answer changes."""

    def beyond(self: Ahead) -> list[int]:
        return self._line[: len(self._rows)]

    def row(self: Ahead, append: Any = (), drop: int = 0) -> Any:
        at = len(self._here) - drop + len(append) - self._base
        return self._rows[at - 1] if 1 <= at <= len(self._rows) else None

    monkeypatch.setattr(Ahead, "_row", row)
    monkeypatch.setattr(Ahead, "beyond", property(beyond))
    for seed in range(30):
        rng = random.Random(seed)
        state, found = rng.getstate(), []
        for mode in ("off", "always"):
            rng.setstate(state)
            found.append(await events_of(slowed(catalog_of(rng, TEXTS[0], 2), "a"), "a|b", mode))
        if list(map(bare, found[0])) != list(map(bare, found[1])):
            return
    pytest.fail("nothing changed")


def test_nobody_leads_before_all_are_timed() -> None:
    assert not Leader([], []).chosen([])
