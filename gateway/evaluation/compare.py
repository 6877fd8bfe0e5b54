"""Two runs of the same questions, wiring by wiring."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gateway.evaluation.anew import judged_anew
from gateway.evaluation.errors import StoreError
from gateway.evaluation.store import StoredRun
from strategies.evaluation.records import Record
from strategies.evaluation.statistics import Paired, holm, paired
from strategies.evaluation.summary import mean


@dataclass(frozen=True, slots=True)
class Difference:
    """A wiring on a task, in run A and in run B. result: A against B. only_a: ids of the questions that A alone got right. changed: how
    many ids mean another question in B than in A, and are left out."""

    task: str
    wiring: str
    result: Paired
    adjusted: float
    seconds_ratio: float
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    changed: int = 0


def compare_runs(a: StoredRun, b: StoredRun) -> list[Difference]:
    """On what both answered, settings apart. Raises StoreError if that is nothing."""
    left, right = _by_place(a), _by_place(b)
    places = dict.fromkeys((task, wiring) for task, wiring, _ in left)
    found: list[tuple[tuple[str, str], Paired, list[tuple[Record, Record]], int]] = []
    changed = False
    for task, wiring in places:
        both = [place for place in left if place[:2] == (task, wiring) and place in right]
        pairs = [(left[place], right[place]) for place in both if _same(left[place], right[place], a, b)]
        changed = changed or len(pairs) < len(both)
        if pairs:
            result = paired([one.right for one, _ in pairs], [other.right for _, other in pairs])
            found.append(((task, wiring), result, pairs, len(both) - len(pairs)))
    if not found and changed:
        raise StoreError("the two runs name their questions alike, but none is the same question in both")
    if not found:
        raise StoreError("the two runs have no answered question of the same task and wiring in common")
    adjusted = holm([result.p for _, result, _, _ in found])
    return [
        Difference(
            task, wiring, result, p, _ratio(pairs),
            tuple(one.question for one, other in pairs if one.right and not other.right),
            tuple(one.question for one, other in pairs if other.right and not one.right), left_out,
        )
        for ((task, wiring), result, pairs, left_out), p in zip(found, adjusted, strict=True)
    ]  # fmt: skip


def _by_place(run: StoredRun) -> dict[tuple[str, str, str], Record]:
    wanted = {(task, question) for task, ids in run.tasks.items() for question in ids}
    records = (r for r in judged_anew(run) if r.error is None and (r.task, r.question) in wanted)
    return {(r.task, r.wiring, r.question): r for r in records}


def _same(one: Record, other: Record, a: StoredRun, b: StoredRun) -> bool:
    """Whether it is one question: ids may be no more than places in a file, and files change."""
    texts = [run.questions.get(record.task, {}).get(record.question) for run, record in ((a, one), (b, other))]
    if None not in texts and len({question.text for question in texts if question is not None}) > 1:
        return False
    return (one.kind, one.expected) == (other.kind, other.expected)


def _ratio(pairs: list[tuple[Record, Record]]) -> float:
    before = mean([one.seconds for one, _ in pairs])
    return mean([other.seconds for _, other in pairs]) / before if before else math.nan
