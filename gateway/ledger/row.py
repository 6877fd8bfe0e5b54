"""What is kept of one request. No prompt and no answer, unless the configuration asks for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from strategies.engine.events import StageReport

Outcome = Literal["ok", "error", "refused", "abandoned"]
"""error: ours or a model's fault (5xx, or the stream broke off). refused: 4xx. abandoned: the client left."""

CLIENT_LEFT = 499


@dataclass(slots=True)
class Row:
    """One request, or one shadow copy of one.

    id: of the row. at: Unix seconds at which it came. seconds, first_token: since then. completion: the id in the answer. key: the
    id of the key. route, arm, arm_by, subject, shares: as of `gateway.experiments.Choice`. shadow_of: the completion that this is a
    copy of. model: as asked for. wiring: canonical, what ran last. stages: of everything that finished, of failed attempts too.
    attempts: what was tried before what answered, and why it did not. nano: cost in billionths of the currency.
    texts: messages and answer, where they are to be kept.
    """

    id: str
    at: float
    request_id: str = ""
    endpoint: str = ""
    completion: str | None = None
    key: str | None = None
    route: str | None = None
    arm: str | None = None
    arm_by: str | None = None
    subject: str | None = None
    shares: Mapping[str, float] | None = None
    shadow_of: str | None = None
    model: str | None = None
    wiring: str | None = None
    shape: str = "unknown"
    kind: str = "json"
    status: int = 0
    outcome: Outcome = "ok"
    error: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    nano: int = 0
    seconds: float = 0.0
    first_token: float | None = None
    stages: tuple[StageReport, ...] = ()
    attempts: tuple[tuple[str, str], ...] = ()
    texts: Mapping[str, Any] | None = None

    def values(self) -> tuple[Any, ...]:
        """In the order of COLUMNS."""
        return tuple(_WRITERS.get(name, _as_it_is)(getattr(self, name)) for name in COLUMNS)


@dataclass(frozen=True, slots=True)
class Feedback:
    """A score for a completion, 0 to 1. The last one from the completion's own key counts."""

    completion: str
    key: str | None
    at: float
    score: float = field(default=0.0)


COLUMNS = (
    *("id", "at", "request_id", "endpoint", "completion", "key", "route", "arm", "arm_by", "subject", "shares"),
    *("shadow_of", "model", "wiring", "shape", "kind", "status", "outcome", "error", "prompt_tokens"),
    *("completion_tokens", "nano", "seconds", "first_token", "stages", "attempts", "texts"),
)


def outcome(status: int, error: str | None) -> Outcome:
    """How a request ended, by what the client was sent. A stream that broke off has status 200 and an error."""
    if status == CLIENT_LEFT:
        return "abandoned"
    if 400 <= status < 500:
        return "refused"
    return "ok" if status < 400 and error is None else "error"


def stages_value(stages: tuple[StageReport, ...]) -> list[dict[str, Any]]:
    """As JSON, short names: there is one for every stage of every request."""
    return [
        {
            "stage": report.stage,
            "models": [
                [branch.model, branch.role, branch.usage.prompt_tokens, branch.usage.completion_tokens]
                for branch in report.branches
            ],
            "seconds": round(report.seconds, 6),
            "first": None if report.first_token is None else round(report.first_token, 6),
            "end": report.finish_reason,
        }
        for report in stages
    ]


def _as_it_is(value: Any) -> Any:
    return value.replace("\x00", "") if isinstance(value, str) else value  # PostgreSQL's TEXT takes no NUL


def _json(value: Any) -> str | None:
    return orjson.dumps(value).decode() if value else None


def _escaped(value: Any) -> str | None:
    # orjson refuses lone surrogates, which a client's text may hold; the standard library escapes them.
    return json.dumps(value) if value else None


_WRITERS: dict[str, Callable[[Any], Any]] = {
    "shares": _json,
    "texts": _escaped,
    "attempts": _json,
    "stages": lambda stages: _json(stages_value(stages)),
}
