"""What stands under `modelnet` in an answer: the wiring that ran, what each stage spent, who left, and how a group chose."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from backends.estimate import ESTIMATED
from gateway.wire.answers import usage_value
from strategies.engine.events import Recorded, StageReport
from strategies.planning.plan import Plan


def extension_value(
    plan: Plan,
    wiring: str,
    reports: Iterable[tuple[int, StageReport]],
    recorded: Iterable[tuple[int, Recorded]] | None = None,
) -> dict[str, Any]:
    """wiring: canonical, aliases expanded. reports, recorded: (choice, each); recorded None: none was asked for."""
    reports = list(reports)
    value: dict[str, Any] = {
        "wiring": wiring,
        "shape": plan.shape,
        "stages": [_stage_value(choice, report) for choice, report in reports],
    }
    if any(report.usage.estimated for _, report in reports):
        value |= ESTIMATED
    if recorded is not None:
        value["record"] = [record_value(choice, each) for choice, each in recorded]
    return value


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
                **(ESTIMATED if branch.usage.estimated else {}),
            }
            for branch in report.branches
        ],
        "usage": usage_value([report.usage]),
        "seconds": round(report.seconds, 6),
        "first_token_seconds": None if report.first_token is None else round(report.first_token, 6),
        "finish_reason": report.finish_reason,
    }
    if report.gap is not None:
        value["gap_seconds"] = round(report.gap, 6)
    if report.prefill is not None:
        value["early_prefill"] = asdict(report.prefill)
    if (meters := report.meters) is not None:
        value["fusion"] = {
            "pieces": meters.pieces,
            "certified": meters.certified,
            "looked_up": meters.looked_up,
            "uncertified": meters.uncertified,
            "sampled": meters.sampled,
            "worst_gap": _finite(meters.worst_gap),
            "drift": meters.drift,
            "lost_mass": _finite(meters.lost_mass),
            "worst_lost": _finite(meters.worst_lost),
            "passes": meters.passes,
            "saved": meters.saved,
            "widened": meters.widened,
        }
        if report.waited is not None and report.own is not None:
            value["fusion"] |= {"waiting_seconds": round(report.waited, 6), "own_seconds": round(report.own, 6)}
        if report.drafts is not None:
            value["fusion"]["drafts"] = asdict(report.drafts)
        if report.quorum is not None:
            value["fusion"]["quorum"] = asdict(report.quorum)
    if report.dropped:
        value["dropped"] = [asdict(dropped) for dropped in report.dropped]
    return value


def record_value(choice: int, recorded: Recorded) -> dict[str, Any]:
    """How a group came to one piece of its answer."""
    return {
        "choice": choice,
        "piece": recorded.piece,
        **_text_value(recorded.text),
        "probability": recorded.probability,
        "certificate": recorded.certificate,
        "members": recorded.members,
        "others": [
            {"branch": branch, **_text_value(text), "probability": probability}
            for branch, text, probability in recorded.others
        ],
    }


def _text_value(text: bytes) -> dict[str, Any]:
    """A piece may be a part of a character, which text can't say."""
    return {"text": text.decode(errors="replace"), "bytes": list(text)}


def _finite(value: float) -> float | None:
    """JSON knows no infinity."""
    return float(value) if math.isfinite(value) else None
