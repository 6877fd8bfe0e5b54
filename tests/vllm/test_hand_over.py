"""Early prefill on real engines: what was read while another wrote is in the cache when the stage begins, and the text is the same."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from vllm_engines import KEY, PATIENT, Engine

from backends.catalog import Catalog, Entry
from backends.types import Message, Sampling
from backends.vllm import VLLMBackend, VLLMSettings
from gateway.settings.paths import config_dir
from strategies.engine import Options, run
from strategies.engine.events import Delta, Finished, StageReport
from strategies.planning import plan
from strategies.prompting import PromptSet
from strategies.topology import parse

pytestmark = pytest.mark.anyio

PROMPTS = PromptSet.from_mapping("default", yaml.safe_load((config_dir() / "prompts" / "default.yaml").read_text()))
BLOCK = 128
"""Tokens that vLLM keeps at a time on processors."""
QUESTION = " ".join(
    f"Station {n} lies {n * 7 % 31} kilometres up the river and has {n * 5 % 13} boats, of which {n % 4} are under repair."
    for n in range(1, 7)
)
"""Longer than a block, so that there is something to keep before there is an answer."""


def counts(engine: Engine) -> tuple[float, float]:
    """Tokens that prompts found in the engine's prefix cache, and tokens of prompts that began a request or a session, in all."""
    lines = engine.get("/metrics").decode().splitlines()
    hits, begun = (
        sum(float(line.split()[-1]) for line in lines if line.startswith(f"vllm:{name}_total{{"))
        for name in ("prefix_cache_hits", "prompt_tokens")
    )
    return hits, begun


async def answer(
    engines: dict[str, Engine], wiring: str, question: str, switch: str, tokens: int
) -> tuple[str, StageReport, float, float]:
    """The answer, the report of the last stage, and by how much qwen's counts have grown."""
    backends = {
        name: VLLMBackend(name, VLLMSettings(urls=(engine.url,), api_key=KEY, **PATIENT))
        for name, engine in engines.items()
    }
    catalog = Catalog({name: Entry(backend, native=True) for name, backend in backends.items()})
    sampling = Sampling(max_tokens=12, temperature=0.0)
    options = Options(PROMPTS, sampling, stage_max_tokens=tokens, top_k=32, early_prefill=switch)  # type: ignore[arg-type]
    made, text = plan(parse(wiring).topology, catalog), ""
    hits, begun = counts(engines["qwen"])
    async with run(made, [Message("user", question)], options, catalog) as events:
        async for event in events:
            if isinstance(event, Delta) and event.stage == 1:
                text += event.text
            elif isinstance(event, Finished):
                report = event.stages[-1]
    hits_now, begun_now = counts(engines["qwen"])
    for backend in backends.values():
        await backend.aclose()
        assert backend.loads == [0]
    for engine in engines.values():
        status: dict[str, Any] = json.loads(engine.get("/v1/modelnet/status"))
        assert (status["sessions"], status["waiting"]) == (0, 0)
    return text, report, hits_now - hits, begun_now - begun


def prompt_of(report: StageReport) -> int:
    """Tokens that qwen has read."""
    return next(branch.usage.prompt_tokens for branch in report.branches if branch.model == "qwen")


@pytest.mark.parametrize("wiring", ["si:smol>qwen", "s2p:smol>smol|qwen"])
@pytest.mark.parametrize("tokens", [48, 200])
async def test_the_stage_goes_on_from_what_was_read_early(engines: dict[str, Engine], wiring: str, tokens: int) -> None:
    """A model alone finds it in the cache; a member's session was there before the answer, and begins with no prompt of its own. Questions
    that begin otherwise share nothing: each way is the first to read its own. The third is the first's, to compare texts."""
    task = "How many boats can sail?" if tokens < 64 else "Tell a long story about the people who live at this river."
    first, second = (f"[{wiring} {tokens} {way}] {QUESTION} {task}" for way in "xy")
    without, report, hits, begun = await answer(engines, wiring, second, "off", tokens)
    assert without and report.prefill is None and report.gap is not None
    prompt = prompt_of(report)
    assert hits < BLOCK and begun == prompt
    early, report, hits, begun = await answer(engines, wiring, first, "auto", tokens)
    assert report.prefill is not None and report.prefill.failed == 0 and report.prefill.prepared >= 2
    prompt = prompt_of(report)
    if "|" in wiring:
        assert begun < prompt - tokens // 2
    else:
        assert hits >= (BLOCK if tokens < 64 else 2 * BLOCK)
        assert prompt < begun < 2 * prompt
    again, *_ = await answer(engines, wiring, first, "off", tokens)
    assert early == again


async def test_the_text_is_the_same_as_of_engines_that_have_read_nothing(engines: dict[str, Engine]) -> None:
    """Their caches are emptied before each answer."""
    for number in range(3):
        question = f"{number} rivers flow through this land. {QUESTION} Describe station {number + 3} in one sentence."
        found = []
        for switch in ("off", "auto"):
            for engine in engines.values():
                engine.reset()
            found.append((await answer(engines, "s2p:smol>smol|qwen", question, switch, 100))[0])
        assert found[0] == found[1] != ""
