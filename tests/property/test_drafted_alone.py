"""Models that write by themselves and read ahead, as asked: their own streams' text."""

from __future__ import annotations

from typing import Any

import pytest
from comparing import PROMPTS, TEXTS, events_of, last, told

from backends.catalog import Catalog, Entry
from backends.fake import FakeBackend, FakeSettings, Fault
from backends.types import Message, Sampling
from strategies.engine import Options, run
from strategies.engine.events import Finished, StageRestarted
from strategies.planning.planner import plan
from strategies.topology import parse

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "asked",
    [
        Sampling(),
        Sampling(temperature=0.0, top_p=0.3, seed=5),
        Sampling(max_tokens=7),
        Sampling(stop=("is the", "👍")),
        Sampling(temperature=0.0, max_tokens=40, stop=("nowhere",)),
    ],
)
@pytest.mark.parametrize("wiring", ["a", "a>b", "a>b>a"])
@pytest.mark.parametrize("noise", [0.0, 0.1])
async def test_models_that_write_by_themselves_read_ahead_where_asked_to(
    wiring: str, asked: Sampling, noise: float
) -> None:
    """The same text as their own streams, in fewer passes where they repeat something."""
    text = "中国 the answer is 中国 the answer is the end 👍, it is 中国 the answer. " * 2
    found = []
    for mode in ("off", "always"):
        entries = {n: Entry(FakeBackend(n, FakeSettings(answer=text, draft_noise=noise))) for n in "ab"}
        found.append(await events_of(Catalog(entries), wiring, mode, sampling=asked))
    plain, drafted = found
    assert told(plain) == told(drafted)
    finished = drafted[-1]
    assert isinstance(finished, Finished)
    for report in finished.stages:
        assert report.meters is not None
        assert report.drafts is not None
        if report.meters.pieces > 20:
            assert report.drafts.accepted > 0
            assert report.meters.passes < report.meters.pieces


@pytest.mark.parametrize(
    "asked",
    [
        {"sampling": Sampling(temperature=0.5, seed=1)},
        {"sampling": Sampling(temperature=0.0, frequency_penalty=0.5)},
        {"sampling": Sampling()},  # what its server does then is not known
        {"sampling": Sampling(temperature=0.0), "extra": {"top_k": 5}},
        {"sampling": Sampling(temperature=0.0), "logprobs": 1},
    ],
)
async def test_a_server_is_left_alone_where_only_it_knows(asked: dict[str, Any]) -> None:
    """A model with a server of its own writes by its stream unless nothing else can come of it."""
    catalog = Catalog({"a": Entry(FakeBackend("a", FakeSettings(answer=TEXTS[0])), native=True)})
    assert last(await events_of(catalog, "a", "always", **asked)).drafts is None
    assert last(await events_of(catalog, "a", "auto", sampling=Sampling(temperature=0.0))).drafts is None
    assert last(await events_of(catalog, "a", "always", sampling=Sampling(temperature=0.0))).drafts is not None


async def test_what_only_a_server_understands_of_a_message_is_left_to_it() -> None:
    catalog = Catalog({"a": Entry(FakeBackend("a", FakeSettings(answer=TEXTS[0])), native=True)})
    said = Message("user", "Look", {"content": [{"type": "image_url", "image_url": {"url": "data:,"}}]})
    asked = Options(PROMPTS, Sampling(temperature=0.0), drafts="on")
    async with run(plan(parse("a").topology, catalog), [said], asked, catalog) as events:
        assert last([event async for event in events]).drafts is None


@pytest.mark.parametrize("on", ["enter", "token"])
async def test_an_unseen_stage_that_breaks_off_is_run_again(on: Any) -> None:
    """As where it is its backend's own stream."""
    fault = Fault(on=on, after=2 if on == "token" else 0, times=1)
    found = []
    for mode in ("off", "always"):
        backends = FakeBackend("a", FakeSettings(answer=TEXTS[0], faults=(fault,))), FakeBackend("b")
        catalog = Catalog({backend.name: Entry(backend) for backend in backends})
        found.append(await events_of(catalog, "a>b", mode, reruns=1))
        assert sum(isinstance(event, StageRestarted) for event in found[-1]) == 1
    first, second = ([event.stages[0] for event in events if isinstance(event, Finished)] for events in found)
    assert (first[0].finish_reason, first[0].usage) == (second[0].finish_reason, second[0].usage)
