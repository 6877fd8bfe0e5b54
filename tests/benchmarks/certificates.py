"""Are certificates ever wrong, and how often are there any? Against the full distributions of the demo's three models.

    make bench-certificates                      about ten minutes on two cores

1. *Record.* The group qwen|smol|gemma answers a few prompts; every forward pass is kept whole (float32, all tokens).
2. *Natural steps.* The same answers again, for several k: how many pieces are certified from the lists, certified after look-ups, or
   uncertified. Where a short list changes the text, the rest of that answer is left out, and counted.
3. *Shuffled steps.* Groups of one to three members with random weights read recorded distributions in a random order: steps that no
   prompt would bring together, and many more of them. After each decided step the winner is compared with the true one: the pool over
   all tokens of the vocabularies, given the readings that the group keeps (docs/adr/0005). A certified winner that is not the true one
   is a false certificate.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from numpy.typing import NDArray

from backends.protocol import Session
from backends.types import LogProbs, Message, Sampling, TopK, Vocabulary
from gateway.bench import machine
from gateway.bench.tape import _group, _Other, _with_backends
from gateway.cli.check import read_config
from gateway.observability.logs import setup_logs
from gateway.runtime import open_runtime
from strategies.engine import run
from strategies.engine.events import Delta
from strategies.fusion import Greedy, LinearPool, Node, NothingToSay, route
from strategies.vocabulary import Inventory, inventory_of

NAMES = ("gemma", "qwen", "smol")  # the order of a group's branches
PROMPTS = (
    "Explain in three sentences why the sky is blue.",
    "Write a Python function that merges two sorted lists.",
    "请用两三句话介绍一下北京。",
    "Which emoji fit a birthday? 🎂🎉 Say why.",
)
KS = (1, 2, 4, 8, 16, 20, 32, 64)
PIECES_A_WALK = 12
TIE = 1e-9
"""Scores that differ by less are a tie to float32 distributions."""

Full = NDArray[np.float32]
Path_ = tuple[int, ...]


@dataclass
class Book:
    """Every recorded distribution, in nats: (prompt, member, tokens behind the prompt) → float32 [vocabulary]."""

    vocabularies: tuple[Vocabulary, ...]
    pages: dict[tuple[int, int, Path_], Full] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)

    def of(self, member: int) -> list[Full]:
        return [page for (_, m, _), page in self.pages.items() if m == member]


class _Recorder(_Other):
    """A backend whose sessions also write down whole distributions."""

    def __init__(self, real: Any, keep: Callable[[Path_, Full], None], size: int) -> None:
        super().__init__(real)
        self._keep, self._size = keep, size

    @asynccontextmanager
    async def open(
        self, messages: Sequence[Message], *, k: int, max_tokens: int | None = None
    ) -> AsyncIterator[Session]:
        async with self._real.open(messages, k=k, max_tokens=max_tokens) as session:
            yield _Whole(session, self._keep, self._size)


class _Whole:
    def __init__(self, real: Session, keep: Callable[[Path_, Full], None], size: int) -> None:
        self._real, self._keep, self._size = real, keep, size
        self._path: Path_ = ()

    @property
    def prompt_tokens(self) -> int:
        return self._real.prompt_tokens

    async def step(self, append: Sequence[int] = ()) -> TopK:
        top = await self._real.step(append)
        self._path += tuple(append)
        self._keep(self._path, (await self._real.lookup(range(self._size))).astype(np.float32))
        return top

    async def score(self, draft: Sequence[int]) -> list[TopK]:
        return [await self.step((token,)) for token in draft]

    async def lookup(self, ids: Sequence[int]) -> LogProbs:
        return await self._real.lookup(ids)

    async def rewind(self, n: int) -> None:
        await self._real.rewind(n)
        self._path = self._path[: len(self._path) - n]

    async def close(self) -> None:
        await self._real.close()


async def record(config: Path | None, pieces: int, weights: Sequence[int] = (1, 1, 1)) -> Book:
    """Let the group answer every prompt. weights: of `NAMES`."""
    wiring = "|".join(f"{name}*{weight}" for name, weight in zip(NAMES, weights, strict=True))
    async with open_runtime(read_config(config)) as runtime:
        await runtime.wait_loaded()
        backends = [runtime.catalog[name].token_backend() for name in NAMES]
        book = Book(tuple([await backend.vocabulary() for backend in backends if backend is not None]))
        for number, prompt in enumerate(PROMPTS):
            prepared = runtime.prepare("pi:" + wiring, Sampling(max_tokens=pieces, temperature=0.0), {})
            recorders = {}
            for name, backend in _group(prepared.plan, runtime.catalog):
                member = NAMES.index(name)
                keep = partial(_keep, book, number, member)
                recorders[name] = _Recorder(backend, keep, len(book.vocabularies[member]))
            catalog = _with_backends(runtime.catalog, recorders)
            text = ""
            async with run(prepared.plan, (Message("user", prompt),), prepared.options, catalog) as events:
                async for event in events:
                    text += event.text if isinstance(event, Delta) else ""
            book.texts.append(text)
            say(f"recorded {len(book.pages)} distributions; {text[:60]!r}")
    return book


def _keep(book: Book, prompt: int, member: int, path: Path_, page: Full) -> None:
    book.pages[prompt, member, path] = page


def top_of(page: Full, k: int) -> TopK:
    """The k likeliest of a page."""
    best = np.argpartition(-page, k)[:k]
    ids = best[np.lexsort((best, -page[best]))].astype(np.int32)
    logprobs = page[ids].astype(np.float64)
    whole = float(np.exp(page.astype(np.float64)).sum())  # float32 does not add up to one exactly
    return TopK(ids, logprobs, max(0.0, whole - float(np.exp(logprobs).sum())))


def drive(fuser: LinearPool, page: Callable[[int, Path_], Full], k: int, pieces: int, look: Callable[[], None]) -> None:
    """A group's answer with pages for models; `look` is called before every commit. Raises KeyError where a page is missing."""
    places = [nodes[0] for nodes in fuser.due()]
    paths: list[Path_] = [() for _ in places]
    for _ in range(pieces):
        while any(due := [tuple(nodes) for nodes in fuser.due()]):
            for member, nodes in enumerate(due):
                for node in nodes:
                    drop, append = route(places[member], node)
                    paths[member] = (*paths[member][: len(paths[member]) - drop], *append)
                    places[member] = node
                    fuser.feed(member, node, top_of(page(member, paths[member]), k))
        while wanted := fuser.wants():
            for lookup in wanted:
                values = page(lookup.member, paths[lookup.member])[list(lookup.ids)].astype(np.float64)
                fuser.supply(lookup, values)
        look()
        if fuser.commit().end:
            return


class Truth:
    """The pool over whole vocabularies, given the readings that a group keeps."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._count = len(inventory.pieces)
        self._firsts = [
            np.array([s.first[token] for token in range(len(s.table.vocabulary))], np.int64) for s in inventory.spellers
        ]
        self._beyond: dict[tuple[int, Path_], tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def scores(self, fuser: LinearPool, page: Callable[[int, Path_], Full]) -> NDArray[np.float64]:
        """float64 [pieces]."""
        total = np.zeros(self._count)
        for number, weight, member in zip(fuser.numbers, fuser.weights, fuser.members, strict=True):
            mass = np.zeros(self._count)
            for node in member._nodes:
                mass += node.weight * self._of(number, node, np.exp(page(number, _path(node)).astype(np.float64)))
            if (whole := mass.sum()) > 0.0:
                total += weight * mass / whole
        return total

    def _of(self, member: int, node: Node, probs: NDArray[np.float64]) -> NDArray[np.float64]:
        if node.at == 0:
            firsts = self._firsts[member]
            text = firsts >= 0
            return np.bincount(firsts[text], probs[text], self._count).astype(np.float64)
        ids, nexts = self._going_on(member, node.spoken)
        return np.bincount(nexts, probs[ids], self._count).astype(np.float64)

    def _going_on(self, member: int, spoken: Path_) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokens whose spelling goes on beyond these pieces, and the next piece of each."""
        if (member, spoken) not in self._beyond:
            speller, pieces = self._inventory.spellers[member], self._inventory.pieces
            said = b"".join(pieces[piece] for piece in spoken[:-1])
            ids = speller.continuing(said, spoken[:-1], spoken[-1], pieces[spoken[-1]]).beyond.tolist()
            nexts = [speller[token][len(spoken)] for token in ids]
            self._beyond[member, spoken] = np.array(ids, np.int64), np.array(nexts, np.int64)
        return self._beyond[member, spoken]


def _path(node: Node) -> Path_:
    tokens = []
    while node.parent is not None:
        tokens.append(node.token)
        node = node.parent
    return tuple(reversed(tokens))


@dataclass
class Rates:
    """How steps were decided. false: certified, but another piece is likelier."""

    certified: int = 0
    looked_up: int = 0
    uncertified: int = 0
    false: int = 0
    other: int = 0
    left_out: int = 0
    worst_gap: float = 0.0

    @property
    def steps(self) -> int:
        return self.certified + self.looked_up + self.uncertified

    def watch(self, fuser: LinearPool, truth: Truth, page: Callable[[int, Path_], Full]) -> None:
        """Judge a decided step."""
        certain = fuser._gap < 0.0
        self.certified += certain and not fuser._supplied
        self.looked_up += certain and fuser._supplied
        self.uncertified += not certain
        self.worst_gap = max(self.worst_gap, fuser._gap)
        scores = truth.scores(fuser, page)
        beaten = scores.max() > scores[fuser._winner] + TIE
        self.false += certain and bool(beaten)
        self.other += not certain and bool(beaten)


def natural(book: Book, k: int, pieces: int) -> Rates:
    """The recorded answers once more, with lists of k."""
    rates = Rates()
    inventory = inventory_of(book.vocabularies)
    truth = Truth(inventory)
    for prompt in range(len(PROMPTS)):
        fuser = LinearPool(book.vocabularies, [1 / 3] * 3, Greedy())
        page = partial(_page, book, prompt)
        before = rates.steps
        try:
            drive(fuser, page, k, pieces, partial(rates.watch, fuser, truth, page))
        except KeyError:  # the text took another way than the recorded one
            rates.left_out += pieces - (rates.steps - before)
    return rates


def _page(book: Book, prompt: int, member: int, path: Path_) -> Full:
    return book.pages[prompt, member, path]


def shuffled(book: Book, k: int, steps: int, seed: int) -> Rates:
    """Walks over pages drawn at random, by groups of random members and weights, until there are so many steps."""
    rates, rng = Rates(), random.Random(seed)
    truths: dict[Path_, Truth] = {}
    pages = [book.of(member) for member in range(len(NAMES))]
    while rates.steps < steps:
        members = tuple(sorted(rng.sample(range(len(NAMES)), rng.choice((1, 2, 3, 3)))))
        raw = [rng.random() + 0.02 for _ in members]
        vocabularies = [book.vocabularies[member] for member in members]
        walk = rng.random()

        def page(member: int, path: Path_, members: Path_ = members, walk: float = walk) -> Full:
            mine = pages[members[member]]
            return mine[random.Random(f"{walk}{member}{path}").randrange(len(mine))]

        fuser = LinearPool(vocabularies, [w / sum(raw) for w in raw], Greedy())
        if members not in truths:
            truths[members] = Truth(inventory_of(vocabularies))
        look = partial(rates.watch, fuser, truths[members], page)
        try:
            drive(fuser, page, k, min(PIECES_A_WALK, steps - rates.steps), look)
        except NothingToSay:
            rates.left_out += 1
    return rates


def say(text: str) -> None:
    sys.stderr.write(text + "\n")


def row(k: int, rates: Rates) -> str:
    n = max(1, rates.steps)
    share = [f"{100 * part / n:.1f} %" for part in (rates.certified, rates.looked_up, rates.uncertified)]
    return f"| {k} | {rates.steps} | {' | '.join(share)} | {rates.worst_gap:.3f} | {rates.other} | {rates.false} | {rates.left_out} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", type=Path, default=None)
    parser.add_argument("--pieces", type=int, default=64, help="of every recorded answer")
    parser.add_argument("--steps", type=int, default=100_000, help="shuffled, over all k")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(".bench/certificates.json"))
    args = parser.parse_args()
    setup_logs("warning", "console")
    began = time.perf_counter()
    book = anyio.run(record, args.config, args.pieces)
    results: dict[str, Any] = {}
    false = Counter[str]()
    head = "| k | steps | certified | looked up | uncertified | worst gap | not the likeliest | false certificates | left out |"
    for kind in ("natural", "shuffled"):
        print(f"\n{kind} steps\n\n{head}\n|{'---|' * 9}")  # noqa: T201 - a command's output
        for k in KS:
            each = -(-args.steps // len(KS))
            rates = natural(book, k, args.pieces) if kind == "natural" else shuffled(book, k, each, args.seed + k)
            results[f"{kind} {k}"] = vars(rates)
            false[kind] += rates.false
            print(row(k, rates), flush=True)  # noqa: T201
    args.out.parent.mkdir(parents=True, exist_ok=True)
    told = {
        "machine": vars(machine.look()) if hasattr(machine.look(), "__dict__") else str(machine.look()),
        "commit": str(machine.commit()),
    }
    args.out.write_text(
        json.dumps({**told, "arguments": {k: str(v) for k, v in vars(args).items()}, "results": results}, indent=1)
    )
    print(f"\n{sum(false.values())} false certificates; {time.perf_counter() - began:.0f} s; written to {args.out}")  # noqa: T201
    return 1 if sum(false.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
