"""A member that fails or is late: the group fails with it, or goes on without it and says so."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from backends.catalog import Catalog, Entry
from backends.errors import BackendError, BackendOverloaded, BackendTimeout, BackendUnavailable, ContextTooLong
from backends.fake import FakeBackend, FakeSettings, Fault
from backends.types import Message, Sampling
from strategies.engine import Options, run
from strategies.engine.events import Delta, Event, Finished, MemberDropped, Recorded
from strategies.planning.planner import plan
from strategies.prompting import PromptSet
from strategies.topology import parse

pytestmark = pytest.mark.anyio

PROMPTS = PromptSet.from_mapping("test", {"default": {"solver": "", "reviewer": "{answer}", "verifier": "{answer}"}})
FUSERS = ["linear", "geometric", "gated:threshold=0.99", "entropy-weighted", "union-top-k"]
TEXT = "one two three four five"


class NoVocabulary(FakeBackend):
    """Can't say what its tokens are."""

    async def vocabulary(self) -> Any:
        raise BackendUnavailable(self.name, "Model 'a' is away.")


def group(*faults: Fault, others: str = TEXT, kind: type[FakeBackend] = FakeBackend, **settings: Any) -> Catalog:
    """Three models; the first has the faults, and says something else than the others."""
    return Catalog(
        {
            "a": Entry(kind("a", FakeSettings(answer="ten eleven twelve", faults=faults, **settings))),
            "b": Entry(FakeBackend("b", FakeSettings(answer=others))),
            "c": Entry(FakeBackend("c", FakeSettings(answer=others, words=("one", " th", "ree"), seed=1))),
        }
    )


async def events_of(catalog: Catalog, wiring: str = "a*9|b|c", **options: Any) -> list[Event]:
    made = plan(parse(wiring).topology, catalog)
    asked = Options(prompts=PROMPTS, **{"on_member_failure": "drop", **options})
    try:
        async with run(made, [Message("user", "Hi")], asked, catalog) as events:
            return [event async for event in events]
    finally:
        for entry in catalog.values():
            assert isinstance(entry.backend, FakeBackend)
            assert entry.backend.counters.sessions == 0
            assert entry.backend.counters.opened == entry.backend.counters.closed


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def finished(events: list[Event]) -> Finished:
    assert isinstance(events[-1], Finished)
    return events[-1]


@pytest.mark.parametrize("fuser", FUSERS)
@pytest.mark.parametrize("fault", [Fault(on="enter"), Fault(after=0)], ids=["enter", "first"])
async def test_a_member_that_fails_before_it_speaks_has_no_say(fault: Fault, fuser: str) -> None:
    """The others write what they would write alone, and the report says who is missing since when and why."""
    events = await events_of(group(fault), fuser=fuser)
    assert text_of(events) == TEXT
    (dropped,) = finished(events).stages[0].dropped
    assert (dropped.branch, dropped.model, dropped.piece, dropped.late) == (0, "a", 0, False)
    assert dropped.reason == "Model 'a' fails as scripted (BackendUnavailable)."
    assert [event.dropped for event in events if isinstance(event, MemberDropped)] == [dropped]
    assert [type(event) for event in events].index(MemberDropped) < [type(event) for event in events].index(Delta)


@pytest.mark.parametrize("fuser", FUSERS)
async def test_a_member_may_fail_in_the_middle(fuser: str) -> None:
    events = await events_of(group(Fault(after=3)), fuser=fuser, record=True)
    report = finished(events).stages[0]
    (dropped,) = report.dropped
    assert 0 < dropped.piece <= 3
    assert text_of(events).startswith("ten")
    assert finished(events).finish_reason == "stop"
    records = [event for event in events if isinstance(event, Recorded)]
    assert all(record.members[0] is not None for record in records[: dropped.piece])
    assert all(record.members[0] is None for record in records[dropped.piece :])
    assert report.branches[0].usage.prompt_tokens > 0
    assert report.branches[0].usage.completion_tokens > 0
    assert [round(branch.weight or 0, 3) for branch in report.branches] == [0.818, 0.091, 0.091]


async def test_after_a_drop_the_weights_of_the_others_add_up_to_one() -> None:
    """What a record tells of the pooled probability is that of the members that are left."""
    events = await events_of(group(Fault(after=2)), "a*9|b*2|c*1", record=True)
    records = [event for event in events if isinstance(event, Recorded)]
    piece = finished(events).stages[0].dropped[0].piece
    for record in records[piece:]:
        own = [p for p in record.members if p is not None]
        assert len(own) == 2
        assert abs(record.probability - (2 * own[0] + own[1]) / 3) < 1e-9


@pytest.mark.parametrize("fuser", FUSERS)
@pytest.mark.parametrize("after", [0, 3])
async def test_a_member_that_hangs_is_late(fuser: str, after: int) -> None:
    """Its place is free at once, though the stage goes on."""
    catalog = group(Fault(after=after, action="hang"))
    with anyio.fail_after(10):
        events = await events_of(catalog, fuser=fuser, member_seconds=0.02)
    (dropped,) = finished(events).stages[0].dropped
    assert dropped.late
    assert "took longer than" in dropped.reason
    assert dropped.piece <= after
    assert finished(events).finish_reason == "stop"


async def test_the_place_of_a_dropped_member_is_free_at_once() -> None:
    catalog = group(Fault(after=1))
    made = plan(parse("a|b|c").topology, catalog)
    backend = catalog["a"].backend
    assert isinstance(backend, FakeBackend)
    async with run(
        made, [Message("user", "Hi")], Options(prompts=PROMPTS, on_member_failure="drop"), catalog
    ) as events:
        async for event in events:
            if isinstance(event, Delta) and backend.counters.passes > 0 and backend.counters.sessions == 0:
                break
        else:
            pytest.fail("the session was held to the end")


async def test_a_deadline_without_leave_to_drop_fails_the_request() -> None:
    with pytest.raises(BackendTimeout, match="took longer than"):
        await events_of(group(Fault(after=2, action="hang")), on_member_failure="fail", member_seconds=0.02)
    with pytest.raises(BackendUnavailable):
        await events_of(group(Fault(after=2)), on_member_failure="fail")


async def test_the_first_step_may_take_longer() -> None:
    events = await events_of(group(first_delay=0.1), member_seconds=0.05)
    assert not finished(events).stages[0].dropped
    events = await events_of(group(delay=0.1), member_seconds=0.05)
    assert finished(events).stages[0].dropped


async def test_one_after_another_until_the_last_one_fails_too() -> None:
    def failing(name: str, after: int, error: str) -> Entry:
        return Entry(FakeBackend(name, FakeSettings(answer=TEXT, faults=(Fault(after=after, error=error),))))

    catalog = Catalog(
        {
            "a": failing("a", 1, "BackendTimeout"),
            "b": failing("b", 1, "BackendUnavailable"),
            "c": failing("c", 3, "BackendOverloaded"),
        }
    )
    with pytest.raises(BackendOverloaded) as caught:
        await events_of(catalog, "a|b|c")
    assert caught.value.model == "c"
    catalog = Catalog({name: failing(name, 0, "BackendUnavailable") for name in "abc"})
    with pytest.raises(BackendError):
        await events_of(catalog, "a|b|c")


async def test_a_member_without_a_vocabulary_is_dropped_too() -> None:
    events = await events_of(group(kind=NoVocabulary), record=True)
    assert text_of(events) == TEXT
    assert [d.branch for d in finished(events).stages[0].dropped] == [0]
    assert len(finished(events).stages[0].branches) == 3
    records = [event for event in events if isinstance(event, Recorded)]
    assert all(record.members[0] is None and record.members[1] is not None for record in records)
    with pytest.raises(BackendUnavailable):
        await events_of(group(kind=NoVocabulary), on_member_failure="fail")


async def test_a_member_whose_context_is_full_is_dropped_and_the_last_ones_ends_the_answer() -> None:
    events = await events_of(group(context=18))
    assert finished(events).stages[0].dropped[0].model == "a"
    assert finished(events).finish_reason == "stop"
    small = Catalog(
        {name: Entry(FakeBackend(name, FakeSettings(answer=TEXT, context=18, seed=n))) for n, name in enumerate("ab")}
    )
    events = await events_of(small, "a|b")
    assert finished(events).finish_reason == "length"
    with pytest.raises(ContextTooLong):
        await events_of(small, "a|b", sampling=Sampling(max_tokens=500))


async def test_what_the_engine_itself_gets_wrong_is_no_reason_to_drop_a_member() -> None:
    def broken(_: str) -> Exception:
        return RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        await events_of(group(Fault(after=1, error=broken)))
