"""The answers question by question, as the HTML page's script shows them: who was right, and what every stage wrote."""

from __future__ import annotations

from typing import Any

from gateway.evaluation.report.content import Content
from strategies.evaluation.flow import course
from strategies.evaluation.records import Record, StageRecord

LONGEST, SHORTEST = 4000, 200
"""Characters of a stage's text that the page carries: fewer where there are very many."""
ALL_TEXTS = 20_000_000


def data(content: Content, texts: bool = True) -> dict[str, Any]:
    """texts: carry questions and what was written; else only who was right."""
    grid = content.grid
    stages = sum(max(1, len(record.stages)) for record in grid.records.values())
    longest = max(SHORTEST, min(LONGEST, ALL_TEXTS // max(1, stages))) if texts else 0
    tasks = []
    for task in grid.tasks:
        questions = []
        for name in grid.questions[task]:
            known = content.run.questions.get(task, {}).get(name)
            records = [grid.records.get((task, wiring, name)) for wiring in grid.wirings]
            some = next((r for r in records if r is not None), None)
            questions.append(
                {
                    "id": name,
                    "text": (known.text if texts else "") if known is not None else "",
                    "answer": some.expected if some is not None and texts else "",
                    "cells": [None if r is None else _record(r, longest) for r in records],
                }
            )
        tasks.append({"name": task, "questions": questions})
    return {"wirings": list(grid.wirings), "tasks": tasks}


def _record(record: Record, longest: int) -> dict[str, Any]:
    """longest: of a text, characters; 0 leaves texts out."""
    if record.error is not None:
        return {"o": "failed", "error": record.error}
    value: dict[str, Any] = {
        "o": record.outcome,
        "given": record.given if longest else None,
        "seconds": round(record.seconds, 2),
        "finish": record.finish_reason,
        "course": course(record).said,
    }
    if record.judged is not None and longest:
        value["judged"] = record.judged
    stages = record.stages
    if stages:
        value["stages"] = [_stage(stage, longest) for stage in stages]
    elif longest:
        value["text"] = _cut(record.text, longest)
    return value


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest // 2]}\n […]\n{text[-longest // 2 :]}"


def _stage(stage: StageRecord, longest: int) -> dict[str, Any]:
    wrote = sum(count for _, count in stage.tokens.values())
    value: dict[str, Any] = {
        "models": "|".join(stage.models),
        "role": stage.roles[0] if stage.roles else "",
        "seconds": round(stage.seconds, 2),
        "wrote": wrote,
        "finish": stage.finish_reason,
        "right": stage.right,
        "given": stage.given if longest else None,
    }
    if stage.fusion:
        keys = ("pieces", "certified", "looked_up", "uncertified", "drift")
        value["fusion"] = {key: stage.fusion[key] for key in keys if key in stage.fusion}
    if stage.disagreements and longest:
        value["disagreements"] = [list(d) for d in stage.disagreements[:40]]
    if longest:
        value["text"] = _cut(stage.text, longest)
    return value
