"""What three tokenizers that write one text do to each other, in numbers: valid text, natural ends, lost mass, repairs, boundaries.

    make eval-exactness                          some minutes on two cores; goes on where it was interrupted

The group answers the fifty prompts of data/prompts.yaml greedily. Of every answer is told whether its bytes are valid UTF-8 and whether
it came to its end by itself, and what its report says: certificates, lost mass, repairs (*drift*).

*Boundary disagreement*: each member's own tokenizer encodes the finished text, and each token is spelled in the group's pieces. A piece
that the group said is disagreed about where its end is no end of a piece in some member's spelling: that member would have cut the text
otherwise. Where the end is inside a character a byte is a piece for everybody, so those agree.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import anyio
import yaml
from asking import DATA, ask_all, gateway, say, show, table, write

from backends.wrappers import inner
from gateway.runtime import Runtime
from strategies.vocabulary import inventory_of


@dataclass
class Sums:
    """Over the answers of one kind of prompt. disagreed: pieces whose end is none in a member's own spelling; per member: `by`."""

    answers: int = 0
    valid: int = 0
    ended: int = 0
    pieces: int = 0
    certified: int = 0
    looked_up: int = 0
    uncertified: int = 0
    drift: int = 0
    lost_mass: float = 0.0
    worst_lost: float = 0.0
    worst_gap: float = 0.0
    disagreed: int = 0

    def add(self, other: Sums) -> None:
        """These and others."""
        for name in self.__dataclass_fields__:
            both = getattr(self, name), getattr(other, name)
            setattr(self, name, max(both) if name.startswith("worst") else sum(both))

    def row(self, kind: str) -> list[str]:
        """For the table."""
        per, share = 1000 / max(1, self.pieces), 100 / max(1, self.pieces)
        return [
            kind,
            f"{self.valid} of {self.answers}",
            f"{self.ended} of {self.answers}",
            f"{self.pieces:,}",
            f"{share * self.certified:.1f} / {share * self.looked_up:.1f} / {share * self.uncertified:.1f} %",
            f"{share * self.lost_mass:.2f} %",
            f"{100 * self.worst_lost:.0f} %",
            f"{per * self.drift:.1f}",
            f"{per * self.disagreed:.0f}",
        ]


HEADS = (
    "prompts",
    "valid UTF-8",
    "natural ends",
    "pieces",
    "certified / looked up / uncertified",
    "mass lost per piece",
    "worst loss of a member",
    "repairs per 1,000",
    "disagreed ends per 1,000",
)


class Boundaries:
    """Where a group's members would end a piece."""

    def __init__(self, encoders: Sequence[Any], spellings: Sequence[Mapping[int, Sequence[int]]], pieces: Any) -> None:
        self._members = list(zip(encoders, spellings, strict=True))
        self._pieces = pieces

    @classmethod
    async def of(cls, runtime: Runtime, wiring: str) -> Boundaries:
        """For a wiring that is one group of embedded models."""
        names = sorted(set(wiring.replace("pi:", "").split("|")))
        found = [runtime.catalog[name].token_backend() for name in names]
        backends = [backend for backend in found if backend is not None]
        inventory = inventory_of([await backend.vocabulary() for backend in backends])
        return cls([inner(backend) for backend in backends], inventory.spellers, inventory.pieces)

    async def disagreed(self, said: Sequence[bytes]) -> int:
        """How many of these pieces end where some member would have ended none. The last one's end is the text's."""
        text = b"".join(said)
        ends = list(accumulate(map(len, said)))[:-1]
        disagreed: set[int] = set()
        for backend, spelling in self._members:
            ids = await backend.encode(text.decode(errors="ignore"), special=False)
            own = set(accumulate(len(self._pieces[piece]) for token in ids for piece in spelling[token]))
            disagreed.update(end for end in ends if end not in own)
        return len(disagreed)


async def judged(answer: Mapping[str, Any], boundaries: Boundaries) -> tuple[Sums, bytes]:
    """One answer's numbers, and its bytes."""
    said = [bytes(each["bytes"]) for each in answer["modelnet"]["record"]]
    said = [piece for piece in said if piece]
    data = b"".join(said)
    ended = answer["choices"][0]["finish_reason"] == "stop"
    fusion = answer["modelnet"]["stages"][-1]["fusion"]
    counts = {key: fusion[key] for key in ("pieces", "certified", "looked_up", "uncertified", "drift", "lost_mass")}
    worst = {key: fusion[key] for key in ("worst_lost", "worst_gap")}
    disagreed = await boundaries.disagreed(said)
    return Sums(1, _valid(data, cut=not ended), ended, **counts, **worst, disagreed=disagreed), data


def _valid(data: bytes, *, cut: bool) -> bool:
    """Whether it is UTF-8. cut: the budget ended it, so that the last character may lack its end."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return cut and error.reason == "unexpected end of data"
    return True


async def run(args: argparse.Namespace) -> dict[str, Sums]:
    """Sums per kind of prompt."""
    prompts: dict[str, list[str]] = yaml.safe_load((DATA / "prompts.yaml").read_text(encoding="utf-8"))
    asked = [(kind, prompt) for kind, those in prompts.items() for prompt in those][:: args.every]
    bodies = [
        {
            "model": args.wiring,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": args.max_tokens,
            "modelnet": {"record": True},
        }
        for _, prompt in asked
    ]

    def tell(number: int, answer: Mapping[str, Any]) -> None:
        choice = answer["choices"][0]
        say(
            f"{number + 1}/{len(asked)} {asked[number][1]!r}: {choice['finish_reason']}: {choice['message']['content']!r}"
        )

    sums: dict[str, Sums] = {kind: Sums() for kind in prompts}
    lines = []
    async with gateway(args.config) as (runtime, client):
        boundaries = await Boundaries.of(runtime, args.wiring)
        answers = await ask_all(client, bodies, args.concurrency, args.out.with_suffix(".jsonl"), tell)
        for (kind, prompt), answer in zip(asked, answers, strict=True):
            found, data = await judged(answer, boundaries)
            sums[kind].add(found)
            lines.append({"kind": kind, "prompt": prompt, "text": data.decode(errors="replace"), **vars(found)})
    write(args.out, vars(args), lines)
    return sums


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", type=Path, default=None)
    parser.add_argument("--wiring", default="qwen|smol|gemma")
    parser.add_argument("--max-tokens", type=int, default=120)
    parser.add_argument("--every", type=int, default=1, help="ask only every so many-th prompt")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path(".bench/exactness.json"))
    args = parser.parse_args()
    began = time.perf_counter()
    sums = anyio.run(run, args)
    whole = Sums()
    for each in sums.values():
        whole.add(each)
    show(table(HEADS, [*(each.row(kind) for kind, each in sums.items()), whole.row("all")]))
    show(f"\n{time.perf_counter() - began:.0f} s; written to {args.out}")
    return 0 if whole.valid == whole.answers else 1


if __name__ == "__main__":
    sys.exit(main())
