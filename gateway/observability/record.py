"""What is known of one HTTP request: filled in on the way, read by the access log and the metrics at the end."""

from __future__ import annotations

import time
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any, Literal

from backends.types import Usage

_KEY = "modelnet.record"


@dataclass(slots=True)
class RequestRecord:
    """
    status: of HTTP as sent; 499 if the client left before there was one or while it was answered. error: its code, if any.
    shape, kind: of the wiring ("unknown" until it is planned) and of the answer ("stream" or "json").
    wiring: canonical, what ran last. first_token: seconds from the start to the first text of the answer. key: the id of the
    caller's key. route, arm: where the model name is a route. completion: the id in the answer. priority: low, normal or high.
    timeout: seconds that the client gives it, None where it does not say. pieces: of text that went out; last_piece: seconds from the
    start to the last of them. Of an answer that is handed on only the first one is known.
    """

    request_id: str
    started: float = field(default_factory=time.perf_counter)
    status: int = 0
    model: str | None = None
    wiring: str | None = None
    shape: str = "unknown"
    kind: str = "json"
    error: str | None = None
    first_token: float | None = None
    last_piece: float = 0.0
    pieces: int = 0
    usage: Usage | None = None
    completion: str | None = None
    key: str | None = None
    route: str | None = None
    arm: str | None = None
    priority: Literal["low", "normal", "high"] = "normal"
    timeout: float | None = None

    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self.started

    def wrote(self) -> None:
        """Text of the answer went out."""
        self.last_piece = self.seconds()
        self.pieces += 1
        if self.first_token is None:
            self.first_token = self.last_piece

    def between(self) -> float | None:
        """Mean seconds between two pieces of the answer (of one that is handed on: tokens); None where there are not two."""
        if self.first_token is None:
            return None
        if self.pieces > 1:
            return (self.last_piece - self.first_token) / (self.pieces - 1)
        tokens = (
            0 if self.usage is None or self.shape != "single" or self.kind != "stream" else self.usage.completion_tokens
        )
        return (self.seconds() - self.first_token) / (tokens - 1) if tokens > 1 else None


def attach(scope: MutableMapping[str, Any], record: RequestRecord) -> None:
    """Put it where everything further in finds it."""
    scope[_KEY] = record


def record_of(scope: MutableMapping[str, Any]) -> RequestRecord:
    """The record of this request; a new one where nothing outside has attached any."""
    found = scope.get(_KEY)
    if isinstance(found, RequestRecord):
        return found
    scope[_KEY] = record = RequestRecord(request_id="")
    return record
