"""Two runs of the same questions, wiring by wiring."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gateway.evaluation.errors import StoreError
from gateway.evaluation.store import StoredRun
from strategies.evaluation.records import Record
from strategies.evaluation.statistics import Paired, holm, paired
from strategies.evaluation.summary import mean


@dataclass(frozen=True, slots=True)
class Difference:
    """A wiring on a task, in run A and in run B. result: A against B. only_a: ids of the questions that A alone got right."""

    task: str
    wiring: str
    result: Paired
    adjusted: float
    seconds_ratio: float
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]


def compare_runs(a: StoredRun, b: StoredRun) -> list[Difference]:
    """On what both answered, settings apart. Raises StoreError if that is nothing."""
    left, right = _by_place(a), _by_place(b)
    places = dict.fromkeys((task, wiring) for task, wiring, _ in left)
    found: list[tuple[tuple[str, str], Paired, list[tuple[Record, Record]]]] = []
    for task, wiring in places:
        pairs = [
            (left[task, wiring, q], right[task, wiring, q])
            for t, w, q in left
            if (t, w) == (task, wiring) and (t, w, q) in right
        ]
        if pairs:
            result = paired([one.right for one, _ in pairs], [other.right for _, other in pairs], a.settings.seed)
            found.append(((task, wiring), result, pairs))
    if not found:
        raise StoreError("the two runs have no answered question of the same task and wiring in common")
    adjusted = holm([result.p for _, result, _ in found])
    return [
        Difference(
            task, wiring, result, p, _ratio(pairs),
            tuple(one.question for one, other in pairs if one.right and not other.right),
            tuple(one.question for one, other in pairs if other.right and not one.right),
        )
        for ((task, wiring), result, pairs), p in zip(found, adjusted, strict=True)
    ]  # fmt: skip


def _by_place(run: StoredRun) -> dict[tuple[str, str, str], Record]:
    wanted = {(task, question) for task, ids in run.tasks.items() for question in ids}
    records = (r for r in run.answers.by_key.values() if r.error is None and (r.task, r.question) in wanted)
    return {(r.task, r.wiring, r.question): r for r in records}


def _ratio(pairs: list[tuple[Record, Record]]) -> float:
    before = mean([one.seconds for one, _ in pairs])
    return mean([other.seconds for _, other in pairs]) / before if before else math.nan
