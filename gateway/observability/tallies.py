"""Counters, gauges and histograms that are only touched on the event loop, and shown to Prometheus when it asks.

As in `prometheus_client`, whose registry and text format they use, without its locks and checks: a request touches a dozen of them,
and they must cost next to nothing (docs/hot-path.md). `labels` gives the one to touch for these values; keep it where that can be.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

_bound: Callable[[float], str] = floatToGoString


class Number:
    """A value of a counter or a gauge."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Add."""
        self.value += amount

    def dec(self, amount: float = 1.0) -> None:
        """Take away; of gauges only."""
        self.value -= amount

    def set(self, value: float) -> None:
        """Replace; of gauges only."""
        self.value = value


class Spread:
    """Values of a histogram. counts: per bucket, the last one above all bounds."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """One more."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


Child = TypeVar("Child", Number, Spread)


class _Family(Collector, ABC, Generic[Child]):
    """All children of one name."""

    def __init__(self, name: str, help: str, labels: Sequence[str] = (), *, registry: CollectorRegistry) -> None:
        self._name = name
        self._help = help
        self._labels = tuple(labels)
        self._children: dict[tuple[str, ...], Child] = {}
        if not labels:
            self._children[()] = self._new()
        registry.register(self)

    def labels(self, *values: str) -> Child:
        """The one with these labels. Raises ValueError for too few or too many."""
        child = self._children.get(values)
        if child is None:
            if len(values) != len(self._labels):
                raise ValueError(f"{self._name} has the labels {', '.join(self._labels)}")
            child = self._children[values] = self._new()
        return child

    @abstractmethod
    def _new(self) -> Child: ...

    def describe(self) -> Iterable[Metric]:
        return self.collect()


class Counter(_Family[Number]):
    """Only grows."""

    def inc(self, amount: float = 1.0) -> None:
        """Of one without labels."""
        self._children[()].value += amount

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily(self._name, self._help, labels=self._labels)
        for labels, child in list(self._children.items()):  # others count meanwhile
            family.add_metric(labels, child.value)
        yield family

    def _new(self) -> Number:
        return Number()


class Gauge(_Family[Number]):
    """Grows and shrinks."""

    def inc(self, amount: float = 1.0) -> None:
        """Of one without labels."""
        self._children[()].value += amount

    def dec(self, amount: float = 1.0) -> None:
        """Of one without labels."""
        self._children[()].value -= amount

    def set(self, value: float) -> None:
        """Of one without labels."""
        self._children[()].value = value

    def set_to_current_time(self) -> None:
        """Unix seconds, of one without labels."""
        self.set(time.time())

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(self._name, self._help, labels=self._labels)
        for labels, child in list(self._children.items()):  # others count meanwhile
            family.add_metric(labels, child.value)
        yield family

    def _new(self) -> Number:
        return Number()


class Histogram(_Family[Spread]):
    """How values are spread. buckets: upper bounds, ascending, each within its bucket."""

    def __init__(
        self,
        name: str,
        help: str,
        labels: Sequence[str] = (),
        *,
        buckets: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._bounds = tuple(float(bound) for bound in buckets)
        super().__init__(name, help, labels, registry=registry)

    def observe(self, value: float) -> None:
        """Of one without labels."""
        self._children[()].observe(value)

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(self._name, self._help, labels=self._labels)
        for labels, child in list(self._children.items()):  # others count meanwhile
            total, buckets = 0, []
            for bound, count in zip((*self._bounds, float("inf")), child.counts, strict=True):
                total += count
                buckets.append((_bound(bound), total))
            family.add_metric(labels, buckets, child.sum)
        yield family

    def _new(self) -> Spread:
        return Spread(self._bounds)
