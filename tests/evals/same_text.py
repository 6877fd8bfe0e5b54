"""Are texts that were written with drafts those written without? Two hundred prompts, every structure, real models.

    make eval-same-text ARGS="--on vllm"         an hour or so on two cores; goes on where it was interrupted
    make eval-same-text                          the embedded models

Forty prompts each of English, Chinese, code, emoji (data/drafted.yaml) and answers held to a JSON schema (data/forms.yaml), for every
wiring, with `drafts: off` and with `always`, which reads sixteen tokens ahead wherever there is something to guess. A quarter of the
answers is drawn with a seed, a fifth tells log-probabilities, a sixth has stop strings. *Same* means all that a client can see: the text of
every stage, how it ended, usage, log-probabilities, and the group's certificates and losses (not its passes). Where --draft-noise is
negligible but not 0, log-probabilities and losses may be off by twice as much. Answers that are not the same are asked for again with
nobody beside them: engines may round otherwise for what else they compute. Exit code 1 if any answer differs then on an engine that is
taken to be exact.

Beside this it tells how far drafts held: for each proposer and kind of prompt, the share of drafts whose first n tokens were said. What the
same drafts would be worth on other machines tells `expected.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from asking import DATA, say, show, table, write

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support"), str(ROOT / "tests" / "benchmarks")]

from drafts import PROMPTS, Notes, embedded, engines, note_in, noted  # noqa: E402

from backends.catalog import Catalog  # noqa: E402
from backends.errors import BackendOverloaded  # noqa: E402
from backends.types import Message, Sampling  # noqa: E402
from gateway.evaluation.report.svg import WIDTH, Plot, Scale, axes, legend, series  # noqa: E402
from strategies.engine import Options, run  # noqa: E402
from strategies.engine.drafting.ahead import NEGLIGIBLE  # noqa: E402
from strategies.engine.events import Delta, Finished  # noqa: E402
from strategies.engine.options import Constraint  # noqa: E402
from strategies.planning import plan  # noqa: E402
from strategies.topology import parse  # noqa: E402

EACH = 40
"""Prompts of a kind."""
WIRINGS = {
    "embedded": ("qwen", "qwen>smol", "qwen|smol|gemma", "qwen>smol|gemma", "qwen|smol>gemma", "qwen>qwen|smol"),
    "vllm": ("smol", "qwen>smol", "qwen|smol", "smol>qwen|smol", "qwen|smol>smol"),
}
LONGEST = 16
"""Tokens of a draft with `always`."""


@dataclass(frozen=True)
class Prompt:
    kind: str
    text: str
    schema: str | None = None


@dataclass
class Seen:
    """What a client can see of an answer, and how it came to be."""

    seen: dict[str, Any] = field(default_factory=dict)
    notes: Notes = field(default_factory=Notes)
    pieces: int = 0
    passes: int = 0
    settled: int = 0


def prompts() -> list[Prompt]:
    """Two hundred, the kinds in turns."""
    kinds: dict[str, dict[str, list[str]]] = yaml.safe_load((DATA / "drafted.yaml").read_text(encoding="utf-8"))
    forms = list(yaml.safe_load((DATA / "forms.yaml").read_text(encoding="utf-8")).values())
    made = {
        kind: [Prompt(kind, template.replace("{}", thing)) for thing in of["things"] for template in of["templates"]]
        for kind, of in kinds.items()
    }
    made["json"] = [
        Prompt("json", f"{form['question']} Answer in JSON.{more}", json.dumps(form["schema"]))
        for more in ("", " Be inventive.")
        for form in forms
    ][:EACH]
    assert all(len(those) == EACH for those in made.values())
    return [prompt for those in zip(*made.values(), strict=True) for prompt in those]


def options(number: int, prompt: Prompt, drafts: str, most: int) -> Options:
    """number: of the prompt, which says what else is asked for."""
    drawn = number % 4 == 3
    sampling = Sampling(
        max_tokens=most,
        temperature=0.8 if drawn else 0.0,
        seed=number if drawn else None,
        stop=(". ", "\n\n", "。") if number % 6 == 5 else (),
    )
    return Options(
        prompts=PROMPTS,
        sampling=sampling,
        stage_max_tokens=most,
        drafts=drafts,  # type: ignore[arg-type]
        logprobs=2 if number % 5 == 2 else None,
        constraint=None if prompt.schema is None else Constraint("json_schema", prompt.schema),
    )


async def answer(catalog: Catalog, wiring: str, number: int, prompt: Prompt, drafts: str, most: int) -> Seen:
    found = Seen()
    note_in(found.notes)
    texts: dict[int, str] = defaultdict(str)
    tokens: list[Any] = []
    made = plan(parse(wiring).topology, catalog)
    async with run(made, [Message("user", prompt.text)], options(number, prompt, drafts, most), catalog) as events:
        async for event in events:
            if isinstance(event, Delta):
                texts[event.stage] += event.text
                tokens += [asdict(token) for token in event.tokens]
            elif isinstance(event, Finished):
                ended = event
    for stage in ended.stages:
        if stage.meters is not None:
            found.pieces += stage.meters.pieces
            found.passes += stage.meters.passes
        if stage.drafts is not None:
            found.settled += stage.drafts.settled
    found.seen = {
        "texts": dict(texts),
        "tokens": tokens,
        "ends": [stage.finish_reason for stage in ended.stages],
        "usage": [asdict(branch.usage) for stage in ended.stages for branch in stage.branches],
        "meters": [
            asdict(replace(s.meters, passes=0)) for s in ended.stages if s.meters is not None and len(s.branches) > 1
        ],
    }
    return found


def differences(plain: Seen, drafted: Seen, off: float) -> list[str]:
    """The parts of an answer that are not the same. off: by how much log-probabilities, and what is made of them, may differ."""
    return [key for key in plain.seen if not alike(plain.seen[key], drafted.seen[key], off)]


def alike(one: Any, other: Any, off: float) -> bool:
    """Equal, but for numbers with a fraction."""
    if isinstance(one, float) and isinstance(other, float):
        return one == other or abs(one - other) <= off * max(1.0, abs(one))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(alike(one[key], other[key], off) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(alike, one, other, [off] * len(one)))
    return bool(one == other)


async def compare(
    catalog: Catalog, wiring: str, numbers: Sequence[int], asked: Sequence[Prompt], most: int, off: float
) -> list[dict[str, Any]]:
    """One line for each of these prompts, asked at once."""

    async def both(number: int) -> list[Seen]:
        return [await patiently(number, way) for way in ("off", "always")]

    async def patiently(number: int, way: str) -> Seen:
        while True:
            try:
                return await answer(catalog, wiring, number, asked[number], way, most)
            except BackendOverloaded:  # places of answers that are over are not free at once
                await asyncio.sleep(1.0)

    pairs = await asyncio.gather(*(asyncio.create_task(both(number)) for number in numbers))
    lines = []
    for number, (plain, drafted) in zip(numbers, pairs, strict=True):
        differ, alone = differences(plain, drafted, off), []
        if differ:
            alone = differences(*await both(number), off)
        lines.append({
            "wiring": wiring, "number": number, "kind": asked[number].kind, "differ": differ, "alone": alone,
            "pieces": plain.pieces, "passes": [plain.passes, drafted.passes], "settled": drafted.settled,
            "seen": {key: [plain.seen[key], drafted.seen[key]] for key in differ},
            "steps": drafted.notes.steps,
            "drafts": [(draft.by, draft.tokens, draft.said, draft.spared) for draft in drafted.notes.drafts],
        })  # fmt: skip
    return lines


async def measure(args: argparse.Namespace, kept: Path) -> list[dict[str, Any]]:
    asked = prompts()[: args.prompts]
    lines = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()] if kept.exists() else []
    done = {(line["wiring"], line["number"]) for line in lines}
    kept.parent.mkdir(parents=True, exist_ok=True)
    off = 0.0
    async with AsyncExitStack() as stack:
        if args.on == "embedded":
            catalog, _ = await embedded(stack, args.at_once, args.batching)
        else:
            catalog, _ = await engines(stack, args.dtype, args.draft_noise, args.block_size)
            off = 2 * args.draft_noise if args.draft_noise <= NEGLIGIBLE else 0.0
        for start in range(0, len(asked), args.at_once):
            for wiring in args.wirings or WIRINGS[args.on]:
                numbers = [n for n in range(start, min(start + args.at_once, len(asked))) if (wiring, n) not in done]
                if not numbers:
                    continue
                with noted():
                    new = await compare(catalog, wiring, numbers, asked, args.max_tokens, off)
                with kept.open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in new)
                lines += new
                differ = sum(bool(line["differ"]) for line in new)
                say(f"{len(lines)} answers; {wiring}: {differ} of {len(new)} not the same")
    return lines


def same(lines: Sequence[Mapping[str, Any]]) -> str:
    """By wiring."""
    rows = []
    for wiring in dict.fromkeys(line["wiring"] for line in lines):
        those = [line for line in lines if line["wiring"] == wiring]
        plain, drafted = (sum(line["passes"][way] for line in those) for way in (0, 1))
        rounds = sum(line["steps"] + len(line["drafts"]) for line in those)
        spared = sum(draft[3] for line in those for draft in line["drafts"])
        rows.append([
            f"`{wiring}`".replace("|", "\\|"), len(those), sum(not line["differ"] for line in those),
            sum(not line["alone"] for line in those), sum(line["pieces"] for line in those),
            f"{plain} / {drafted}", f"{rounds + spared} / {rounds}", sum(len(line["drafts"]) for line in those),
            sum(line["settled"] for line in those),
        ])  # fmt: skip
    heads = [
        "wiring",
        "answers",
        "same",
        "same alone",
        "pieces",
        "passes off / always",
        "rounds off / always",
        "drafts",
        "settled singly",
    ]
    return table(heads, rows)


def held(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Proposer → kind of prompt → share of its drafts of which at least the first n tokens were said, n from 1; drafts that were
    shorter do not count where they could not have held. "all": of every kind."""
    shares: dict[str, dict[str, list[float]]] = {}
    drafts: dict[str, dict[str, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        for by, tokens, confirmed, _ in line["drafts"]:
            drafts[by][line["kind"]].append((tokens, confirmed))
            drafts[by]["all"].append((tokens, confirmed))
    for by, kinds in drafts.items():
        shares[by] = {}
        for kind, pairs in sorted(kinds.items()):
            row = []
            for n in range(1, LONGEST + 1):
                could = [confirmed for tokens, confirmed in pairs if tokens >= n]
                if not could:
                    break
                row.append(sum(confirmed >= n for confirmed in could) / len(could))
            shares[by][kind] = [float(len(pairs)), *row]
    return shares


def picture(shares: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """SVG: how many of the drafts held for at least n tokens, a line for each proposer, and for each kind of prompt but JSON: there are six
    colours."""
    plot = Plot(300, "Share of drafts of which at least the first n tokens were said")
    names = [
        (by, kind)
        for by, kinds in shares.items()
        for kind in kinds
        if kind == "all" or (by == "copied" and kind != "json")
    ]
    top = legend(plot, [(number, f"{by}, {kind}") for number, (by, kind) in enumerate(names)], 16)
    x, y = Scale(1, LONGEST, 52, WIDTH - 12), Scale(0, 1, 256, top)
    axes(plot, x, y, "tokens of the draft", "share that held")
    for number, (by, kind) in enumerate(names):
        points = [(x(n), y(share)) for n, share in enumerate(shares[by][kind][1:], start=1)]
        plot.path(points, series(number), 2.5 if kind == "all" else 1.2)
        for n, (left, high) in enumerate(points, start=1):
            plot.mark(left, high, number, f"{by}, {kind}: {shares[by][kind][n]:.2f} of drafts held for {n}", 3)
    return plot.svg()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--on", choices=("embedded", "vllm"), default="embedded")
    parser.add_argument("--wirings", nargs="+")
    parser.add_argument("--prompts", type=int, default=5 * EACH)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=24, help="of each stage")
    parser.add_argument(
        "--batching", choices=("exact", "fast"), default="exact", help="of the embedded models, as in their settings"
    )
    parser.add_argument("--dtype", default="float32", help="of the vLLM engines")
    parser.add_argument(
        "--draft-noise", type=float, default=NEGLIGIBLE, help="of the vLLM engines, as in their settings"
    )
    parser.add_argument("--block-size", type=int, default=32, help="of the vLLM engines' prefix caches, tokens")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--plot", type=Path, default=None, help="also draw how far drafts held, as SVG")
    args = parser.parse_args()
    out = args.out or Path(f".bench/same_text_{args.on}.json")
    lines = asyncio.run(measure(args, out.with_suffix(".jsonl")))
    write(out, vars(args), {"lines": lines, "held": held(lines)})
    if args.plot is not None:
        args.plot.write_text(picture(held(lines)) + "\n", encoding="utf-8")
    show(same(lines))
    for by, kinds in held(lines).items():
        heads = [by, "drafts", *(f"≥ {n}" for n in (1, 2, 4, 8, 16))]
        rows = [
            [kind, int(row[0]), *(f"{row[n]:.2f}" if n < len(row) else "" for n in (1, 2, 4, 8, 16))]
            for kind, row in kinds.items()
        ]
        show("\n" + table(heads, rows))
    differ = [line for line in lines if line["differ"]]
    for line in differ:
        show(
            f"{line['wiring']} {line['number']} ({line['kind']}): {line['differ']}, alone {line['alone']}: {line['seen']}"
        )
    show(f"\n{len(lines) - len(differ)} of {len(lines)} the same; written to {out}")
    exact = args.batching == "exact" if args.on == "embedded" else args.draft_noise <= NEGLIGIBLE
    return 1 if exact and any(line["alone"] for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
