"""Metrics for Prometheus. Labels take values from closed sets only (statuses, shapes, configured models), never a client's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from gateway.observability.record import RequestRecord
from strategies.engine.events import StageReport

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """One registry per application, so that two applications in one process do not share counts."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # half of all series, of use to nobody here
        self.registry = CollectorRegistry()
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
        self._passes = Counter("modelnet_fused_passes", "Forward passes of group members.", registry=self.registry)

    @contextmanager
    def active(self, stream: bool) -> Iterator[None]:
        """For the time in which a request is answered."""
        gauges = (self._active, self._streams) if stream else (self._active,)
        for gauge in gauges:
            gauge.inc()
        try:
            yield
        finally:
            for gauge in gauges:
                gauge.dec()

    def finished(self, record: RequestRecord) -> None:
        """A chat request is over, however it ended."""
        self._requests.labels(str(record.status), record.shape, record.kind).inc()
        self._seconds.labels(record.shape, record.kind).observe(record.seconds())
        if record.first_token is not None:
            self._first.labels(record.shape).observe(record.first_token)

    def stage(self, shape: str, report: StageReport) -> None:
        """A stage is over."""
        self._stage.labels(shape, report.branches[0].role).observe(report.seconds)
        for branch in report.branches:
            self._tokens.labels(branch.model, "prompt").inc(branch.usage.prompt_tokens)
            self._tokens.labels(branch.model, "completion").inc(branch.usage.completion_tokens)
        if (meters := report.meters) is not None:
            for verdict in ("certified", "looked_up", "uncertified"):
                self._pieces.labels(verdict).inc(getattr(meters, verdict))
            self._drift.inc(meters.drift)
            self._lost.inc(max(0.0, meters.lost_mass))
            self._passes.inc(meters.passes)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
