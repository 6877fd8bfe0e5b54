"""What reading ahead gains or costs: lock-step with drafts, without, and with drafts that never fit; and the models alone.

    .venv/bin/python tests/benchmarks/drafts.py [--on embedded|vllm] [--at-once 1 4 16] [--questions 30] [--max-tokens 96] [--out FILE]
        [--dtype float32] [--draft-noise 0]

embedded: smol, gemma and qwen in this process. vllm: smol and qwen, two engines started for it, each on a core of its own (needs
.venv-vllm), computing in --dtype; with --draft-noise 0 they are taken to be exact, and `auto` reads ahead. All ways to ask are measured
in turns, question by question. What it tells is a table; --out (.bench/drafts.json) has all of it, with the machine and the load it was
under: only a quiet machine gives figures that mean much. Seconds are of the stages that can read ahead, so that a first stage does not blur
them; "whole" ones, and pieces a second, are of whole answers and all requests together.

modelled: the speed that the model of strategies/engine/drafting/pace.py gives for the drafts that were made. A draft of n tokens that
spared s rounds took C(n + 1) where (1 + s) C(1) would have been taken; C as it was known at the time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
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
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support"), str(ROOT / "tests" / "evals")]

import yaml  # noqa: E402
from asking import table  # noqa: E402

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
    "Explain what a prime number is, and name the first eight.",
    "Write a shell command that finds the ten largest files below a directory, and say what each part does.",
    "What happens when bread is toasted?",
    "请解释为什么会有四季。",
    "Translate into French and German: 'The train to the coast leaves at nine.'",
    "A shop sells pens at 3 for 2 dollars. What do 12 pens cost? Show the steps.",
    "Write a JSON object that describes a book with title, author, year and three tags.",
    "Give three reasons for and three against homework.",
    "Rename the variable `x` to `total` and repeat the code:\n```python\nx = 0\nfor n in range(10):\n    x += n\nprint(x)\n```",
    "Write a polite letter that declines an invitation.",
    "Who wrote Faust, and what is it about?",
    "用 Python 写一个计算阶乘的函数，并解释它。",
    "Name the planets in order from the sun, with one fact about each.",
    "What is the derivative of 3x^2 + 5x - 7? Show the steps.",
    "Repeat exactly: 'one two three four five six seven eight nine ten' and then count backwards.",
    "How does a bicycle stay upright?",
    "Write a SQL query that counts the orders of each customer in 2024.",
    "Describe the taste of a lemon to somebody who never had one.",
    "把这句话翻译成英文：学而时习之，不亦说乎？",
    "Make a table in Markdown of three animals with their speed and weight.",
    "Explain recursion with an example.",
    "Turn this into a list: milk and eggs and bread and two apples.",
)


@dataclass(frozen=True)
class Draft:
    """by: the proposer. tokens: read ahead; said: those of them that were. spared: rounds of steps. gain: seconds, by the model (see
    above); 0 where times are not known yet."""

    by: str
    tokens: int
    said: int
    spared: int
    gain: float


@dataclass
class Notes:
    """What groups did that may read ahead. steps: rounds without a draft."""

    drafts: list[Draft] = field(default_factory=list)
    steps: int = 0


_notes: ContextVar[Notes | None] = ContextVar("notes", default=None)


@contextmanager
def noted() -> Iterator[None]:
    """Every round is told to whoever has set `note_in` in its context."""
    draft, step = Pace.drafted, Pace.stepped

    def drafted(self: Pace, by: str, tokens: int, confirmed: int, spared: int, seconds: float) -> None:
        notes, one, whole = _notes.get(), self._seconds(1), self._seconds(tokens + 1)
        if notes is not None:
            gain = 0.0 if one is None or whole is None else (1 + spared) * one - whole
            notes.drafts.append(Draft(by, tokens, confirmed, spared, gain))
        draft(self, by, tokens, confirmed, spared, seconds)

    def stepped(self: Pace, seconds: float | None = None) -> None:
        if (notes := _notes.get()) is not None:
            notes.steps += 1
        step(self, seconds)

    with patch.object(Pace, "drafted", drafted), patch.object(Pace, "stepped", stepped):
        yield


def note_in(notes: Notes) -> None:
    """From now on, rounds of this context (a task and what it starts) are noted there, while `noted` is entered."""
    _notes.set(notes)


class NeverFits:
    """Guesses what nobody says."""

    def guess(self, said: bytes, most: int) -> bytes:
        return (b" zq" * most)[:most]


@dataclass
class Answer:
    """One answer's last stage. gain: seconds that its drafts were worth by the model (see above)."""

    number: int
    seconds: float
    pieces: int
    text: str
    passes: int = 0
    gain: float = 0.0
    proposed: int = 0
    accepted: int = 0
    draft_passes: int = 0
    spared: int = 0
    settled: int = 0
    led: int = 0


COUNTS = ("passes", "proposed", "accepted", "draft_passes", "spared", "settled", "led")


async def answer(catalog: Catalog, wiring: str, number: int, drafts: str, most: int) -> Answer:
    options = Options(
        prompts=PROMPTS,
        sampling=Sampling(max_tokens=most, temperature=0.0),
        stage_max_tokens=most,
        drafts=drafts,  # type: ignore[arg-type]
    )
    notes = Notes()
    note_in(notes)
    made = plan(parse(wiring).topology, catalog)
    ask = [Message("user", QUESTIONS[number % len(QUESTIONS)])]
    texts: dict[int, list[str]] = defaultdict(list)
    async with run(made, ask, options, catalog) as events:
        async for event in events:
            if isinstance(event, Delta):
                texts[event.stage].append(event.text)
            elif isinstance(event, Finished):
                report = event.stages[-1]
    meters, read = report.meters, report.drafts
    pieces = report.branches[0].usage.completion_tokens if meters is None else meters.pieces
    found = Answer(number, report.seconds, pieces, "".join(texts[report.stage]), meters.passes if meters else 0)
    found.gain = sum(draft.gain for draft in notes.drafts)
    if read is not None:
        found.proposed, found.accepted, found.draft_passes = read.proposed, read.accepted, read.passes
        found.spared, found.settled, found.led = read.spared, read.settled, read.led
    return found


@contextmanager
def guessing(way: str) -> Iterator[None]:
    if way == "never fits":
        with patch("strategies.engine.fused.Copier", lambda _: NeverFits()):
            yield
    else:
        yield


@dataclass
class Block:
    """Answers to some questions, asked at once, and the seconds until the last one was there. load: of the machine, before."""

    wiring: str
    way: str
    at_once: int
    start: int
    wall: float
    load: float
    answers: list[Answer]


async def measure(catalog: Catalog, wirings: Sequence[str], args: argparse.Namespace) -> list[Block]:
    """All blocks; those that `args.kept` has already are not measured again, and new ones are added to it."""
    kept: Path | None = args.kept
    lines = kept.read_text(encoding="utf-8").splitlines() if kept is not None and kept.exists() else []
    read = [json.loads(line) for line in lines]
    blocks = [Block(**{**line, "answers": [Answer(**each) for each in line["answers"]]}) for line in read]
    done = {(block.wiring, block.way, block.at_once, block.start) for block in blocks}
    for warm in wirings:
        await answer(catalog, warm, 0, "off", 8)
    for n in args.at_once:
        for start in range(0, args.questions, n):
            numbers = range(start, min(start + n, args.questions))
            for wiring in wirings:
                for way in args.ways if {"|", ">"} & set(wiring) else ["off"]:
                    if (wiring, way, n, start) in done:
                        continue
                    never = "on" if args.draft_noise is None else "auto"  # which makes none where the models are noisy
                    drafts, load, began = never if way == "never fits" else way, os.getloadavg()[0], time.perf_counter()
                    with guessing(way), noted():
                        found = await asyncio.gather(
                            *(answer(catalog, wiring, i, drafts, args.max_tokens) for i in numbers)
                        )
                    block = Block(wiring, way, n, start, time.perf_counter() - began, load, list(found))
                    blocks.append(block)
                    if kept is not None:
                        with kept.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(asdict(block), ensure_ascii=False) + "\n")
                    speed = sum(each.pieces for each in found) / block.wall
                    sys.stderr.write(f"{n} at once, from {start}: {wiring} {way}: {speed:.1f} pieces/s\n")
    return blocks


def summary(blocks: Sequence[Block]) -> list[dict[str, Any]]:
    """One row for each wiring, way and number at once; ratios are to lock-step without drafts over the same questions."""
    found: dict[tuple[int, str, str], list[Answer]] = defaultdict(list)
    walls: dict[tuple[int, str, str], float] = defaultdict(float)
    for block in blocks:
        key = block.at_once, block.wiring, block.way
        found[key] += block.answers
        walls[key] += block.wall
    rows = []
    for (n, wiring, way), answers in sorted(found.items()):
        pieces, seconds = sum(each.pieces for each in answers), sum(each.seconds for each in answers)
        row: dict[str, Any] = {
            "at_once": n,
            "wiring": wiring,
            "way": way,
            "answers": len(answers),
            "pieces": pieces,
            "ms_a_piece": round(1e3 * seconds / pieces, 2),
            "median_seconds": round(statistics.median(each.seconds for each in answers), 2),
            "pieces_a_second_all": round(pieces / walls[n, wiring, way], 2),
            "whole_seconds": round(walls[n, wiring, way] * n / len(answers), 2),
        }
        plain = {each.number: each for each in found.get((n, wiring, "off"), [])}
        if way != "off" and all(each.number in plain for each in answers):
            those = [plain[each.number] for each in answers]
            before = sum(each.seconds for each in those)
            gain = sum(each.gain for each in answers)
            row["speed_to_lock_step"] = round(before / sum(each.pieces for each in those) / (seconds / pieces), 3)
            row["modelled"] = round(before / (before - gain), 3) if gain < before else None
            row["same_text"] = f"{sum(each.text == plain[each.number].text for each in answers)} of {len(answers)}"
        rows.append(row | {key: sum(getattr(each, key) for each in answers) for key in COUNTS})
    return rows


def shown(rows: Sequence[dict[str, Any]]) -> str:
    """In Markdown."""
    heads = {
        "at once": "at_once", "wiring": "wiring", "drafts": "way", "s a stage": "median_seconds", "s whole": "whole_seconds",
        "ms a piece": "ms_a_piece", "pieces/s": "pieces_a_second_all", "speed": "speed_to_lock_step", "modelled": "modelled",
        "same text": "same_text",
    }  # fmt: skip
    wirings = [f"`{row['wiring']}`".replace("|", "\\|") for row in rows]
    cells = [row | {"wiring": wiring} for row, wiring in zip(rows, wirings, strict=True)]
    return table(list(heads), [[row.get(key, "") for key in heads.values()] for row in cells])


async def embedded(stack: AsyncExitStack, seats: int, batching: Any = "exact") -> tuple[Catalog, list[str]]:
    """batching: as in `LlamaCppSettings`; with "fast" their drafts are read in one pass, and are not exact."""
    from backends.llama_cpp import Cores, LlamaCppBackend, LlamaCppSettings

    cores, entries = Cores(2), {}
    weights = {"smol": "smollm2-135m-instruct", "gemma": "gemma-3-270m", "qwen": "qwen2.5-coder-0.5b-instruct"}
    for name, known_as in weights.items():
        path = location(known_as)
        settings = LlamaCppSettings(
            path=str(path), context=1024, seats=seats, queue=64, prefix_cache=False, batching=batching
        )
        backend = LlamaCppBackend(name, settings, cores)
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
    parser.add_argument(
        "--batching", choices=("exact", "fast"), default="exact", help="of the embedded models, as in their settings"
    )
    parser.add_argument(
        "--kept", type=Path, help="file for what was measured: a run that was interrupted goes on from it"
    )
    parser.add_argument("--out", type=Path, default=Path(".bench/drafts.json"))
    args = parser.parse_args()
    before = asdict(machine.look())
    async with AsyncExitStack() as stack:
        made = (
            embedded(stack, max(args.at_once), args.batching)
            if args.on == "embedded"
            else engines(stack, args.dtype, args.draft_noise)
        )
        catalog, wirings = await made
        rows = summary(await measure(catalog, args.wirings or wirings, args))
    commit = machine.commit()
    found = {"machine": before, "commit": asdict(commit) if commit else None, "on": args.on, "rows": rows}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=1, default=str) + "\n")
    sys.stdout.write(f"{shown(rows)}\n")


if __name__ == "__main__":
    asyncio.run(main())
