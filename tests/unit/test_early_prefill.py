"""Early prefill: what models are given to read while others write, when they are let go, and that no answer depends on it."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import anyio
import pytest
from reads_early import ReadsEarly

from backends.catalog import Catalog, Entry
from backends.errors import BackendUnavailable, CapabilityMissing
from backends.fake import FakeBackend, FakeSettings, Fault
from backends.types import Message
from strategies.engine import Options, Tool, Tools, run
from strategies.engine.early_prefill import BYTES, FIRST
from strategies.engine.events import Delta, Event, Finished, StageReport
from strategies.planning.planner import plan
from strategies.prompting import PASS_THROUGH, PromptSet
from strategies.topology import parse

pytestmark = pytest.mark.anyio

PROMPTS = PromptSet.from_mapping(
    "test",
    {
        "default": {
            "solver": "{question}",
            "reviewer": "Q: {question} A: {answer} review",
            "verifier": "Q: {question} A: {answer} verify",
        }
    },
)
ASK = (Message("system", "Be kind."), Message("user", "six times seven"))
LONG = " ".join(f"Sentence number {n} of the draft says that six times seven is forty-two," for n in range(16))
"""Never does it look as if it might be whole."""
EVERY = BYTES * FIRST
SENTENCES = LONG.replace(",", ".")
WORDS = tuple(dict.fromkeys(re.findall(r" ?\S+", f"{LONG}{SENTENCES}")))


class Reads(ReadsEarly):
    """Keeps what it is given to read early, and everything else that begins, in order. hold: seconds that reading takes.

    until: reading lasts until this is true. errors: raised by the first calls, in turn. kept: what `prepare` returns. whole: what calls
    were said to be worth reading to the end.
    """

    def __init__(self, name: str, answer: str = "Yes.", *, hold: float = 0.0, kept: int = FIRST, **fields: Any) -> None:
        super().__init__(name, FakeSettings(answer=answer, words=WORDS, context=16_384, **fields))
        self.hold = hold
        self.kept = kept
        self.until: Callable[[], bool] = lambda: True
        self.errors: list[Exception] = []
        self.calls: list[tuple[str, tuple[Message, ...]]] = []
        self.busy = self.most = 0
        self.called_off = 0
        self.whole: list[str] = []
        self.held_at_stream: int | None = None

    async def prepare(self, messages: Sequence[Message], *, ended: bool) -> int:
        self.calls.append(("prepare", tuple(messages)))
        if ended:
            self.whole.append(messages[-1].content)
        self.busy += 1
        self.most = max(self.most, self.busy)
        try:
            await anyio.sleep(self.hold)
            while not self.until():
                await anyio.sleep(0.001)
        except anyio.get_cancelled_exc_class():
            self.called_off += 1
            raise
        finally:
            self.busy -= 1
        if self.errors:
            raise self.errors.pop(0)
        return self.kept

    def open(self, messages: Sequence[Message], **asked: Any) -> Any:
        self.calls.append(("open", tuple(messages)))
        return super().open(messages, **asked)

    def stream(self, request: Any) -> Any:
        self.held_at_stream = len(self.held)
        self.calls.append(("stream", tuple(request.messages)))
        return super().stream(request)

    @property
    def prepared(self) -> list[str]:
        """The last message of each call, as far as it is read early."""
        return [messages[-1].content for how, messages in self.calls if how == "prepare"]

    @property
    def begun(self) -> str:
        """The last message that it really read."""
        (found,) = [messages[-1].content for how, messages in self.calls if how != "prepare"]
        return found


async def events_of(
    wiring: str,
    *backends: FakeBackend,
    entry: Callable[[Entry], Entry] = lambda entry: entry,
    ask: Sequence[Message] = ASK,
    **options: Any,
) -> list[Event]:
    catalog = Catalog({backend.name: entry(Entry(backend)) for backend in backends})
    asked = Options(**{"prompts": PROMPTS, "early_prefill": "auto", "stage_max_tokens": 4096, **options})
    with anyio.fail_after(20):
        async with run(plan(parse(wiring).topology, catalog), ask, asked, catalog) as events:
            found = [event async for event in events]
    for backend in backends:
        counters = backend.counters
        assert (counters.streams, counters.sessions, counters.waiting) == (0, 0, 0)
        if isinstance(backend, Reads):
            assert not backend.busy and not backend.held
            assert backend.most <= 1  # one call at a time
    return found


def reports(events: Sequence[Event]) -> tuple[StageReport, ...]:
    return next(event for event in events if isinstance(event, Finished)).stages


def texts(events: Sequence[Event]) -> dict[int, str]:
    found: dict[int, str] = {}
    for event in events:
        if isinstance(event, Delta):
            found[event.stage] = found.get(event.stage, "") + event.text
    return found


def beginnings(reader: Reads) -> list[str]:
    """What of the answer each call showed; every one must be the beginning of what was read in the end."""
    whole = reader.begun
    head, tail = whole.split(LONG)
    answers = []
    for told in reader.prepared:
        assert told.startswith(head) and told.endswith(tail)
        answers.append(told[len(head) : len(told) - len(tail)])
        assert LONG.startswith(answers[-1])
    return answers


@pytest.mark.parametrize("wiring", ["si:a>b", "s2p:a>b|c", "p2s:a|d>b"])
async def test_a_growing_answer_is_read_while_it_is_written(wiring: str) -> None:
    a, d = Reads("a", LONG, delay=0.001), Reads("d", LONG, delay=0.001)
    b, c = Reads("b"), Reads("c")
    events = await events_of(wiring, a, b, c, d)
    last = reports(events)[-1]
    for reader in (b, c) if "c" in wiring else (b,):
        answers = beginnings(reader)
        assert len(answers) > 3 and answers[0] == "" and answers == sorted(answers, key=len)
        for shorter, longer in itertools.pairwise(answers):
            assert len(longer) - len(shorter) > EVERY - 32
        assert len(answers[-1]) > len(LONG) - 2 * EVERY
        assert all(not answer or LONG[len(answer)] == " " for answer in answers)  # words are whole
        assert [how for how, _ in reader.calls].index("prepare") == 0 and reader.calls[-1][0] != "prepare"
    assert last.prefill is not None and last.prefill.failed == 0
    assert last.prefill.prepared == len(b.prepared) + len(c.prepared) - b.called_off - c.called_off
    assert not a.prepared and not d.prepared
    assert reports(events)[0].prefill is None


@pytest.mark.parametrize("wiring", ["a>b", "a>b|c"])
async def test_what_may_be_whole_is_read_to_the_end(wiring: str) -> None:
    """After each sentence; the last of them is what the stage reads, and is read before the writer says that it has ended."""
    fault = Fault(on="token", of="stream", action="slow", after=len(SENTENCES.split()), seconds=0.2)
    a, b, c = Reads("a", SENTENCES, delay=0.001, faults=(fault,)), Reads("b"), Reads("c")
    await events_of(wiring, a, b, c)
    head, tail = b.begun.split(SENTENCES)
    read = [told[len(head) : len(told) - len(tail)] for told in b.whole]
    assert len(read) > 8 and all(told == "" or told.endswith(".") for told in read)
    assert b.whole[-1] == b.prepared[-1] == b.begun and len(set(b.whole)) == len(b.whole)
    if wiring == "a>b":
        assert b.held_at_stream == 0 and b.followed == 0  # its server writes from what its cache has
    else:
        assert b.followed == c.followed == 1


async def test_what_was_read_for_a_member_that_fails_is_let_go() -> None:
    a, b, c = Reads("a", SENTENCES, delay=0.001), Reads("b", faults=(Fault(on="enter", of="session"),)), Reads("c")
    events = await events_of("a>b|c", a, b, c, on_member_failure="drop")
    assert b.prepared and texts(events)[1] == "Yes."  # events_of: nothing is held


async def test_it_is_what_the_stage_reads_with_tools_too() -> None:
    """System message and all: word by word what is read later, but for the answer."""
    tools = Tools((Tool("clock", "tells the time"),))
    a, b = Reads("a", LONG, delay=0.001), Reads("b")
    await events_of("a>b", a, b, tools=tools)
    *early, (how, final) = b.calls
    assert early and how == "open" and "clock" in final[0].content
    assert all(messages[:-1] == final[:-1] for _, messages in early)
    assert len(beginnings(b)) > 3


@pytest.mark.parametrize("wiring", ["a>b", "a>b|c", "(a>b)|(c>d)", "a>a|b", "a|b>c>d"])
async def test_the_answer_is_the_same_and_off_is_off(wiring: str) -> None:
    found = []
    for switch in ("auto", "off"):
        backends = [Reads(name, f"{LONG[:600]} {name}", delay=0.0005, hold=0.002) for name in "abcd"]
        found.append(texts(await events_of(wiring, *backends, early_prefill=switch)))
        assert any(backend.prepared for backend in backends) == (switch == "auto")
    assert found[0] == found[1]


async def test_what_is_under_way_is_let_go_before_the_stage_begins() -> None:
    a, b, c = Reads("a", LONG), Reads("b", hold=30.0), Reads("c", hold=30.0)
    began = time.monotonic()
    events = await events_of("a>b|c", a, b, c)
    assert time.monotonic() - began < 5
    for reader in (b, c):
        assert [how for how, _ in reader.calls] == ["prepare", "open"] and reader.called_off == 1
    assert reports(events)[-1].prefill is not None and reports(events)[-1].prefill.prepared == 0


async def test_a_slow_engine_is_asked_again_only_when_it_is_through() -> None:
    """It then gets all that came meanwhile at once."""
    a, b = Reads("a", LONG, delay=0.001), Reads("b")
    b.until = lambda: a.counters.deltas > 150  # of about 240 words
    await events_of("a>b", a, b)
    nothing, much, *_ = beginnings(b)
    assert nothing == "" and len(much) > 2 * EVERY


@pytest.mark.parametrize("error", [BackendUnavailable("b", "It is gone."), RuntimeError("a bug")])
async def test_a_failure_is_contained_counted_and_the_end_of_it(error: Exception) -> None:
    a, b, c = Reads("a", LONG, delay=0.001), Reads("b"), Reads("c")
    b.errors.append(error)
    events = await events_of("a>b|c", a, b, c)
    assert len(b.prepared) == 1 and len(c.prepared) > 3
    report = reports(events)[-1].prefill
    assert report is not None and report.failed == 1 and report.prepared == len(c.prepared) - c.called_off
    assert texts(events)[1] == "Yes."


async def test_an_engine_that_keeps_nothing_is_not_a_failure() -> None:
    a, b = Reads("a", LONG, delay=0.001), Reads("b")
    b.errors.append(CapabilityMissing("b", "Its cache is off."))
    events = await events_of("a>b", a, b)
    report = reports(events)[-1].prefill
    assert len(b.prepared) == 1 and report is not None and (report.prepared, report.failed) == (0, 0)


async def test_without_a_free_place_it_is_tried_later() -> None:
    a, b = Reads("a", LONG, delay=0.001), Reads("b", kept=0)
    events = await events_of("a>b", a, b)
    report = reports(events)[-1].prefill
    assert len(b.prepared) > 3 and report is not None and (report.prepared, report.failed) == (0, 0)


async def test_an_engine_of_large_blocks_is_asked_less_often() -> None:
    a, small, large = Reads("a", LONG, delay=0.001), Reads("b"), Reads("c", kept=128)
    await events_of("a>b|c", a, small, large)
    assert 2 < len(large.prepared) < len(small.prepared)


async def test_a_stage_that_begins_anew_is_read_anew() -> None:
    """What the broken attempt wrote is void, though it was read."""
    fault = Fault(on="token", of="stream", after=400, times=1)
    a, b = Reads("a", delay=0.001, faults=(fault,)), Reads("b")
    tries: list[str] = []

    def answer(messages: Sequence[Message]) -> str:
        tries.append("")
        return "Void. " * 100 if len(tries) == 1 else LONG

    a.model.answer = answer
    await events_of("a>b", a, b, reruns=1)
    assert len(tries) == 2
    assert any("Void." in told for told in b.prepared) and "Void." not in b.begun
    fresh = [told for told in b.prepared if "Sentence" in told]
    assert len(fresh) > 2
    head = b.begun.split(LONG)[0]
    answers = [told[len(head) :].removesuffix(" verify") for told in fresh]
    assert all(map(LONG.startswith, answers)) and len(answers[0]) < 2 * EVERY - 32  # not as far on as what is void


async def test_a_model_that_writes_reads_nothing_meanwhile() -> None:
    a, b = Reads("a", LONG, delay=0.001), Reads("b")
    events = await events_of("a>a|b", a, b, answer_max_tokens=4)
    assert not a.prepared and len(b.prepared) > 3
    assert reports(events)[-1].prefill is not None


async def test_a_model_of_two_stages_reads_for_one_at_a_time_and_for_none_while_it_writes() -> None:
    """b is to read a's answer for its own stage, and c's for the last one; c is still writing when b's turn to write comes."""
    a, c = Reads("a", LONG, delay=0.001), Reads("c", f"Nile. {LONG}", delay=0.004)
    b, d = Reads("b", LONG[:200], delay=0.001), Reads("d", LONG[:200])
    b.until = lambda: "Nile" not in b.prepared[-1]  # it does not get through with c's
    events = await events_of("(a>b>d)|(c>b)", a, b, c, d, answer_max_tokens=8)
    how = [how for how, _ in b.calls]
    assert "prepare" in how[: how.index("stream")] and "prepare" in how[how.index("stream") :]
    assert b.called_off == 2  # when it was to write, and when the last stage began
    assert sum(report.prefill.failed for report in reports(events) if report.prefill) == 0


async def test_who_waits_for_another_stage_reads_the_whole_answer() -> None:
    """b's input is there long before d's; b then has time for all of it."""
    a, c = Reads("a", LONG, delay=0.0005), Reads("c", LONG + LONG, delay=0.002)
    b, d = Reads("b"), Reads("d")
    await events_of("(a>b)|(c>d)", a, b, c, d)
    assert b.prepared[-1] == b.begun
    assert d.prepared and d.prepared[-1] != d.begun


async def test_who_reads_the_question_only_reads_it_while_others_are_waited_for() -> None:
    a, b, c = Reads("a", LONG, delay=0.001), Reads("b"), Reads("c")
    await events_of("(a>b)|c", a, b, c)
    assert c.prepared == [c.begun]


async def test_reasoning_is_no_part_of_what_is_read_early() -> None:
    a, b = Reads("a", f"<think>{'Hm. ' * 200}</think>{LONG}", delay=0.0003), Reads("b")

    def marked(entry: Entry) -> Entry:
        return replace(entry, reasoning=("<think>", "</think>"))

    await events_of("a>b", a, b, entry=marked)
    answers = beginnings(b)
    assert len(answers) > 3 and not any("Hm." in told for told in b.prepared)


async def test_a_server_that_knows_tools_reads_past_calls_as_they_came() -> None:
    called = Message("assistant", "", {"tool_calls": [{"id": "1", "function": {"name": "clock", "arguments": "{}"}}]})
    result = Message("tool", "noon", {"tool_call_id": "1"})
    for native in (True, False):
        a, b = Reads("a", LONG, delay=0.001), Reads("b")
        ask = (ASK[1], called, result, ASK[1])
        await events_of("a>b", a, b, entry=lambda entry, native=native: replace(entry, native=native), ask=ask)
        *early, (_, final) = b.calls
        assert early and all(messages[:-1] == final[:-1] for _, messages in early)
        assert any(message.role == "tool" for message in final) == native


async def test_who_is_told_nothing_of_the_answer_reads_once() -> None:
    a, b = Reads("a", LONG, delay=0.001), Reads("b")
    await events_of("a>b", a, b, prompts=PASS_THROUGH)
    assert b.prepared == [b.begun]


async def test_a_native_server_that_renders_it_otherwise_is_left_alone() -> None:
    for extra, expected in (({"tools": [{}]}, False), ({"top_k": 5}, True)):
        a, b = Reads("a", LONG, delay=0.001), Reads("b")
        await events_of("a>b", a, b, entry=lambda entry: replace(entry, native=True), extra=extra)
        assert bool(b.prepared) == expected


async def test_models_without_the_ability_are_waited_for_as_before() -> None:
    a, b = FakeBackend("a", FakeSettings(answer="Forty-two.")), FakeBackend("b", FakeSettings(answer="Yes."))
    events = await events_of("a>b", a, b, stage_max_tokens=64)
    assert reports(events)[-1].prefill is None
    assert reports(events)[-1].gap is not None


async def test_leaving_in_the_middle_leaves_nothing() -> None:
    a, b = Reads("a", LONG, delay=0.01), Reads("b", hold=30.0)
    catalog = Catalog({backend.name: Entry(backend) for backend in (a, b)})
    asked = Options(prompts=PROMPTS, early_prefill="auto")
    with anyio.fail_after(5):
        async with run(plan(parse("a>b").topology, catalog), ASK, asked, catalog) as events:
            async for event in events:
                if isinstance(event, Delta) and b.busy:
                    break
    assert (b.busy, b.called_off) == (0, 1)


async def test_the_gap_is_from_the_end_of_one_stage_to_the_first_token_of_the_next() -> None:
    a = Reads("a", LONG, delay=0.0005)
    b, c = Reads("b", first_delay=0.2), Reads("c", first_delay=0.1)
    first, second = reports(await events_of("a>b|c", a, b, c))
    assert first.gap is None
    assert second.gap is not None and second.first_token is not None
    assert 0.2 <= second.first_token <= second.gap < second.first_token + 1.0
