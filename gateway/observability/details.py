"""Metrics of who did what in a request: routes and their arms, wirings, stages, members of groups.

Wirings are what clients write, so only so many get a series of their own (`labels.Bounded`); what the configuration names always does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

from prometheus_client import CollectorRegistry

from gateway.ledger.row import outcome
from gateway.observability.labels import Bounded
from gateway.observability.record import RequestRecord
from gateway.observability.tallies import Counter, Histogram
from strategies.engine.events import StageReport
from strategies.fusion import Certificate, Meters

MOST_WIRINGS = 50
MOST_ERRORS = 64
"""Codes of errors are ours, and there are fewer."""

VERDICTS = get_args(Certificate)
"""On a group's piece."""

WAITS = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
"""Seconds for which people wait."""
GAPS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Seconds between two stages."""
STEPS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5)
"""Seconds for one token."""


class _Kind:
    """What is told of requests by one way of naming them. labels: that name; told: how the texts call it."""

    def __init__(self, registry: CollectorRegistry, child: Any, name: str, labels: list[str], told: str) -> None:
        self._child = child
        self._requests = Counter(
            f"modelnet_{name}_requests", f"Requests {told}.", [*labels, "outcome"], registry=registry
        )
        self._errors = Counter(
            f"modelnet_{name}_errors",
            f"Requests {told}, that failed or were refused, by code.",
            [*labels, "cause"],
            registry=registry,
        )
        self._tokens = Counter(
            f"modelnet_{name}_tokens",
            f"Tokens of all models of answered requests {told}.",
            [*labels, "direction"],
            registry=registry,
        )
        self._seconds = _histogram(registry, f"modelnet_{name}_seconds", f"Whole requests {told}.", labels, WAITS)
        self._first = _histogram(
            registry, f"modelnet_{name}_first_token_seconds", f"Until the first text, {told}.", labels, WAITS
        )
        self._pieces = Counter(
            f"modelnet_{name}_fused_pieces",
            f"Pieces written by groups in requests {told}, by how certain each was.",
            [*labels, "verdict"],
            registry=registry,
        )
        self._between = _histogram(
            registry,
            f"modelnet_{name}_inter_token_seconds",
            f"Mean time between two tokens or pieces of an answer, {told}.",
            labels,
            STEPS,
        )

    def finished(self, record: RequestRecord, cause: str | None, *labels: str) -> None:
        child = self._child
        child(self._requests, *labels, outcome(record.status, record.error)).inc()
        child(self._seconds, *labels).observe(record.seconds())
        if cause is not None:
            child(self._errors, *labels, cause).inc()
        if record.first_token is not None:
            child(self._first, *labels).observe(record.first_token)
        if (between := record.between()) is not None:
            child(self._between, *labels).observe(between)
        if record.usage is not None:
            child(self._tokens, *labels, "prompt").inc(record.usage.prompt_tokens)
            child(self._tokens, *labels, "completion").inc(record.usage.completion_tokens)

    def fused(self, meters: Meters, *labels: str) -> None:
        """A group has written that, in a request that may not be over."""
        for verdict in VERDICTS:
            self._child(self._pieces, *labels, verdict).inc(getattr(meters, verdict))


class Details:
    """child: `metric.labels(…)`, remembered by the caller."""

    def __init__(self, registry: CollectorRegistry, child: Any) -> None:
        self._child = child
        self._wiring = Bounded(MOST_WIRINGS)
        self._cause = Bounded(MOST_ERRORS)
        self._arms = _Kind(registry, child, "arm", ["route", "arm"], "to routes, by arm")
        self._wirings = _Kind(registry, child, "wiring", ["wiring"], "by wiring")
        self._errors = Counter(
            "modelnet_request_errors", "Requests that failed or were refused, by code.", ["cause"], registry=registry
        )
        self._stage_first = _histogram(
            registry,
            "modelnet_stage_first_token_seconds",
            "From the start of a stage to its first text.",
            ["shape", "role"],
            WAITS,
        )
        self._stage_token = _histogram(
            registry,
            "modelnet_inter_token_seconds",
            "Mean time between two tokens (of a group: pieces) of a stage.",
            ["shape", "role"],
            STEPS,
        )
        self._gap = _histogram(
            registry,
            "modelnet_stage_gap_seconds",
            "From the end of the stages that a stage reads to its own first text.",
            ["shape", "role"],
            GAPS,
        )
        self._early = Counter(
            "modelnet_early_prefills",
            "Times that models read what stages before theirs were still writing, and models that failed at it.",
            ["outcome"],
            registry=registry,
        )
        self._model_first = _histogram(
            registry,
            "modelnet_model_first_token_seconds",
            "From the start of a stage to its first text, where one model writes it.",
            ["model"],
            WAITS,
        )
        self._model_token = _histogram(
            registry,
            "modelnet_model_inter_token_seconds",
            "Mean time between two tokens of a stage that one model writes.",
            ["model"],
            STEPS,
        )
        self._dropped = Counter(
            "modelnet_members_dropped", "Members that groups went on without.", ["model", "why"], registry=registry
        )
        self._degraded = Counter(
            "modelnet_fused_degraded_pieces", "Pieces written after a member had left.", registry=registry
        )
        self._slowest = Counter(
            "modelnet_slowest_member",
            "Fused stages in which this member was waited for longest.",
            ["model"],
            registry=registry,
        )
        self._saved = Counter(
            "modelnet_fused_passes_saved", "Forward passes that members were spared.", registry=registry
        )

    def know(self, wirings: Iterable[str]) -> None:
        """Wirings that the configuration names."""
        self._wiring.know(wirings)

    def failed(self, code: str) -> str:
        """Count a failure. Gives the cause that it is counted under."""
        cause = self._cause(code)
        self._child(self._errors, cause).inc()
        return cause

    def finished(self, record: RequestRecord) -> None:
        """A request is over."""
        cause = None if record.error is None else self.failed(record.error)
        if record.wiring is not None:
            self._wirings.finished(record, cause, self._wiring(record.wiring))
        if record.route is not None and record.arm is not None:
            self._arms.finished(record, cause, record.route, record.arm)

    def forwarded(self, model: str, record: RequestRecord) -> None:
        """A request was handed to the model's own server."""
        tokens = 0 if record.usage is None else record.usage.completion_tokens
        if record.first_token is not None and record.kind == "stream":
            self._by_one(model, record.first_token, record.seconds(), tokens)

    def stage(self, shape: str, report: StageReport, record: RequestRecord) -> None:
        """A stage of a request is over."""
        child, role = self._child, report.branches[0].role
        meters, first = report.meters, report.first_token
        tokens = report.branches[0].usage.completion_tokens if meters is None else meters.pieces
        if first is not None:
            child(self._stage_first, shape, role).observe(first)
            if tokens > 1:
                child(self._stage_token, shape, role).observe((report.seconds - first) / (tokens - 1))
        if report.gap is not None:
            child(self._gap, shape, role).observe(report.gap)
        if (early := report.prefill) is not None:
            child(self._early, "prepared").inc(early.prepared)
            child(self._early, "failed").inc(early.failed)
        if meters is None:
            if first is not None:
                self._by_one(report.branches[0].model, first, report.seconds, tokens)
            return
        self._saved.inc(meters.saved)
        if record.wiring is not None:
            self._wirings.fused(meters, self._wiring(record.wiring))
        if record.route is not None and record.arm is not None:
            self._arms.fused(meters, record.route, record.arm)
        if report.dropped:
            self._degraded.inc(max(0, meters.pieces - report.dropped[0].piece))
        for gone in report.dropped:
            child(self._dropped, gone.model, "late" if gone.late else "failed").inc()
        waited = [branch for branch in report.branches if branch.seconds > 0]
        if len(waited) > 1:
            slowest = max(waited, key=lambda branch: branch.seconds)
            child(self._slowest, slowest.model).inc()

    def _by_one(self, model: str, first: float, seconds: float, tokens: int) -> None:
        self._child(self._model_first, model).observe(first)
        if tokens > 1:
            self._child(self._model_token, model).observe((seconds - first) / (tokens - 1))


def _histogram(
    registry: CollectorRegistry, name: str, text: str, labels: list[str], buckets: tuple[float, ...]
) -> Histogram:
    return Histogram(name, text, labels, buckets=buckets, registry=registry)
