"""A report as JSON: every number with its full precision, and nothing that is no number of this run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

from gateway.evaluation.report.content import Content

FORMAT = 1


def value_of(content: Content) -> dict[str, Any]:
    """In types that JSON has; what is not known is null."""
    grid = content.grid
    found = {
        "format": FORMAT,
        "made": content.made,
        "settings": content.run.settings.value(),
        "notes": content.run.notes,
        "questions": {task: len(ids) for task, ids in content.run.tasks.items()},
        "paths": grid.paths,
        "missing": content.incomplete,
        "failed": content.failed,
        "cells": content.cells,
        "structures": content.structures,
        "advice": content.advice,
        "advice_by_task": content.by_task,
        "best_paths": content.pairs,
        "order": content.orders,
        "weakest": content.weak,
        "pace": content.slowest,
        "mirrors": content.mirrors,
        "steps": content.steps,
        "writers": content.writers,
    }
    clean: dict[str, Any] = plain(found)
    return clean


def plain(value: Any) -> Any:
    """Dataclasses and their kin as JSON's types; nan is null."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
