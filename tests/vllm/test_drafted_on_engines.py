"""A stage of one model with drafts, on real engines: what a client sees is what the model's own server would have written."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import yaml
from vllm_engines import KEY, PATIENT, Engine

from backends.catalog import Catalog, Entry
from backends.types import Message, Sampling
from backends.vllm import VLLMBackend, VLLMSettings
from backends.vllm.settings import DRAFT_NOISE
from gateway.settings.paths import config_dir
from strategies.engine import Options, run
from strategies.engine.drafting.noise import measure
from strategies.engine.events import Delta, Finished
from strategies.planning import plan
from strategies.prompting import PromptSet
from strategies.topology import parse

pytestmark = pytest.mark.anyio

PROMPTS = PromptSet.from_mapping("default", yaml.safe_load((config_dir() / "prompts" / "default.yaml").read_text()))
REPEAT = "Repeat this sentence twice: 'Nobody who saw the bridge forgot it.'"
SHORT = "What is the capital of France? Answer with one word."
CHINESE = "请用两句话介绍长江。"


async def answer(catalog: Catalog, wiring: str, question: str, drafts: str, **asked: Any) -> tuple[list[Any], int, int]:
    """What a client sees of every stage, and how many tokens drafts proposed and had accepted."""
    options = Options(PROMPTS, Sampling(temperature=0.0, **asked), stage_max_tokens=24, drafts=drafts)  # type: ignore[arg-type]
    texts: dict[int, str] = defaultdict(str)
    async with run(plan(parse(wiring).topology, catalog), [Message("user", question)], options, catalog) as events:
        async for event in events:
            if isinstance(event, Delta):
                texts[event.stage] += event.text
            elif isinstance(event, Finished):
                ended = event
    seen = [(texts[stage.stage], stage.finish_reason, stage.usage) for stage in ended.stages]
    drafted = [stage.drafts for stage in ended.stages if stage.drafts is not None]
    return seen, sum(report.proposed for report in drafted), sum(report.accepted for report in drafted)


@pytest.mark.parametrize("wiring", ["smol", "qwen>smol"])
async def test_text_end_and_usage_are_the_servers_own(engines: dict[str, Engine], wiring: str) -> None:
    """Answers that end by themselves, those cut inside a character (a Chinese one has several tokens), and by a stop string."""
    settings: dict[str, Any] = {"api_key": KEY, "draft_noise": 0.0, **PATIENT}
    backends = {
        name: VLLMBackend(name, VLLMSettings(urls=(engine.url,), **settings)) for name, engine in engines.items()
    }
    catalog = Catalog({name: Entry(backend, native=True) for name, backend in backends.items()})
    ends, accepted = set(), 0
    cases = [
        (SHORT, {"max_tokens": 60}),
        (REPEAT, {"max_tokens": 60}),
        (REPEAT, {"max_tokens": 60, "stop": ("forgot",)}),
    ]
    cases += [(CHINESE, {"max_tokens": most}) for most in (20, 21, 22, 23)]
    for question, asked in cases:
        plain, nothing, _ = await answer(catalog, wiring, question, "off", **asked)
        assert nothing == 0
        drafted, _, said = await answer(catalog, wiring, question, "always", **asked)
        assert drafted == plain
        assert "\ufffd" not in drafted[-1][0]
        ends.add((plain[-1][1], bool(asked.get("stop"))))
        accepted += said
    for backend in backends.values():
        await backend.aclose()
    assert ("stop", False) in ends and ("length", False) in ends
    assert accepted > 0


async def test_what_is_assumed_of_scored_drafts_is_true_of_these_engines(engines: dict[str, Engine]) -> None:
    """What `modelnet check --drafts` measures, against the default of `draft_noise`."""
    for name, engine in engines.items():
        backend = VLLMBackend(name, VLLMSettings(urls=(engine.url,), api_key=KEY, **PATIENT))
        try:
            noise = await measure(backend, tokens=24)
        finally:
            await backend.aclose()
        assert noise is not None
        assert noise.scored.places > 200 and noise.behind.places > 40
        assert noise.nats <= DRAFT_NOISE, (name, noise)
        assert noise.seconds[16] < 16 * noise.seconds[1]
