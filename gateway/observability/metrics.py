"""Metrics for Prometheus. Labels take values from closed sets only (statuses, shapes, configured models), never a client's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from prometheus_client import CollectorRegistry, Info, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

import gateway
from backends.types import Usage
from gateway.observability.details import VERDICTS, Details
from gateway.observability.health import HealthMetrics, ReloadMetrics
from gateway.observability.record import RequestRecord
from gateway.observability.tallies import Counter, Gauge, Histogram, Number, Spread
from strategies.engine.events import StageReport

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """One registry per application, so that two applications in one process do not share counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._bound: dict[tuple[int, str, str], tuple[Number, Spread, Spread]] = {}
        self._requests = Counter(
            "modelnet_requests", "Chat requests.", ["status", "shape", "kind"], registry=self.registry
        )
        self._seconds = Histogram(
            "modelnet_request_seconds",
            "Whole chat requests.",
            ["shape", "kind"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._first = Histogram(
            "modelnet_first_token_seconds",
            "Until the first text of the answer.",
            ["shape"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._stage = Histogram(
            "modelnet_stage_seconds", "Stages.", ["shape", "role"], buckets=_SECONDS, registry=self.registry
        )
        self._tokens = Counter(
            "modelnet_tokens", "Tokens, in each model's own.", ["model", "direction"], registry=self.registry
        )
        self._active = Gauge("modelnet_active_requests", "Chat requests being answered.", registry=self.registry)
        self._streams = Gauge("modelnet_active_streams", "Streams open.", registry=self.registry)
        self._pieces = Counter(
            "modelnet_fused_pieces",
            "Pieces written by groups, by how certain each was.",
            ["verdict"],
            registry=self.registry,
        )
        self._drift = Counter(
            "modelnet_fused_drift", "Repairs: members set on a new tokenization.", registry=self.registry
        )
        self._lost = Counter(
            "modelnet_fused_lost_mass", "Probability mass of dropped readings.", registry=self.registry
        )
        self._drafts = Counter(
            "modelnet_fused_drafts",
            "Reading ahead: tokens proposed and accepted, passes over drafts (led: of a member ahead), steps spared, passes settled.",
            ["what"],
            registry=self.registry,
        )
        self._quorum = Counter(
            "modelnet_fused_quorum_pieces",
            "Pieces said without late members that could not have changed them.",
            registry=self.registry,
        )
        self._passes = Counter("modelnet_fused_passes", "Forward passes of group members.", registry=self.registry)
        self._widened = Counter(
            "modelnet_fused_widened", "Times that members were to list more tokens.", registry=self.registry
        )
        self.details = Details(self.registry, self._child)
        self.health = HealthMetrics(self.registry, self._child)
        self.reloads = ReloadMetrics(self.registry)
        Info("modelnet", "What runs.", registry=self.registry).info({"version": gateway.__version__})
        ProcessCollector(registry=self.registry)

    @contextmanager
    def active(self, stream: bool) -> Iterator[None]:
        """For the time in which a request is answered."""
        self.begin(stream)
        try:
            yield
        finally:
            self.end(stream)

    def begin(self, stream: bool) -> None:
        """A request is answered from now on; `end` it whatever happens."""
        self._active.inc()
        if stream:
            self._streams.inc()

    def end(self, stream: bool) -> None:
        """A request is not answered any more."""
        self._active.dec()
        if stream:
            self._streams.dec()

    def finished(self, record: RequestRecord) -> None:
        """A chat request is over, however it ended."""
        key = (record.status, record.shape, record.kind)
        bound = self._bound.get(key)
        if bound is None:
            bound = self._bound[key] = (
                self._requests.labels(str(record.status), record.shape, record.kind),
                self._seconds.labels(record.shape, record.kind),
                self._first.labels(record.shape),
            )
        requests, seconds, first = bound
        requests.value += 1
        seconds.observe(record.seconds())
        if record.first_token is not None:
            first.observe(record.first_token)
        self.details.finished(record)

    def turned_away(self, code: str) -> None:
        """A request was refused before any route had it: its key, its size, its headers."""
        self.details.failed(code)

    def forwarded(self, model: str, record: RequestRecord) -> None:
        """A request was handed to the model's own server, which told what was spent."""
        self._child(self._stage, record.shape, "solver").observe(record.seconds())
        if record.usage is not None:
            self.spent(model, record.usage)
        self.details.forwarded(model, record)

    def stage(self, shape: str, report: StageReport, record: RequestRecord) -> None:
        """A stage of a request is over."""
        self._stage.labels(shape, report.branches[0].role).observe(report.seconds)
        self.details.stage(shape, report, record)
        for branch in report.branches:
            self.spent(branch.model, branch.usage)
        if (meters := report.meters) is not None:
            for verdict in VERDICTS:
                self._pieces.labels(verdict).inc(getattr(meters, verdict))
            self._drift.inc(meters.drift)
            self._lost.inc(max(0.0, meters.lost_mass))
            self._passes.inc(meters.passes)
            self._widened.inc(meters.widened)
        if (drafts := report.drafts) is not None:
            for what, count in asdict(drafts).items():
                self._drafts.labels(what).inc(count)
        if report.quorum is not None:
            self._quorum.inc(report.quorum.pieces)

    def spent(self, model: str, usage: Usage) -> None:
        """A model has read and written that much."""
        self._child(self._tokens, model, "prompt").inc(usage.prompt_tokens)
        self._child(self._tokens, model, "completion").inc(usage.completion_tokens)

    @staticmethod
    def _child(metric: Any, *labels: str) -> Any:
        return metric.labels(*labels)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
