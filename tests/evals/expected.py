"""What drafts that were made and judged here would be worth where passes cost something else, on GPUs say.

    .venv/bin/python tests/evals/expected.py docs/runs/drafts/same_vllm.jsonl [--parameters 8e9] [--bytes 2] [--bandwidth 2e12]
        [--flops 1.5e14] [--overhead 0.003]

Replayed are the drafts of `same_text.py`, which kept for each how many tokens it had and how many rounds it spared. A pass over n
tokens of each of B requests takes, by the roofline of a model of P parameters,

    C(n, B) = overhead + bytes · P / bandwidth + 2 · P · n · B / flops        seconds,

the reading of the weights, and then the arithmetic: as if nothing of one were done during the other, which is the worst case. Reading
the caches of keys and values is left out: it is little for contexts of a few thousand tokens. Each member has a GPU of its own, so a
round takes as long as one pass; the members are of one size.

A draft that spared s rounds stands for 1 + s of them. Where drafts may only have g tokens, it is cut into passes over g tokens that each
stand for g + 1 rounds. What rounds without a draft take is C(1, B). The best g of `WIDTHS` is told, by wiring, for every B; 0 says that
drafts would be given up.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asking import show, table

WIDTHS = (0, 1, 2, 4, 8, 16)
AT_ONCE = (1, 4, 16, 64)


@dataclass(frozen=True)
class Machine:
    """See the module. parameters: P. bytes: of each. bandwidth: bytes a second. flops: operations a second that matrices really reach.
    overhead: seconds of a pass that neither explains: launches, the way over the network, our own work."""

    parameters: float = 8e9
    bytes: float = 2.0
    bandwidth: float = 2e12
    flops: float = 1.5e14
    overhead: float = 0.003

    def seconds(self, tokens: int, at_once: int) -> float:
        """C(n, B)."""
        arithmetic = 2.0 * self.parameters * tokens * at_once / self.flops
        return self.overhead + self.bytes * self.parameters / self.bandwidth + arithmetic


def speed(lines: Iterable[Mapping[str, Any]], machine: Machine, at_once: int, width: int) -> float:
    """How many times as fast as lock-step without drafts these answers would be written. width: the most tokens of a draft; 0: none."""
    if width == 0:
        return 1.0
    step = machine.seconds(1, at_once)
    before = after = 0.0
    for line in lines:
        before += line["steps"] * step
        after += line["steps"] * step
        for _, tokens, _, spared in line["drafts"]:
            rounds = 1 + max(0, spared)
            cut = min(width, tokens)
            before += rounds * step
            after += -(-rounds // (cut + 1)) * machine.seconds(cut + 1, at_once)
    return before / after if after else 1.0


def expected(lines: Sequence[Mapping[str, Any]], machine: Machine) -> list[list[str]]:
    """One row for each wiring: the best speed and its width, by requests at once."""
    rows = []
    for wiring in dict.fromkeys(line["wiring"] for line in lines):
        those = [line for line in lines if line["wiring"] == wiring and line["steps"] + len(line["drafts"])]
        row = [f"`{wiring}`".replace("|", "\\|")]
        for at_once in AT_ONCE:
            best = max(WIDTHS, key=lambda width: speed(those, machine, at_once, width))
            row.append(f"{speed(those, machine, at_once, best):.2f} ({best})")
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "results", type=Path, help="what same_text.py has written, with what else or line by line (.jsonl)"
    )
    for name in ("parameters", "bytes", "bandwidth", "flops", "overhead"):
        parser.add_argument(f"--{name}", type=float, default=getattr(Machine, name))
    args = vars(parser.parse_args())
    path = args.pop("results")
    text = path.read_text(encoding="utf-8")
    lines = (
        [json.loads(line) for line in text.splitlines()]
        if path.suffix == ".jsonl"
        else json.loads(text)["results"]["lines"]
    )
    machine = Machine(**args)
    one = machine.seconds(1, 1)
    show(f"a step of one request: {1e3 * one:.1f} ms; a pass costs, in steps of one request:\n")
    costs = [[n, *(f"{machine.seconds(n, b) / one:.2f}" for b in AT_ONCE)] for n in (1, 2, 5, 9, 17)]
    show(table(["tokens", *(f"{b} at once" for b in AT_ONCE)], costs))
    show("\ntimes as fast as lock-step (most tokens of a draft):\n")
    show(table(["wiring", *(f"{b} at once" for b in AT_ONCE)], expected(lines, machine)))


if __name__ == "__main__":
    sys.exit(main())
