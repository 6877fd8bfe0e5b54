"""How soon the turns of a conversation begin on an embedded model, with its prefix cache and without.

    .venv/bin/python tests/benchmarks/prefix_cache.py [--turns 6] [--weights smollm2-135m-instruct qwen2.5-coder-0.5b-instruct]

Every turn adds about 160 tokens: what the user says, and an answer that was given. Prints, for each turn, the tokens of its prompt and the
seconds to its first distribution, as a table in Markdown. Only a quiet machine gives figures that mean much.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from backends.llama_cpp import Cores, LlamaCppBackend, LlamaCppSettings  # noqa: E402
from backends.types import Message  # noqa: E402
from gateway.weights.store import location  # noqa: E402

SAID = "The boats sail in the morning, and the people of the town wait for them at the bridge. " * 5
ANSWERED = "The boats sail, and the people wait. " * 4


async def conversation(weights: str, turns: int, *, cached: bool) -> list[tuple[int, float]]:
    """For each turn the tokens of its prompt, and the seconds to its first distribution."""
    settings = LlamaCppSettings(path=str(location(weights)), prefix_cache=cached)
    backend = LlamaCppBackend(weights, settings, Cores())
    await backend.start()
    told: list[Message] = []
    found = []
    for turn in range(turns):
        told.append(Message("user", f"Tell me more about river number {turn}. {SAID}"))
        began = time.perf_counter()
        async with backend.open(told, k=8) as session:
            await session.step()
            found.append((session.prompt_tokens, time.perf_counter() - began))
        told.append(Message("assistant", ANSWERED))
    await backend.aclose()
    return found


async def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--weights", nargs="+", default=["smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"])
    args = parser.parse_args()
    lines = ["| model | turn | prompt, tokens | without, s | with, s |", "| --- | --- | --- | --- | --- |"]
    for weights in args.weights:
        without, cached = [await conversation(weights, args.turns, cached=way) for way in (False, True)]
        for turn, ((tokens, slow), (_, fast)) in enumerate(zip(without, cached, strict=True), start=1):
            lines.append(f"| {weights} | {turn} | {tokens} | {slow:.2f} | {fast:.2f} |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
