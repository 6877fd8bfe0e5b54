"""Groups that may save time in some way, and what can be compared of their answers with and without."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from backends.catalog import Catalog, Entry
from backends.fake import FakeBackend, FakeSettings
from backends.types import Message, Sampling
from backends.wrappers import inner
from strategies.engine import Options, run
from strategies.engine.events import Delta, Event, Finished, StageFinished, StageReport
from strategies.engine.options import Constraint
from strategies.planning.planner import plan
from strategies.prompting import PromptSet
from strategies.topology import parse

PROMPTS = PromptSet.from_mapping("test", {"default": {"solver": "", "reviewer": "{answer}", "verifier": "{answer}"}})
WORDS = (" the", " th", "he", "中", "中国", "国", " answer", " an", "👍", "12", ". ", "\n", " is", "i", "th")
TEXTS = (
    "the answer is 12. the answer is 12.\nthe answer is 12",
    "中国 is the answer, 中国 is the answer 👍👍 the end",
    "an answer the answer th answer 中中国国 the answer th answer",
)


def catalog_of(rng: random.Random, text: str, members: int, **fields: Any) -> Catalog:
    """Members that say nearly the same, with vocabularies of their own."""
    entries = {}
    for number in range(members):
        words = tuple(rng.sample(WORDS, rng.randint(4, len(WORDS))))
        value = FakeSettings(answer=text, seed=rng.randint(0, 99), confidence=rng.choice((0.5, 0.7, 0.9)), words=words)
        name = "abc"[number]
        entries[name] = Entry(FakeBackend(name, replace(value, **fields)))
    return Catalog(entries)


async def events_of(catalog: Catalog, wiring: str, drafts: str, **options: Any) -> list[Event]:
    made = plan(parse(wiring).topology, catalog)
    asked = Options(prompts=PROMPTS, drafts=drafts, **options)  # type: ignore[arg-type]
    async with run(made, [Message("user", "Say it: 中国 the answer")], asked, catalog) as events:
        found = [event async for event in events]
    for entry in catalog.values():
        backend = inner(entry.backend)
        assert isinstance(backend, FakeBackend)
        assert backend.counters.sessions == 0
        assert backend.counters.opened == backend.counters.closed
    return found


def bare(event: Event) -> Event:
    """Without what tells of time and passes."""
    if isinstance(event, StageFinished):
        return StageFinished(_bare(event.report))
    if isinstance(event, Finished):
        return replace(event, stages=tuple(map(_bare, event.stages)))
    return event


def _bare(report: StageReport) -> StageReport:
    meters = None if report.meters is None else replace(report.meters, passes=0)
    branches = tuple(replace(branch, seconds=0.0) for branch in report.branches)
    return replace(
        report,
        branches=branches,
        seconds=0.0,
        first_token=None,
        meters=meters,
        waited=None,
        own=None,
        drafts=None,
        gap=None,
        quorum=None,
    )


def last(events: Sequence[Event]) -> StageReport:
    finished = events[-1]
    assert isinstance(finished, Finished)
    return finished.stages[-1]


JSON = Constraint("regex", r"\{\"a\": (12|\"the\"|\"中国\")\}")
ASKED: tuple[dict[str, Any], ...] = (
    {},
    {"sampling": Sampling(temperature=0.9, seed=7, max_tokens=30)},
    {"sampling": Sampling(temperature=1.2, top_p=0.8, seed=1, max_tokens=20)},
    {"sampling": Sampling(stop=("answer is",))},
    {"sampling": Sampling(stop=("国 is t", "👍"))},
    {"sampling": Sampling(max_tokens=7)},
    {"sampling": Sampling(frequency_penalty=0.3, presence_penalty=0.2, max_tokens=40)},
    {"logprobs": 3, "record": True},
    {"constraint": JSON},
    {"top_k": 3},
    {"top_k": 2, "sampling": Sampling(max_tokens=60)},
)


def told(events: Sequence[Event]) -> list[Any]:
    """What a client learns of an answer: the text of every stage, its reason to end, its tokens."""
    finished = events[-1]
    assert isinstance(finished, Finished)
    texts = [
        "".join(e.text for e in events if isinstance(e, Delta) and e.stage == n) for n in range(len(finished.stages))
    ]
    return [finished.usage, *zip(texts, [(r.finish_reason, r.usage) for r in finished.stages], strict=True)]
