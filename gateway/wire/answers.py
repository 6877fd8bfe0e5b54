"""A plan's events → what a client sees: the order and the parts of an answer, streamed or whole.

One `Choice` reads the events of one run and gives out `Piece`s; the stream writes each as a chunk, the JSON body joins them.
So joined deltas equal the whole text by construction.

Stages that run side by side are shown one after another, in the order of the plan: what a later stage says is held back until
the earlier ones have finished. Reasoning never follows content.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from backends.types import Usage
from strategies.engine.events import Delta, Event, Finished, StageFinished, StageReport
from strategies.planning.plan import Plan

STAGE_BREAK = "\n\n"
"""Between the shown texts of two stages."""


@dataclass(frozen=True, slots=True)
class Piece:
    """More text of a choice: of the answer, or (reasoning) of what led to it. `stage`: who wrote it."""

    text: str
    stage: int
    reasoning: bool = False


@dataclass(slots=True)
class Choice:
    """One answer in the making."""

    plan: Plan
    show_stages: bool
    finished: Finished | None = None
    _held: dict[int, list[str]] = field(default_factory=dict)
    _done: set[int] = field(default_factory=set)
    _showing: int = 0
    _last_shown: int | None = None
    _answering: bool = False

    def read(self, event: Event) -> list[Piece]:
        """What the client sees of an event; often nothing."""
        if isinstance(event, Delta):
            if event.stage == len(self.plan.stages) - 1:
                return self._answer(event)
            return self._intermediate(event)
        if isinstance(event, StageFinished):
            return self._stage_finished(event.report.stage)
        if isinstance(event, Finished):
            self.finished = event
        return []

    def _answer(self, delta: Delta) -> list[Piece]:
        pieces = []
        # A server may mark reasoning between parts of its answer; clients expect none after content has begun.
        if delta.reasoning and not self._answering:
            pieces.extend(self._reason(delta.reasoning, delta.stage))
        if delta.text:
            self._answering = True
            pieces.append(Piece(delta.text, delta.stage))
        return pieces

    def _intermediate(self, delta: Delta) -> list[Piece]:
        text = delta.reasoning + delta.text
        if not self.show_stages or not text:
            return []
        if delta.stage == self._showing:
            return self._reason(text, delta.stage)
        self._held.setdefault(delta.stage, []).append(text)
        return []

    def _stage_finished(self, stage: int) -> list[Piece]:
        self._done.add(stage)
        pieces: list[Piece] = []
        while self._showing in self._done and self._showing < len(self.plan.stages) - 1:
            self._showing += 1
            if held := self._held.pop(self._showing, None):
                pieces.extend(self._reason("".join(held), self._showing))
        return pieces

    def _reason(self, text: str, stage: int) -> list[Piece]:
        new_stage = self._last_shown not in (None, stage)
        self._last_shown = stage
        return [Piece(STAGE_BREAK + text if new_stage else text, stage, reasoning=True)]


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished choice."""

    text: str
    reasoning: str
    finish_reason: str


def completion(
    *,
    id: str,
    created: int,
    model: str,
    fingerprint: str,
    answers: Sequence[Answer],
    usage: Mapping[str, Any],
    extension: Mapping[str, Any],
) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    return {
        "id": id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "system_fingerprint": fingerprint,
        "choices": [_choice(index, answer) for index, answer in enumerate(answers)],
        "usage": usage,
        "modelnet": extension,
    }


def _choice(index: int, answer: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
    if answer.reasoning:
        message["reasoning_content"] = message["reasoning"] = answer.reasoning
    return {"index": index, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}


def usage_value(usages: Iterable[Usage]) -> dict[str, int]:
    """What was really spent: all stages, members and choices added up, each in its own model's tokens."""
    total = sum(usages, Usage())
    return {
        "prompt_tokens": total.prompt_tokens,
        "completion_tokens": total.completion_tokens,
        "total_tokens": total.prompt_tokens + total.completion_tokens,
    }


def extension_value(plan: Plan, wiring: str, reports: Iterable[tuple[int, StageReport]]) -> dict[str, Any]:
    """What stands under `modelnet` in an answer: the wiring that ran and what each stage of each choice spent.

    wiring: canonical, aliases expanded. reports: (choice, report).
    """
    return {
        "wiring": wiring,
        "shape": plan.shape,
        "stages": [_stage_value(choice, report) for choice, report in reports],
    }


def _stage_value(choice: int, report: StageReport) -> dict[str, Any]:
    value: dict[str, Any] = {
        "choice": choice,
        "stage": report.stage,
        "models": [
            {
                "model": branch.model,
                "role": branch.role,
                **({} if branch.weight is None else {"weight": branch.weight}),
                "usage": usage_value([branch.usage]),
            }
            for branch in report.branches
        ],
        "usage": usage_value([report.usage]),
        "seconds": round(report.seconds, 6),
        "first_token_seconds": None if report.first_token is None else round(report.first_token, 6),
        "finish_reason": report.finish_reason,
    }
    if (meters := report.meters) is not None:
        value["fusion"] = {
            "pieces": meters.pieces,
            "certified": meters.certified,
            "looked_up": meters.looked_up,
            "uncertified": meters.uncertified,
            "worst_gap": _finite(meters.worst_gap),
            "drift": meters.drift,
            "lost_mass": _finite(meters.lost_mass),
            "worst_lost": _finite(meters.worst_lost),
            "passes": meters.passes,
        }
    return value


def _finite(value: float) -> float | None:
    """JSON knows no infinity."""
    return float(value) if math.isfinite(value) else None
