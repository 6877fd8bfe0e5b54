"""What reading ahead gains or costs: lock-step with drafts, without, and with drafts that never fit; and the models alone.

    .venv/bin/python tests/benchmarks/drafts.py [--on embedded|vllm] [--at-once 1 4 16] [--questions 8] [--max-tokens 96] [--out FILE]
        [--dtype float32] [--draft-noise 0]

embedded: smol, gemma and qwen in this process. vllm: smol and qwen, two engines started for it, each on a core of its own (needs
.venv-vllm), computing in --dtype; with --draft-noise 0 they are taken to be exact, and `auto` reads ahead. All ways to ask are measured
in turns, question by question. The output is JSON, with the machine and the load it was under: only a quiet machine gives figures that
mean much. Seconds are of the stages that can read ahead, so that a first stage does not blur them.

modelled: the speed that the model of strategies/engine/drafting/pace.py gives for the drafts that were made. A draft of n tokens that
spared s rounds took C(n + 1) where (1 + s) C(1) would have been taken; C as it was known at the time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import yaml  # noqa: E402

from backends.catalog import Catalog, Entry  # noqa: E402
from backends.types import Message, Sampling  # noqa: E402
from gateway.bench import machine  # noqa: E402
from gateway.settings.paths import config_dir  # noqa: E402
from gateway.weights.store import location  # noqa: E402
from strategies.engine import Options, run  # noqa: E402
from strategies.engine.drafting.pace import Pace  # noqa: E402
from strategies.engine.events import Delta, Finished  # noqa: E402
from strategies.planning import plan  # noqa: E402
from strategies.prompting import PromptSet  # noqa: E402
from strategies.topology import parse  # noqa: E402

PROMPTS = PromptSet.from_mapping("default", yaml.safe_load((config_dir() / "prompts" / "default.yaml").read_text()))
QUESTIONS = (
    "Why is the sky blue? Explain it to a child.",
    "Write a Python function that counts the words of a text, and explain it.",
    "A train goes 60 km in 45 minutes. How fast is it in km/h? Show the steps.",
    "用中文写一段关于长江的介绍。",
    "List five fruits, one per line, each with its colour.",
    "Repeat this text and correct its mistakes: 'She go to school every days and learn many thing.'",
    "What is the difference between a list and a tuple in Python?",
    "Summarise the story of Cinderella in five sentences.",
)


@dataclass(frozen=True)
class Draft:
    """by: the proposer. tokens: read ahead; said: those of them that were. gain: seconds, by the model (see above); 0 where times are not
    known yet."""

    by: str
    tokens: int
    said: int
    gain: float


_notes: ContextVar[list[Draft] | None] = ContextVar("drafts", default=None)


@contextmanager
def noted() -> Iterator[None]:
    """Every draft is told to whoever has set `note_in` in its context."""
    real = Pace.drafted

    def drafted(self: Pace, by: str, tokens: int, confirmed: int, spared: int, seconds: float) -> None:
        notes, step, whole = _notes.get(), self._seconds(1), self._seconds(tokens + 1)
        if notes is not None:
            gain = 0.0 if step is None or whole is None else (1 + spared) * step - whole
            notes.append(Draft(by, tokens, confirmed, gain))
        real(self, by, tokens, confirmed, spared, seconds)

    with patch.object(Pace, "drafted", drafted):
        yield


def note_in(notes: list[Draft]) -> None:
    """From now on, drafts of this context (a task and what it starts) are noted there, while `noted` is entered."""
    _notes.set(notes)


class NeverFits:
    """Guesses what nobody says."""

    def guess(self, said: bytes, most: int) -> bytes:
        return (b" zq" * most)[:most]


@dataclass
class Found:
    """Of one way to ask. seconds, pieces: per answer, of its last stage."""

    seconds: list[float] = field(default_factory=list)
    pieces: list[int] = field(default_factory=list)
    passes: int = 0
    proposed: int = 0
    accepted: int = 0
    draft_passes: int = 0
    spared: int = 0
    settled: int = 0
    led: int = 0
    drafts: list[Draft] = field(default_factory=list)
    texts: dict[int, str] = field(default_factory=dict)
    wall: float = 0.0


async def answer(catalog: Catalog, wiring: str, number: int, drafts: str, most: int, found: Found) -> None:
    options = Options(
        prompts=PROMPTS,
        sampling=Sampling(max_tokens=most, temperature=0.0),
        stage_max_tokens=most,
        drafts=drafts,  # type: ignore[arg-type]
    )
    note_in(found.drafts)
    made = plan(parse(wiring).topology, catalog)
    ask = [Message("user", QUESTIONS[number % len(QUESTIONS)])]
    texts: dict[int, list[str]] = defaultdict(list)
    async with run(made, ask, options, catalog) as events:
        async for event in events:
            if isinstance(event, Delta):
                texts[event.stage].append(event.text)
            elif isinstance(event, Finished):
                report = event.stages[-1]
    meters = report.meters
    found.seconds.append(report.seconds)
    found.pieces.append(report.branches[0].usage.completion_tokens if meters is None else meters.pieces)
    found.passes += meters.passes if meters else 0
    found.texts[number] = "".join(texts[report.stage])
    if report.drafts is not None:
        found.proposed += report.drafts.proposed
        found.accepted += report.drafts.accepted
        found.draft_passes += report.drafts.passes
        found.spared += report.drafts.spared
        found.settled += report.drafts.settled
        found.led += report.drafts.led


@contextmanager
def guessing(way: str) -> Iterator[None]:
    if way == "never fits":
        with patch("strategies.engine.fused.Copier", lambda _: NeverFits()):
            yield
    else:
        yield


async def measure(
    catalog: Catalog,
    wirings: Sequence[str],
    ways: Sequence[tuple[str, str]],
    at_once: Sequence[int],
    questions: int,
    most: int,
) -> list[dict[str, Any]]:
    rows = []
    for warm in wirings:
        await answer(catalog, warm, 0, "off", 8, Found())
    for n in at_once:
        results: dict[tuple[str, str], Found] = defaultdict(Found)
        for start in range(0, questions, n):
            numbers = range(start, min(start + n, questions))
            for wiring in wirings:
                for way, drafts in ways if {"|", ">"} & set(wiring) else [("alone", "off")]:
                    found = results[wiring, way]
                    began = time.perf_counter()
                    with guessing(way), noted():
                        await asyncio.gather(*(answer(catalog, wiring, i, drafts, most, found) for i in numbers))
                    found.wall += time.perf_counter() - began
        for (wiring, way), found in results.items():
            row = summary(wiring, way, n, found, results.get((wiring, "off")))
            rows.append(row)
            sys.stderr.write(json.dumps(row) + "\n")
    return rows


def summary(wiring: str, way: str, n: int, found: Found, plain: Found | None) -> dict[str, Any]:
    pieces = sum(found.pieces)
    row: dict[str, Any] = {
        "wiring": wiring,
        "way": way,
        "at_once": n,
        "answers": len(found.seconds),
        "pieces": pieces,
        "ms_a_piece": round(1e3 * sum(found.seconds) / pieces, 2),
        "median_seconds": round(statistics.median(found.seconds), 2),
        "pieces_a_second_all": round(pieces / found.wall, 2),
        "passes": found.passes,
    }
    if plain is not None and way != "off":
        row["speed_to_lock_step"] = round((sum(plain.seconds) / sum(plain.pieces)) / (sum(found.seconds) / pieces), 3)
        row["same_text"] = f"{sum(plain.texts[i] == text for i, text in found.texts.items())} of {len(found.texts)}"
        gain = sum(draft.gain for draft in found.drafts)
        row["modelled"] = round(1 / (1 - gain / sum(plain.seconds)), 3) if gain < sum(plain.seconds) else None
        row |= {
            key: getattr(found, key) for key in ("proposed", "accepted", "draft_passes", "spared", "settled", "led")
        }
    return row


async def embedded(stack: AsyncExitStack, seats: int) -> tuple[Catalog, list[str]]:
    from backends.llama_cpp import Cores, LlamaCppBackend, LlamaCppSettings

    cores, entries = Cores(2), {}
    weights = {"smol": "smollm2-135m-instruct", "gemma": "gemma-3-270m", "qwen": "qwen2.5-coder-0.5b-instruct"}
    for name, known_as in weights.items():
        path = location(known_as)
        backend = LlamaCppBackend(name, LlamaCppSettings(path=str(path), context=1024, seats=seats, queue=64), cores)
        await backend.start()
        stack.push_async_callback(backend.aclose)
        entries[name] = Entry(backend)
    return Catalog(entries), ["qwen|smol|gemma", "qwen>qwen|smol", "qwen", "smol", "gemma"]


async def engines(
    stack: AsyncExitStack, dtype: str | None, noise: float | None, block: int | None = None
) -> tuple[Catalog, list[str]]:
    """block: tokens in a block of their prefix caches; None: vLLM's own choice."""
    from vllm_engines import KEY, PATIENT, Engine, why_not

    from backends.vllm import VLLMBackend, VLLMSettings

    if reason := why_not("smol", "qwen"):
        raise SystemExit(reason)
    log, plugin = Path(tempfile.mkdtemp()) / "engines.log", ROOT / "backends" / "vllm_plugin"
    args = [] if dtype is None else ["--dtype", dtype]
    args += [] if block is None else ["--block-size", str(block)]
    started = {
        name: Engine(name, log, core=core, paths=[plugin], args=args) for core, name in enumerate(("smol", "qwen"))
    }
    settings: dict[str, Any] = {"api_key": KEY, **PATIENT, **({} if noise is None else {"draft_noise": noise})}
    entries = {}
    for engine in started.values():
        engine.launch()
        stack.callback(engine.stop)
    for name, engine in started.items():
        await asyncio.to_thread(engine.wait)
        backend = VLLMBackend(name, VLLMSettings(urls=(engine.url,), **settings))
        await backend.start()
        stack.push_async_callback(backend.aclose)
        entries[name] = Entry(backend, native=True)
    return Catalog(entries), ["qwen|smol", "qwen>qwen|smol", "qwen>smol", "qwen", "smol"]


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", choices=("embedded", "vllm"), default="embedded")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--questions", type=int, default=len(QUESTIONS))
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--ways", nargs="+", default=["off", "auto", "on", "never fits"])
    parser.add_argument("--wirings", nargs="+")
    parser.add_argument("--dtype", help="of the vLLM engines; left out: the model's own")
    parser.add_argument(
        "--draft-noise", type=float, help="of the vLLM engines, as in their settings; left out: the default"
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    before = asdict(machine.look())
    async with AsyncExitStack() as stack:
        made = (
            embedded(stack, max(args.at_once))
            if args.on == "embedded"
            else engines(stack, args.dtype, args.draft_noise)
        )
        catalog, wirings = await made
        ways = [(way, "on" if way == "never fits" else way) for way in args.ways]
        rows = await measure(catalog, args.wirings or wirings, ways, args.at_once, args.questions, args.max_tokens)
    commit = machine.commit()
    found = {"machine": before, "commit": asdict(commit) if commit else None, "on": args.on, "rows": rows}
    text = json.dumps(found, indent=1, default=str)
    if args.out is not None:
        args.out.write_text(text + "\n")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    asyncio.run(main())
