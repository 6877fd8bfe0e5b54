"""Metrics of the backends' health: what failed and why, what was asked again, and the state of breakers and queues."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from backends.catalog import Entry
from backends.protocol import ReplicatedBackend, SeatedBackend
from backends.wrappers import State, Watcher, guard_of, inner
from gateway.observability.details import STEPS
from gateway.observability.tallies import Counter, Gauge, Histogram
from gateway.web.admission import Admission

STATES: Mapping[State, int] = {"closed": 0, "half_open": 1, "open": 2}


class HealthMetrics(Watcher):
    """Counts what the guards tell. child: `metric.labels(…)`, remembered by the caller."""

    def __init__(self, registry: CollectorRegistry, child: Any) -> None:
        self._child = child
        self._errors = Counter(
            "modelnet_backend_errors",
            "Failures and refusals of backends, by cause.",
            ["model", "cause"],
            registry=registry,
        )
        self._retries = Counter(
            "modelnet_retries", "Backends asked again, by the cause.", ["model", "cause"], registry=registry
        )
        self._denied = Counter(
            "modelnet_retries_denied", "Not asked again: the budget was spent.", ["model"], registry=registry
        )
        self._reruns = Counter(
            "modelnet_stage_reruns", "Unseen stages that were run again.", ["model"], registry=registry
        )
        self._hedges = Counter(
            "modelnet_hedges", "Second attempts beside a silent first.", ["model"], registry=registry
        )
        self._hedges_won = Counter(
            "modelnet_hedges_won", "Second attempts that were quicker.", ["model"], registry=registry
        )
        self._turns = Counter(
            "modelnet_breaker_turns",
            "Changes of circuit breakers, by new state.",
            ["model", "state"],
            registry=registry,
        )
        self._steps = Histogram(
            "modelnet_member_step_seconds",
            "Mean time of a member's forward passes in one fused stage, as its group waited for them.",
            ["model"],
            buckets=STEPS,
            registry=registry,
        )

    def failed(self, model: str, cause: str) -> None:
        self._child(self._errors, model, cause).inc()

    def retried(self, model: str, cause: str) -> None:
        self._child(self._retries, model, cause).inc()

    def unaffordable(self, model: str) -> None:
        self._child(self._denied, model).inc()

    def rerun(self, model: str) -> None:
        self._child(self._reruns, model).inc()

    def hedged(self, model: str) -> None:
        self._child(self._hedges, model).inc()

    def hedge_won(self, model: str) -> None:
        self._child(self._hedges_won, model).inc()

    def turned(self, model: str, state: State) -> None:
        self._child(self._turns, model, state).inc()

    def stepped(self, model: str, steps: int, seconds: float) -> None:
        self._child(self._steps, model).observe(seconds / steps)


Look = Callable[[], tuple[Iterable[str], Mapping[str, Entry]]]
"""Gives the names of all configured models, and the entries of those that could be started."""


class HealthCollector(Collector):
    """The state of every model as it is now. look: asked every time, since a reload replaces them."""

    def __init__(self, look: Look) -> None:
        self._look = look

    def collect(self) -> Iterator[Metric]:
        """Every number as it is now."""
        names, entries = self._look()
        ready = GaugeMetricFamily("modelnet_model_ready", "1 if the model was started.", labels=["model"])
        for name in names:
            ready.add_metric([name], float(name in entries))
        breaker = GaugeMetricFamily(
            "modelnet_breaker_state", "Of the circuit breaker: 0 closed, 1 half open, 2 open.", labels=["model"]
        )
        budget = GaugeMetricFamily("modelnet_retry_budget", "Repetitions that could be paid for now.", labels=["model"])
        taken = GaugeMetricFamily("modelnet_seats_taken", "Streams and sessions that hold a seat.", labels=["model"])
        queue = GaugeMetricFamily("modelnet_queue", "Requests that wait for a seat.", labels=["model"])
        replicas = GaugeMetricFamily("modelnet_replicas", "Servers of the model.", labels=["model"])
        out = GaugeMetricFamily("modelnet_replicas_out", "Servers that are left out for a while.", labels=["model"])
        for name, entry in entries.items():
            backend = inner(entry.backend)
            if (guard := guard_of(entry.backend)) is not None:
                breaker.add_metric([name], STATES[guard.state])
                budget.add_metric([name], guard.budget.left)
            if isinstance(backend, SeatedBackend):
                taken.add_metric([name], backend.seats.taken)
                queue.add_metric([name], backend.seats.waiting)
            if isinstance(backend, ReplicatedBackend):
                replicas.add_metric([name], backend.replicas)
                out.add_metric([name], backend.replicas_out)
        yield from (ready, breaker, budget, taken, queue, replicas, out)


class EdgeCollector(Collector):
    """Places for requests, and who was refused one."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def collect(self) -> Iterator[Metric]:
        """Every number as it is now."""
        admission = self._admission
        yield GaugeMetricFamily("modelnet_places", "Requests that may be answered at once.", admission.most)
        yield GaugeMetricFamily("modelnet_places_taken", "Requests that have a place.", admission.taken)
        yield GaugeMetricFamily("modelnet_draining", "1 once the gateway is about to end.", admission.draining)
        shed = CounterMetricFamily("modelnet_shed", "Requests refused for want of places.", labels=["priority"])
        for priority, count in admission.shed.items():
            shed.add_metric([priority], count)
        yield shed


class ReloadMetrics:
    """How often the configuration was read anew, and whether what is served is what the file says."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._reloads = Counter("modelnet_reloads", "Reloads, by result.", ["result"], registry=registry)
        self._good = Gauge("modelnet_config_good", "0 if the last reload failed.", registry=registry)
        self._since = Gauge(
            "modelnet_config_since_seconds", "Unix time of the configuration that is served.", registry=registry
        )
        self._good.set(1)
        self._since.set(time.time())

    def count(self, result: str) -> None:
        """A reload is over: done, unchanged or failed."""
        self._reloads.labels(result).inc()
        self._good.set(result != "failed")
        if result == "done":
            self._since.set(time.time())
