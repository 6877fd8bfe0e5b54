"""A record that nobody asks for costs nothing: none of the code that makes it runs."""

from __future__ import annotations

import sys
from collections import Counter
from types import FrameType
from typing import Any

import pytest

from backends.catalog import Catalog, Entry
from backends.fake import FakeBackend, FakeSettings
from backends.types import Message
from strategies.engine import Options, run
from strategies.engine.events import Recorded
from strategies.fusion import telling
from strategies.planning.planner import plan
from strategies.prompting import PromptSet
from strategies.topology import parse

pytestmark = pytest.mark.anyio

PROMPTS = PromptSet.from_mapping("test", {"default": {"solver": "", "reviewer": "{answer}", "verifier": "{answer}"}})


async def ran(**options: Any) -> tuple[Counter[str], int]:
    """Functions that tell of pieces and ran while a group answered, how often; and how many pieces were told of."""
    models = {
        "a": FakeSettings(answer="one two three"),
        "b": FakeSettings(answer="one three", words=("one", " th", "ree"), seed=1),
    }
    catalog = Catalog({name: Entry(FakeBackend(name, settings)) for name, settings in models.items()})
    made = plan(parse("a|b").topology, catalog)
    seen: Counter[str] = Counter()

    def watch(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event == "call" and (code.co_filename == telling.__file__ or code.co_name == "_recorded"):
            seen[code.co_name] += 1

    told = 0
    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        async with run(made, [Message("user", "Hi")], Options(prompts=PROMPTS, **options), catalog) as events:
            async for event in events:
                told += isinstance(event, Recorded)
    finally:
        sys.setprofile(before)
    return seen, told


@pytest.mark.parametrize("fuser", ["linear", "geometric", "gated:threshold=0.9", "entropy-weighted", "union-top-k"])
async def test_nothing_that_tells_of_pieces_runs_unless_it_is_asked_to(fuser: str) -> None:
    assert await ran(fuser=fuser) == (Counter(), 0)
    seen, told = await ran(fuser=fuser, record=True)
    assert seen["detail"] == seen["_recorded"] == told > 2
