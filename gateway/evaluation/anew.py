"""A run's answers judged by today's rules: those that were kept with them may be of another version."""

from __future__ import annotations

from gateway.evaluation.checker import Checker
from gateway.evaluation.runner import said_right
from gateway.evaluation.store import StoredRun
from strategies.evaluation.records import Record, scored


def judged_anew(run: StoredRun) -> list[Record]:
    """Every record, judged again as far as its question is known."""
    found = []
    with Checker() as checker:
        for record in run.answers.by_key.values():
            question = run.questions.get(record.task, {}).get(record.question)
            if question is None or record.error is not None:
                found.append(record)
            else:
                found.append(scored(record, question, checker.equal, said_right(record.judged)))
    return found
