"""Made-up runs: answers as three models of different skill would give them, with stages, times and tokens that hang together."""

from __future__ import annotations

import random
from pathlib import Path

from gateway.evaluation.sources import Task
from gateway.evaluation.spec import Settings, Spec, make_paths
from gateway.evaluation.store import open_store, write_run
from strategies.evaluation.generated import generated
from strategies.evaluation.questions import Question
from strategies.evaluation.records import Record, StageRecord, key_of, scored
from strategies.topology import parse
from strategies.topology.ast import Model, Parallel, Serial, Topology

SKILL = {"qwen": 0.7, "ds": 0.5, "yi": 0.35}
MS = {"qwen": 18.0, "ds": 12.0, "yi": 6.0}


def made_up(
    directory: Path, tasks: tuple[str, ...] = ("arithmetic", "logic"), count: int = 20, models: tuple[str, ...] = ("qwen", "ds", "yi"),
    structures: tuple[str, ...] = ("single", "si", "pi", "s2p", "p2s"), settings: Settings | None = None, skip: float = 0.0,
    notes: dict[str, object] | None = None,
) -> Spec:  # fmt: skip
    """A run's directory, full of answers. skip: share of the answers that are missing."""
    settings = settings or Settings()
    asked = tuple(Task(name, name, tuple(generated(name, count, 1))) for name in tasks)
    spec = write_run(directory, Spec(asked, make_paths(models, structures, ()), settings, models, notes=notes or {}))
    chance = random.Random(0)
    with open_store(directory) as store:
        for task in asked:
            for question in task.questions:
                for wiring in spec.wirings:
                    record = _record(task.name, question, wiring, settings)
                    if chance.random() >= skip:
                        store.append(record)
    return spec


def _record(task: str, question: Question, wiring: str, settings: Settings) -> Record:
    topology = parse(wiring).topology
    parts: list[Topology] = list(topology.stages) if isinstance(topology, Serial) else [topology]
    hard = random.Random(f"hard/{question.id}").random()
    stages: list[StageRecord] = []
    right: bool | None = None
    for index, part in enumerate(parts):
        names = (
            [m.topology.name for m in part.members if isinstance(m.topology, Model)]
            if isinstance(part, Parallel)
            else [part.name]
        )  # type: ignore[union-attr]
        draw = random.Random(f"{question.id}/{names}/{right}").random()
        skill = sum(SKILL[name] for name in names) / len(names)
        chance = skill if right is None else (0.75 + 0.25 * skill if right else 0.35 * skill)
        right = 0.5 * draw + 0.5 * hard < chance if right is None else draw < chance
        stages.append(_stage(index, names, right, question, len(parts)))
    text = stages[-1].text
    record = Record(
        key_of(task, question, wiring, settings.value()), task, question.id, wiring, question.kind, question.answer, text, "stop",
        sum(s.seconds for s in stages), sum(s.seconds for s in stages[:-1]) + (stages[-1].first_token or 0.0),
        sum(read for s in stages for read, _ in s.tokens.values()), sum(wrote for s in stages for _, wrote in s.tokens.values()),
        tuple(stages), at="2025-01-01T00:00:00+00:00",
    )  # fmt: skip
    return scored(record, question)


def _stage(index: int, names: list[str], right: bool, question: Question, total: int) -> StageRecord:
    draw = random.Random(f"text/{question.id}/{names}/{index}")
    other = (
        "ABCD"[("ABCD".index(question.answer) + 1) % 4]
        if question.kind == "choice"
        else str(int(float(question.answer)) + draw.randint(1, 9))
    )
    answer = question.answer if right else other
    working = " ".join(f"Step {i + 1}: look at part {i + 1} of the question." for i in range(draw.randint(2, 6)))
    end = (
        "I cannot say."
        if not right and draw.random() < 0.2
        else f"Answer: {answer}"
        if question.kind == "choice"
        else f"#### {answer}"
    )
    text = f"{working}\n{end}"
    count = len(text) // 4
    ms = sum(MS[name] for name in names) * (1.05 if len(names) > 1 else 1.0)
    role = "solver" if index == 0 else "verifier" if index == total - 1 else "reviewer"
    fusion = (
        {
            "pieces": count,
            "certified": count - 2,
            "looked_up": 2,
            "uncertified": 0,
            "drift": 0,
            "lost_mass": 0.01,
            "waiting_seconds": count * ms / 1e3,
            "own_seconds": count * 3e-4,
        }
        if len(names) > 1
        else None
    )
    first = 0.2 + 0.1 * index
    seconds = first + ms * (count - 1) * draw.uniform(0.95, 1.05) / 1e3
    return StageRecord(
        index,
        tuple(names),
        (role,) * len(names),
        text,
        seconds,
        first,
        "stop",
        dict.fromkeys(names, (120 + 80 * index, count)),
        fusion,
    )
