"""A text that ends because somebody has no room for more ends in the same way whether the others were waited for or not."""

from __future__ import annotations

from dataclasses import replace

import anyio
import pytest
from comparing import bare, events_of, last

from backends.catalog import Catalog, Entry
from backends.fake import FakeBackend, FakeSettings, Fault

pytestmark = pytest.mark.anyio

TEXT = "The answer is 12 because 中国 is the answer, and there are two of them. " * 4
ROOM = 60
"""Tokens of a context that is full in the middle of the text, at the same piece for all: their tokens are the same."""


def group(second: int, noise: float | None, *faults: Fault) -> Catalog:
    """Three that agree: the first one's context is full before the text ends, and the last one is late. second: the context of the second
    one, whose the faults are."""
    entries = {}
    for number, (name, room, delay) in enumerate(zip("abc", (ROOM, second, 4096), (0.001, 0.0012, 0.004), strict=True)):
        mine = faults if name == "b" else ()
        value = FakeSettings(
            answer=TEXT, seed=number, confidence=0.9, delay=delay, context=room, draft_noise=noise, faults=mine
        )
        entries[name] = Entry(FakeBackend(name, value))
    return Catalog(entries)


@pytest.mark.parametrize("noise", [None, 0.0])
@pytest.mark.parametrize("second", [ROOM, 4096])
async def test_a_full_context_ends_the_answer_as_in_lock_step(second: int, noise: float | None) -> None:
    """Though two are full at once; and who was behind has said all of the text in the end."""
    plain, early = [await events_of(group(second, noise), "a|b|c", "off", quorum=mode) for mode in ("off", "auto")]
    assert last(plain).finish_reason == "length"
    assert list(map(bare, plain)) == list(map(bare, early))
    report = last(early).quorum
    assert report is not None
    assert report.pieces > 0


@pytest.mark.parametrize("action", ["raise", "hang"])
async def test_a_step_to_a_piece_that_is_not_said_ends_nothing(action: str) -> None:
    """Whoever still makes it when another one's context is full need not come to its end: it is called off in lock-step, too."""
    made = group(4096, None)
    plain = await events_of(made, "a|b|c", "off")
    backend = made["b"].backend
    assert isinstance(backend, FakeBackend)
    fault = Fault(after=backend.counters.passes, action=action)  # type: ignore[arg-type]
    with anyio.fail_after(20):
        early = await events_of(group(4096, None, fault), "a|b|c", "off", quorum="auto")
    assert list(map(bare, plain)) == list(map(bare, early))


WORDS = (
    "The an",
    "answer is",
    " answer",
    " because ",
    "中国",
    " there",
    " two of",
    " them",
    "h",
    "th",
    " th",
    "is ",
    "is t",
)


@pytest.mark.parametrize("room", range(56, 70, 2))
async def test_how_much_was_said_is_no_matter_of_time(room: int) -> None:
    """Whether the others' steps to the piece that is not said were over by then changes no figure: members of two tokenizers."""
    found = []
    for slow, drafts, quorum in (
        (0.0, "off", "off"),
        (0.001, "off", "off"),
        (0.001, "off", "auto"),
        (0.0, "always", "off"),
        (0.01, "always", "auto"),
    ):
        entries = {}
        for number, name in enumerate("abc"):
            value = FakeSettings(
                answer=TEXT, seed=number, confidence=0.6, recall=False, context=4096 if number else room
            )
            value = replace(value, words=None if number == 1 else WORDS, delay=slow if number == 2 else 0.0)
            entries[name] = Entry(FakeBackend(name, value))
        found.append(last(await events_of(Catalog(entries), "a|b|c", drafts, quorum=quorum, top_k=2)))
    assert found[0].finish_reason == "length"
    assert len({tuple(branch.usage for branch in report.branches) for report in found}) == 1
