"""How long a chain is silent between two stages, with early prefill and without.

    .venv/bin/python tests/benchmarks/hand_over.py [--block-size 32] [--rounds 5] [--pace 0.1] [--out FILE]
    .venv/bin/python tests/benchmarks/hand_over.py --urls SMOL QWEN …       measures engines that run (started with --serve)
    .venv/bin/python tests/benchmarks/hand_over.py --serve                  starts the engines only, and says where they are

Starts two vLLM engines (smol and qwen), each on a core of its own. The stage before is scripted: it writes the same answer of about 150
tokens every time, a token every `--pace` seconds, that which ends it included, and computes nothing, so that the engines under measurement
are as idle as those of a chain of different models. With `--cut` it stops in the middle of a sentence, without such a token, as an answer
does that has used up its `max_tokens`. Ways are measured in turns; before every answer the engines' prefix caches are emptied. The gap is
that of the stage's report; a step is what a token of the same stage took, which in a group is one of its slowest member. The output is
JSON, with the machine and the load it was under: only a quiet machine gives figures that mean much.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import statistics
import sys
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import anyio  # noqa: E402
import yaml  # noqa: E402
from vllm_engines import KEY, PATIENT, Engine, empty_cache, why_not  # noqa: E402

from backends.catalog import Catalog, Entry  # noqa: E402
from backends.fake import FakeBackend, FakeSettings, Fault  # noqa: E402
from backends.types import Message, Sampling  # noqa: E402
from backends.vllm import VLLMBackend, VLLMSettings  # noqa: E402
from gateway.bench import machine  # noqa: E402
from gateway.settings.paths import config_dir  # noqa: E402
from strategies.engine import Options, run  # noqa: E402
from strategies.engine.events import Delta, Finished, StageReport  # noqa: E402
from strategies.planning import plan  # noqa: E402
from strategies.prompting import PromptSet  # noqa: E402
from strategies.topology import parse  # noqa: E402

PROMPTS = PromptSet.from_mapping("default", yaml.safe_load((config_dir() / "prompts" / "default.yaml").read_text()))
QUESTION = "Why is the sky blue, and why is it red in the evening? Explain it to a child."
DRAFT = (
    "Sunlight looks white, but it is a mixture of all the colours of the rainbow. When it comes through the air it meets "
    "very small particles, the molecules of nitrogen and oxygen, which send a part of the light in all directions. They do "
    "this with blue light much more often than with red light, because its waves are shorter. So wherever you look in the "
    "sky, blue light comes to your eyes from there, and the sky is blue. In the evening the sun stands low, and its light "
    "has to go a much longer way through the air before it reaches you. On that way nearly all of the blue light is sent "
    "somewhere else, and what is left when it arrives is mostly yellow, orange and red. That is why the sun and the clouds "
    "around it glow red when the day ends. Dust and smoke in the air make the red stronger still."
)
"""About 150 tokens of smol and of qwen."""
WIRINGS = ("s2p:draft>smol|qwen", "si:draft>smol", "si:draft>qwen")


def catalog_of(urls: dict[str, str], pace: float, cut: bool) -> Catalog:
    words = re.findall(r" ?[\w.,]+", DRAFT)
    answer = words[:-4] if cut else words
    end = Fault(on="token", of="stream", after=len(answer), action="slow", seconds=0.0 if cut else pace)
    settings = FakeSettings(answer="".join(answer), delay=pace, words=tuple(dict.fromkeys(words)), faults=(end,))
    draft = FakeBackend("draft", settings)
    engines = {name: VLLMBackend(name, VLLMSettings(urls=(url,), api_key=KEY, **PATIENT)) for name, url in urls.items()}
    return Catalog(
        {name: Entry(backend, native=name != "draft") for name, backend in {"draft": draft, **engines}.items()}
    )


async def answer(catalog: Catalog, wiring: str, way: str, tokens: int) -> tuple[str, StageReport]:
    sampling = Sampling(max_tokens=tokens, temperature=0.0)
    options = Options(PROMPTS, sampling, early_prefill=way)  # type: ignore[arg-type]
    made, text = plan(parse(wiring).topology, catalog), ""
    async with run(made, [Message("user", QUESTION)], options, catalog) as events:
        async for event in events:
            if isinstance(event, Delta) and event.stage == 1:
                text += event.text
            elif isinstance(event, Finished):
                report = event.stages[-1]
    return text, report


async def measure(urls: dict[str, str], rounds: int, pace: float, cut: bool, tokens: int) -> list[dict[str, Any]]:
    catalog, rows = catalog_of(urls, pace, cut), []
    for wiring in WIRINGS:
        found: dict[str, list[StageReport]] = defaultdict(list)
        texts: dict[str, set[str]] = defaultdict(set)
        for number in range(rounds + 1):
            for way in ("off", "auto"):
                for url in urls.values():
                    await asyncio.to_thread(empty_cache, url.removesuffix("/v1"))
                text, report = await answer(catalog, wiring, way, tokens)
                if number:  # the first of each makes connections and vocabularies
                    found[way].append(report)
                    texts[way].add(text)
        for way, reports in found.items():
            row = {"wiring": wiring, "way": way, **summary(reports), "texts": len(texts[way])}
            if way != "off":
                row["same_text"] = texts[way] == texts["off"]
            rows.append(row)
            sys.stderr.write(json.dumps(row) + "\n")
    for name in urls:
        await catalog[name].backend.aclose()
    return rows


def summary(reports: list[StageReport]) -> dict[str, Any]:
    gaps = [1e3 * (report.gap or 0.0) for report in reports]
    steps = []
    for report in reports:
        count = report.branches[0].usage.completion_tokens if report.meters is None else report.meters.pieces
        steps.append(1e3 * (report.seconds - (report.first_token or 0.0)) / (count - 1))
    step = statistics.median(steps)
    return {
        "answers": len(reports),
        "prompt_tokens": max(branch.usage.prompt_tokens for branch in reports[0].branches),
        "gap_ms": round(statistics.median(gaps), 1),
        "gap_ms_least_most": [round(min(gaps), 1), round(max(gaps), 1)],
        "step_ms": round(step, 1),
        "gap_steps": round(statistics.median(gaps) / step, 2),
        "prepared": [report.prefill.prepared if report.prefill else 0 for report in reports],
        "failed": sum(report.prefill.failed if report.prefill else 0 for report in reports),
    }


def started(stack: ExitStack, block_size: int) -> dict[str, str]:
    if reason := why_not("smol", "qwen"):
        raise SystemExit(reason)
    logs, plugin = Path(tempfile.mkdtemp(prefix="modelnet-bench-")), ROOT / "backends" / "vllm_plugin"
    args = ["--block-size", str(block_size)] if block_size else []
    engines = {
        name: Engine(name, logs / f"{name}.log", core=core, paths=[plugin], args=args)
        for core, name in enumerate(("smol", "qwen"))
    }
    for engine in engines.values():
        engine.launch()
        stack.callback(engine.stop)
    for engine in engines.values():
        engine.wait()
    return {name: engine.url for name, engine in engines.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--block-size", type=int, default=0, help="tokens that engines keep at a time; 0: vLLM's own choice"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pace", type=float, default=0.1, help="seconds for a token of the stage before")
    parser.add_argument("--cut", action="store_true", help="the stage before is cut in the middle of a sentence")
    parser.add_argument("--tokens", type=int, default=24, help="of the answer")
    parser.add_argument("--urls", nargs=2)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    before = asdict(machine.look())
    with ExitStack() as stack:
        urls = (
            dict(zip(("smol", "qwen"), options.urls, strict=True))
            if options.urls
            else started(stack, options.block_size)
        )
        if options.serve:
            ends = {signal.SIGTERM, signal.SIGINT}
            signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # only now: the engines would have it from us
            sys.stdout.write(f"--urls {' '.join(urls.values())}\n")
            sys.stdout.flush()
            signal.sigwait(ends)
            return
        asked = urls, options.rounds, options.pace, options.cut, options.tokens
        rows = anyio.run(measure, *asked, backend_options={"use_uvloop": True})  # as the gateway runs
    commit = machine.commit()
    found = {
        "machine": before,
        "commit": asdict(commit) if commit else None,
        "block_size": options.block_size or "vLLM's",
        "pace": options.pace,
        "cut": options.cut,
        "rows": rows,
    }
    text = json.dumps(found, indent=1, default=str)
    if options.out is not None:
        options.out.write_text(text + "\n")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
