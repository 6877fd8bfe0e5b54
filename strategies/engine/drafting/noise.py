"""How far a model's scored drafts are from its single steps: measured, so that `draft_noise` need not be believed."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import anyio
import numpy as np

from backends.protocol import DraftingSession, Session, TokenBackend
from backends.types import Message, TopK
from strategies.engine.drafting.verdicts import LIKELY

LENGTHS = (2, 4, 8, 16)
"""Tokens of the drafts that are tried: up to the longest that groups read ahead."""
QUESTIONS = (
    "Why is the sky blue? Explain it to a child.",
    "Write a Python function that counts the words of a text.",
    "用中文写一段关于长江的介绍。",
    "List five fruits as JSON, each with its colour.",
)


@dataclass(slots=True)
class Difference:
    """Of distributions from the same ones as single steps gave them. places: how many were compared. nats: the largest difference of a
    likely token's log-probability; of one that the other list lacks, from that list's last: at least so much. equal: all values of all
    places, to the last bit. turned: places where another token was the likeliest."""

    places: int = 0
    nats: float = 0.0
    equal: bool = True
    turned: int = 0

    def add(self, plain: TopK, other: TopK) -> None:
        """Compare one place."""
        self.places += 1
        if (
            np.array_equal(plain.ids, other.ids)
            and np.array_equal(plain.logprobs, other.logprobs)
            and plain.outside == other.outside
        ):
            return
        self.equal = False
        self.turned += int(plain.ids[0] != other.ids[0])
        found = dict(zip(other.ids.tolist(), other.logprobs.tolist(), strict=True))
        for id, logprob in zip(plain.ids.tolist(), plain.logprobs.tolist(), strict=True):
            if logprob >= math.log(LIKELY):
                off = abs(logprob - found[id]) if id in found else logprob - float(other.logprobs[-1])
                self.nats = max(self.nats, off)


@dataclass(slots=True)
class Noise:
    """scored: places in drafts. behind: single steps behind a draft; half of the drafts had a wrong end, which was taken back. beside:
    single steps while the other questions are asked as well: what differs there differs without drafts, too. seconds: by the tokens of a
    pass, the median."""

    scored: Difference = field(default_factory=Difference)
    behind: Difference = field(default_factory=Difference)
    beside: Difference = field(default_factory=Difference)
    seconds: dict[int, float] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        """Nothing differed: `draft_noise: 0.0` was true of all that was seen."""
        seen = self.scored.places > 0 and self.behind.places > 0
        return seen and self.scored.equal and self.behind.equal

    @property
    def nats(self) -> float:
        return max(self.scored.nats, self.behind.nats)


async def measure(
    backend: TokenBackend, *, questions: Sequence[str] = QUESTIONS, tokens: int = 51, lengths: Sequence[int] = LENGTHS, k: int = 20
) -> Noise | None:  # fmt: skip
    """Write `tokens` tokens for every question step by step, then read the same ones as drafts of every length, then step by step all
    questions at once. None: the model is not to be sent drafts. Raises BackendError."""
    ends = (await backend.vocabulary()).end_ids
    noise = Noise()
    times: dict[int, list[float]] = {1: [], **{length: [] for length in lengths}}
    lines: list[tuple[list[int], list[TopK]]] = []
    for question in questions:
        async with backend.open([Message("user", question)], k=k, max_tokens=tokens + 1) as session:
            if not isinstance(session, DraftingSession) or session.draft_noise is None:
                return None
            lines.append(await _write(session, tokens, ends, times[1]))
        for length in lengths:
            async with backend.open([Message("user", question)], k=k, max_tokens=tokens + 1 + length) as session:
                await _read(session, *lines[-1], length, noise, times[length])

    async def again(question: str, ids: list[int], rows: list[TopK]) -> None:
        async with backend.open([Message("user", question)], k=k, max_tokens=tokens + 1) as session:
            for place in range(len(rows)):
                noise.beside.add(rows[place], await session.step(ids[place - 1 : place]))

    async with anyio.create_task_group() as group:
        for question, (ids, rows) in zip(questions, lines, strict=True):
            group.start_soon(again, question, ids, rows)
    noise.seconds = {length: statistics.median(each) for length, each in times.items() if each}
    return noise


async def _write(
    session: Session, tokens: int, ends: frozenset[int], times: list[float]
) -> tuple[list[int], list[TopK]]:
    """The likeliest tokens but for ends, and the distributions in front of each and behind the last."""
    ids: list[int] = []
    rows = [await session.step(())]
    while len(ids) < tokens:
        ids.append(next(id for id in rows[-1].ids.tolist() if id not in ends))
        began = time.perf_counter()
        rows.append(await session.step(ids[-1:]))
        times.append(time.perf_counter() - began)
    return ids, rows


async def _read(
    session: Session, ids: list[int], rows: list[TopK], length: int, noise: Noise, times: list[float]
) -> None:
    """The same ids as drafts, each followed by a single step. The second half of every other draft is wrong and is taken back."""
    await session.step(())
    place, wrong = 0, False  # so many ids are read
    while place + length < len(ids):
        right = length // 2 if wrong else length
        draft = [*ids[place : place + right], *(ids[0] for _ in range(length - right))]
        began = time.perf_counter()
        scored = await session.score(draft)
        times.append(time.perf_counter() - began)
        place += right
        for row, plain in zip(scored[:right], rows[place - right + 1 :], strict=False):
            noise.scored.add(plain, row)
        await session.rewind(length - right)
        place += 1
        noise.behind.add(rows[place], await session.step(ids[place - 1 : place]))
        wrong = not wrong
