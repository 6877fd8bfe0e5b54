"""The state of keys, limits, ledger and shadows, read when Prometheus asks."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.operations import Operations


class OperationsCollector(Collector):
    """One per application."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    def collect(self) -> Iterator[Metric]:
        """Every number as it is now."""
        operations = self._operations
        shadows, limiter = operations.shadows, operations.limiter
        yield CounterMetricFamily("modelnet_shadows_finished", "Shadow copies that were answered.", shadows.finished)
        yield CounterMetricFamily("modelnet_shadows_failed", "Shadow copies that failed.", shadows.failed)
        yield CounterMetricFamily("modelnet_shadows_skipped", "Requests not copied: too many at once.", shadows.skipped)
        yield GaugeMetricFamily("modelnet_shadows_running", "Shadow copies under way.", shadows.running)
        refused = CounterMetricFamily("modelnet_refused", "Requests over a limit of their key.", labels=["reason"])
        for reason, count in sorted(limiter.refused.items()):
            refused.add_metric([reason], count)
        yield refused
        if limiter.shared is not None:
            yield GaugeMetricFamily(
                "modelnet_limits_down", "1 while the shared limits can't be asked.", limiter.shared.down
            )
            yield CounterMetricFamily("modelnet_limits_failures", "Calls to them that failed.", limiter.shared.failures)
        if operations.keeper is not None:
            failing = operations.keeper.failing
            yield GaugeMetricFamily("modelnet_keys_failing", "1 while stored keys can't be read.", failing)
        if (ledger := operations.ledger) is not None:
            yield CounterMetricFamily("modelnet_ledger_written", "Rows in the database.", ledger.written)
            yield CounterMetricFamily("modelnet_ledger_dropped", "Rows lost: too many waited.", ledger.dropped)
            yield GaugeMetricFamily("modelnet_ledger_waiting", "Rows not yet in the database.", ledger.waiting)
            failing = ledger.failing is not None
            yield GaugeMetricFamily("modelnet_ledger_failing", "1 while the database can't be written.", failing)
