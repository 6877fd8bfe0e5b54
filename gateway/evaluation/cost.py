"""What is left to do would take: requests, tokens, time, money.

Measured where this run has answers already, else guessed from the texts; the first is said to be measured, the second to be a guess.
A wiring that was not asked yet is put together from its models' own pace: a chain takes the sum of its stages, a group the sum of its
members on one machine (its slowest member on machines of their own, so this errs on the long side).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gateway.evaluation.runner import Job, jobs
from gateway.evaluation.spec import Settings, Spec
from strategies.evaluation.records import Answers, Record
from strategies.evaluation.summary import Price
from strategies.topology import Model, Parallel, Serial, Topology, parse

ROLE_TOKENS = 60
"""Of a role's instruction and the chat template around it."""
DEFAULT_STAGE_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Pace:
    """One model's own: tokens per answer, seconds per written and per read token. None: not measured."""

    written: float | None = None
    per_token: float | None = None
    first: float | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of what is left. seconds, money: None where nothing says. measured: share of the requests whose wiring was measured."""

    requests: int
    finished: int
    prompt_tokens: float
    completion_tokens: float
    seconds: float | None
    money: float | None
    measured: float


@dataclass(frozen=True, slots=True)
class Line:
    """One wiring's share of it."""

    wiring: str
    requests: int
    tokens: float
    seconds: float | None
    money: float | None


def tokens_of(text: str) -> float:
    """A guess that holds within a third for English and Chinese: four letters to a token, two Chinese characters to three."""
    wide = sum(ord(c) > 0x2E80 for c in text)
    return (len(text) - wide) / 4 + wide * 2 / 3


def estimate(
    spec: Spec, answers: Answers, concurrency: int, prices: Mapping[str, Price], models: Iterable[str] = ()
) -> tuple[Estimate, list[Line]]:
    """models: all that may be named; those of the wirings where empty."""
    left = [job for job in jobs(spec) if not answers.finished(job.key)]
    every = sum(1 for _ in jobs(spec))
    held = [record for record in answers.by_key.values() if record.error is None]
    by_wiring: dict[str, list[Record]] = {}
    for record in held:
        by_wiring.setdefault(record.wiring, []).append(record)
    paces = _paces(held)
    lines, measured = [], 0
    total_prompt = total_completion = 0.0
    for wiring in dict.fromkeys(job.wiring for job in left):
        mine = [job for job in left if job.wiring == wiring]
        known = by_wiring.get(wiring, [])
        measured += len(mine) if known else 0
        prompt, completion, seconds, money = (
            _measured(known, mine, prices) if known else _guessed(wiring, mine, spec.settings, paces, prices)
        )
        total_prompt, total_completion = total_prompt + prompt, total_completion + completion
        lines.append(Line(wiring, len(mine), prompt + completion, seconds, money))
    times, costs = [line.seconds for line in lines], [line.money for line in lines]
    whole = Estimate(
        len(left), every - len(left), total_prompt, total_completion,
        _sum(times, 1 / max(1, concurrency)), _sum(costs) if prices else None,
        measured / len(left) if left else 1.0,
    )  # fmt: skip
    return whole, lines


def _sum(values: list[float | None], factor: float = 1.0) -> float | None:
    known = [value for value in values if value is not None]
    return factor * sum(known) if len(known) == len(values) else None


def _measured(
    known: list[Record], mine: list[Job], prices: Mapping[str, Price]
) -> tuple[float, float, float | None, float | None]:
    from strategies.evaluation.summary import cost_of

    prompt = statistics.mean(record.prompt_tokens for record in known)
    completion = statistics.mean(record.completion_tokens for record in known)
    seconds = statistics.mean(record.seconds for record in known)
    costs = [cost for record in known if (cost := cost_of(record, prices)) is not None]
    n = len(mine)
    return n * prompt, n * completion, n * seconds, n * statistics.mean(costs) if costs else None


def _paces(held: list[Record]) -> dict[str, Pace]:
    """Of every model that wrote a stage by itself."""
    written: dict[str, list[float]] = {}
    per_token: dict[str, list[float]] = {}
    first: dict[str, list[float]] = {}
    for record in held:
        for stage in record.stages:
            if stage.fusion is None and stage.first_token is not None:
                model = stage.models[0]
                count = sum(wrote for _, wrote in stage.tokens.values())
                written.setdefault(model, []).append(count)
                first.setdefault(model, []).append(stage.first_token)
                if count > 1:
                    per_token.setdefault(model, []).append((stage.seconds - stage.first_token) / (count - 1))
    return {
        model: Pace(
            statistics.mean(written[model]),
            statistics.median(per_token[model]) if model in per_token else None,
            statistics.median(first[model]),
        )
        for model in written
    }


def _guessed(
    wiring: str, mine: list[Job], settings: Settings, paces: Mapping[str, Pace], prices: Mapping[str, Price]
) -> tuple[float, float, float | None, float | None]:
    question = statistics.mean(tokens_of(job.question.text) for job in mine)
    topology, n = parse(wiring).topology, len(mine)
    spent = _stages(topology, question, settings, paces, last=True)
    prompt, completion = sum(s[1] for s in spent), sum(s[2] for s in spent)
    times = [s[3] for s in spent]
    money: float | None = 0.0
    for model, read, wrote, _ in spent:
        price = prices.get(model)
        money = (
            None if money is None or price is None else money + (read * price.prompt + wrote * price.completion) / 1e6
        )
    seconds = _sum(times)
    return n * prompt, n * completion, None if seconds is None else n * seconds, None if money is None else n * money


def _stages(
    topology: Topology, question: float, settings: Settings, paces: Mapping[str, Pace], last: bool, handed: float = 0.0
) -> list[tuple[str, float, float, float | None]]:
    """(model, tokens read, tokens written, seconds) of every branch."""
    if isinstance(topology, Serial):
        found: list[tuple[str, float, float, float | None]] = []
        for index, stage in enumerate(topology.stages):
            found += _stages(stage, question, settings, paces, last and index == len(topology.stages) - 1, handed)
            handed = found[-1][2]
        return found
    if isinstance(topology, Parallel):
        members = [_stages(m.topology, question, settings, paces, last, handed) for m in topology.members]
        return [branch for member in members for branch in member]
    assert isinstance(topology, Model)
    pace = paces.get(topology.name, Pace())
    budget = settings.max_tokens if last else (settings.stage_max_tokens or DEFAULT_STAGE_TOKENS)
    wrote = min(budget, pace.written) if pace.written is not None else 0.6 * budget
    seconds = None if pace.per_token is None or pace.first is None else pace.first + wrote * pace.per_token
    return [(topology.name, question + handed + ROLE_TOKENS, wrote, seconds)]
