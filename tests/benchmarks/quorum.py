"""Groups that do not wait for members that can't change the next piece: is the text ever another one, how often may they, what is it worth?

    make bench-quorum                                     all three parts, a few minutes
    make bench-quorum ARGS="--parts steps --steps 100000"

steps: random groups of two to five members with tiny vocabularies, one or several tokenizers, short lists, who come in a random order;
    every piece, and at the end all meters, are compared with lock-step's.
speed: three scripted models, one of whose passes takes three times as long, and one that only at times does; pieces per second.
embedded: the demo's three models in this process, live, with and without waiting, question by question.
vllm: the same with two engines started for it (needs .venv-vllm), one model of them twice in the group. Not made unless it is asked for.
share: for how many pieces a group of the demo's three models need not wait for one of them, with distributions that these models gave.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "property"), str(ROOT / "tests" / "benchmarks")]

from certificates import NAMES, Book, record, top_of  # noqa: E402
from drafts import QUESTIONS, embedded, engines  # noqa: E402
from late import case, pair, steps  # noqa: E402

from backends.catalog import Catalog, Entry  # noqa: E402
from backends.fake import FakeBackend, FakeSettings, Fault  # noqa: E402
from backends.types import Message, Sampling  # noqa: E402
from gateway.bench import machine  # noqa: E402
from gateway.observability.logs import setup_logs  # noqa: E402
from strategies.engine import Options, run  # noqa: E402
from strategies.engine.drafting.ahead import NEGLIGIBLE  # noqa: E402
from strategies.engine.events import Delta, Finished  # noqa: E402
from strategies.fusion import Greedy, route  # noqa: E402
from strategies.fusion.quorum import QuorumPool  # noqa: E402
from strategies.planning import plan  # noqa: E402
from strategies.prompting import PromptSet  # noqa: E402
from strategies.topology import parse  # noqa: E402

PIECES_AN_ANSWER = 40
TEXT = "The answer is 12 because 中国 is the answer, and there are two of them. I have one question: what is it? " * 4
PROMPTS = PromptSet.from_mapping("bench", {"default": {"solver": "", "reviewer": "{answer}", "verifier": "{answer}"}})
WEIGHTS = ((1, 1, 1), (1, 2, 1))


def compare(wanted: int, seed: int) -> dict[str, Any]:
    """Random groups until so many pieces were said."""
    said = early = looked_up = answers = wrong = meters = 0
    began = time.perf_counter()
    while said < wanted:
        rng = random.Random(seed)
        plain, late = pair(case(seed), rng, most=rng.choice((2, 16)))
        if steps(plain, late, PIECES_AN_ANSWER) is not None:
            wrong += 1
            say(f"seed {seed}: another text")
        else:
            late.level()
            if late.fuser.meters != plain.fuser.meters:
                meters += 1
                say(f"seed {seed}: other meters")
        found = late.fuser.meters
        said += found.pieces
        early += late.fuser.early
        looked_up += found.looked_up
        answers += 1
        seed += 1
        if answers % 500 == 0:
            say(f"{said} pieces, {early} of them early, {wrong} wrong")
    return {
        "pieces": said, "early": early, "looked_up": looked_up, "answers": answers, "wrong_texts": wrong, "wrong_meters": meters,
        "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def group(delays: Sequence[float], noise: float | None, hiccups: float = 0.0) -> Catalog:
    """Three that mostly agree. hiccups: seconds that every fifth pass of the last one takes longer."""
    entries = {}
    for n, (name, delay) in enumerate(zip("abc", delays, strict=True)):
        slow = [Fault(action="slow", after=at, seconds=hiccups, times=1) for at in range(4, 1000, 5)] if n == 2 else []
        value = FakeSettings(
            answer=TEXT, seed=n, confidence=0.9, delay=delay, draft_noise=noise, faults=tuple(slow) if hiccups else ()
        )
        entries[name] = Entry(FakeBackend(name, value))
    return Catalog(entries)


async def answer(
    catalog: Catalog, quorum: str, wiring: str = "a|b|c", ask: str = "Say it", pieces: int = 150
) -> tuple[str, Any, float]:
    """Text, report, seconds until the last of the text."""
    options = Options(prompts=PROMPTS, quorum=quorum, sampling=Sampling(max_tokens=pieces))  # type: ignore[arg-type]
    text, began = "", time.perf_counter()
    last = began
    async with run(plan(parse(wiring).topology, catalog), [Message("user", ask)], options, catalog) as events:
        async for event in events:
            if isinstance(event, Delta):
                text, last = text + event.text, time.perf_counter()
            elif isinstance(event, Finished):
                report = event.stages[-1]
    return text, report, last - began


async def speed(rounds: int) -> list[dict[str, Any]]:
    """In turns; the medians."""
    rows = []
    for what, delays, hiccups in (
        ("one three times as slow", (0.01, 0.01, 0.03), 0.0),
        ("one slow at times", (0.01, 0.01, 0.01), 0.04),
        ("all alike", (0.01, 0.01, 0.01), 0.0),
    ):
        for name, noise in (("one pass", 0.0), ("step by step", None)):
            row: dict[str, Any] = {"group": what, "catching up": name}
            texts, rates = set(), defaultdict(list)
            for _ in range(rounds):
                for quorum in ("off", "auto"):
                    text, report, seconds = await answer(group(delays, noise, hiccups), quorum)
                    texts.add(text)
                    rates[quorum].append(report.meters.pieces / seconds)
                    rates[f"{quorum}, until all is told"].append(report.meters.pieces / report.seconds)
                    row[f"passes, {quorum}"] = report.meters.passes
                    if report.quorum is not None:
                        row["early"] = round(report.quorum.pieces / report.meters.pieces, 3)
                        row["lag"] = report.quorum.lag
            row["pieces a second"] = {name: round(statistics.median(values), 1) for name, values in rates.items()}
            row["same_text"] = len(texts) == 1
            rows.append(row)
            say(json.dumps(row))
    return rows


LIVE = {
    "embedded": ("qwen|smol|gemma", "qwen*2|smol|gemma"),
    "vllm": ("qwen|smol|smol", "qwen|qwen|smol"),
}


async def live(on: str, questions: int, pieces: int) -> list[dict[str, Any]]:
    """Real models."""
    rows = []
    async with AsyncExitStack() as stack:
        catalog, _ = await (engines(stack, "float32", NEGLIGIBLE) if on == "vllm" else embedded(stack, 2))
        for wiring in LIVE[on]:
            said, early, lag = 0, 0, 0
            seconds, whole, texts = defaultdict(float), defaultdict(float), defaultdict(list)
            await answer(catalog, "off", wiring, QUESTIONS[0], 4)
            for question in QUESTIONS[:questions]:
                for quorum in ("off", "auto"):
                    text, report, took = await answer(catalog, quorum, wiring, question, pieces)
                    texts[quorum].append(text)
                    seconds[quorum] += took
                    whole[quorum] += report.seconds
                    if report.quorum is not None:
                        said += report.meters.pieces
                        early += report.quorum.pieces
                        lag = max(lag, report.quorum.lag)
            same = sum(one == other for one, other in zip(texts["off"], texts["auto"], strict=True))
            rows.append(
                {
                    "wiring": wiring,
                    "pieces": said,
                    "pieces a second": {name: round(said / value, 1) for name, value in seconds.items()},
                    "until all is told": {name: round(said / value, 1) for name, value in whole.items()},
                    "early": round(early / said, 3),
                    "lag": lag,
                    "same_text": f"{same} of {questions}",
                }
            )
            say(json.dumps(rows[-1]))
    return rows


def share(book: Book, weights: Sequence[int], most: int, k: int = 64) -> list[dict[str, Any]]:
    """Per member: for how many of the pieces that it had to be asked for need nobody have waited for it."""
    whole = sum(weights)
    rows = []
    for absent, name in enumerate(NAMES):
        asked = sure = pieces = 0
        for prompt in range(len(book.texts)):
            fuser = QuorumPool(book.vocabularies, [weight / whole for weight in weights], Greedy())
            try:
                for ready in islice(drive(fuser, book, prompt, absent, k), most):
                    pieces += 1
                    if ready is not None:
                        asked += 1
                        sure += ready
            except KeyError:  # with short lists the text may go elsewhere than the recorded one
                say(f"prompt {prompt}: left the recorded text")
        rows.append({"without": name, "pieces": pieces, "asked": asked, "sure": sure, "share": round(sure / asked, 3)})
        say(json.dumps(rows[-1]))
    return rows


def drive(fuser: QuorumPool, book: Book, prompt: int, absent: int, k: int) -> Any:
    """Yields for every piece whether it was sure without `absent`; None: that one had nothing to be asked."""
    places = [nodes[0] for nodes in fuser.due()]
    paths: list[tuple[int, ...]] = [() for _ in places]

    def ask(member: int) -> None:
        for node in fuser.due()[member]:
            drop, append = route(places[member], node)
            paths[member] = (*paths[member][: len(paths[member]) - drop], *append)
            places[member] = node
            fuser.feed(member, node, top_of(book.pages[prompt, member, paths[member]], k))

    while True:
        for member in range(len(places)):
            if member != absent:
                ask(member)
        ready = fuser.sure() if fuser.missing() else None
        ask(absent)
        fuser.sure()
        while wanted := fuser.wants():
            for lookup in wanted:
                fuser.supply(
                    lookup, book.pages[prompt, lookup.member, paths[lookup.member]][list(lookup.ids)].astype(float)
                )
        said = fuser.commit()
        yield ready
        if said.end:
            return


def say(line: str) -> None:
    """To whoever watches."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="speed,embedded,share,steps")
    parser.add_argument("--questions", type=int, default=4, help="for real models")
    parser.add_argument("--steps", type=int, default=100_000, help="pieces to compare")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5, help="of the speed of each group")
    parser.add_argument("--pieces", type=int, default=48, help="pieces recorded per prompt")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    found: dict[str, Any] = {"machine": asdict(machine.look()), "commit": asdict(machine.commit())}
    parts = asked.parts.split(",")
    setup_logs("warning", "console")
    if "speed" in parts:
        found["speed"] = asyncio.run(speed(asked.rounds))
    for on in LIVE:
        if on in parts:
            found[on] = asyncio.run(live(on, asked.questions, asked.pieces))
    if "share" in parts:
        found["share"] = {}
        for weights in WEIGHTS:
            named = " ".join(f"{name}*{weight}" for name, weight in zip(NAMES, weights, strict=True))
            say(named)
            found["share"][named] = share(
                asyncio.run(record(asked.config, asked.pieces, weights)), weights, asked.pieces
            )
    if "steps" in parts:
        found["steps"] = compare(asked.steps, asked.seed)
        if found["steps"]["wrong_texts"] or found["steps"]["wrong_meters"]:
            sys.exit(json.dumps(found["steps"]))
    text = json.dumps(found, indent=1, ensure_ascii=False)
    if asked.out is not None:
        asked.out.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
