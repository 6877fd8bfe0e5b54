"""How fast models answer alone and together, and how exact the groups are.

Model. A *round* asks every wiring the same question once, greedy; rounds go through the wirings forth and back by turns, so that
a machine that warms up or gets busy does it to all of them. Ratios are taken inside a round. What is timed is the last stage,
as the engine reports it: the time to its first text, and the time per token (one model) or piece (a group) after that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from backends.catalog import Catalog
from backends.types import Message, Sampling
from gateway.bench.report import Number
from gateway.runtime import Prepared, Runtime
from strategies.engine import Options, run
from strategies.engine.events import Delta, Finished
from strategies.fusion import Meters
from strategies.planning.plan import Plan, branches

QUESTION = "Write a long story about a river, its fish, and the people who live on its banks."
"""Something that small models go on about for as long as they are let."""
WARMING = 4
"""Tokens of the first, uncounted answers: they touch the weights and build the tables."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer. members: models of the last stage. written: its tokens, or pieces if it is a group, the end included; seconds:
    to the last of them; first: to the first, None if nothing was written. meters: None for one model."""

    wiring: str
    members: tuple[str, ...]
    written: int
    seconds: float
    first: float | None
    meters: Meters | None

    @property
    def unit(self) -> str:
        return "token" if self.meters is None else "piece"

    @property
    def each(self) -> float | None:
        """Seconds per token or piece after the first; None if there are none."""
        if self.first is None or self.written < 2 or self.seconds <= self.first:
            return None
        return (self.seconds - self.first) / (self.written - 1)


def prepare(runtime: Runtime, wiring: str, tokens: int) -> Prepared:
    """The wiring, greedy, `tokens` for every stage. Raises what `Runtime.prepare` raises."""
    prepared = runtime.prepare(wiring, Sampling(max_tokens=tokens, temperature=0.0), {})
    return replace(prepared, options=replace(prepared.options, stage_max_tokens=tokens))


async def answer(plan: Plan, options: Options, catalog: Catalog, question: str = QUESTION) -> tuple[str, Finished]:
    """The answer's text and its last event. Raises `backends.errors`."""
    last, texts, finished = len(plan.stages) - 1, [], None
    async with run(plan, (Message("user", question),), options, catalog) as events:
        async for event in events:
            if isinstance(event, Delta) and event.stage == last:
                texts.append(event.text)
            elif isinstance(event, Finished):
                finished = event
    assert finished is not None
    return "".join(texts), finished


async def measure(
    wirings: Sequence[Prepared], catalog: Catalog, rounds: int, tell: Callable[[str], None]
) -> list[list[Sample]]:
    """A list per round, one sample per wiring. tell: is given a line of progress now and then."""
    for prepared in wirings:
        tell(f"warming up: {prepared.wiring}")
        short = replace(prepared.options.sampling, max_tokens=WARMING)
        await answer(prepared.plan, replace(prepared.options, sampling=short, stage_max_tokens=WARMING), catalog)
    found = []
    for number in range(rounds):
        tell(f"speed: round {number + 1} of {rounds}")
        order = wirings if number % 2 == 0 else wirings[::-1]
        found.append([await _sample(prepared, catalog) for prepared in order])
    return found


async def _sample(prepared: Prepared, catalog: Catalog) -> Sample:
    _, finished = await answer(prepared.plan, prepared.options, catalog)
    last = finished.stages[-1]
    members = tuple(dict.fromkeys(branch.model for branch in branches(prepared.plan.stages[-1])))
    written = last.usage.completion_tokens if last.meters is None else last.meters.pieces
    return Sample(prepared.wiring, members, written, last.seconds, last.first_token, last.meters)


def numbers(rounds: Sequence[Sequence[Sample]]) -> list[Number]:
    """Per wiring: speed, first token, ratios to its members alone in the same rounds, exactness."""
    found = []
    for wiring in dict.fromkeys(sample.wiring for samples in rounds for sample in samples):
        mine = [sample for samples in rounds for sample in samples if sample.wiring == wiring]
        unit = mine[0].unit
        found += _numbers(
            wiring,
            {
                ("speed", f"{unit}s/s"): [1 / s.each for s in mine if s.each],
                ("time", f"ms/{unit}"): [1e3 * s.each for s in mine if s.each],
                ("first", "s"): [s.first for s in mine if s.first is not None],
                ("written", f"{unit}s"): [float(s.written) for s in mine],
            },
        )
        if mine[0].meters is not None:
            found += _numbers(wiring, _ratios(wiring, rounds) | _exactness([s.meters for s in mine if s.meters]))
    return found


def _numbers(wiring: str, values: Mapping[tuple[str, str], Sequence[float]]) -> list[Number]:
    return [Number(measure, wiring, unit, tuple(samples)) for (measure, unit), samples in values.items() if samples]


def _ratios(wiring: str, rounds: Sequence[Sequence[Sample]]) -> dict[tuple[str, str], list[float]]:
    """A group's time per piece against its members' times per token, alone: the slowest one's, and all of them added up."""
    slowest, total = [], []
    for samples in rounds:
        each = {sample.wiring: sample.each for sample in samples}
        mine = next(sample for sample in samples if sample.wiring == wiring)
        alone = [time for member in mine.members if (time := each.get(member))]
        if mine.each and len(alone) == len(mine.members):
            slowest.append(mine.each / max(alone))
            total.append(mine.each / sum(alone))
    return {("to slowest", "ratio"): slowest, ("to sum", "ratio"): total}


def _exactness(meters: Sequence[Meters]) -> dict[tuple[str, str], list[float]]:
    """Per piece. Greedy answers are the same in every round, and so are these."""
    return {
        ("certified", "share"): [m.certified / m.pieces for m in meters],
        ("looked up", "share"): [m.looked_up / m.pieces for m in meters],
        ("uncertified", "share"): [m.uncertified / m.pieces for m in meters],
        ("worst gap", "probability"): [m.worst_gap for m in meters],
        ("drift", "1/piece"): [m.drift / m.pieces for m in meters],
        ("lost", "probability/piece"): [m.lost_mass / m.pieces for m in meters],
        ("worst lost", "probability"): [m.worst_lost for m in meters],
        ("passes", "1/piece"): [m.passes / m.pieces for m in meters],
    }
