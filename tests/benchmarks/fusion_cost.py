"""What choosing a piece costs: our own code alone, per piece, for 2, 3 and 5 members at several k.

    make bench-fusion                          recording takes some minutes once, the rest two

1. *Record*, once. The groups qwen|smol and qwen|smol|gemma answer a few prompts (English, code, Chinese); every forward pass is kept
   whole (float32, all tokens), in MODELNET_HOME or ~/.cache/modelnet.
2. *Tape.* For every group and k a fuser goes the same way over those distributions; what it is given (lists and looked-up values) is kept.
   Five members are qwen and smol twice each, each twin with half of its model's weight: so the text is that of the three.
3. *Replay.* A new fuser is given the same again, several times; each piece is timed as a whole: due, route, feed, wants, supply, commit.
   A piece's time is the median of its replays. Where a list is shorter than what a text was recorded with, the text may turn another way:
   what follows there is left out, and counted.

`look-ups` is the share of pieces for which anything was looked up; `serving` what the backend takes to give those values, per piece.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import os
import pickle
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from certificates import Full, Path_, _Recorder  # beside this file

from backends.llama_cpp.logits import largest
from backends.types import Ids, LogProbs, Message, Sampling, TopK, Vocabulary
from gateway import __version__
from gateway.bench import machine
from gateway.bench.report import Number, Report
from gateway.bench.tape import _group, _with_backends
from gateway.cli.check import read_config
from gateway.observability.logs import setup_logs
from gateway.runtime import open_runtime
from strategies.engine import run
from strategies.engine.events import Delta
from strategies.fusion import Fuser, Greedy, LinearPool, Node, root, route

FORMAT = 2
"""Of the recording."""
PROMPTS = (
    "Explain in a few sentences why the sky is blue, and why it turns red in the evening.",
    "Write a long story about a river, its fish, and the people who live on its banks.",
    "Write a Python function that merges two sorted lists, with a docstring and a test.",
    "Write a C program that counts the words of its standard input.",
    "请用几句话介绍一下北京的历史和名胜。",
    "请写一个关于一条河和河边人家的小故事。",
)
RECORDED = ("qwen|smol", "qwen|smol|gemma")


@dataclass(frozen=True)
class Members:
    """recorded: the group whose recording is replayed."""

    names: tuple[str, ...]
    weights: tuple[float, ...]
    recorded: str


GROUPS = {
    "qwen|smol": Members(("qwen", "smol"), (1 / 2, 1 / 2), "qwen|smol"),
    "qwen|smol|gemma": Members(("qwen", "smol", "gemma"), (1 / 3, 1 / 3, 1 / 3), "qwen|smol|gemma"),
    "qwen|qwen|smol|smol|gemma": Members(
        ("qwen", "qwen", "smol", "smol", "gemma"), (1 / 6, 1 / 6, 1 / 6, 1 / 6, 1 / 3), "qwen|smol|gemma"
    ),
}
KS = (10, 20, 64)

Question = tuple[str, int]
"""The group that was recorded, and the prompt's number."""


@dataclass
class Page:
    """What a model said at one place, in nats. full: float32 [vocabulary]. best: its likeliest, int32 [max(KS)], likeliest first.
    whole: what all probabilities add up to (float32 does not give one exactly)."""

    full: Full
    best: Ids
    whole: float

    @staticmethod
    def of(full: Full) -> Page:
        return Page(full, largest(full, max(KS)), float(np.exp(full.astype(np.float64)).sum()))

    def top(self, k: int) -> TopK:
        logprobs = self.full[self.best[:k]].astype(np.float64)
        return TopK(self.best[:k], logprobs, max(0.0, self.whole - float(np.exp(logprobs).sum())))


@dataclass
class Book:
    """Everything that was recorded: (question, tokens behind it) of a model → its page."""

    vocabularies: dict[str, Vocabulary] = field(default_factory=dict)
    pages: dict[str, dict[tuple[Question, Path_], Page]] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)

    def keep(self, name: str, question: Question, path: Path_, full: Full) -> None:
        self.pages[name].setdefault((question, path), Page.of(full))

    def write(self, directory: Path) -> None:
        """One array a model, and what its rows are."""
        directory.mkdir(parents=True, exist_ok=True)
        index = {}
        for name, pages in self.pages.items():
            np.save(directory / f"{name}.npy", np.stack([page.full for page in pages.values()]))
            index[name] = {place: (page.best, page.whole) for place, page in pages.items()}
        tables = {name: (v.tokens, v.end_ids, v.fingerprint) for name, v in self.vocabularies.items()}
        (directory / "index").write_bytes(pickle.dumps((tables, index, self.texts)))

    @staticmethod
    def read(directory: Path) -> Book:
        """Raises FileNotFoundError."""
        tables, index, texts = pickle.loads((directory / "index").read_bytes())
        pages = {}
        for name, rows in index.items():
            fulls = np.load(directory / f"{name}.npy", mmap_mode="r")
            pages[name] = {place: Page(full, *row) for full, (place, row) in zip(fulls, rows.items(), strict=True)}
        return Book({name: Vocabulary(*table) for name, table in tables.items()}, pages, texts)


async def record(config: Path | None, pieces: int) -> Book:
    """Let the groups answer every prompt."""
    book = Book()
    async with open_runtime(read_config(config)) as runtime:
        await runtime.wait_loaded()
        for wiring in RECORDED:
            book.texts[wiring] = []
            for number, prompt in enumerate(PROMPTS):
                prepared = runtime.prepare("pi:" + wiring, Sampling(max_tokens=pieces, temperature=0.0), {})
                recorders = {}
                for name, backend in _group(prepared.plan, runtime.catalog):
                    vocabulary = book.vocabularies[name] = await backend.vocabulary()
                    book.pages.setdefault(name, {})
                    recorders[name] = _Recorder(backend, partial(book.keep, name, (wiring, number)), len(vocabulary))
                catalog = _with_backends(runtime.catalog, recorders)
                text = ""
                async with run(prepared.plan, (Message("user", prompt),), prepared.options, catalog) as events:
                    async for event in events:
                        text += event.text if isinstance(event, Delta) else ""
                book.texts[wiring].append(text)
                say(f"recorded {wiring}: {text[:60]!r}")
    return book


@dataclass
class Tape:
    """What one answer's fuser was given, in order. lists, values: per member. asked: per piece, how many values were looked up.
    serving: seconds that giving those took. text: what was said."""

    lists: list[list[TopK]]
    values: list[list[LogProbs]]
    asked: list[int] = field(default_factory=list)
    serving: list[float] = field(default_factory=list)
    text: list[bytes] = field(default_factory=list)
    left_out: int = 0


Make = Callable[[], Fuser]


def tape_of(make: Make, names: Sequence[str], book: Book, question: Question, k: int, pieces: int) -> Tape:
    """Go the recorded way once, and keep what was given."""
    fuser = make()
    tape = Tape([[] for _ in names], [[] for _ in names])
    places: list[Node | None] = [None] * len(names)
    paths: list[Path_] = [() for _ in names]

    def feed(member: int, node: Node) -> None:
        drop, append = route(places[member] or root(node), node)
        paths[member] = (*paths[member][: len(paths[member]) - drop], *append)
        places[member] = node
        top = book.pages[names[member]][question, paths[member]].top(k)
        tape.lists[member].append(top)
        fuser.feed(member, node, top)

    for piece in range(pieces):
        try:
            asked, serving = 0, 0.0
            while True:
                for member, nodes in enumerate(fuser.due()):
                    for node in tuple(nodes):
                        feed(member, node)
                while wanted := fuser.wants():
                    for lookup in wanted:
                        full = book.pages[names[lookup.member]][question, paths[lookup.member]].full
                        began = time.perf_counter()
                        values = full[np.asarray(lookup.ids, np.int32)].astype(np.float64)
                        serving += time.perf_counter() - began
                        tape.values[lookup.member].append(values)
                        asked += len(values)
                        fuser.supply(lookup, values)
                if not any(fuser.due()):
                    break
        except KeyError:
            tape.left_out = pieces - piece
            break
        said = fuser.commit()
        tape.asked.append(asked)
        tape.serving.append(serving)
        tape.text.append(said.text)
        if said.end:
            break
    return tape


def replay(fuser: Fuser, tape: Tape) -> list[float]:
    """Seconds per piece. Raises AssertionError if it says something else."""
    places: list[Node | None] = [None] * len(tape.lists)
    lists: list[Iterator[TopK]] = [iter(given) for given in tape.lists]
    values: list[Iterator[LogProbs]] = [iter(given) for given in tape.values]
    clock = time.thread_time
    said, marks = [], [clock()]
    for _ in tape.text:
        while True:
            for member, nodes in enumerate(fuser.due()):
                for node in nodes:
                    route(places[member] or root(node), node)
                    places[member] = node
                    fuser.feed(member, node, next(lists[member]))
            while wanted := fuser.wants():
                for lookup in wanted:
                    fuser.supply(lookup, next(values[lookup.member]))
            if not any(fuser.due()):
                break
        said.append(fuser.commit().text)
        marks.append(clock())
    assert said == tape.text
    return [after - before for before, after in pairwise(marks)]


@dataclass
class Cost:
    """Of one group at one k. ms, serving: milliseconds per piece; lookups: which pieces had any; values: how many were looked up."""

    ms: list[float] = field(default_factory=list)
    serving: list[float] = field(default_factory=list)
    lookups: list[bool] = field(default_factory=list)
    values: int = 0
    left_out: int = 0
    certified: int = 0
    looked_up: int = 0
    uncertified: int = 0
    text: str = ""

    def row(self, group: str, k: int) -> str:
        n = len(self.ms)
        without = [ms for ms, lookup in zip(self.ms, self.lookups, strict=True) if not lookup]
        looked = [ms for ms, lookup in zip(self.ms, self.lookups, strict=True) if lookup]
        cells = (
            f"{group.count('|') + 1}",
            f"{k}",
            f"{n}",
            f"{statistics.median(self.ms):.3f}",
            f"{statistics.fmean(self.ms):.3f}",
            f"{np.quantile(self.ms, 0.95):.3f}",
            f"{100 * sum(self.lookups) / n:.0f} %",
            f"{_mean(without):.3f}",
            f"{_mean(looked):.3f}",
            f"{sum(self.serving) / n:.3f}",
            f"{self.values / n:.0f}",
            " / ".join(f"{100 * part / n:.0f}" for part in (self.certified, self.looked_up, self.uncertified)),
            hashlib.sha256(self.text.encode()).hexdigest()[:8],
            f"{self.left_out}",
        )
        return f"| {' | '.join(cells)} |"


HEAD = (
    "| members | k | pieces | median, ms | mean, ms | p95, ms | look-ups | mean without | mean with | serving | values a piece "
    "| certified / looked up / uncertified, % | text | left out |"
)


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else 0.0


def cost_of(book: Book, group: str, k: int, pieces: int, replays: int) -> Cost:
    """Tape and replay every prompt."""
    names, weights, recorded = GROUPS[group].names, GROUPS[group].weights, GROUPS[group].recorded
    vocabularies = [book.vocabularies[name] for name in names]
    cost, texts = Cost(), []

    def make() -> LinearPool:
        return LinearPool(vocabularies, weights, Greedy())

    for prompt in range(len(PROMPTS)):
        tape = tape_of(make, names, book, (recorded, prompt), k, pieces)
        times = []
        for _ in range(replays):
            fuser = make()
            gc.collect()
            times.append(replay(fuser, tape))
        meters = fuser.meters
        cost.ms += [1e3 * statistics.median(piece) for piece in zip(*times, strict=True)]
        cost.serving += [1e3 * seconds for seconds in tape.serving]
        cost.lookups += [asked > 0 for asked in tape.asked]
        cost.values += sum(tape.asked)
        cost.left_out += tape.left_out
        cost.certified += meters.certified
        cost.looked_up += meters.looked_up
        cost.uncertified += meters.uncertified
        texts.append(b"\0".join(tape.text).decode(errors="backslashreplace"))
    cost.text = "\n".join(texts)
    return cost


def numbers(group: str, k: int, cost: Cost) -> list[Number]:
    """As the report wants them."""
    share = sum(cost.lookups) / len(cost.lookups)
    return [
        Number("fuser, per piece", group, "ms", tuple(cost.ms), k),
        Number("fuser, mean", group, "ms/piece", (statistics.fmean(cost.ms),), k),
        Number("fuser, p95", group, "ms/piece", (float(np.quantile(cost.ms, 0.95)),), k),
        Number("pieces with look-ups", group, "share", (share,), k),
        Number("values looked up", group, "1/piece", (cost.values / len(cost.ms),), k),
        Number("serving look-ups, mean", group, "ms/piece", (statistics.fmean(cost.serving),), k),
    ]


def say(text: str) -> None:
    sys.stderr.write(text + "\n")


def book_of(config: Path | None, pieces: int) -> Book:
    """The recording, made if it is not there."""
    home = Path(os.environ.get("MODELNET_HOME") or Path.home() / ".cache" / "modelnet")
    made_of = repr((FORMAT, PROMPTS, RECORDED, pieces, str(config)))
    directory = home / "bench" / f"fusion-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"
    try:
        return Book.read(directory)
    except FileNotFoundError:
        anyio.run(record, config, pieces).write(directory)
        say(f"kept in {directory}")
        return Book.read(directory)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", type=Path, default=None)
    parser.add_argument("--pieces", type=int, default=80, help="of every recorded answer, at most")
    parser.add_argument("--replays", type=int, default=7)
    parser.add_argument("--k", type=int, action="append", help="by default 10, 20 and 64")
    parser.add_argument("--group", action="append", choices=GROUPS)
    parser.add_argument("--texts", type=Path, help="write what was said here, to compare with another version's")
    parser.add_argument("--out", type=Path, default=Path(".bench/fusion.json"))
    args = parser.parse_args()
    setup_logs("warning", "console")
    began, here, code = datetime.now(UTC), machine.look(), machine.commit()
    book = book_of(args.config, args.pieces)
    found, texts = [], {}
    print(f"{HEAD}\n|{'---|' * (HEAD.count('|') - 1)}")  # noqa: T201 - a command's output
    for group in args.group or GROUPS:
        for k in args.k or KS:
            cost = cost_of(book, group, k, args.pieces, args.replays)
            found += numbers(group, k, cost)
            texts[f"{group}, k {k}"] = cost.text
            print(cost.row(group, k), flush=True)  # noqa: T201
    settings: dict[str, Any] = {"pieces": args.pieces, "replays": args.replays, "prompts": list(PROMPTS)}
    date = began.isoformat(timespec="seconds")
    Report(__version__, date, code, here, settings, tuple(found), texts).write(args.out)
    if args.texts:
        args.texts.write_text("\n\n".join(f"## {of}\n{text}" for of, text in texts.items()), encoding="utf-8")
    print(f"\nload before {here.load}; written to {args.out}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
